"""Recovering keeps the headers of messages, delayed messages, dead letters and requeued ones."""

import pathlib
from typing import Callable, Dict, List, Mapping, Optional, Tuple

import pytest

import persipubsub
from persipubsub import Durability, Envelope, Environment, Reject, clock, compaction, recovery
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records.layouts import HEADERS_PART, PART_KEY
from persipubsub.lmdb_engine.records.page_file import PageFile
from persipubsub.lmdb_engine.repair import orphan_pages
from tests.damages import Raw
from tests.repair.pages import compacted, destroy, destroy_trees, sub_databases

MakeEnvironment = Callable[..., Environment]

DELAY_S = 10**6
MESSAGES, DELAYED, LETTERS = 60, 30, 20
#: The lengths of headers: some are as long as records of other sub-databases, and some fill several pages.
LENGTHS = (1, 8, 20, 28, 300, 1500, 5000, 30_000)


def payload(number: int) -> bytes:
    """Return a message; some have several parts."""
    return b"%d " % number * (50_000 if number % 30 == 0 else 10)


def headers(number: int) -> Dict[str, str]:
    """Return the headers of a message; some have none."""
    return {"number": str(number), "text": "é" * LENGTHS[number % len(LENGTHS)]} if number % 3 else {}


def envelope(number: int) -> "Envelope[bytes]":
    """Return a message with its headers."""
    return Envelope(payload(number), headers(number))


def expected(*numbers: int) -> List[Tuple[bytes, Mapping[str, str]]]:
    """Return what is received of messages."""
    return [(payload(number), headers(number)) for number in numbers]


