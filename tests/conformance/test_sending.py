"""Sending: ids, order, batches, and what a message may be. Every engine can do this."""

import array
from typing import Any, Callable, List

import pytest

from persipubsub import errors
from tests.conformance.queues import NewQueue, drained, numbered, received

pytestmark = pytest.mark.both_forms


def test_ids_count_from_one(new_queue: NewQueue) -> None:
    """The ids of the messages of a new queue count from 1."""
    publisher = new_queue("a").publisher()
    assert [publisher.send(b"x") for _ in range(3)] == [1, 2, 3]


def test_ids_of_a_batch(new_queue: NewQueue) -> None:
    """The ids of a batch follow each other in its order, after those sent before and before those sent afterwards."""
    publisher = new_queue("a").publisher()
    first = publisher.send(b"x")
    ids = list(publisher.send_many(numbered(3)))
    assert ids == [first + 1, first + 2, first + 3]
    assert publisher.send(b"x") == first + 4


def test_the_order_of_ids_is_the_order_of_messages(new_queue: NewQueue) -> None:
    """What several publishers send in turn has rising ids, and arrives in their order."""
    queue = new_queue("a")
    one, other = queue.publisher(), queue.publisher()
    sent = [(publisher.send(msg), msg) for publisher, msg in zip([one, other, other, one], numbered(4))]
    assert sent == sorted(sent)
    assert drained(queue.subscriber()) == [msg for _, msg in sent]


def test_no_id_is_assigned_twice(new_queue: NewQueue) -> None:
    """A queue from which all messages were acknowledged continues with the next id."""
    queue = new_queue("a")
    publisher = queue.publisher()
    ids = [publisher.send(b"x"), publisher.send(b"x")]
    drained(queue.subscriber())
    assert publisher.send(b"x") > max(ids)


def test_the_order_of_a_batch(new_queue: NewQueue) -> None:
    """A batch arrives wholly, in its order, behind what was sent before."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send(b"before")
    publisher.send_many(numbered(100))
    assert drained(queue.subscriber()) == [b"before", *numbered(100)]


def test_a_batch_of_nothing(new_queue: NewQueue) -> None:
    """A batch of nothing has no ids, and nothing arrives."""
    queue = new_queue("a")
    assert not list(queue.publisher().send_many([]))
    assert queue.subscriber().front() is None


@pytest.mark.parametrize("make", [list, tuple, iter, lambda msgs: (msg for msg in msgs)])
def test_a_batch_is_any_iterable(make: Callable[[List[bytes]], Any], new_queue: NewQueue) -> None:
    """A batch may be any iterable of messages, which is gone through once."""
    queue = new_queue("a")
    assert len(queue.publisher().send_many(make(numbered(3)))) == 3
    assert drained(queue.subscriber()) == numbered(3)


def test_a_large_batch(new_queue: NewQueue) -> None:
    """A batch of 1,000 messages is all there."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(1000))
    assert drained(queue.subscriber()) == numbered(1000)


def test_a_message_of_no_bytes(new_queue: NewQueue) -> None:
    """A message of no bytes is a message."""
    queue = new_queue("a")
    queue.publisher().send(b"")
    assert received(queue.subscriber()) == b""
    assert received(queue.subscriber()) is None


@pytest.mark.parametrize("size", [1, 4096, 65_519, 65_520, 65_521, 200_000])
def test_sizes(size: int, new_queue: NewQueue) -> None:
    """A message of any size arrives as it was sent, also beside others."""
    queue, msg = new_queue("a"), bytes(number % 256 for number in range(size))
    queue.publisher().send_many([b"before", msg, b"behind"])
    assert drained(queue.subscriber()) == [b"before", msg, b"behind"]


@pytest.mark.capability("large_messages")
def test_a_message_of_some_mebibytes(new_queue: NewQueue) -> None:
    """A message of five mebibytes arrives as it was sent."""
    queue, msg = new_queue("a"), bytes(range(256)) * 4096 * 5
    queue.publisher().send(msg)
    assert received(queue.subscriber()) == msg


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda msg: array.array("B", msg)])
def test_what_is_like_bytes(make: Callable[[bytes], Any], new_queue: NewQueue) -> None:
    """Whatever is like bytes is sent as its bytes, alone and in a batch, and arrives as bytes."""
    queue = new_queue("a")
    queue.publisher().send(make(b"\x00\xff"))
    queue.publisher().send_many([make(b"1"), make(b"2")])
    msgs = drained(queue.subscriber())
    assert msgs == [b"\x00\xff", b"1", b"2"] and {type(msg) for msg in msgs} == {bytes}


def test_the_bytes_are_those_at_the_time_of_sending(new_queue: NewQueue) -> None:
    """What a program does with its buffer after the send changes no message."""
    queue = new_queue("a")
    buffer: Any = bytearray(b"before")
    queue.publisher().send(buffer)
    buffer[:] = b"behind"
    assert received(queue.subscriber()) == b"before"


def test_a_batch_with_a_mistake(new_queue: NewQueue) -> None:
    """Of a batch with something that is no message nothing is sent, and the publisher goes on."""
    queue = new_queue("a")
    publisher, wrong = queue.publisher(), [b"1", "2", b"3"]
    with pytest.raises(errors.ArgumentTypeError):
        publisher.send_many(wrong)  # type: ignore[arg-type]  # on purpose
    publisher.send(b"4")
    assert drained(queue.subscriber()) == [b"4"]


def test_a_batch_whose_iterable_fails(new_queue: NewQueue) -> None:
    """Of a batch whose iterable raises nothing is sent, and the exception goes through."""

    def msgs() -> Any:
        yield b"1"
        raise ZeroDivisionError

    queue = new_queue("a")
    with pytest.raises(ZeroDivisionError):
        queue.publisher().send_many(msgs())
    assert queue.subscriber().front() is None


def test_a_send_is_seen_at_once(new_queue: NewQueue) -> None:
    """Every look after a send sees its message, without waiting."""
    queue = new_queue("a")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    for msg in numbered(20):
        publisher.send(msg)
        assert received(subscriber) == msg


def test_a_publisher_knows_no_subscriber_by_heart(new_queue: NewQueue) -> None:
    """A publisher that is open already sends to a subscriber that is added later."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send(b"before")
    queue.control.add_subscriber("b")
    publisher.send(b"behind")
    assert drained(queue.subscriber("b")) == [b"behind"]
