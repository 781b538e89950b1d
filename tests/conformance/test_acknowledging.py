"""Acknowledging: what comes again and what does not. Every engine can do this."""

import contextlib
from typing import Type

import pytest

from tests.conformance.queues import Failed, NewQueue, drained, failed, numbered, received

pytestmark = pytest.mark.both_forms


def test_the_end_of_the_block_acknowledges(new_queue: NewQueue) -> None:
    """A message is acknowledged when its block ends, and not before."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == queue.subscriber().front() == b"0"
    assert queue.subscriber().front() == b"1"


def test_a_block_that_raises_keeps_its_message(new_queue: NewQueue) -> None:
    """A message whose block raised comes again, as often as that happens, before those behind it."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    assert [failed(subscriber) for _ in range(3)] == [b"0"] * 3
    assert drained(subscriber) == numbered(2)


@pytest.mark.parametrize("kind", [Failed, KeyboardInterrupt, SystemExit])
def test_the_exception_of_a_block_goes_through(kind: Type[BaseException], new_queue: NewQueue) -> None:
    """An exception that is raised in a block goes through unchanged, and the message comes again."""
    queue, error = new_queue("a"), kind("mine")
    queue.publisher().send(b"x")
    with pytest.raises(kind) as raised, queue.subscriber().receive(timeout=0):
        raise error
    assert raised.value is error
    assert received(queue.subscriber()) == b"x"


def test_an_exception_that_the_block_catches(new_queue: NewQueue) -> None:
    """An exception that is caught within the block acknowledges the message."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    with queue.subscriber().receive(timeout=0), contextlib.suppress(Failed):
        raise Failed
    assert queue.subscriber().front() is None


def test_a_batch_is_acknowledged_together(new_queue: NewQueue) -> None:
    """All messages of ``receive_many`` come again when its block raises, and none when it ends."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    subscriber = queue.subscriber()
    with pytest.raises(Failed), subscriber.receive_many(max_messages=3, timeout=0):
        raise Failed
    with subscriber.receive_many(max_messages=3, timeout=0) as msgs:
        assert msgs == numbered(3)
        assert subscriber.front() == b"0"
    assert drained(subscriber) == numbered(2, 3)


def test_what_is_sent_during_a_block_stays(new_queue: NewQueue) -> None:
    """A block acknowledges what it received, and nothing that was sent meanwhile."""
    queue = new_queue("a")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    publisher.send(b"1")
    with subscriber.receive_many(timeout=0):
        publisher.send(b"2")
    with subscriber.receive_to_top(timeout=0):
        publisher.send(b"3")
    assert drained(subscriber) == [b"3"]


def test_receive_to_top_that_raises(new_queue: NewQueue) -> None:
    """A ``receive_to_top`` whose block raises acknowledges nothing, neither the latest nor those before it."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    with pytest.raises(Failed), queue.subscriber().receive_to_top(timeout=0):
        raise Failed
    assert drained(queue.subscriber()) == numbered(3)


def test_a_block_without_a_message(new_queue: NewQueue) -> None:
    """A block that received nothing acknowledges nothing, whatever is sent during it."""
    queue = new_queue("a")
    with queue.subscriber().receive(timeout=0) as msg, queue.subscriber().receive_many(timeout=0) as msgs:
        assert msg is None and not msgs
        queue.publisher().send(b"x")
    assert received(queue.subscriber()) == b"x"


def test_a_loop_acknowledges_when_it_asks_for_the_next(new_queue: NewQueue) -> None:
    """A loop acknowledges a message when the next one is asked for, and not before."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    fronts = [(msg, queue.subscriber().front()) for msg in queue.subscriber().messages(timeout=0)]
    assert fronts == [(msg, msg) for msg in numbered(3)]


@pytest.mark.parametrize("acknowledge_every", [1, 2, 10])
@pytest.mark.parametrize("last", [0, 2, 4])
def test_leaving_a_loop(last: int, acknowledge_every: int, new_queue: NewQueue) -> None:
    """Leaving a loop by ``break`` acknowledges exactly the messages whose iteration had ended."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    for msg in queue.subscriber().messages(timeout=0, acknowledge_every=acknowledge_every):
        if msg == b"%d" % last:
            break
    assert drained(queue.subscriber()) == numbered(5 - last, last)


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_a_loop_that_raises(acknowledge_every: int, new_queue: NewQueue) -> None:
    """An exception out of a loop acknowledges exactly the messages whose iteration had ended."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))

    def work() -> None:
        for msg in queue.subscriber().messages(timeout=0, acknowledge_every=acknowledge_every):
            if msg == b"3":
                raise Failed

    with pytest.raises(Failed):
        work()
    assert drained(queue.subscriber()) == [b"3", b"4"]


def test_two_readers_of_one_subscriber(new_queue: NewQueue) -> None:
    """Two that receive as one plain subscriber may get the same message; acknowledging it twice is once."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive(timeout=0) as first, queue.subscriber().receive(timeout=0) as second:
        assert first == second == b"0"
    assert drained(queue.subscriber()) == [b"1"]


def test_a_block_that_ends_later_does_not_go_back(new_queue: NewQueue) -> None:
    """A block that ends after another reader moved on neither repeats nor skips messages."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(4))
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"0"
        with queue.subscriber().receive_many(max_messages=3, timeout=0) as msgs:
            assert msgs == numbered(3)
    assert drained(queue.subscriber()) == [b"3"]


def test_a_failure_of_a_reader_that_was_overtaken(new_queue: NewQueue) -> None:
    """A block that raises brings nothing back which another reader has acknowledged."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    with pytest.raises(Failed), queue.subscriber().receive(timeout=0):
        assert received(queue.subscriber()) == b"0"
        raise Failed
    assert drained(queue.subscriber()) == [b"1"]
