"""Test that the oracle puts every message into its class: a harness that sees no loss shows nothing."""

import pathlib
from typing import List

import hypothesis
import lmdb
import pytest

import persipubsub
from tests.faults import oracle
from tests.faults.journal import (Event, Journal, envelope, events, is_broken, message, name_of, name_with_headers,
                                  sender_and_number)
from tests.faults.oracle import Oracle, Verdict


def judge(*lines: str) -> Verdict:
    """Judge what is noted in lines, in that order, for the subscriber a."""
    noted = [Event(number, what, tuple(words)) for number, (what, *words) in enumerate(map(str.split, lines), 1)]
    return Oracle(noted).verdict("a")


def one(name: str) -> frozenset[str]:
    """Return a set of one name."""
    return frozenset([name])


@hypothesis.given(hypothesis.strategies.binary())
@hypothesis.example(b"p\x0cq:1:5")
@hypothesis.example(b"p:1:999999999")
@hypothesis.example(b"p:\xc2\x85:0")
def test_broken_messages_are_one_word_each(payload: bytes) -> None:
    """Whatever bytes a power cut leaves of a message, its name is one word of one line, and whole names are found."""
    name = name_of(payload)
    assert name.split() == [name] and name.splitlines() == [name]
    assert is_broken(name) or payload.startswith(name.encode()) and sender_and_number(name)


def test_ok() -> None:
    """What was sent and handed out is ok, acknowledged or not, and in no other class."""
    verdict = judge("sending p:0:0 p:1:0", "sent 1 p:0:0 p:1:0", "handed a p:0:0", "taken a p:0:0", "left a p:1:0")
    assert verdict == Verdict(frozenset(["p:0:0", "p:1:0"]), *[frozenset()] * 6)
    assert not verdict.faults()


def test_lost() -> None:
    """What send acknowledged and nobody got is lost."""
    verdict = judge("sending p:0:0 p:1:0", "sent 1 p:0:0 p:1:0", "left a p:1:0")
    assert verdict.lost == one("p:0:0") and verdict.faults() == ["1 lost: p:0:0"]


def test_other_subscribers_do_not_count() -> None:
    """What only another subscriber got is lost."""
    assert judge("sending p:0:0", "sent 1 p:0:0", "left b p:0:0").lost == one("p:0:0")


def test_pruned() -> None:
    """Of what is missing, only as many as were allowed to go are pruned, the oldest first."""
    sent = ["sending p:0:0 p:1:0 p:2:0", "sent 1 p:0:0 p:1:0 p:2:0"]
    verdict = judge(*sent, "may-go a 1", "left a p:2:0")
    assert verdict.pruned == one("p:0:0") and verdict.lost == one("p:1:0")


def test_hole_is_no_pruning() -> None:
    """What is missing behind a message that is there was not pruned, whatever was allowed."""
    sent = ["sending p:0:0 p:1:0 p:2:0", "sent 1 p:0:0 p:1:0 p:2:0"]
    assert judge(*sent, "may-go a 3", "left a p:0:0 p:2:0").lost == one("p:1:0")


def test_duplicated() -> None:
    """What comes again after its acknowledgement, or twice in one draining, is duplicated; a look is no delivery."""
    sent = ["sending p:0:0", "sent 1 p:0:0", "handed a p:0:0"]
    assert judge(*sent, "taken a p:0:0", "left a p:0:0").duplicated == one("p:0:0")
    assert judge(*sent, "left a p:0:0 p:0:0").duplicated == one("p:0:0")
    assert judge(*sent, "handed a p:0:0", "left a p:0:0").ok == one("p:0:0")


@pytest.mark.parametrize("left", ["left a", "left a p:0:0"])
def test_unknown(left: str) -> None:
    """What was being sent when its sender died is unknown, whether it is there or not."""
    verdict = judge("sending p:0:0", left)
    assert verdict.unknown == one("p:0:0") and not verdict.faults()


def test_invented() -> None:
    """What nobody sent, or what was refused, or has other bytes, may not be handed out."""
    assert judge("left a p:0:0").invented == one("p:0:0")
    assert judge("sending p:0:0", "refused p:0:0", "left a p:0:0").invented == one("p:0:0")
    broken = message("p", 0, 100)[:99]
    assert judge("sending p:0:100", f"left a {name_of(broken)}").invented == one("?p:0:100")


