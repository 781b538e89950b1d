"""Receiving: the four ways to do it, and looking without it. Every engine can do this."""

import pytest

from persipubsub import errors
from tests.conformance.queues import NewQueue, drained, numbered, received

pytestmark = pytest.mark.both_forms


def test_receive_returns_the_next_message(new_queue: NewQueue) -> None:
    """Messages are received one after the other in the order in which they were sent, and then None."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    assert [received(subscriber) for _ in range(5)] == [*numbered(3), None, None]


def test_a_timeout_of_nothing_looks_once(new_queue: NewQueue) -> None:
    """With a timeout of 0 each way to receive returns at once, with nothing where there is nothing."""
    subscriber = new_queue("a").subscriber()
    with subscriber.receive(timeout=0) as msg, subscriber.receive_to_top(timeout=0) as top:
        assert msg is None and top is None
    with subscriber.receive_many(timeout=0) as msgs:
        assert not msgs
    assert not list(subscriber.messages(timeout=0))


def test_receive_many_returns_what_is_there(new_queue: NewQueue) -> None:
    """``receive_many`` returns all that is there, without waiting for more."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    with queue.subscriber().receive_many(max_messages=100, timeout=60) as msgs:
        assert msgs == numbered(5)


def test_receive_many_has_a_maximum(new_queue: NewQueue) -> None:
    """``receive_many`` returns at most ``max_messages``; the next one returns what is behind them."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    with queue.subscriber().receive_many(max_messages=3, timeout=0) as msgs:
        assert msgs == numbered(3)
    with queue.subscriber().receive_many(max_messages=3, timeout=0) as msgs:
        assert msgs == numbered(2, 3)


def test_receive_many_returns_a_thousand_at_most(new_queue: NewQueue) -> None:
    """By default ``receive_many`` returns at most 1,000 messages."""
    queue = new_queue("a")
    for _ in range(2):
        queue.publisher().send_many([b""] * 600)
    with queue.subscriber().receive_many(timeout=0) as msgs:
        assert len(msgs) == 1000


@pytest.mark.parametrize("max_bytes, count", [(1, 1), (100, 1), (199, 1), (200, 2), (1000, 3)])
def test_receive_many_has_a_maximum_of_bytes(max_bytes: int, count: int, new_queue: NewQueue) -> None:
    """``receive_many`` returns at most ``max_bytes``, but always one message; it acknowledges only those."""
    queue = new_queue("a")
    queue.publisher().send_many([bytes(100)] * 3)
    with queue.subscriber().receive_many(timeout=0, max_bytes=max_bytes) as msgs:
        assert len(msgs) == count
    assert len(drained(queue.subscriber())) == 3 - count


def test_receive_to_top_returns_the_latest(new_queue: NewQueue) -> None:
    """``receive_to_top`` returns the latest message, and nothing is left of those before it."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    with queue.subscriber().receive_to_top(timeout=0) as msg:
        assert msg == b"4"
    assert queue.subscriber().front() is None


def test_messages_is_a_loop_over_all(new_queue: NewQueue) -> None:
    """A loop over messages returns what is there in order, also what comes meanwhile, and ends when nothing is left."""
    queue = new_queue("a")
    publisher, seen = queue.publisher(), []
    publisher.send_many(numbered(2))
    for msg in queue.subscriber().messages(timeout=0):
        seen.append(msg)
        if msg == b"1":
            publisher.send(b"meanwhile")
    assert seen == [b"0", b"1", b"meanwhile"]


@pytest.mark.parametrize("acknowledge_every", [1, 2, 3, 7, 100])
def test_messages_in_batches(acknowledge_every: int, new_queue: NewQueue) -> None:
    """However many messages a loop acknowledges at a time, it returns all of them once, in order."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(10))
    assert list(queue.subscriber().messages(timeout=0, acknowledge_every=acknowledge_every)) == numbered(10)
    assert queue.subscriber().front() is None


def test_front_shows_the_next_message(new_queue: NewQueue) -> None:
    """``front`` returns the next message again and again, and None if there is none."""
    queue = new_queue("a")
    subscriber = queue.subscriber()
    assert subscriber.front() is None
    queue.publisher().send_many(numbered(2))
    assert [subscriber.front() for _ in range(3)] == [b"0"] * 3
    assert received(subscriber) == b"0"
    assert subscriber.front() == b"1"


def test_pop_acknowledges_unread(new_queue: NewQueue) -> None:
    """``pop`` acknowledges exactly the next message."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    subscriber.pop()
    assert drained(subscriber) == numbered(2, 1)


def test_pop_of_nothing(new_queue: NewQueue) -> None:
    """``pop`` raises EmptyError, which is a LookupError, where nothing is pending."""
    subscriber = new_queue("a").subscriber()
    with pytest.raises(errors.EmptyError) as raised:
        subscriber.pop()
    assert isinstance(raised.value, LookupError)


def test_ways_to_receive_may_change(new_queue: NewQueue) -> None:
    """A subscriber may receive in another way each time, and misses and repeats nothing."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(8))
    subscriber = queue.subscriber()
    assert received(subscriber) == b"0"
    with subscriber.receive_many(max_messages=2, timeout=0) as msgs:
        assert msgs == [b"1", b"2"]
    assert next(iter(subscriber.messages(timeout=0))) == b"3"
    subscriber.pop()
    assert subscriber.front() == b"4"
    with subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"7"
    assert not drained(subscriber)


def test_a_subscriber_knows_its_name(new_queue: NewQueue) -> None:
    """A subscriber says which one it is."""
    assert new_queue("a", "b").subscriber("b").identifier == "b"
