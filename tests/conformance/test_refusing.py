"""The strategy ``refuse``: a send that finds no room raises QueueFullError, and stores nothing."""

from typing import Any, Callable, Optional

import pytest

from persipubsub import HighWaterMark, Strategy, errors
from tests.conformance.forms import AnyPublisher
from tests.conformance.queues import NewQueue, PassTime, Queue, drained, numbered, received

pytestmark = [pytest.mark.capability("refuse"), pytest.mark.both_forms]

KIB = 1024
#: Every way to send one message now.
SENDS = pytest.mark.parametrize("send", [
    pytest.param(lambda publisher, msg: publisher.send(msg), id="send"),
    pytest.param(lambda publisher, msg: publisher.send(msg, headers={"name": "text"}), id="with headers"),
    pytest.param(lambda publisher, msg: publisher.send_many([msg]), id="send_many"),
    pytest.param(lambda publisher, msg: publisher.send(msg, deduplication_id="id"),
                 id="with a deduplication id",
                 marks=pytest.mark.capability("deduplication")),
    pytest.param(lambda publisher, msg: publisher.send_later(msg, delay_s=0),
                 id="send_later",
                 marks=pytest.mark.capability("delayed")),
])
Send = Callable[[AnyPublisher, bytes], Any]


def refusing(new_queue: NewQueue,
             *subscriber_ids: str,
             max_messages: Optional[int] = 3,
             hwm_db_size: Optional[int] = None,
             **settings: Any) -> Queue:
    """Set up a queue that refuses messages at its mark."""
    mark = HighWaterMark(max_messages=max_messages, hwm_db_size=hwm_db_size)
    return new_queue(*(subscriber_ids or ["a"]), high_watermark=mark, strategy=Strategy.refuse, **settings)


@SENDS
def test_a_full_queue_refuses(send: Send, new_queue: NewQueue) -> None:
    """At the mark each way to send raises QueueFullError; nothing is stored, and nothing is dropped."""
    queue = refusing(new_queue)
    publisher = queue.publisher()
    ids = list(publisher.send_many(numbered(3)))
    for _ in range(2):
        with pytest.raises(errors.QueueFullError):
            send(publisher, b"too many")
    assert drained(queue.subscriber()) == numbered(3)
    assert publisher.send(b"next") == ids[-1] + 1


def test_up_to_the_mark_nothing_is_refused(new_queue: NewQueue) -> None:
    """The queue accepts as many messages as its mark, one by one and in a batch."""
    for batch in (False, True):
        queue = refusing(new_queue)
        if batch:
            queue.publisher().send_many(numbered(3))
        else:
            for msg in numbered(3):
                queue.publisher().send(msg)
        assert drained(queue.subscriber()) == numbered(3)


def test_the_mark_for_bytes_refuses(new_queue: NewQueue) -> None:
    """At the mark for bytes, a send raises QueueFullError, and a smaller message that fits is sent."""
    queue = refusing(new_queue, max_messages=None, hwm_db_size=400 * KIB)
    publisher, sent = queue.publisher(), 0
    with pytest.raises(errors.QueueFullError):
        while sent < 100:
            publisher.send(bytes(50 * KIB))
            sent += 1
    assert 2 <= sent <= 8
    publisher.send(b"small")
    assert drained(queue.subscriber()) == [bytes(50 * KIB)] * sent + [b"small"]


@pytest.mark.parametrize("limit", ["max_messages", "hwm_db_size"])
def test_the_error_names_the_limit(limit: str, new_queue: NewQueue) -> None:
    """A QueueFullError names the limit, its value, and how many messages there are."""
    value = 2 if limit == "max_messages" else 8 * KIB
    queue = refusing(new_queue, **{"max_messages": None, limit: value})
    with pytest.raises(errors.QueueFullError, match=rf"has [1-9]\d* messages.*{limit}={value}"):
        for _ in range(5):
            queue.publisher().send(bytes(3 * KIB))


def test_a_batch_without_room_is_refused_whole(new_queue: NewQueue) -> None:
    """A batch for which there is not enough room raises QueueFullError, and none of it is sent."""
    queue = refusing(new_queue)
    publisher = queue.publisher()
    publisher.send_many(numbered(2))
    with pytest.raises(errors.QueueFullError):
        publisher.send_many(numbered(2, 2))
    publisher.send(b"2")
    assert drained(queue.subscriber()) == numbered(3)


@pytest.mark.parametrize("timeout", [0, 60, None])
@pytest.mark.parametrize("filled", [False, True])
def test_a_batch_that_never_fits(filled: bool, timeout: Any, new_queue: NewQueue) -> None:
    """A batch over the mark raises BatchTooLargeError at once, even if it would wait; none of it is sent."""
    queue = refusing(new_queue)
    publisher = queue.publisher()
    before = list(publisher.send_many(numbered(3 if filled else 1)))
    with pytest.raises(errors.BatchTooLargeError, match="max_messages=3"):
        publisher.send_many(numbered(4), timeout=timeout)
    assert len(drained(queue.subscriber())) == len(before)