def test_refused() -> None:
    """What was refused and is not there is no message."""
    assert judge("sending p:0:0", "refused p:0:0") == Verdict(*[frozenset()] * 7)


def test_misplaced() -> None:
    """Messages of one sender keep their order; those of two senders have none, and a second look does not count."""
    sent = ["sending p:0:0 p:1:0 q:0:0", "sent 1 p:0:0 p:1:0 q:0:0"]
    assert judge(*sent, "left a p:1:0 q:0:0 p:0:0").misplaced == one("p:0:0")
    assert not judge(*sent, "handed a q:0:0 p:0:0 p:1:0", "left a p:0:0 p:1:0 q:0:0").misplaced


def test_joined() -> None:
    """A subscriber does not await what was sent before it joined."""
    verdict = judge("sending p:0:0", "sent 1 p:0:0", "joined a", "sending p:1:0", "sent 2 p:1:0")
    assert verdict.lost == one("p:1:0")


@pytest.mark.parametrize("number", range(13))
def test_headers_are_compared(number: int) -> None:
    """A message that is received with other headers than it was sent with, or without them, is not the one sent."""
    payload = message("p", number)
    sent = envelope(payload)
    headers = dict(sent.headers or {})
    assert (sent.headers is None) == (number % 3 == 0)
    assert name_with_headers(payload, headers) == f"p:{number}:0"
    others = [{**headers, "more": ""}, {name: f"{text}!" for name, text in headers.items()}, {}]
    for other in others[:1] if sent.headers is None else others:
        assert is_broken(name_with_headers(payload, other))
        assert judge(f"left a {name_with_headers(payload, other)}").invented


@pytest.mark.parametrize("size_bytes", [0, 3, 6, 7, 100, 200_000])
def test_message_knows_its_bytes(size_bytes: int) -> None:
    """A message of any size is recognised by its name; a changed or lost byte is noticed."""
    whole = message("p", 0, size_bytes)
    assert len(whole) >= size_bytes and name_of(whole) == f"p:0:{size_bytes}"
    assert name_of(whole[:-1] + b"!").startswith("?")
    assert name_of(whole + b"p").startswith("?")


def test_half_a_line_is_no_event(tmp_path: pathlib.Path) -> None:
    """What a killed process had begun to note does not count."""
    Journal(tmp_path / "one").note(oracle.SENT, ["1", "p:0:0"], durably=True)
    (tmp_path / "two").write_text("7 sent 2 p:1", encoding="utf-8")
    assert [event.words for event in events(tmp_path)] == [("1", "p:0:0")]


@pytest.mark.damages_queues
def test_message_deleted_on_purpose_is_lost(tmp_path: pathlib.Path) -> None:
    """A message that is deleted behind the back of a real queue is lost, and no other is."""
    journal = Journal(tmp_path / "journal")
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        environment.new_control(["a"])
        publisher = environment.new_publisher()
        for number in range(3):
            payload = message("p", number, 100)
            journal.note(oracle.SENDING, [name_of(payload)])
            journal.note(oracle.SENT, [str(publisher.send(payload)), name_of(payload)], durably=True)
    delete_message(tmp_path / "queue", 2)
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        left: List[bytes] = list(environment.new_subscriber("a").messages(timeout=0))
    journal.note(oracle.LEFT, ["a", *map(name_of, left)])
    journal.close()
    (tmp_path / "journals").mkdir()
    (tmp_path / "journal").rename(tmp_path / "journals" / "journal")
    verdict = Oracle(events(tmp_path / "journals")).verdict("a")
    assert verdict.lost == one("p:1:100") and len(verdict.ok) == 2


def delete_message(path: pathlib.Path, message_id: int) -> None:
    """Delete a message behind the back of the library."""
    raw = lmdb.Environment(str(path), create=False, max_readers=1024, max_dbs=32)
    try:
        data_db = raw.open_db(b"data_db", create=False)
        with raw.begin(write=True, db=data_db) as txn:
            assert txn.delete(message_id.to_bytes(8, "big"))
    finally:
        raw.close()
