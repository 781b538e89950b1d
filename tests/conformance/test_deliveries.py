"""Deliveries: what a subscriber is told of a message beside its payload, in each way to receive."""

import contextlib
import dataclasses
import datetime
from typing import Any, Callable, ContextManager, List, Optional

import pytest

from persipubsub import Delivery, Envelope, HighWaterMark
from tests.conformance.forms import AnySubscriber
from tests.conformance.queues import Failed, NewQueue, PassTime, Queue, drained, failed, numbered, start

pytestmark = pytest.mark.both_forms

HEADERS = {"name": "text"}


def _receive(subscriber: AnySubscriber) -> "ContextManager[Optional[Delivery[bytes]]]":
    return subscriber.receive_delivery(timeout=0)


@contextlib.contextmanager
def _receive_many(subscriber: AnySubscriber) -> Any:
    with subscriber.receive_deliveries(max_messages=1, timeout=0) as found:
        yield found[0] if found else None


@contextlib.contextmanager
def _loop(subscriber: AnySubscriber) -> Any:
    with contextlib.closing(subscriber.deliveries(timeout=0)) as deliveries:  # type: ignore[type-var]  # a generator
        found = next(deliveries, None)
        yield found
        next(deliveries, None)  # asks for the next one, which acknowledges this one, and leaves the loop


#: Every way to receive one delivery, as a context manager that acknowledges it.
WAYS = pytest.mark.parametrize("receive", [
    pytest.param(_receive, id="receive_delivery"),
    pytest.param(_receive_many, id="receive_deliveries"),
    pytest.param(_loop, id="deliveries"),
])
Receive = Callable[[AnySubscriber], "ContextManager[Optional[Delivery[bytes]]]"]

SHARED = pytest.param(True, marks=pytest.mark.capability("shared"), id="shared")


def now() -> datetime.datetime:
    """Return the time."""
    return datetime.datetime.now(datetime.timezone.utc)


def settle(queue: Queue, shared: bool, **settings: Any) -> None:
    """Add a subscriber, whose failed messages are delivered again at once if it is shared."""
    if shared:
        settings = {"shared": True, "retry_delay_s": 0, "max_deliveries": 9, **settings}
    queue.control.add_subscriber("a", **settings)


def counts(subscriber: AnySubscriber, failures: int) -> List[int]:
    """Receive a message in blocks that raise, and then in one that does not; return the counts."""
    found = []
    for number in range(failures + 1):
        with contextlib.suppress(Failed), subscriber.receive_delivery(timeout=0) as delivery:
            assert delivery is not None
            found.append(delivery.delivery_count)
            if number < failures:
                raise Failed
    return found


@WAYS
@pytest.mark.parametrize("shared", [False, SHARED])
def test_the_fields(shared: bool, receive: Receive, new_queue: NewQueue) -> None:
    """A delivery has the message, its id, the time of the send, its headers, and a count of one."""
    queue, before = new_queue(), now()
    settle(queue, shared)
    message_id = queue.publisher().send(b"x", headers=HEADERS)
    with receive(queue.subscriber()) as found:
        assert found is not None
        assert (found.message, found.id, found.delivery_count, found.headers) == (b"x", message_id, 1, HEADERS)
        assert found.sent_at.utcoffset() == datetime.timedelta(0)
        tolerance = datetime.timedelta(seconds=1)
        assert before - tolerance <= found.sent_at <= now() + tolerance
    assert not drained(queue.subscriber())


@WAYS
def test_nothing_to_deliver(receive: Receive, new_queue: NewQueue) -> None:
    """Without a message there is no delivery."""
    subscriber = new_queue("a").subscriber()
    with receive(subscriber) as found:
        assert found is None
    assert subscriber.front_delivery() is None
    with subscriber.receive_deliveries(timeout=0) as all_found:
        assert all_found == []


def _entered(block: Any) -> Any:
    return block.__enter__()  # pylint: disable=unnecessary-dunder-call  # the block never ends


@pytest.mark.parametrize("wait", [
    pytest.param(lambda one: _entered(one.receive_delivery(60)), id="receive_delivery"),
    pytest.param(lambda one: _entered(one.receive_deliveries(timeout=60))[0], id="receive_deliveries"),
    pytest.param(lambda one: next(one.deliveries(timeout=60)), id="deliveries"),
])
def test_each_delivery_waits(wait: Callable[[AnySubscriber], Any], new_queue: NewQueue) -> None:
    """Each way to receive deliveries waits for a message."""
    queue = new_queue("a")
    sending = start(lambda: queue.environment.new_publisher().send(b"x"), 0.05)
    assert wait(queue.subscriber()).message == b"x"
    sending.result(60)


