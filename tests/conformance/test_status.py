"""The status: exact numbers of one moment."""

import dataclasses
import os
import pathlib

import pytest

from persipubsub import HighWaterMark, Strategy
from persipubsub.status import PrunedStatus, QueueStatus, SubscriberStatus
from tests.conformance.queues import Failed, NewQueue, PassTime, drained, failed, numbered, pending, received

pytestmark = [pytest.mark.capability("status"), pytest.mark.both_forms]


def test_an_empty_queue(new_queue: NewQueue) -> None:
    """An empty queue has no messages, no ages, and the first id before it."""
    status = new_queue("a").control.status()
    assert (status.messages, status.sent, status.next_id, status.delayed, status.retained) == (0, 0, 1, 0, 0)
    assert status.oldest_age_s is None and status.pruned == PrunedStatus(timeout=0, overflow=0, dangling=0)
    assert status.subscribers["a"] == SubscriberStatus(next_id=1,
                                                       pending=0,
                                                       oldest_pending_age_s=None,
                                                       taken=0,
                                                       in_flight=0,
                                                       dead_letters=0,
                                                       policy=None)


def test_what_is_pending(new_queue: NewQueue) -> None:
    """Each subscriber has its own number of messages pending and taken, and its own cursor."""
    queue = new_queue("a", "b")
    ids = list(queue.publisher().send_many(numbered(5)))
    received(queue.subscriber("a"))
    with queue.subscriber("a").receive_many(max_messages=2, timeout=0):
        assert pending(queue) == {"a": 4, "b": 5}, "not yet acknowledged"
    failed(queue.subscriber("a"))
    status = queue.control.status()
    assert pending(queue) == {"a": 2, "b": 5}
    assert (status.subscribers["a"].taken, status.subscribers["b"].taken) == (3, 0)
    assert (status.subscribers["a"].next_id, status.subscribers["b"].next_id) == (ids[3], ids[0])
    assert (status.messages, status.sent, status.floor) == (5, 5, ids[0])


def test_messages_that_all_have_acknowledged(new_queue: NewQueue) -> None:
    """Messages that all have acknowledged are deleted, and count as sent and taken, not as pruned."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(4))
    drained(queue.subscriber("a"))
    drained(queue.subscriber("b"))
    status = queue.control.status()
    assert (status.messages, status.sent, status.subscribers["b"].taken) == (0, 4, 4)
    assert status.pruned == PrunedStatus(timeout=0, overflow=0, dangling=0)


def test_what_was_skipped_counts_as_taken(new_queue: NewQueue) -> None:
    """Messages that ``pop`` and ``receive_to_top`` skip count as taken; one that came again counts once."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(5))
    subscriber = queue.subscriber()
    subscriber.pop()
    for _ in range(2):
        failed(subscriber)
    with subscriber.receive_to_top(timeout=0):
        pass
    assert queue.status_of().taken == 5


def test_ages(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The status has the age of the oldest message, and for each subscriber of the oldest that it awaits."""
    queue = new_queue("a", "b")
    queue.publisher().send(b"old")
    pass_time(1)
    queue.publisher().send(b"young")
    received(queue.subscriber("a"))
    status = queue.control.status()
    young_s, old_s = (status.subscribers[name].oldest_pending_age_s for name in ("a", "b"))
    assert young_s is not None and old_s is not None and status.oldest_age_s is not None
    assert 0 <= young_s < old_s and 1 <= old_s < 60 and abs(status.oldest_age_s - old_s) < 0.001


def test_dangling_messages(new_queue: NewQueue) -> None:
    """Messages that nobody awaits any more count as dangling; those cleared or skipped count nowhere."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(5))
    received(queue.subscriber("a"))
    queue.control.prune_all_messages_for("a")
    assert queue.control.status().pruned == PrunedStatus(timeout=0, overflow=0, dangling=0)
    queue.control.remove_subscriber("b")
    assert queue.control.status().pruned.dangling == 5
    queue.control.remove_subscriber("a")
    queue.publisher().send(b"for nobody")
    assert queue.control.status().pruned.dangling == 6
    queue.control.add_subscriber("a")
    queue.publisher().send(b"x")
    queue.control.clear_messages()
    assert queue.control.status().pruned == PrunedStatus(timeout=0, overflow=0, dangling=6)


@pytest.mark.capability("high_water_mark", "prune_last")
def test_counts_with_gaps(new_queue: NewQueue) -> None:
    """Numbers are exact also where an overflow has left gaps between the messages."""
    queue = new_queue("a", "b", high_watermark=HighWaterMark(max_messages=6), strategy=Strategy.prune_last)
    for msg in numbered(10):
        queue.publisher().send(msg)
    received(queue.subscriber("a"))
    left = len(drained(queue.subscriber("b")))
    assert (queue.control.status().messages, queue.status_of("a").pending) == (left - 1, left - 1)


def test_bytes(new_queue: NewQueue) -> None:
    """The size of a queue is about that of its messages, and next to nothing when they are deleted."""
    queue = new_queue("a")
    queue.publisher().send_many([bytes(10_000)] * 20)
    assert 200_000 <= queue.control.status().size_bytes < 600_000
    drained(queue.subscriber())
    assert queue.control.status().size_bytes < 20_000


def test_a_status_is_of_one_moment(new_queue: NewQueue) -> None:
    """A status does not change with the queue, nor can it be changed."""
    queue = new_queue("a")
    status = queue.control.status()
    queue.publisher().send(b"x")
    assert isinstance(status, QueueStatus) and status.messages == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.messages = 1  # type: ignore[misc]  # on purpose


def test_the_location(new_queue: NewQueue) -> None:
    """The status and the Environment say of which queue they are."""
    queue = new_queue("a")
    assert queue.control.status().path == queue.environment.location
    if isinstance(queue.location, os.PathLike):
        assert queue.environment.path == pathlib.Path(queue.location)


def test_a_failed_send_counts_nowhere(new_queue: NewQueue) -> None:
    """Blocks that raise and sends that are refused change no number."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    before = queue.control.status()
    with pytest.raises(Failed), queue.subscriber().receive(timeout=0):
        raise Failed
    with pytest.raises(TypeError):
        queue.publisher().send(None)  # type: ignore[arg-type]  # on purpose
    after = queue.control.status()
    assert (after.messages, after.sent, after.next_id, pending(queue)) == (1, 1, before.next_id, {"a": 1})
