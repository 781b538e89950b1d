"""The message timeout: what is older than it is delivered to nobody."""

import pytest

from persipubsub import HighWaterMark
from tests.conformance.queues import Failed, NewQueue, PassTime, drained, failed, numbered, received, warnings_of

pytestmark = [pytest.mark.capability("expiry"), pytest.mark.both_forms]

#: Long enough for a slow machine, and short enough to be waited for where there is no clock to move.
TIMEOUT_S = 1.0
BRIEF = HighWaterMark(message_timeout=TIMEOUT_S)


def test_an_expired_message_is_not_delivered(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message that is older than the timeout is delivered in no way; what is sent afterwards is."""
    queue = new_queue("a", high_watermark=BRIEF)
    subscriber = queue.subscriber()
    queue.publisher().send_many(numbered(3))
    pass_time(TIMEOUT_S + 0.1)
    assert subscriber.front() is None and received(subscriber) is None and not drained(subscriber)
    with subscriber.receive_to_top(timeout=0) as msg, subscriber.receive_many(timeout=0) as msgs:
        assert msg is None and not msgs
    queue.publisher().send(b"3")
    assert drained(subscriber) == [b"3"]


def test_a_younger_message_is_delivered(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Of two messages the one expires that is older than the timeout, and the other is delivered."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send(b"old")
    pass_time(TIMEOUT_S * 0.75)
    queue.publisher().send(b"young")
    pass_time(TIMEOUT_S * 0.5)
    assert drained(queue.subscriber()) == [b"young"]


@pytest.mark.capability("clock")
def test_by_default_nothing_expires(new_queue: NewQueue, pass_time: PassTime) -> None:
    """In a queue without a message timeout, a message is delivered however old it is."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    pass_time(10 * 365 * 86_400)
    queue.publisher().send(b"y")
    assert drained(queue.subscriber()) == [b"x", b"y"]


def test_a_timeout_that_is_removed(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Without its timeout, a queue delivers messages that would have expired."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send(b"x")
    queue.control.set_hwm(message_timeout=None)
    pass_time(TIMEOUT_S + 0.1)
    assert drained(queue.subscriber()) == [b"x"]


def test_expiry_is_for_those_who_have_not_acknowledged(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message expires for the subscribers that have not acknowledged it; others received it before."""
    queue = new_queue("a", "slow", high_watermark=BRIEF)
    queue.publisher().send(b"old")
    assert received(queue.subscriber("a")) == b"old"
    pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send(b"young")
    assert drained(queue.subscriber("a")) == drained(queue.subscriber("slow")) == [b"young"]


def test_a_message_that_expires_while_it_is_handled(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A block may end whose message has expired meanwhile; one that raised does not bring it back."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send(b"old")
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"old"
        pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send(b"young")
    with pytest.raises(Failed), queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"young"
        pass_time(TIMEOUT_S + 0.1)
        raise Failed
    assert queue.subscriber().front() is None


@pytest.mark.capability("clock")
def test_a_loop_looks_again(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A loop returns no message of its batch that has expired while it was at others before."""
    queue, seen = new_queue("a", high_watermark=BRIEF), []
    queue.publisher().send_many(numbered(3))
    for msg in queue.subscriber().messages(timeout=0, acknowledge_every=10):
        seen.append(msg)
        pass_time(TIMEOUT_S + 0.1)
    assert seen == [b"0"]


def test_another_timeout_holds_at_once(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A shorter timeout holds at once, also for what is in the queue."""
    queue = new_queue("a")
    queue.publisher().send(b"old")
    pass_time(TIMEOUT_S + 0.1)
    queue.control.set_hwm(BRIEF)
    queue.publisher().send(b"young")
    assert drained(queue.subscriber()) == [b"young"]


@pytest.mark.capability("status")
def test_expired_messages_are_counted(new_queue: NewQueue, pass_time: PassTime) -> None:
    """What has expired counts as ``pruned.timeout``, once for each message, and no longer as pending or stored."""
    queue = new_queue("a", "b", high_watermark=BRIEF)
    queue.publisher().send_many(numbered(3))
    assert received(queue.subscriber("a")) == b"0"
    pass_time(TIMEOUT_S + 0.1)
    status = queue.control.status()
    assert (status.messages, status.subscribers["a"].pending, status.subscribers["b"].pending) == (0, 0, 0)
    queue.publisher().send(b"young")
    assert queue.control.status().pruned.timeout == 3


@pytest.mark.capability("status")
def test_what_all_have_acknowledged_does_not_expire(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Messages that every subscriber has acknowledged do not count as expired."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send_many(numbered(3))
    drained(queue.subscriber())
    pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send(b"young")
    assert queue.control.status().pruned.timeout == 0


@pytest.mark.capability("high_water_mark")
def test_expired_messages_fill_no_queue(new_queue: NewQueue, pass_time: PassTime) -> None:
    """What has expired does not count to the high-water mark."""
    queue = new_queue("a", high_watermark=HighWaterMark(message_timeout=TIMEOUT_S, max_messages=4))
    queue.publisher().send_many(numbered(4))
    pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send_many(numbered(4, 4))
    assert drained(queue.subscriber()) == numbered(4, 4)


def test_expiry_is_a_warning(new_queue: NewQueue, pass_time: PassTime, caplog: pytest.LogCaptureFixture) -> None:
    """Where logging is configured, messages that expired are a warning with their number."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send_many(numbered(12))
    pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send(b"young")
    received(queue.subscriber())
    warning, = warnings_of(caplog)
    assert "12" in warning


def test_failing_does_not_stop_expiry(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message that always fails expires as others do, and those behind it are next."""
    queue = new_queue("a", high_watermark=BRIEF)
    queue.publisher().send(b"bad")
    assert failed(queue.subscriber()) == b"bad"
    pass_time(TIMEOUT_S + 0.1)
    queue.publisher().send(b"good")
    assert received(queue.subscriber()) == b"good"
