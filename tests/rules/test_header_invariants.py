"""``check`` of headers: each record belongs to a message, and can be read."""

import contextlib
import pathlib
from typing import Callable, Iterator, Tuple

import pytest

import persipubsub
from persipubsub import Environment, Reject, errors
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY
from persipubsub.lmdb_engine.records.layouts import DELAYED_KEY, HEADERS_PART, PART_KEY
from persipubsub.lmdb_engine.rules import invariants
from tests.damages import Raw

HEADERS = {"trace": "1"}
ENCODED = b'{"trace":"1"}'


@pytest.fixture(name="raw")
def raw_fixture(new_environment: Callable[..., Environment]) -> Iterator[Tuple[pathlib.Path, Raw]]:
    """Set up a queue with headers in the log, of a delayed message, of a dead letter, and of a requeued one."""
    with new_environment() as environment:
        control, publisher = environment.new_control(), environment.new_publisher()
        control.add_subscriber("a", max_deliveries=5)
        for number in range(1, 5):
            publisher.send(b"%d" % number, headers=HEADERS)
        publisher.send_later(b"later", delay_s=10**6, headers=HEADERS)
        for _ in range(2):
            with environment.new_subscriber("a").receive(timeout=0):
                raise Reject
        control.requeue_dead_letters("a", [1])
        assert control.check() == ()
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        yield environment.path, raw


def key_of_delayed(raw: Raw, part: int, number: int = 1) -> bytes:
    """Return the key of a part of the delayed message, or of one with another number."""
    due_us, _, _ = DELAYED_KEY.unpack(raw.all("delayed_db")[0][0])
    return DELAYED_KEY.pack(due_us, number, part)


def behead(raw: Raw) -> None:
    """Delete the payload of the delayed message."""
    raw.delete("delayed_db", key_of_delayed(raw, 0))


DAMAGES = [
    ("I9", "of no message", lambda raw: raw.put("chunk_db", PART_KEY.pack(9, HEADERS_PART), ENCODED)),
    ("I9", "of a message that is deleted", lambda raw: raw.delete("data_db",
                                                                  PART_KEY.pack(3, 0)[:8])),
    ("I9", "in a part before the last", lambda raw: raw.put("chunk_db", PART_KEY.pack(3, HEADERS_PART - 1), ENCODED)),
    ("I11", "of no dead letter", lambda raw: raw.put("letter_db", DEAD_LETTER_KEY.pack(1, 3, HEADERS_PART), ENCODED)),
    ("I6", "of no subscriber", lambda raw: raw.put("letter_db", DEAD_LETTER_KEY.pack(7, 1, HEADERS_PART), ENCODED)),
    ("I0", "of a dead letter without payload", lambda raw: raw.delete("letter_db", DEAD_LETTER_KEY.pack(1, 2, 0))),
    ("I0", "of a requeued message without payload", lambda raw: raw.delete("letter_db", DEAD_LETTER_KEY.pack(1, 1, 0))),
    ("I13", "of no delayed message", lambda raw: raw.put("delayed_db", key_of_delayed(raw, HEADERS_PART, 0), ENCODED)),
    ("I13", "of a delayed message without payload", behead),
    ("I0", "no JSON, of a message", lambda raw: raw.put("chunk_db", PART_KEY.pack(3, HEADERS_PART), b"{")),
    ("I0", "no text, of a message", lambda raw: raw.put("chunk_db", PART_KEY.pack(3, HEADERS_PART), b'{"a":1}')),
    ("I0", "no object, of a message", lambda raw: raw.put("chunk_db", PART_KEY.pack(3, HEADERS_PART), b"[" * 60_000)),
    ("I0", "no UTF-8, of a dead letter",
     lambda raw: raw.put("letter_db", DEAD_LETTER_KEY.pack(1, 2, HEADERS_PART), b'{"a":"\xff"}')),
    ("I0", "no JSON, of a requeued message",
     lambda raw: raw.put("letter_db", DEAD_LETTER_KEY.pack(1, 1, HEADERS_PART), b"x")),
    ("I0", "no JSON, of a delayed message", lambda raw: raw.put("delayed_db", key_of_delayed(raw, HEADERS_PART), b"x")),
]


@pytest.mark.damages_queues
@pytest.mark.parametrize(
    "invariant, damage",
    [pytest.param(invariant, damage, id=f"{invariant}: {what}") for invariant, what, damage in DAMAGES])
def test_check_finds(invariant: str, damage: Callable[[Raw], object], raw: Tuple[pathlib.Path, Raw]) -> None:
    """``check`` finds headers that belong to no message or cannot be read, and names the invariant that they break."""
    path, records = raw
    damage(records)
    records.environment.close()
    found = database.inspect(path, invariants.check)
    assert invariant in {violation.invariant for violation in found}


@pytest.mark.damages_queues
def test_headers_that_cannot_be_read(raw: Tuple[pathlib.Path, Raw]) -> None:
    """Whoever asks for headers that cannot be read gets DamagedError; whoever does not gets the message."""
    path, records = raw
    records.put("chunk_db", PART_KEY.pack(3, HEADERS_PART), b'{"a":')
    records.put("letter_db", DEAD_LETTER_KEY.pack(1, 2, HEADERS_PART), b'["a"]')
    records.environment.close()
    with persipubsub.new_environment(path) as environment:
        control, subscriber = environment.new_control(), environment.new_subscriber("a")
        subscriber.pop()
        with pytest.raises(errors.DamagedError, match="headers"), subscriber.receive_delivery(timeout=0):
            pass
        for read in (control.dead_letters("a"), control.history()):
            with pytest.raises(errors.DamagedError, match="headers"):
                list(read)
        assert subscriber.front() == b"3"