def test_front_delivery(new_queue: NewQueue) -> None:
    """``front_delivery`` looks at the next message, counts nothing, and acknowledges nothing."""
    queue = new_queue("a")
    subscriber, message_id = queue.subscriber(), queue.publisher().send(b"x", headers=HEADERS)
    for _ in range(3):
        found = subscriber.front_delivery()
        assert found is not None
        assert (found.message, found.id, found.delivery_count, found.headers) == (b"x", message_id, 1, HEADERS)
    assert failed(subscriber) == b"x"
    found = subscriber.front_delivery()
    assert found is not None and found.delivery_count == 2


def test_a_delivery_is_a_value(new_queue: NewQueue) -> None:
    """A delivery cannot be changed, and equals another one of the same message."""
    queue = new_queue("a")
    queue.publisher().send(b"x", headers=HEADERS)
    subscriber = queue.subscriber()
    found: Any = subscriber.front_delivery()
    assert found == subscriber.front_delivery()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.message = b"y"


def test_deliveries_of_a_batch(new_queue: NewQueue) -> None:
    """A batch of deliveries has each message with its own id and headers, as many as were asked for."""
    queue = new_queue("a")
    ids = queue.publisher().send_many([b"0", Envelope(b"1", HEADERS), b"2"])
    with queue.subscriber().receive_deliveries(max_messages=2, timeout=0) as found:
        assert [(one.message, one.id, one.headers) for one in found] == [(b"0", ids[0], {}), (b"1", ids[1], HEADERS)]
    with queue.subscriber().receive_deliveries(timeout=0, max_bytes=1) as found:
        assert [one.message for one in found] == [b"2"]


def test_a_large_batch_of_deliveries(new_queue: NewQueue) -> None:
    """The deliveries of a thousand messages are in order, each with its id."""
    queue = new_queue("a")
    ids = list(queue.publisher().send_many(numbered(1000)))
    with queue.subscriber().receive_deliveries(timeout=0) as found:
        assert [(one.id, one.message) for one in found] == list(zip(ids, numbered(1000)))


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_a_loop_over_deliveries_that_is_left(acknowledge_every: int, new_queue: NewQueue) -> None:
    """Leaving a loop over deliveries acknowledges exactly the messages whose iteration has ended."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(4))
    with contextlib.closing(  # type: ignore[type-var]  # a generator
            queue.subscriber().deliveries(timeout=0, acknowledge_every=acknowledge_every)) as deliveries:
        for one in deliveries:
            if one.message == b"2":
                break
    assert drained(queue.subscriber()) == [b"2", b"3"]


# The time of the send


def test_the_time_of_the_send(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The time is that of the send, also when the message is delivered later, and the same each time."""
    queue = new_queue("a")
    queue.publisher().send(b"old")
    pass_time(1)
    queue.publisher().send(b"young")
    subscriber, times = queue.subscriber(), list[datetime.datetime]()
    for _ in range(2):
        with contextlib.suppress(Failed), subscriber.receive_deliveries(timeout=0) as found:
            times += [one.sent_at for one in found]
            raise Failed
    assert times[:2] == times[2:]
    assert 0.9 < (times[1] - times[0]).total_seconds() < 60


