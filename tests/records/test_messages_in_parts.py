"""The records of messages that have several parts or headers: what was put is read, and nothing else is touched."""

import contextlib
import tempfile
from typing import Dict, Iterator, List, NamedTuple, Tuple

import hypothesis
import lmdb
import pytest
from hypothesis import strategies as st

from persipubsub import errors
from persipubsub.engine import values
from persipubsub.lmdb_engine.records.dead_letters import DeadLetters
from persipubsub.lmdb_engine.records.delayed_messages import DelayedMessages
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY, RAISED, DeadLetterPayload, Death
from persipubsub.lmdb_engine.records.layouts import DELAYED_KEY, HEADERS_PART, PART_BYTES, PART_KEY, pack_id
from persipubsub.lmdb_engine.records.parts import Parts

DEATH = Death(RAISED, 1, 2, values.Failure("ValueError", "wrong"))

#: Payloads around the length of a part, which has 8 or 16 bytes of its own where there are several.
PAYLOADS = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255),
                     st.sampled_from([0, 1, 300, *(PART_BYTES + more for more in (-16, -8, -1, 0, 1)), 3 * PART_BYTES]))
HEADERS = st.sampled_from([b"", b'{"a":"b"}', b'{"a":"%s"}' % (b"x" * 65_000)])


@contextlib.contextmanager
def cursors(count: int) -> "Iterator[List[lmdb.Cursor[bytes]]]":
    """Yield cursors of sub-databases that are empty."""
    with tempfile.TemporaryDirectory() as path, lmdb.Environment(path, max_dbs=count, map_size=2**30,
                                                                 sync=False) as environment:
        databases = [environment.open_db(b"%d" % number) for number in range(count)]
        with environment.begin(write=True) as txn:
            yield [txn.cursor(database) for database in databases]


class Stored(NamedTuple):
    """What a message has."""

    payload: bytes
    headers: bytes


# In the log


@hypothesis.given(st.lists(st.builds(Stored, PAYLOADS, HEADERS), max_size=6), st.integers(1, 2**48))
def test_messages_of_the_log(messages: List[Stored], first_id: int) -> None:
    """Each message has the payload and the headers that were put; only long ones have further parts."""
    with cursors(1) as (cursor, ):
        parts = Parts(cursor)
        first = [parts.put(first_id + index, message.payload) for index, message in enumerate(messages)]
        parts.put_headers(first_id, [message.headers for message in messages])
        for index, message in enumerate(messages):
            assert parts.payload(pack_id(first_id + index), first[index]) == message.payload
            assert parts.headers(first_id + index) == message.headers
        ids = range(first_id, first_id + len(messages))
        cursor.first()
        assert set(parts.ids()) == {id_ for id_, one in zip(ids, messages) if len(one.payload) >= PART_BYTES}
        cursor.first()
        assert list(parts.all_headers()) == [(id_, one.headers) for id_, one in zip(ids, messages) if one.headers]


@pytest.mark.parametrize("lost", [1, 2])
def test_headers_do_not_replace_a_part(lost: int) -> None:
    """A message that lacks a part is damaged, even if it has headers."""
    with cursors(1) as (cursor, ):
        parts = Parts(cursor)
        first = parts.put(1, bytes(3 * PART_BYTES - 8))
        parts.put_headers(1, [b'{"a":"%s"}' % (b"x" * 60_000)])
        assert cursor.set_key(PART_KEY.pack(1, lost)) and cursor.delete()
        with pytest.raises(errors.DamagedError, match="message 1 is missing"):
            parts.payload(pack_id(1), first)


# Delayed


@hypothesis.given(st.lists(st.tuples(st.integers(0, 5), st.builds(Stored, PAYLOADS, HEADERS)), max_size=6),
                  st.lists(st.integers(0, 6), max_size=4), st.integers(0, 6))
