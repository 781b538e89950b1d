"""The limits of a queue: there are none unless somebody sets them, and each is set by itself."""

from typing import Any, Callable, List

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.queues import NewQueue, Queue, drained, numbered

pytestmark = [pytest.mark.capability("high_water_mark"), pytest.mark.both_forms]

STATUS = pytest.mark.capability("status")
#: Every way to set limits.
WAYS = pytest.mark.parametrize("change", [
    pytest.param(lambda queue, **limits: queue.control.set_hwm(HighWaterMark(**limits)), id="a mark"),
    pytest.param(lambda queue, **limits: queue.control.set_hwm(**limits), id="keywords"),
    pytest.param(lambda queue, **limits: queue.environment.new_control(high_watermark=HighWaterMark(**limits)),
                 id="new_control"),
])
Change = Callable[..., object]


def limits_of(queue: Queue) -> List[Any]:
    """Return the limits that a queue stores."""
    mark = queue.control.status().high_watermark
    return [mark.message_timeout, mark.max_messages, mark.hwm_db_size]


@STATUS
def test_a_new_queue_has_no_limits(new_queue: NewQueue) -> None:
    """A queue that was given no limits has none."""
    assert limits_of(new_queue("a")) == [None, None, None]


@STATUS
@WAYS
def test_a_limit_that_is_left_out_stays(change: Change, new_queue: NewQueue) -> None:
    """Setting one limit leaves the others as they are stored."""
    queue = new_queue("a", high_watermark=HighWaterMark(message_timeout=60, max_messages=7))
    change(queue, hwm_db_size=100_000)
    assert limits_of(queue) == [60, 7, 100_000]
    change(queue, max_messages=8)
    assert limits_of(queue) == [60, 8, 100_000]


@STATUS
@WAYS
def test_none_removes_a_limit(change: Change, new_queue: NewQueue) -> None:
    """None removes one limit, and the others stay."""
    queue = new_queue("a", high_watermark=HighWaterMark(60, 7, 100_000))
    change(queue, max_messages=None)
    assert limits_of(queue) == [60, None, 100_000]
    change(queue, message_timeout=None, hwm_db_size=None)
    assert limits_of(queue) == [None, None, None]


@STATUS
def test_settings_without_a_mark_keep_the_limits(new_queue: NewQueue) -> None:
    """A Control that is made without a high-water mark, or with one that gives no limit, changes no limit."""
    queue = new_queue("a", high_watermark=HighWaterMark(60, 7, 100_000))
    queue.environment.new_control(["b"], retention_s=5)
    queue.environment.new_control(high_watermark=HighWaterMark())
    assert limits_of(queue) == [60, 7, 100_000]


@STATUS
@pytest.mark.parametrize("arguments, limits", [((), {}), ((HighWaterMark(max_messages=3), ), {
    "max_messages": 3
}), ((HighWaterMark(max_messages=3), ), {
    "hwm_db_size": None
})])
def test_a_mark_or_limits(arguments: Any, limits: Any, new_queue: NewQueue) -> None:
    """``set_hwm`` takes either a HighWaterMark or limits; neither and both raise ArgumentTypeError."""
    queue = new_queue("a", high_watermark=HighWaterMark(60, 7, 100_000))
    with pytest.raises(errors.ArgumentTypeError):
        queue.control.set_hwm(*arguments, **limits)
    assert limits_of(queue) == [60, 7, 100_000]


@WAYS
def test_a_removed_limit_drops_nothing(change: Change, new_queue: NewQueue) -> None:
    """A queue whose limits were removed keeps every message, for whoever has it open."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=3, hwm_db_size=100_000))
    publisher = queue.publisher()
    publisher.send_many(numbered(3))
    change(queue, max_messages=None, hwm_db_size=None)
    publisher.send_many(numbered(50, 3))
    assert drained(queue.subscriber()) == numbered(53)


@pytest.mark.capability("large_batches")
def test_a_queue_without_limits_keeps_all(new_queue: NewQueue) -> None:
    """A queue without limits keeps more messages than the default marks of persipubsub 1.0.0 allowed."""
    queue = new_queue("a")
    queue.publisher().send_many([b""] * 70_000)
    count = 0
    while True:
        with queue.subscriber().receive_many(10_000, timeout=0) as msgs:
            if not msgs:
                break
            count += len(msgs)
    assert count == 70_000
