"""Retention keeps what all have acknowledged; a rewind, a start in the past and the history read it again."""

import datetime
from typing import Any, List

import pytest

from persipubsub import HighWaterMark, Strategy, errors
from persipubsub.replay import StoredMessage
from tests.conformance.queues import Failed, NewQueue, PassTime, Queue, drained, numbered, received

pytestmark = pytest.mark.both_forms

RETENTION = pytest.mark.capability("retention")
REPLAY = pytest.mark.capability("replay")
HISTORY = pytest.mark.capability("history")
STATUS = pytest.mark.capability("status")
RETENTION_S = 1.0


def now() -> datetime.datetime:
    """Return the time, with its timezone."""
    return datetime.datetime.now(datetime.timezone.utc)


def an_hour_ago() -> datetime.datetime:
    """Return a time before everything of a test."""
    return now() - datetime.timedelta(hours=1)


def stored(queue: Queue, *span: Any) -> List[bytes]:
    """Return the history."""
    return [message.payload for message in queue.control.history(*span)]


# Retention


@RETENTION
@HISTORY
@STATUS
def test_acknowledged_messages_stay(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Messages that all have acknowledged stay until they are as old as the retention; then they are deleted."""
    queue = new_queue("a", retention_s=RETENTION_S)
    queue.publisher().send_many(numbered(3))
    drained(queue.subscriber())
    queue.publisher().send(b"3")
    assert (queue.control.status().messages, queue.control.status().retained) == (4, 3)
    drained(queue.subscriber())
    assert stored(queue) == numbered(4)
    pass_time(RETENTION_S + 0.1)
    assert (queue.control.status().messages, queue.control.status().retained) == (0, 0)
    assert stored(queue) == []


@HISTORY
def test_without_retention_nothing_stays(new_queue: NewQueue) -> None:
    """By default a message is deleted when all subscribers have acknowledged it."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(3))
    drained(queue.subscriber("a"))
    assert stored(queue) == numbered(3)
    drained(queue.subscriber("b"))
    assert stored(queue) == []


@RETENTION
@HISTORY
def test_what_somebody_awaits_outlives_the_retention(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message that is older than the retention stays while somebody awaits it."""
    queue = new_queue("a", "slow", retention_s=RETENTION_S)
    queue.publisher().send_many(numbered(2))
    drained(queue.subscriber("a"))
    pass_time(RETENTION_S + 0.1)
    queue.publisher().send(b"2")
    assert stored(queue) == numbered(3)
    assert drained(queue.subscriber("slow")) == numbered(3)


@RETENTION
@STATUS
@pytest.mark.capability("expiry")
def test_retained_messages_do_not_expire(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Messages that all have acknowledged count nowhere as lost, also where their retention is the message timeout."""
    queue = new_queue("a", retention_s=RETENTION_S, high_watermark=HighWaterMark(message_timeout=RETENTION_S))
    queue.publisher().send_many(numbered(3))
    drained(queue.subscriber())
    pass_time(RETENTION_S + 0.1)
    queue.publisher().send(b"x")
    assert queue.control.status().pruned.timeout == 0


@RETENTION
@REPLAY
def test_a_queue_without_subscribers_retains(new_queue: NewQueue) -> None:
    """With a retention a queue stores what is sent while there is no subscriber, and one may begin with it later."""
    queue = new_queue(retention_s=100)
    queue.publisher().send(b"x")
    queue.control.add_subscriber("a", start="earliest")
    queue.control.add_subscriber("b")
    assert (received(queue.subscriber("a")), received(queue.subscriber("b"))) == (b"x", None)


@RETENTION
@HISTORY
def test_a_shorter_retention_holds_at_once(new_queue: NewQueue, pass_time: PassTime) -> None:
    """``set_retention`` holds at once, also for what is there."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send(b"old")
    drained(queue.subscriber())
    pass_time(RETENTION_S + 0.1)
    queue.publisher().send(b"young")
    drained(queue.subscriber())
    queue.control.set_retention(RETENTION_S)
    assert stored(queue) == [b"young"]
    queue.control.set_retention(0)
    assert stored(queue) == []


@RETENTION
@STATUS
def test_a_retention_is_within_the_message_timeout(new_queue: NewQueue) -> None:
    """A retention over the message timeout is refused however it comes about, and nothing is changed."""
    queue = new_queue("a", high_watermark=HighWaterMark(message_timeout=500), retention_s=60)
    for change in (lambda: queue.control.set_retention(501), lambda: queue.environment.new_control(retention_s=501),
                   lambda: queue.control.set_hwm(HighWaterMark(message_timeout=59))):
        with pytest.raises(errors.ArgumentError):
            change()
    status = queue.control.status()
    assert (status.retention_s, status.high_watermark.message_timeout) == (60, 500)
    queue.control.set_retention(500)
    assert queue.control.status().retention_s == 500


@RETENTION
@STATUS
@pytest.mark.capability("high_water_mark", "prune_last")
@pytest.mark.parametrize("strategy", Strategy)
def test_retained_messages_are_dropped_first(strategy: Strategy, new_queue: NewQueue) -> None:
    """At the mark retained messages are dropped before others, whatever the strategy, and count nowhere as lost."""
    queue = new_queue("a", retention_s=100, strategy=strategy, high_watermark=HighWaterMark(max_messages=6))
    queue.publisher().send_many([b"old"] * 5)
    drained(queue.subscriber())
    queue.publisher().send_many(numbered(6))
    pruned = queue.control.status().pruned
    assert (pruned.overflow, pruned.timeout, pruned.dangling) == (0, 0, 0)
    assert drained(queue.subscriber()) == numbered(6)


@RETENTION
@pytest.mark.parametrize("wrong, kind", [(-1, errors.ArgumentError), (float("nan"), errors.ArgumentError),
                                         (1e12, errors.ArgumentError), ("1", errors.ArgumentTypeError),
                                         (True, errors.ArgumentTypeError)])
def test_invalid_retentions(wrong: Any, kind: type, new_queue: NewQueue) -> None:
    """A retention outside its limits is refused."""
    queue = new_queue("a")
    with pytest.raises(kind, match="retention_s"):
        queue.control.set_retention(wrong)


# Moving a subscriber back


@RETENTION
@REPLAY
def test_rewinding(new_queue: NewQueue) -> None:
    """A subscriber is moved back to an id, to a time or to the earliest message; the result is what it then awaits."""
    queue = new_queue("a", retention_s=100)
    ids = list(queue.publisher().send_many(numbered(4)))
    for to, count in ((ids[3], 1), (ids[1], 3), ("earliest", 4), (an_hour_ago(), 4)):
        drained(queue.subscriber())
        assert queue.control.rewind("a", to) == count
        assert drained(queue.subscriber()) == numbered(count, 4 - count)


@RETENTION
@REPLAY
def test_a_rewind_never_moves_on(new_queue: NewQueue) -> None:
    """A subscriber that is behind the position already stays where it is."""
    queue = new_queue("a", retention_s=100)
    ids = list(queue.publisher().send_many(numbered(4)))
    queue.subscriber().pop()
    assert queue.control.rewind("a", ids[3]) == 3
    assert queue.control.rewind("a", now() + datetime.timedelta(hours=1)) == 3
    assert drained(queue.subscriber()) == numbered(3, 1)


@REPLAY
def test_a_rewind_reaches_what_is_stored(new_queue: NewQueue) -> None:
    """A subscriber that is moved back before what is stored begins with the first message that is."""
    queue = new_queue("a", "slow")
    queue.publisher().send_many(numbered(4))
    drained(queue.subscriber("a"))
    queue.subscriber("slow").pop()
    assert queue.control.rewind("a", 1) == 3
    assert drained(queue.subscriber("a")) == numbered(3, 1)


@RETENTION
@REPLAY
def test_a_rewind_moves_one_subscriber(new_queue: NewQueue) -> None:
    """A rewind changes nothing for other subscribers."""
    queue = new_queue("a", "b", retention_s=100)
    queue.publisher().send_many(numbered(2))
    drained(queue.subscriber("a"))
    drained(queue.subscriber("b"))
    queue.control.rewind("a", "earliest")
    assert (drained(queue.subscriber("b")), drained(queue.subscriber("a"))) == ([], numbered(2))


@RETENTION
@REPLAY
def test_a_rewind_during_a_block(new_queue: NewQueue) -> None:
    """The end of a block acknowledges its message only if no message before it would be skipped."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    subscriber.pop()
    with subscriber.receive(timeout=0) as msg:
        assert msg == b"1"
        queue.control.rewind("a", "earliest")
    assert drained(subscriber) == numbered(3)


@RETENTION
@REPLAY
def test_a_rewind_during_receive_to_top(new_queue: NewQueue) -> None:
    """``receive_to_top`` acknowledges nothing if its subscriber is moved back meanwhile."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    subscriber.pop()
    with subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"2"
        queue.control.rewind("a", "earliest")
    assert drained(subscriber) == numbered(3)


@RETENTION
@REPLAY
def test_a_rewind_into_a_batch(new_queue: NewQueue) -> None:
    """The end of a block acknowledges its whole batch if the subscriber was moved back to a message within it."""
    queue = new_queue("a", retention_s=100)
    ids = list(queue.publisher().send_many(numbered(4)))
    with queue.subscriber().receive_many(max_messages=3, timeout=0):
        assert received(queue.subscriber()) == b"0"
        assert received(queue.subscriber()) == b"1"
        queue.control.rewind("a", ids[1])
    assert drained(queue.subscriber()) == [b"3"]


@RETENTION
@REPLAY
def test_what_is_read_again_may_fail(new_queue: NewQueue) -> None:
    """Messages that come again after a rewind are received and kept as others."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send_many(numbered(2))
    drained(queue.subscriber())
    queue.control.rewind("a", "earliest")
    with pytest.raises(Failed), queue.subscriber().receive_many(timeout=0):
        raise Failed
    assert drained(queue.subscriber()) == numbered(2)


@REPLAY
@pytest.mark.parametrize("to, kind", [(0, errors.ArgumentError), (-1, errors.ArgumentError),
                                      (2**63, errors.ArgumentError), ("latest", errors.ArgumentError),
                                      ("", errors.ArgumentError), (datetime.datetime(2020, 1, 1), errors.ArgumentError),
                                      (1.5, errors.ArgumentTypeError), (True, errors.ArgumentTypeError),
                                      (None, errors.ArgumentTypeError)])
def test_invalid_positions(to: Any, kind: type, new_queue: NewQueue) -> None:
    """What is neither a message id, nor a time with a timezone, nor ``earliest`` is refused."""
    with pytest.raises(kind, match="to"):
        new_queue("a").control.rewind("a", to)


@REPLAY
def test_rewinding_an_unknown_subscriber(new_queue: NewQueue) -> None:
    """A subscriber that is not there cannot be moved back."""
    with pytest.raises(errors.UnknownSubscriberError):
        new_queue("a").control.rewind("b", "earliest")


# Beginning in the past


@RETENTION
@REPLAY
def test_where_a_new_subscriber_begins(new_queue: NewQueue) -> None:
    """A new subscriber begins with what is sent from then on, with all that is stored, or at a time."""
    queue = new_queue(retention_s=100)
    queue.publisher().send_many(numbered(2))
    queue.control.add_subscriber("latest", start="latest")
    queue.control.add_subscriber("earliest", start="earliest")
    queue.control.add_subscriber("since", start=an_hour_ago())
    queue.publisher().send(b"2")
    assert drained(queue.subscriber("latest")) == [b"2"]
    assert drained(queue.subscriber("earliest")) == drained(queue.subscriber("since")) == numbered(3)


@RETENTION
@REPLAY
@pytest.mark.capability("clock")
def test_a_subscriber_begins_at_a_time(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A start, a rewind and a history at a time leave out what was sent long before it, and nothing since."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send(b"before")
    pass_time(10)
    queue.publisher().send(b"behind")
    drained(queue.subscriber())
    at = now() + datetime.timedelta(seconds=5)
    queue.control.add_subscriber("b", start=at)
    assert drained(queue.subscriber("b")) == [b"behind"]
    assert queue.control.rewind("a", at) == 1


@RETENTION
@REPLAY
def test_a_start_is_for_a_new_subscriber(new_queue: NewQueue) -> None:
    """A subscriber that is there stays at its cursor, whatever start is given."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send_many(numbered(2))
    queue.subscriber().pop()
    queue.control.add_subscriber("a", start="earliest")
    queue.control.add_subscriber("a", start="latest")
    assert drained(queue.subscriber()) == [b"1"]


@REPLAY
@pytest.mark.parametrize("start, kind", [(1, errors.ArgumentTypeError), (None, errors.ArgumentTypeError),
                                         ("oldest", errors.ArgumentError),
                                         (datetime.datetime(2020, 1, 1), errors.ArgumentError)])
def test_invalid_starts(start: Any, kind: type, new_queue: NewQueue) -> None:
    """A start that is neither a word that is known nor a time with a timezone is refused, and nobody is added."""
    queue = new_queue("a")
    with pytest.raises(kind, match="start"):
        queue.control.add_subscriber("b", start=start)
    with pytest.raises(errors.UnknownSubscriberError):
        queue.subscriber("b")


# Looking without a subscriber


@HISTORY
def test_the_history(new_queue: NewQueue) -> None:
    """The history returns what is stored, with ids and times in UTC, whoever awaits it, and acknowledges nothing."""
    queue, before = new_queue("a", "slow"), now()
    ids = list(queue.publisher().send_many(numbered(3)))
    drained(queue.subscriber("a"))
    found = list(queue.control.history())
    assert [(message.id, message.payload) for message in found] == list(zip(ids, numbered(3)))
    for message in found:
        assert isinstance(message, StoredMessage) and message.time.utcoffset() == datetime.timedelta(0)
        assert before - datetime.timedelta(seconds=1) < message.time < now() + datetime.timedelta(seconds=1)
    assert drained(queue.subscriber("slow")) == numbered(3)


@HISTORY
def test_a_part_of_the_history(new_queue: NewQueue) -> None:
    """A part of the history begins with an id or a time, and ends before one."""
    queue = new_queue("a")
    ids = list(queue.publisher().send_many(numbered(4)))
    assert stored(queue, ids[1]) == numbered(3, 1)
    assert stored(queue, ids[1], ids[3]) == numbered(2, 1)
    assert stored(queue, None, ids[2]) == numbered(2)
    assert stored(queue, an_hour_ago()) == stored(queue, None, now() + datetime.timedelta(hours=1)) == numbered(4)
    assert stored(queue, None, an_hour_ago()) == stored(queue, ids[2], ids[2]) == stored(queue, 10**9) == []


@HISTORY
def test_the_history_is_that_of_its_beginning(new_queue: NewQueue) -> None:
    """What is sent after the first message was asked for is not in a history."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    history = queue.control.history()
    assert next(history).payload == b"0"
    queue.publisher().send(b"2")
    assert [message.payload for message in history] == [b"1"]


@HISTORY
@pytest.mark.capability("large_batches")
def test_a_long_history(new_queue: NewQueue) -> None:
    """A history of more messages than are read at a time has all of them, in order."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2500))
    assert stored(queue) == numbered(2500)


@HISTORY
def test_a_control_that_is_closed_while_it_reads(new_queue: NewQueue) -> None:
    """A history raises ClosedError after its control was closed."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    history = queue.control.history()
    next(history)
    queue.control.close()
    with pytest.raises(errors.ClosedError):
        next(history)


@HISTORY
@pytest.mark.parametrize("span, kind", [((0, ), errors.ArgumentError), ((None, -1), errors.ArgumentError),
                                        ((datetime.datetime(2020, 1, 1), ), errors.ArgumentError),
                                        ((1.5, ), errors.ArgumentTypeError), ((None, b"1"), errors.ArgumentTypeError)])
def test_invalid_histories(span: Any, kind: type, new_queue: NewQueue) -> None:
    """Ends of a history that are neither message ids nor times with a timezone are refused."""
    with pytest.raises(kind):
        list(new_queue("a").control.history(*span))


@HISTORY
@pytest.mark.capability("delayed")
def test_delayed_messages_are_in_no_history(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message is in the history when it is due."""
    queue = new_queue("a")
    queue.publisher().send_later(b"x", delay_s=1)
    assert stored(queue) == []
    pass_time(1.1)
    assert stored(queue) == [b"x"]
