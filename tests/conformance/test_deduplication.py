"""Deduplication: a message that is sent again with its deduplication id is there once."""

from typing import Any

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.queues import NewQueue, PassTime, drained, numbered, received, start

pytestmark = [pytest.mark.capability("deduplication"), pytest.mark.both_forms]

WINDOW_S = 1.0


def test_a_second_send(new_queue: NewQueue) -> None:
    """A send with an id that was used appends nothing, and returns the message id of the first; only ids count."""
    queue = new_queue("a")
    publisher = queue.publisher()
    first = publisher.send(b"1", deduplication_id="order-17")
    other = publisher.send(b"2", deduplication_id="order-18")
    assert publisher.send(b"1", deduplication_id="order-17") == first
    assert publisher.send(b"something else", deduplication_id="order-18") == other
    assert drained(queue.subscriber()) == [b"1", b"2"]


def test_sends_without_an_id(new_queue: NewQueue) -> None:
    """The same message without an id, or with another one, is another message."""
    queue = new_queue("a")
    publisher = queue.publisher()
    ids = [publisher.send(b"x"), publisher.send(b"x"), publisher.send(b"x", "id"), publisher.send(b"x", "ID")]
    assert len(set(ids)) == 4
    assert drained(queue.subscriber()) == [b"x"] * 4


def test_an_id_holds_for_all_publishers(new_queue: NewQueue) -> None:
    """A send with an id that another publisher has used appends nothing."""
    queue = new_queue("a")
    first = queue.publisher().send(b"x", deduplication_id="id")
    with queue.opened() as environment:
        assert environment.new_publisher().send(b"x", deduplication_id="id") == first
    assert drained(queue.subscriber()) == [b"x"]


def test_threads_that_send_the_same(new_queue: NewQueue) -> None:
    """Of sends with one id at the same time one is appended, and all return its message id."""
    queue = new_queue("a")
    publisher = queue.environment.new_publisher()
    sending = [start(lambda: publisher.send(b"x", deduplication_id="id")) for _ in range(8)]
    assert len({one.result(60) for one in sending}) == 1
    assert drained(queue.subscriber()) == [b"x"]


def test_an_id_of_an_acknowledged_message(new_queue: NewQueue) -> None:
    """An id is remembered also when its message was acknowledged."""
    queue = new_queue("a")
    first = queue.publisher().send(b"x", deduplication_id="id")
    assert received(queue.subscriber()) == b"x"
    assert queue.publisher().send(b"x", deduplication_id="id") == first
    assert received(queue.subscriber()) is None


@pytest.mark.capability("clearing")
def test_an_id_of_a_message_that_is_cleared(new_queue: NewQueue) -> None:
    """An id is remembered also when its message was cleared, or stored nowhere as nobody subscribed."""
    queue = new_queue()
    first = queue.publisher().send(b"x", deduplication_id="id")
    queue.control.add_subscriber("a")
    second = queue.publisher().send(b"x", deduplication_id="other")
    queue.control.clear_messages()
    assert queue.publisher().send(b"x", deduplication_id="id") == first
    assert queue.publisher().send(b"x", deduplication_id="other") == second
    assert received(queue.subscriber()) is None


def test_the_window(new_queue: NewQueue, pass_time: PassTime) -> None:
    """An id is remembered for as long as the window from its first send on, whatever was sent again meanwhile."""
    queue = new_queue("a", deduplication_window_s=WINDOW_S)
    publisher = queue.publisher()
    first = publisher.send(b"1", deduplication_id="id")
    pass_time(WINDOW_S * 0.6)
    assert publisher.send(b"2", deduplication_id="id") == first
    pass_time(WINDOW_S * 0.6)
    second = publisher.send(b"3", deduplication_id="id")
    assert second > first
    assert publisher.send(b"4", deduplication_id="id") == second
    assert drained(queue.subscriber()) == [b"1", b"3"]


@pytest.mark.capability("deduplication_max")
def test_the_number_of_ids(new_queue: NewQueue) -> None:
    """The latest ``deduplication_max`` ids are remembered, and no others."""
    queue = new_queue("a", deduplication_max=3)
    publisher = queue.publisher()
    ids = [publisher.send(msg, deduplication_id=msg.decode()) for msg in numbered(4)]
    assert [publisher.send(b"again", deduplication_id=name) for name in ("1", "2", "3")] == ids[1:]
    assert publisher.send(b"forgotten", deduplication_id="0") > ids[-1]


@pytest.mark.capability("status", "deduplication_max")
def test_the_settings(new_queue: NewQueue) -> None:
    """Ids are remembered for 120 seconds, and 100,000 of them, by default; both can be changed."""
    queue = new_queue("a")
    status = queue.control.status()
    assert (status.deduplication_window_s, status.deduplication_max) == (120, 100_000)
    queue.environment.new_control(deduplication_window_s=3600)
    queue.environment.new_control(deduplication_max=10)
    status = queue.control.status()
    assert (status.deduplication_window_s, status.deduplication_max) == (3600, 10)


@pytest.mark.capability("high_water_mark")
def test_an_id_of_a_message_that_is_refused(new_queue: NewQueue) -> None:
    """What could not be sent can be sent with the same id."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100_000))
    with pytest.raises(errors.MessageTooLargeError):
        queue.publisher().send(bytes(100_001), deduplication_id="id")
    queue.publisher().send(b"x", deduplication_id="id")
    assert drained(queue.subscriber()) == [b"x"]


@pytest.mark.capability("persistent")
def test_ids_are_persistent(new_queue: NewQueue) -> None:
    """An id is remembered when the queue is opened again."""
    queue = new_queue("a")
    first = queue.publisher().send(b"x", deduplication_id="id")
    queue.environment.close()
    with queue.opened() as environment:
        assert environment.new_publisher().send(b"x", deduplication_id="id") == first


@pytest.mark.parametrize("identifier", ["x", "x" * 255, "\N{SNOWMAN}" * 85, " \n"])
def test_valid_ids(identifier: str, new_queue: NewQueue) -> None:
    """An id has 1 to 255 bytes of UTF-8 without NUL."""
    publisher = new_queue("a").publisher()
    assert publisher.send(b"x", deduplication_id=identifier) == publisher.send(b"x", deduplication_id=identifier)


@pytest.mark.parametrize("identifier, kind", [("", errors.ArgumentError), ("x" * 256, errors.ArgumentError),
                                              ("\N{SNOWMAN}" * 86, errors.ArgumentError), ("a\0", errors.ArgumentError),
                                              ("\ud800", errors.ArgumentError), (b"x", errors.ArgumentTypeError),
                                              (17, errors.ArgumentTypeError)])
def test_invalid_ids(identifier: Any, kind: type, new_queue: NewQueue) -> None:
    """An id outside its limits is refused, and nothing is sent."""
    queue = new_queue("a")
    with pytest.raises(kind, match="deduplication_id"):
        queue.publisher().send(b"x", deduplication_id=identifier)
    assert received(queue.subscriber()) is None
