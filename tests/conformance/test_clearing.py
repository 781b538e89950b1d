"""Clearing and pruning: what a Control deletes, for whom, and how much that was."""

import pytest

from persipubsub import errors
from tests.conformance.queues import Failed, NewQueue, drained, numbered, received

pytestmark = [pytest.mark.capability("clearing"), pytest.mark.both_forms]


def test_clearing_messages(new_queue: NewQueue) -> None:
    """``clear_messages`` deletes all messages and returns how many; subscribers and open endpoints go on."""
    queue = new_queue("a", "b")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    publisher.send_many(numbered(3))
    assert received(subscriber) == b"0"
    assert queue.control.clear_messages() == 3
    assert queue.control.clear_messages() == 0
    publisher.send(b"x")
    assert drained(subscriber) == drained(queue.subscriber("b")) == [b"x"]


def test_clearing_all_subscribers(new_queue: NewQueue) -> None:
    """``clear_all_subscribers`` removes subscribers and messages and returns how many of these; publishers go on."""
    queue = new_queue("a", "b")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    publisher.send_many(numbered(3))
    assert queue.control.clear_all_subscribers() == 3
    with pytest.raises(errors.UnknownSubscriberError):
        subscriber.front()
    publisher.send(b"for nobody")
    queue.control.add_subscriber("a")
    publisher.send(b"x")
    assert drained(queue.subscriber("a")) == [b"x"]


def test_pruning_for_one_subscriber(new_queue: NewQueue) -> None:
    """``prune_all_messages_for`` skips what is pending for one subscriber alone, and returns how much that was."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(3))
    assert received(queue.subscriber("a")) == b"0"
    assert queue.control.prune_all_messages_for("a") == 2
    assert queue.control.prune_all_messages_for("a") == 0
    queue.publisher().send(b"x")
    assert drained(queue.subscriber("a")) == [b"x"]
    assert drained(queue.subscriber("b")) == [*numbered(3), b"x"]


def test_pruning_what_nobody_awaits(new_queue: NewQueue) -> None:
    """``prune_dangling_messages`` leaves what somebody awaits."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(3))
    drained(queue.subscriber("a"))
    assert queue.control.prune_dangling_messages() == 0
    assert drained(queue.subscriber("b")) == numbered(3)


def test_no_id_is_assigned_again(new_queue: NewQueue) -> None:
    """Ids continue from the last one, however the latest messages were deleted."""
    queue, ids = new_queue("a"), []
    for delete in (queue.control.clear_messages, queue.control.clear_all_subscribers,
                   lambda: queue.control.prune_all_messages_for("a"), lambda: queue.control.remove_subscriber("a")):
        queue.control.add_subscriber("a")
        ids.append(queue.publisher().send(b"x"))
        delete()
    assert ids == sorted(set(ids))


def test_messages_that_are_cleared_while_they_are_handled(new_queue: NewQueue) -> None:
    """A block whose message was deleted meanwhile ends, or raises, as any other, and touches no other message."""
    queue = new_queue("a")
    for raises in (False, True):
        queue.publisher().send_many(numbered(2))
        try:
            with queue.subscriber().receive_many(timeout=0):
                queue.control.clear_messages()
                queue.publisher().send(b"new")
                if raises:
                    raise Failed
        except Failed:
            assert raises
        assert drained(queue.subscriber()) == [b"new"]


@pytest.mark.capability("large_batches")
def test_a_large_queue_is_cleared(new_queue: NewQueue) -> None:
    """Clearing deletes 25,000 messages at once for everybody, and the next message is the only one there."""
    queue = new_queue("a")
    queue.publisher().send_many([b""] * 25_000)
    assert queue.control.clear_messages() == 25_000
    assert queue.subscriber().front() is None
    queue.publisher().send(b"x")
    assert drained(queue.subscriber()) == [b"x"]


@pytest.mark.parametrize("method", ["prune_all_messages_for", "remove_subscriber"])
def test_an_unknown_subscriber(method: str, new_queue: NewQueue) -> None:
    """What is to be done to a subscriber that is not there raises UnknownSubscriberError, and changes nothing."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    with pytest.raises(errors.UnknownSubscriberError, match="'a'"):
        getattr(queue.control, method)("b")
    assert received(queue.subscriber()) == b"x"