def test_a_message_that_never_fits(new_queue: NewQueue) -> None:
    """A message over the mark for bytes raises MessageTooLargeError at once, even if it would wait."""
    queue = refusing(new_queue, hwm_db_size=100 * KIB)
    for timeout in (0, None):
        with pytest.raises(errors.MessageTooLargeError):
            queue.publisher().send(bytes(100 * KIB + 1), timeout=timeout)
    assert queue.subscriber().front() is None


def test_acknowledging_makes_room(new_queue: NewQueue) -> None:
    """Once all subscribers have acknowledged a message, there is room for another one."""
    queue = refusing(new_queue, "a", "b")
    publisher = queue.publisher()
    publisher.send_many(numbered(3))
    for subscriber in "ab":
        with pytest.raises(errors.QueueFullError):
            publisher.send(b"3")
        assert received(queue.subscriber(subscriber)) == b"0"
    publisher.send(b"3")
    assert drained(queue.subscriber()) == numbered(3, 1)


@pytest.mark.capability("expiry")
def test_expiry_makes_room(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Messages that have expired leave room for others."""
    queue = refusing(new_queue)
    queue.control.set_hwm(message_timeout=1)
    queue.publisher().send_many(numbered(3))
    pass_time(1.1)
    queue.publisher().send_many(numbered(3, 3))
    assert drained(queue.subscriber()) == numbered(3, 3)


@pytest.mark.capability("retention", "history")
def test_retained_messages_leave_room(new_queue: NewQueue) -> None:
    """Messages that are only retained are deleted for new ones, as many as necessary."""
    queue = refusing(new_queue, retention_s=60)
    queue.publisher().send_many(numbered(3))
    assert [received(queue.subscriber()) for _ in range(2)] == numbered(2)
    queue.publisher().send(b"3")
    assert [one.payload for one in queue.control.history()] == numbered(3, 1)
    queue.publisher().send(b"4")
    with pytest.raises(errors.QueueFullError):
        queue.publisher().send(b"5")
    assert drained(queue.subscriber()) == numbered(3, 2)


def test_without_subscribers_nothing_is_refused(new_queue: NewQueue) -> None:
    """A queue without subscribers stores nothing, so it is never full."""
    queue = refusing(new_queue, max_messages=1)
    queue.control.remove_subscriber("a")
    assert [queue.publisher().send(b"x") for _ in range(3)] == [1, 2, 3]


def test_a_strategy_that_changes_to_refuse(new_queue: NewQueue) -> None:
    """A queue that begins to refuse, or whose mark is lowered then, keeps all its messages."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=10))
    publisher = queue.publisher()
    publisher.send_many(numbered(10))
    queue.control.set_strategy(Strategy.refuse)
    queue.control.set_hwm(max_messages=2)
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"10")
    assert drained(queue.subscriber()) == numbered(10)
    publisher.send_many(numbered(2))
    queue.control.set_strategy(Strategy.prune_first)
    publisher.send(b"2")
    assert drained(queue.subscriber()) == [b"2"]


@pytest.mark.capability("durability")
def test_a_refused_message_of_a_batch_with_autosync(new_queue: NewQueue) -> None:
    """With ``autosync``, the messages of a batch before the one that is refused are sent."""
    queue = refusing(new_queue)
    with pytest.raises(errors.QueueFullError):
        queue.publisher(autosync=True).send_many(numbered(5))
    assert drained(queue.subscriber()) == numbered(3)


@pytest.mark.capability("status")
def test_a_refusal_counts_nowhere(new_queue: NewQueue) -> None:
    """A message that is refused is neither sent nor pruned."""
    queue = refusing(new_queue, max_messages=1)
    queue.publisher().send(b"x")
    before = queue.control.status()
    with pytest.raises(errors.QueueFullError):
        queue.publisher().send(b"y")
    after = queue.control.status()
    assert (after.sent, after.next_id, after.pruned) == (before.sent, before.next_id, before.pruned)


@pytest.mark.capability("delayed")
def test_a_delayed_message_is_not_refused_when_it_is_due(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message was accepted when it was sent, so a full queue delivers it when it is due."""
    queue = refusing(new_queue)
    queue.publisher().send_later(b"later", delay_s=1)
    queue.publisher().send_many(numbered(3))
    pass_time(1.1)
    with pytest.raises(errors.QueueFullError):
        queue.publisher().send(b"3")
    assert drained(queue.subscriber()) == [*numbered(3), b"later"]


@pytest.mark.capability("deduplication")
def test_a_deduplication_id_of_a_message_that_is_refused(new_queue: NewQueue) -> None:
    """A message that was refused can be sent again with its id; one that was sent is found in a full queue."""
    queue = refusing(new_queue, max_messages=1)
    publisher = queue.publisher()
    first = publisher.send(b"x", deduplication_id="x")
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"y", deduplication_id="y")
    assert publisher.send(b"x", deduplication_id="x") == first
    assert drained(queue.subscriber()) == [b"x"]
    assert publisher.send(b"y", deduplication_id="y") > first
    assert drained(queue.subscriber()) == [b"y"]