@pytest.fixture(name="path")
def path_fixture(new_environment: MakeEnvironment) -> pathlib.Path:
    """Make a queue with headers in the log, of delayed messages, of dead letters, and of requeued ones."""
    with new_environment("all", durability=Durability.PROCESS_CRASH) as environment:
        control, publisher = environment.new_control(), environment.new_publisher()
        control.add_subscriber("limited", max_deliveries=9)
        control.add_subscriber("shared", shared=True, max_deliveries=9)
        publisher.send_many(map(envelope, range(MESSAGES // 2)))
        for number in range(MESSAGES // 2, MESSAGES):
            publisher.send(envelope(number))
        for number in range(MESSAGES, MESSAGES + DELAYED):
            publisher.send_later(envelope(number), delay_s=DELAY_S)
        for identifier in ("limited", "shared"):
            for _ in range(LETTERS):
                with environment.new_subscriber(identifier).receive(timeout=0):
                    raise Reject
            ids = [letter.id for letter in control.dead_letters(identifier)]
            control.requeue_dead_letters(identifier, ids[::2])
        assert control.check() == ()
    return environment.path


def received(environment: Environment, identifier: str) -> List[Tuple[bytes, Mapping[str, str]]]:
    """Receive and acknowledge all messages of a subscriber."""
    subscriber = environment.new_subscriber(identifier)
    return [(one.message, one.headers) for one in subscriber.deliveries(timeout=0)]


def assert_all_is_there(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages are where the fixture put them, with their headers, and the delayed ones when they are due."""
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control()
        assert control.check() == ()
        for identifier in ("limited", "shared"):
            letters = [(letter.payload, letter.headers) for letter in control.dead_letters(identifier)]
            assert letters == expected(*range(1, LETTERS, 2))
            found, wanted = received(environment, identifier), expected(*range(0, LETTERS, 2),
                                                                        *range(LETTERS, MESSAGES))
            # Without trees, a message that was perhaps in flight comes again.
            assert all(one in found for one in wanted) and all(one in expected(*range(MESSAGES)) for one in found)
        assert received(environment, "all") == expected(*range(MESSAGES))
        boottime_us = clock.boottime_us()
        monkeypatch.setattr(clock, "boottime_us", lambda: boottime_us + DELAY_S * 10**6 + 10**8)
        assert received(environment, "all") == expected(*range(MESSAGES, MESSAGES + DELAYED))
        assert control.check() == ()


@pytest.mark.parametrize("work", [recovery.recover, compaction.compact])
def test_a_sound_queue(work: Callable[[pathlib.Path], object], path: pathlib.Path,
                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovering or compacting a sound queue keeps all headers."""
    work(path)
    assert_all_is_there(path, monkeypatch)


def test_without_trees(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trees, the headers are found by the shape of their records."""
    compacted(path)
    destroy_trees(path)
    report = recovery.recover(path)
    assert (report.messages_lost, report.letters_lost, report.delayed) == (0, 0, DELAYED)
    assert_all_is_there(path, monkeypatch)


@pytest.mark.parametrize("name", ["meta_db", "pending_db", "due_db", "once_db"])
def test_without_a_sub_database_that_has_no_headers(name: str, path: pathlib.Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is lost, a message has its headers."""
    compacted(path)
    destroy(path, sub_databases(path)[name])
    recovery.recover(path)
    assert_all_is_there(path, monkeypatch)


@pytest.mark.damages_queues
@pytest.mark.parametrize("name", ["data_db", "chunk_db", "letter_db", "delayed_db"])
def test_without_a_sub_database_that_has_messages(name: str, path: pathlib.Path) -> None:
    """Where messages or their headers are lost, no other message gets those headers, and the queue is sound."""
    compacted(path)
    destroy(path, sub_databases(path)[name])
    recovery.recover(path)
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control()
        assert control.check() == ()
        history, letters = list(control.history()), list(control.dead_letters("shared"))
        found = [(one.payload, one.headers) for one in history] + [(one.payload, one.headers) for one in letters]
        for message, of_it in found:
            number = int(message.split()[0])
            assert message == payload(number) and of_it in (headers(number), {})
        assert any(one.headers for one in history) == (name in ("letter_db", "delayed_db"))
        assert any(letter.headers for letter in letters) == (name != "letter_db")


@pytest.mark.parametrize("compact", [False, True])
def test_no_page_is_mistaken_for_another(compact: bool, path: pathlib.Path) -> None:
    """The pages of each sub-database are recognised, also those that have nothing but headers."""
    if compact:
        compacted(path)
    of_kinds = sub_databases(path)
    only_headers = 0
    with PageFile(path / files.DATA_FILE) as opened:
        opened.newest_meta()
        for name in ("chunk_db", "letter_db", "delayed_db", "data_db"):
            assert of_kinds[name]
            for number in of_kinds[name]:
                page = opened.page(number)
                only_headers += all(node.key.endswith(b"\xff" * 4) for node in opened.nodes(page))
                assert orphan_pages.guess(opened, page) == name, name
    assert only_headers


@pytest.mark.damages_queues
@pytest.mark.parametrize("value", [b"{", b'{"a":1}', b"[" * 60_000, b'{"a":"\xff"}', b""])
def test_headers_that_cannot_be_read(value: bytes, path: pathlib.Path) -> None:
    """A message whose headers are broken is saved without them, and the report says so."""
    raw = Raw(path)
    raw.put("chunk_db", PART_KEY.pack(5, HEADERS_PART), value)
    raw.environment.close()
    report = recovery.recover(path)
    assert report.messages == MESSAGES and bool(report.problems) == bool(value)
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()
        assert received(environment, "all") == [*expected(*range(4)), (payload(4), {}), *expected(*range(5, MESSAGES))]


def test_a_delayed_message_with_an_id(new_environment: MakeEnvironment) -> None:
    """After a recovery, whoever sends a delayed message again gets the first one, and can cancel it."""
    found: List[Optional[object]] = []
    with new_environment("a") as environment:
        found.append(environment.new_publisher().send_later(b"1", delay_s=DELAY_S, deduplication_id="id"))
    recovery.recover(environment.path)
    with persipubsub.new_environment(environment.path) as environment:
        publisher = environment.new_publisher()
        again = publisher.send_later(b"2", delay_s=2 * DELAY_S, deduplication_id="id")
        assert found == [again] and publisher.cancel(again)
