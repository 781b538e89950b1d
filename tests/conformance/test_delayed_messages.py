"""Delayed messages: they come when they are due, as if they were sent then, and can be cancelled before."""

import datetime
import math
import pickle
from typing import Any

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.queues import NewQueue, PassTime, drained, numbered, received

pytestmark = [pytest.mark.capability("delayed"), pytest.mark.both_forms]

DELAY_S = 1.0


def now() -> datetime.datetime:
    """Return the time, with its timezone."""
    return datetime.datetime.now(datetime.timezone.utc)


def test_a_message_comes_when_it_is_due(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message is there for nobody until it is due, and for each subscriber from then on."""
    queue = new_queue("a", "b")
    queue.publisher().send_later(b"x", delay_s=DELAY_S)
    assert queue.subscriber().front() is None and received(queue.subscriber()) is None
    pass_time(DELAY_S + 0.1)
    assert received(queue.subscriber("a")) == received(queue.subscriber("b")) == b"x"
    assert received(queue.subscriber("a")) is None


def test_a_message_has_a_time(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message may be sent for a time, in whatever timezone."""
    queue, zone = new_queue("a"), datetime.timezone(datetime.timedelta(hours=9))
    queue.publisher().send_later(b"x", at=now().astimezone(zone) + datetime.timedelta(seconds=DELAY_S))
    assert queue.subscriber().front() is None
    pass_time(DELAY_S + 0.1)
    assert received(queue.subscriber()) == b"x"


@pytest.mark.parametrize("when", [{"delay_s": 0}, {"at": datetime.datetime(1960, 1, 1, tzinfo=datetime.timezone.utc)}])
def test_a_message_that_is_due_at_once(when: Any, new_queue: NewQueue) -> None:
    """With no delay, and with a time that is over, a message comes at once, and cannot be cancelled."""
    queue = new_queue("a")
    message = queue.publisher().send_later(b"x", **when)
    assert not queue.publisher().cancel(message)
    assert received(queue.subscriber()) == b"x"


def test_the_order_of_due_times(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Messages come in the order of their due times, and those of one time as they were sent."""
    queue, at = new_queue("a"), now() + datetime.timedelta(seconds=DELAY_S)
    publisher = queue.publisher()
    publisher.send_later(b"4", delay_s=DELAY_S + 0.2)
    publisher.send_later(b"1", at=at)
    publisher.send_later(b"2", at=at)
    publisher.send_later(b"3", at=at)
    publisher.send_later(b"0", delay_s=DELAY_S / 2)
    pass_time(DELAY_S + 0.3)
    assert drained(queue.subscriber()) == numbered(5)


def test_a_message_joins_the_order_when_it_is_due(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message comes after what was sent before it was due, and before later sends."""
    queue = new_queue("a")
    queue.publisher().send_later(b"later", delay_s=DELAY_S)
    before = queue.publisher().send(b"before")
    pass_time(DELAY_S + 0.1)
    assert queue.publisher().send(b"behind") > before + 1
    assert drained(queue.subscriber()) == [b"before", b"later", b"behind"]


def test_a_message_is_for_those_who_subscribe_when_it_is_due(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message comes to the subscribers that there are when it is due, and to no other ones."""
    queue = new_queue("a")
    queue.publisher().send_later(b"x", delay_s=DELAY_S)
    queue.control.remove_subscriber("a")
    queue.control.add_subscriber("b")
    pass_time(DELAY_S + 0.1)
    assert received(queue.subscriber("b")) == b"x"
    queue.control.add_subscriber("c")
    assert received(queue.subscriber("c")) is None


def test_a_large_delayed_message(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message may have no bytes, or many."""
    queue, large = new_queue("a"), bytes(range(256)) * 800
    queue.publisher().send_later(b"", delay_s=DELAY_S)
    queue.publisher().send_later(large, delay_s=DELAY_S)
    pass_time(DELAY_S + 0.1)
    assert drained(queue.subscriber()) == [b"", large]


def test_cancelling(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message that was cancelled does not come; ``cancel`` returns whether it was still delayed."""
    queue = new_queue("a")
    publisher = queue.publisher()
    mistake, good = [publisher.send_later(msg, delay_s=DELAY_S) for msg in (b"mistake", b"good")]
    assert publisher.cancel(mistake)
    assert not publisher.cancel(mistake)
    pass_time(DELAY_S + 0.1)
    assert not publisher.cancel(good)
    assert drained(queue.subscriber()) == [b"good"]


def test_cancelling_by_what_was_stored(new_queue: NewQueue) -> None:
    """What ``send_later`` returned can be pickled, and any publisher of the queue can cancel the message by it."""
    queue = new_queue("a")
    message = pickle.loads(pickle.dumps(queue.publisher().send_later(b"x", delay_s=60)))
    with queue.opened() as environment:
        assert environment.new_publisher().cancel(message)
    assert not queue.publisher().cancel(message)


def test_when_a_message_is_due(new_queue: NewQueue) -> None:
    """What ``send_later`` returned says when the message is due, in UTC."""
    queue, before = new_queue("a"), now()
    due = queue.publisher().send_later(b"x", delay_s=60).due
    assert before + datetime.timedelta(seconds=59) < due < now() + datetime.timedelta(seconds=61)
    assert due.utcoffset() == datetime.timedelta(0)
    at = before + datetime.timedelta(days=1)
    assert abs(queue.publisher().send_later(b"x", at=at).due - at) < datetime.timedelta(seconds=1)


@pytest.mark.capability("status")
@pytest.mark.capability("gapless_ids")
def test_delayed_messages_are_counted(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The status counts delayed messages by themselves; they have no id, and are neither stored nor pending."""
    queue = new_queue("a")
    next_id = queue.control.status().next_id
    queue.publisher().cancel(queue.publisher().send_later(b"x", delay_s=DELAY_S))
    queue.publisher().send_later(b"x", delay_s=DELAY_S)
    status = queue.control.status()
    assert (status.delayed, status.messages, status.sent, status.subscribers["a"].pending) == (1, 0, 0, 0)
    assert status.next_id == next_id
    pass_time(DELAY_S + 0.1)
    assert drained(queue.subscriber()) == [b"x"]
    status = queue.control.status()
    assert (status.delayed, status.sent, status.subscribers["a"].taken) == (0, 1, 1)


@pytest.mark.capability("high_water_mark")
def test_there_is_a_mark_for_delayed_messages(new_queue: NewQueue) -> None:
    """More delayed messages than ``max_messages`` raise TooManyDelayedError; one that is cancelled makes room."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=2))
    publisher = queue.publisher()
    first, _ = [publisher.send_later(b"x", delay_s=60) for _ in range(2)]
    with pytest.raises(errors.TooManyDelayedError):
        publisher.send_later(b"x", delay_s=60)
    publisher.cancel(first)
    publisher.send_later(b"x", delay_s=60)
    publisher.send_many(numbered(2))
    assert drained(queue.subscriber()) == numbered(2), "delayed messages do not count to the mark for the others"


@pytest.mark.capability("high_water_mark")
def test_there_is_a_mark_for_delayed_bytes(new_queue: NewQueue) -> None:
    """More delayed bytes than ``hwm_db_size`` raise TooManyDelayedError, and a larger message MessageTooLargeError."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=200_000))
    queue.publisher().send_later(bytes(150_000), delay_s=60)
    with pytest.raises(errors.TooManyDelayedError):
        queue.publisher().send_later(bytes(150_000), delay_s=60)
    with pytest.raises(errors.MessageTooLargeError):
        queue.publisher().send_later(bytes(200_001), delay_s=60)


@pytest.mark.capability("high_water_mark", "status")
def test_an_overflow_by_a_delayed_message(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message that is due may let the queue overflow, as a send does, and that is counted."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=3))
    queue.publisher().send_later(b"3", delay_s=DELAY_S)
    queue.publisher().send_many(numbered(3))
    pass_time(DELAY_S + 0.1)
    assert drained(queue.subscriber()) == [b"2", b"3"]
    assert queue.control.status().pruned.overflow == 2


@pytest.mark.capability("expiry", "clock")
def test_a_delayed_message_is_as_old_as_it_is_due(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The message timeout counts from the moment at which a message is due."""
    queue = new_queue("a", "b", high_watermark=HighWaterMark(message_timeout=60))
    queue.publisher().send_later(b"x", delay_s=3600)
    pass_time(3601)
    assert received(queue.subscriber("a")) == b"x"
    pass_time(61)
    assert received(queue.subscriber("b")) is None


@pytest.mark.capability("clearing", "status")
def test_what_deletes_delayed_messages(new_queue: NewQueue) -> None:
    """``clear_messages`` and ``clear_all_subscribers`` delete delayed messages, ``remove_subscriber`` does not."""
    queue = new_queue("a")
    queue.publisher().send_later(b"x", delay_s=60)
    queue.control.remove_subscriber("a")
    assert queue.control.status().delayed == 1
    queue.control.clear_messages()
    assert queue.control.status().delayed == 0
    queue.publisher().send_later(b"x", delay_s=60)
    queue.control.clear_all_subscribers()
    assert queue.control.status().delayed == 0


@pytest.mark.capability("persistent")
def test_delayed_messages_are_persistent(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message comes though the queue was closed meanwhile."""
    queue = new_queue("a")
    queue.publisher().send_later(b"x", delay_s=DELAY_S)
    queue.environment.close()
    pass_time(DELAY_S + 0.1)
    with queue.opened() as environment:
        assert received(environment.new_subscriber("a")) == b"x"


@pytest.mark.capability("shared")
def test_a_delayed_message_for_workers(new_queue: NewQueue, pass_time: PassTime) -> None:
    """One of the workers gets a delayed message when it is due."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True)
    queue.publisher().send_later(b"x", delay_s=DELAY_S)
    assert received(queue.subscriber()) is None
    pass_time(DELAY_S + 0.1)
    assert [received(queue.subscriber()), received(queue.subscriber())] == [b"x", None]


@pytest.mark.parametrize("when, kind", [
    ({}, errors.ArgumentTypeError),
    ({
        "delay_s": 1,
        "at": now()
    }, errors.ArgumentTypeError),
    ({
        "delay_s": "1"
    }, errors.ArgumentTypeError),
    ({
        "at": 1
    }, errors.ArgumentTypeError),
    ({
        "delay_s": -1
    }, errors.ArgumentError),
    ({
        "delay_s": math.nan
    }, errors.ArgumentError),
    ({
        "delay_s": 10**9 + 1
    }, errors.ArgumentError),
    ({
        "at": datetime.datetime(2099, 1, 1)
    }, errors.ArgumentError),
    ({
        "at": datetime.datetime(4000, 1, 1, tzinfo=datetime.timezone.utc)
    }, errors.ArgumentError),
])
def test_invalid_times(when: Any, kind: type, new_queue: NewQueue) -> None:
    """Not exactly one of a delay and a time, one outside its limits, or without a timezone is refused."""
    queue = new_queue("a")
    with pytest.raises(kind):
        queue.publisher().send_later(b"x", **when)
    assert received(queue.subscriber()) is None


def test_what_cannot_be_cancelled(new_queue: NewQueue) -> None:
    """``cancel`` refuses what ``send_later`` did not return."""
    with pytest.raises(errors.ArgumentTypeError):
        new_queue("a").publisher().cancel(1)  # type: ignore[arg-type]  # on purpose
