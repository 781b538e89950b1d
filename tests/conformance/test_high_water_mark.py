"""High-water marks and strategies: what is dropped at an overflow, and what is not."""

from typing import List

import pytest

from persipubsub import HighWaterMark, Strategy, errors
from tests.conformance.queues import NewQueue, drained, numbered, pending, received, warnings_of

pytestmark = [pytest.mark.capability("high_water_mark"), pytest.mark.both_forms]

STRATEGIES = pytest.mark.parametrize("strategy", [
    Strategy.prune_first,
    pytest.param(Strategy.prune_last, marks=pytest.mark.capability("prune_last")),
])
KIB = 1024


@pytest.mark.capability("prune_last")
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("strategy, kept", [(Strategy.prune_first, [b"5", b"6", b"7"]),
                                            (Strategy.prune_last, [b"1", b"2", b"7"])])
def test_an_overflow(strategy: Strategy, kept: List[bytes], batch: bool, new_queue: NewQueue) -> None:
    """The send that finds the mark reached drops half of the messages and one, the oldest or the latest."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=6), strategy=strategy)
    if batch:
        queue.publisher().send_many(numbered(7, 1))
    else:
        for msg in numbered(7, 1):
            queue.publisher().send(msg)
    assert drained(queue.subscriber()) == kept


def test_up_to_the_mark_nothing_is_dropped(new_queue: NewQueue) -> None:
    """As many messages as the mark are all there."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=6))
    queue.publisher().send_many(numbered(6))
    assert drained(queue.subscriber()) == numbered(6)


@pytest.mark.parametrize("mark", [1, 2, 5, 8])
def test_a_batch_keeps_the_mark_as_single_sends_do(mark: int, new_queue: NewQueue) -> None:
    """What a batch leaves is what its messages leave that are sent one by one."""
    batches, singles = [new_queue("a", high_watermark=HighWaterMark(max_messages=mark)) for _ in range(2)]
    batches.publisher().send_many(numbered(23))
    for msg in numbered(23):
        singles.publisher().send(msg)
    left = drained(batches.subscriber())
    assert left == drained(singles.subscriber()) and 0 < len(left) <= mark


@pytest.mark.parametrize("batch", [False, True])
def test_a_mark_of_one_keeps_the_latest(batch: bool, new_queue: NewQueue) -> None:
    """With ``max_messages=1`` a queue has exactly the latest message."""
    queue = new_queue("a", "b", high_watermark=HighWaterMark(max_messages=1))
    for number in range(3):
        if batch:
            queue.publisher().send_many(numbered(3, 10 * number))
        else:
            queue.publisher().send(b"%d" % (10 * number + 2))
        assert queue.subscriber().front() == b"%d" % (10 * number + 2)
    assert drained(queue.subscriber("b")) == [b"22"]


def test_what_all_have_acknowledged_does_not_count(new_queue: NewQueue) -> None:
    """A queue whose messages are acknowledged in time never overflows."""
    queue = new_queue("a", "b", high_watermark=HighWaterMark(max_messages=4))
    for number in range(5):
        queue.publisher().send_many(numbered(4, 4 * number))
        assert drained(queue.subscriber("a")) == drained(queue.subscriber("b")) == numbered(4, 4 * number)


def test_the_slowest_subscriber_fills_the_queue(new_queue: NewQueue) -> None:
    """What one subscriber has not acknowledged counts, and is dropped for that one; others have had it."""
    queue, seen = new_queue("a", "slow", high_watermark=HighWaterMark(max_messages=4)), []
    for msg in numbered(5):
        queue.publisher().send(msg)
        seen += drained(queue.subscriber())
    assert seen == numbered(5)
    assert drained(queue.subscriber("slow")) == [b"3", b"4"]


def test_nobody_is_refused_at_the_mark(new_queue: NewQueue) -> None:
    """Every send at the mark succeeds, has the next id, and its message is there."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=2))
    ids = [queue.publisher().send(msg) for msg in numbered(20)]
    assert ids == sorted(set(ids))
    assert drained(queue.subscriber())[-1] == b"19"


@pytest.mark.capability("status")
def test_a_lowered_mark(new_queue: NewQueue) -> None:
    """A mark below what is there drops nothing yet; the next send, of whoever is open, drops until it is kept."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send_many(numbered(100))
    queue.control.set_hwm(HighWaterMark(max_messages=10))
    assert pending(queue) == {"a": 100}
    publisher.send(b"100")
    left = drained(queue.subscriber())
    assert len(left) <= 10 and left == numbered(len(left), 101 - len(left))