@pytest.mark.capability("delayed")
def test_the_time_of_a_delayed_message(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message counts as sent when it is due, or later if nobody looked then."""
    queue = new_queue("a")
    queue.publisher().send(b"now")
    queue.publisher().send_later(b"later", delay_s=1)
    pass_time(1.1)
    first, second = queue.subscriber().deliveries(timeout=0)
    assert (first.message, second.message) == (b"now", b"later")
    assert 0.9 < (second.sent_at - first.sent_at).total_seconds() < 60


@pytest.mark.capability("history")
def test_the_history_agrees(new_queue: NewQueue) -> None:
    """The history has the same ids, times and headers as the deliveries."""
    queue = new_queue("a")
    queue.publisher().send_many([b"0", Envelope(b"1", HEADERS)])
    stored = [(one.id, one.time, one.payload, one.headers) for one in queue.control.history()]
    found = [(one.id, one.sent_at, one.message, one.headers) for one in queue.subscriber().deliveries(timeout=0)]
    assert found == stored


# The count


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="plain"),
    pytest.param({"max_deliveries": 9}, id="limited", marks=pytest.mark.capability("dead_letters")),
    pytest.param(
        {
            "shared": True,
            "retry_delay_s": 0,
            "max_deliveries": 9
        }, id="shared", marks=pytest.mark.capability("shared")),
])
def test_failures_count(settings: Any, new_queue: NewQueue) -> None:
    """The count rises with each block that raised; that of the next message begins again."""
    queue = new_queue()
    queue.control.add_subscriber("a", **settings)
    ids = list(queue.publisher().send_many(numbered(2)))
    subscriber = queue.subscriber()
    assert counts(subscriber, 3) == [1, 2, 3, 4]
    found = subscriber.receive_delivery(timeout=0)
    with found as delivery:
        assert delivery is not None and (delivery.id, delivery.delivery_count) == (ids[1], 1)


@pytest.mark.parametrize("settings", [
    pytest.param({"max_deliveries": 9}, id="limited", marks=pytest.mark.capability("dead_letters")),
    pytest.param(
        {
            "shared": True,
            "retry_delay_s": 0,
            "max_deliveries": 9
        }, id="shared", marks=pytest.mark.capability("shared")),
])
def test_failures_of_others_count(settings: Any, new_queue: NewQueue) -> None:
    """Where deliveries are limited, those of other endpoints count as well."""
    queue = new_queue()
    queue.control.add_subscriber("a", **settings)
    queue.publisher().send(b"x")
    for _ in range(2):
        assert failed(queue.opened().new_subscriber("a")) == b"x"
    assert counts(queue.subscriber(), 1) == [3, 4]


def test_failures_of_a_batch_count(new_queue: NewQueue) -> None:
    """Each message of a batch whose block raised has been delivered once more; one that was not received has not."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(4))
    subscriber = queue.subscriber()
    for max_messages in (3, 2):
        with pytest.raises(Failed), subscriber.receive_many(max_messages, timeout=0):
            raise Failed
    with subscriber.receive_deliveries(1, timeout=0) as found:
        assert [one.delivery_count for one in found] == [3]
    with subscriber.receive_deliveries(timeout=0) as found:
        assert [one.delivery_count for one in found] == [3, 2, 1]


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="plain"),
    pytest.param({"max_deliveries": 9}, id="limited", marks=pytest.mark.capability("dead_letters")),
])
def test_a_loop_that_is_left_counts(settings: Any, new_queue: NewQueue) -> None:
    """The message at which a loop is left was delivered; those of its batch that had not begun were not."""
    queue = new_queue()
    queue.control.add_subscriber("a", **settings)
    queue.publisher().send_many(numbered(4))
    subscriber = queue.subscriber()
    with contextlib.closing(  # type: ignore[type-var]  # a generator
            subscriber.messages(timeout=0, acknowledge_every=3)) as messages:
        for msg in messages:
            if msg == b"1":
                break
    deliveries = subscriber.deliveries(timeout=0)
    assert [(one.message, one.delivery_count) for one in deliveries] == [(b"1", 2), (b"2", 1), (b"3", 1)]


@pytest.mark.capability("shared")
def test_leases_that_run_out_count(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A worker that died has delivered its message once more."""
    queue = new_queue()
    settle(queue, True, lease_s=1)
    queue.publisher().send(b"x")
    for number in range(1, 4):
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(queue.subscriber().receive_delivery(timeout=0))
            assert found is not None and found.delivery_count == number
            stack.pop_all()
        pass_time(1.1)


@pytest.mark.capability("shared")
def test_a_delivery_that_is_given_back_does_not_count(new_queue: NewQueue) -> None:
    """A message that a worker gives back because it ends is delivered as if for the first time."""
    queue = new_queue()
    settle(queue, True)
    queue.publisher().send(b"x")
    with pytest.raises(KeyboardInterrupt), queue.subscriber().receive(timeout=0):
        raise KeyboardInterrupt
    assert counts(queue.subscriber(), 0) == [1]


@pytest.mark.capability("dead_letters")
@pytest.mark.parametrize("shared", [False, SHARED])
def test_a_requeued_message(shared: bool, new_queue: NewQueue) -> None:
    """A requeued message keeps its id and its time, and its count begins again, each time."""
    queue = new_queue()
    settle(queue, shared, max_deliveries=2)
    message_id = queue.publisher().send(b"x", headers=HEADERS)
    subscriber = queue.subscriber()
    with contextlib.suppress(Failed), subscriber.receive_delivery(timeout=0) as original:
        raise Failed
    assert failed(subscriber) == b"x"
    for _ in range(2):
        assert queue.control.requeue_dead_letters("a") == 1
        for count in (1, 2):
            with pytest.raises(Failed), subscriber.receive_delivery(timeout=0) as found:
                assert found is not None and original is not None
                assert (found.id, found.sent_at, found.headers) == (message_id, original.sent_at, HEADERS)
                assert found.delivery_count == count
                raise Failed


@pytest.mark.capability("expiry")
def test_a_loop_over_deliveries_looks_again(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A loop over deliveries returns no message of its batch that has expired meanwhile."""
    queue, seen = new_queue("a", high_watermark=HighWaterMark(message_timeout=1)), []
    queue.publisher().send_many(numbered(3))
    for one in queue.subscriber().deliveries(timeout=0, acknowledge_every=10):
        seen.append(one.message)
        pass_time(1.1)
    assert seen == [b"0"]


def test_another_subscriber_counts_by_itself(new_queue: NewQueue) -> None:
    """Without a limit of deliveries, an endpoint counts the failures that it has seen itself."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    assert failed(queue.subscriber()) == b"x"
    assert counts(queue.subscriber(), 1) == [1, 2]