def test_delayed_messages(messages: List[Tuple[int, Stored]], deleted: List[int], time_us: int) -> None:
    """What is due comes in the order of due times and numbers, with its headers; the others and no more are left."""
    with cursors(1) as (cursor, ):
        delayed, model = DelayedMessages(cursor), dict[Tuple[int, int], Stored]()
        for number, (due_us, message) in enumerate(messages):
            delayed.put(due_us, number, message.payload, message.headers)
            model[due_us, number] = message
        for number in deleted:
            due_us = messages[number][0] if number < len(messages) else 0
            assert delayed.delete(due_us, number) == (model.pop((due_us, number), None) is not None)
        assert delayed.next_due_us() == min((due_us for due_us, _ in model), default=values.NEVER_US)
        assert_listed(delayed, model)
        due = [key for key in sorted(model) if key[0] <= time_us]
        popped = delayed.pop_due(time_us, 100, 2**30)
        assert popped.payloads == [model[key].payload for key in due]
        assert list(popped.headers or [b""] * len(due)) == [model[key].headers for key in due]
        assert popped.sizes() == [sum(map(len, model.pop(key))) for key in due]
        assert_listed(delayed, model)


def assert_listed(delayed: DelayedMessages, model: Dict[Tuple[int, int], Stored]) -> None:
    """The list of all messages is complete."""
    assert [(one.due_us, one.number) for one in delayed.all()] == sorted(model)
    assert [one.headers for one in delayed.all()] == [model[key].headers for key in sorted(model)]
    assert all(one.is_whole for one in delayed.all())


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_delayed_message_that_lacks_a_part(lost: int) -> None:
    """A delayed message of which a part is missing is listed as broken, also if only its headers are left."""
    with cursors(1) as (cursor, ):
        delayed = DelayedMessages(cursor)
        delayed.put(7, 1, bytes(3 * PART_BYTES - 8), b'{"a":"b"}')
        assert cursor.set_key(DELAYED_KEY.pack(7, 1, lost)) and cursor.delete()
        assert [(one.due_us, one.is_whole) for one in delayed.all()] == [(7, False)]
        for part in range(3):
            if cursor.set_key(DELAYED_KEY.pack(7, 1, part)):
                cursor.delete()
        assert [(one.due_us, one.is_whole, one.headers) for one in delayed.all()] == [(7, False, b'{"a":"b"}')]


# Dead letters


@hypothesis.given(
    st.dictionaries(st.tuples(st.integers(1, 3), st.integers(1, 4)), st.builds(Stored, PAYLOADS, HEADERS), max_size=6),
    st.sets(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=4))
def test_dead_letters(letters: Dict[Tuple[int, int], Stored], discarded: List[Tuple[int, int]]) -> None:
    """Each dead letter has its payload and headers; deleting one deletes all of its records, and no other's."""
    with cursors(2) as (payloads, deaths):
        for (number, message_id), message in letters.items():
            outside = DeadLetters(number, payloads, deaths)
            outside.put(message_id, DeadLetterPayload(message_id, message.payload, message.headers))
            outside.add_dead_letter(message_id, DEATH)
        for number, message_id in discarded:
            DeadLetters(number, payloads, deaths).discard(message_id)
            letters.pop((number, message_id), None)
        for number in (1, 2, 3):
            outside = DeadLetters(number, payloads, deaths)
            ids = [message_id for one, message_id in sorted(letters) if one == number]
            assert list(outside.ids()) == list(outside.dead_ids()) == ids
            for message_id in ids:
                assert outside.get(message_id) == DeadLetterPayload(message_id, *letters[number, message_id])
        assert payloads.first() == bool(letters)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_dead_letter_that_lacks_a_part(lost: int) -> None:
    """A dead letter of which a part is missing is damaged, even if it has headers."""
    with cursors(2) as (payloads, deaths):
        outside = DeadLetters(1, payloads, deaths)
        outside.put(5, DeadLetterPayload(1, bytes(3 * PART_BYTES - 16), b'{"a":"b"}'))
        assert payloads.set_key(DEAD_LETTER_KEY.pack(1, 5, lost)) and payloads.delete()
        with pytest.raises(errors.DamagedError, match="message 5"):
            outside.get(5)
        assert list(outside.ids()) == [5]


def test_headers_without_a_dead_letter() -> None:
    """Headers that are left alone are listed, so that check() finds them."""
    with cursors(2) as (payloads, deaths):
        payloads.put(DEAD_LETTER_KEY.pack(1, 5, HEADERS_PART), b'{"a":"b"}')
        assert list(DeadLetters(1, payloads, deaths).ids()) == [5]