def test_a_raised_mark(new_queue: NewQueue) -> None:
    """A raised mark holds from the next send on, for whoever is open."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=3))
    publisher = queue.publisher()
    publisher.send_many(numbered(3))
    queue.control.set_hwm(HighWaterMark(max_messages=100))
    publisher.send_many(numbered(50, 3))
    assert drained(queue.subscriber()) == numbered(53)


@pytest.mark.capability("prune_last")
def test_another_strategy(new_queue: NewQueue) -> None:
    """A strategy holds from the next overflow on, for whoever is open."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=4))
    publisher = queue.publisher()
    publisher.send_many(numbered(4))
    queue.control.set_strategy(Strategy.prune_last)
    publisher.send(b"4")
    assert drained(queue.subscriber()) == [b"0", b"4"]


@pytest.mark.capability("status")
def test_an_overflow_is_counted(new_queue: NewQueue) -> None:
    """``status().pruned.overflow`` counts each message that is dropped once, however many awaited it."""
    queue = new_queue("a", "b", high_watermark=HighWaterMark(max_messages=4))
    queue.publisher().send_many(numbered(5))
    status = queue.control.status()
    assert (status.pruned.overflow, status.pruned.timeout, status.pruned.dangling) == (3, 0, 0)
    assert (status.messages, status.sent) == (2, 5)


def test_an_overflow_is_a_warning(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Where logging is configured, an overflow is a warning with the number of messages that are dropped."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=22))
    queue.publisher().send_many(numbered(22))
    assert not warnings_of(caplog)
    queue.publisher().send(b"22")
    warning, = warnings_of(caplog)
    assert "12" in warning


def test_a_queue_of_the_latest_value_warns_of_nothing(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """With ``max_messages=1`` no warning says that a message replaced the one before."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=1))
    queue.publisher().send_many(numbered(3))
    queue.publisher().send(b"3")
    assert not warnings_of(caplog)


@STRATEGIES
def test_the_mark_for_bytes(strategy: Strategy, new_queue: NewQueue) -> None:
    """A queue never has many more bytes than its mark, sends succeed all the same, and the latest message is there."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=200 * KIB), strategy=strategy)
    msgs = [b"%03d" % number + bytes(10 * KIB) for number in range(60)]
    for msg in msgs[:30]:
        queue.publisher().send(msg)
    queue.publisher().send_many(msgs[30:])
    left = drained(queue.subscriber())
    assert 1 < len(left) <= 20 and left[-1] == msgs[-1] and left == sorted(left)
    assert (left[0] == msgs[0]) == (strategy == Strategy.prune_last)


@pytest.mark.parametrize("batch", [False, True])
def test_a_message_that_is_larger_than_the_queue(batch: bool, new_queue: NewQueue) -> None:
    """A message over the mark for bytes raises MessageTooLargeError, which is a ValueError; nothing is sent."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100 * KIB))
    publisher, large = queue.publisher(), bytes(100 * KIB + 1)
    publisher.send(b"before")
    with pytest.raises(errors.MessageTooLargeError) as raised:
        if batch:
            publisher.send_many([b"beside", large])
        else:
            publisher.send(large)
    assert isinstance(raised.value, ValueError)
    publisher.send(large[1:])
    assert drained(queue.subscriber())[-1] == large[1:]


@pytest.mark.capability("durability")
def test_a_batch_that_fails_with_autosync(new_queue: NewQueue) -> None:
    """With ``autosync`` each message of a batch is sent by itself: an error leaves those before it sent."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100 * KIB))
    with pytest.raises(errors.MessageTooLargeError):
        queue.publisher(autosync=True).send_many([b"1", b"2", bytes(100 * KIB + 1), b"4"])
    assert drained(queue.subscriber()) == [b"1", b"2"]


def test_a_message_that_is_dropped_while_it_is_handled(new_queue: NewQueue) -> None:
    """A block may end whose message an overflow has dropped meanwhile, and acknowledges no other."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=3))
    queue.publisher().send_many(numbered(3))
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"0"
        queue.publisher().send(b"3")
    assert received(queue.subscriber()) == b"2"
    assert drained(queue.subscriber()) == [b"3"]
