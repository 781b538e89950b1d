"""Stopping: waits end, nothing more is received, and what is being handled is acknowledged as always."""

import signal
import time
from typing import Any, Callable, List

import pytest

from persipubsub import Retry, errors
from tests.conformance.forms import WAIT_S, AnySubscriber
from tests.conformance.queues import NewQueue, Queue, drained, numbered, received, start

#: The delay between the beginning of a wait and the stop.
LATER_S = 0.05
#: The longest that a wait takes after the stop, on a busy machine.
SOON_S = 5

#: Every way to receive, as a function that returns the messages.
WAYS = pytest.mark.parametrize("receive", [
    pytest.param(lambda one, timeout: _in_block(one.receive(timeout)), id="receive"),
    pytest.param(lambda one, timeout: _in_block(one.receive_many(timeout=timeout)), id="receive_many"),
    pytest.param(lambda one, timeout: _in_block(one.receive_delivery(timeout)), id="receive_delivery"),
    pytest.param(lambda one, timeout: _in_block(one.receive_deliveries(timeout=timeout)), id="receive_deliveries"),
    pytest.param(lambda one, timeout: list(one.messages(timeout)), id="messages"),
    pytest.param(lambda one, timeout: list(one.deliveries(timeout)), id="deliveries"),
    pytest.param(lambda one, timeout: list(one.messages(timeout, acknowledge_every=10)), id="messages in batches"),
])
Receive = Callable[[AnySubscriber, Any], List[Any]]

SHARED = pytest.param(True, marks=pytest.mark.capability("shared"), id="shared")
KINDS = pytest.mark.parametrize("shared", [False, SHARED])


def _in_block(block: Any) -> Any:
    with block as found:
        return found or []


def subscribed(new_queue: NewQueue, shared: bool) -> Queue:
    """Set up a queue with a subscriber of a kind."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=shared or None, retry_delay_s=0 if shared else None)
    return queue


@pytest.mark.both_forms
@KINDS
@WAYS
def test_a_stop_ends_a_wait(receive: Receive, shared: bool, new_queue: NewQueue) -> None:
    """A stop ends each kind of wait at once, without a message and without an error."""
    subscriber = subscribed(new_queue, shared).subscriber()
    stopping, begin = start(subscriber.stop, LATER_S), time.monotonic()
    assert not receive(subscriber, None)
    assert time.monotonic() - begin < SOON_S
    stopping.result(WAIT_S)
    assert subscriber.stopped


@pytest.mark.both_forms
@KINDS
@WAYS
def test_whoever_has_stopped_receives_nothing(receive: Receive, shared: bool, new_queue: NewQueue) -> None:
    """After a stop, each way to receive gets nothing at once, though there are messages; another subscriber does."""
    queue = subscribed(new_queue, shared)
    queue.publisher().send_many(numbered(2))
    subscriber, begin = queue.subscriber(), time.monotonic()
    assert not subscriber.stopped
    for _ in range(2):
        subscriber.stop()
    assert subscriber.stopped
    assert not receive(subscriber, None) and not receive(subscriber, 60)
    assert time.monotonic() - begin < SOON_S
    assert not queue.subscriber().stopped
    assert drained(queue.subscriber()) == numbered(2)


@pytest.mark.both_forms
def test_receive_to_top_after_a_stop(new_queue: NewQueue) -> None:
    """After a stop, ``receive_to_top`` gets nothing as well."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    subscriber.stop()
    with subscriber.receive_to_top(timeout=None) as msg:
        assert msg is None
    assert drained(queue.subscriber()) == numbered(2)


@pytest.mark.both_forms
@KINDS
@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_delivery", "receive_deliveries"])
def test_a_block_that_runs_is_acknowledged(way: str, shared: bool, new_queue: NewQueue) -> None:
    """A block during which the subscriber stops acknowledges its messages when it ends."""
    queue = subscribed(new_queue, shared)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    with getattr(subscriber, way)(timeout=0) as found:
        assert found
        subscriber.stop()
    assert not drained(queue.subscriber())


@pytest.mark.both_forms
@KINDS
def test_a_block_that_fails_after_a_stop(shared: bool, new_queue: NewQueue) -> None:
    """A block that raises after a stop keeps its message, and gives it back at once."""
    queue = subscribed(new_queue, shared)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    with pytest.raises(ZeroDivisionError), subscriber.receive(timeout=0):
        subscriber.stop()
        raise ZeroDivisionError
    assert drained(queue.subscriber()) == [b"x"]


@pytest.mark.both_forms
@KINDS
@pytest.mark.parametrize("acknowledge_every", [1, 10])
@pytest.mark.parametrize("way", ["messages", "deliveries"])
def test_a_loop_that_is_stopped(way: str, acknowledge_every: int, shared: bool, new_queue: NewQueue) -> None:
    """A loop ends after the iteration in which it was stopped, whose message is acknowledged; the others stay."""
    queue, seen = subscribed(new_queue, shared), []
    queue.publisher().send_many(numbered(5))
    subscriber = queue.subscriber()
    for msg in getattr(subscriber, way)(timeout=None, acknowledge_every=acknowledge_every):
        seen.append(msg)
        if len(seen) == 3:
            subscriber.stop()
    assert len(seen) == 3
    assert drained(queue.subscriber()) == [b"3", b"4"]


@pytest.mark.both_forms
def test_what_does_not_receive_goes_on(new_queue: NewQueue) -> None:
    """After a stop, a subscriber can still look and acknowledge unread, and its publisher can send."""
    queue = new_queue("a")
    subscriber = queue.subscriber()
    subscriber.stop()
    queue.publisher().send_many(numbered(2))
    assert subscriber.front() == b"0"
    subscriber.pop()
    assert drained(queue.subscriber()) == [b"1"]


@pytest.mark.both_forms
def test_a_stop_ends_the_wait_for_a_retry(new_queue: NewQueue) -> None:
    """A stop ends the wait of a plain subscriber for the delay of a Retry."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    subscriber, begin = queue.subscriber(), time.monotonic()
    with subscriber.receive(timeout=0):
        raise Retry(60)
    stopping = start(subscriber.stop, LATER_S)
    assert received(subscriber, None) is None
    assert time.monotonic() - begin < SOON_S
    stopping.result(WAIT_S)


@pytest.mark.both_forms
def test_a_closed_subscriber_that_has_stopped(new_queue: NewQueue) -> None:
    """A subscriber that was stopped and closed raises ClosedError, as any other one."""
    subscriber = new_queue("a").subscriber()
    subscriber.stop()
    subscriber.close()
    subscriber.stop()
    with pytest.raises(errors.ClosedError):
        received(subscriber)
    assert subscriber.stopped


@pytest.mark.both_forms
def test_an_environment_that_stops(new_queue: NewQueue) -> None:
    """``Environment.stop`` stops all subscribers that the Environment made, and no other ones."""
    queue = new_queue("a", "b")
    waiting = [
        start(lambda name=name: received(queue.environment.new_subscriber(name), None))  # type: ignore[misc]
        for name in "ab"
    ]  # mypy has no type for a lambda with a default
    other = start(lambda: received(queue.opened().new_subscriber("a"), None))
    stopping = start(queue.environment.stop, LATER_S)
    subscriber = queue.subscriber()
    assert received(subscriber, None) is None and subscriber.stopped
    stopping.result(WAIT_S)
    queue.environment.stop()  # for a thread that had no subscriber yet
    assert [one.result(WAIT_S) for one in waiting] == [None, None]
    queue.publisher().send(b"x")
    assert other.result(WAIT_S) == b"x"


def test_a_stop_in_a_signal_handler(new_queue: NewQueue) -> None:
    """A signal handler may stop a subscriber that waits in its own thread."""
    queue = new_queue("a")
    subscriber, begin = queue.environment.new_subscriber("a"), time.monotonic()
    before = signal.signal(signal.SIGALRM, lambda *_: subscriber.stop())
    signal.setitimer(signal.ITIMER_REAL, LATER_S)
    try:
        assert not list(subscriber.messages(timeout=None))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < SOON_S


def test_a_stop_while_messages_arrive(new_queue: NewQueue) -> None:
    """Of messages that arrive while workers stop, each is handled and acknowledged, or stays."""
    queue = new_queue("a")
    publisher, seen = queue.environment.new_publisher(), list[bytes]()
    for number in range(20):
        subscriber = queue.environment.new_subscriber("a")
        receiving = start(lambda one=subscriber: list(one.messages(timeout=None)))  # type: ignore[misc]  # as above
        publisher.send_many(numbered(5, 5 * number))
        subscriber.stop()
        seen += receiving.result(WAIT_S)
    assert seen + drained(queue.subscriber()) == numbered(100)


# Closing during a block


@pytest.mark.both_forms
@KINDS
@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_delivery", "receive_deliveries"])
def test_closing_during_a_block(way: str, shared: bool, new_queue: NewQueue) -> None:
    """A block during which its subscriber is closed can end, which acknowledges its messages."""
    queue = subscribed(new_queue, shared)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    with getattr(subscriber, way)(timeout=0) as found:
        assert found
        subscriber.close()
    assert not drained(queue.subscriber())
    with pytest.raises(errors.ClosedError):
        received(subscriber)


@pytest.mark.both_forms
def test_closing_during_receive_to_top(new_queue: NewQueue) -> None:
    """The block of ``receive_to_top`` acknowledges up to its message though its subscriber was closed."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    with subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"2"
        subscriber.close()
    assert not drained(queue.subscriber())


@pytest.mark.both_forms
def test_a_block_that_fails_after_closing(new_queue: NewQueue) -> None:
    """A block that raises after its subscriber was closed keeps its message."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    with pytest.raises(ZeroDivisionError), subscriber.receive(timeout=0):
        subscriber.close()
        raise ZeroDivisionError
    assert drained(queue.subscriber()) == [b"x"]


@pytest.mark.both_forms
@pytest.mark.capability("persistent")
def test_closing_the_environment_during_a_block(new_queue: NewQueue) -> None:
    """A block during which the only Environment is closed ends with ClosedError, and its message is kept."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    subscriber, environment = queue.subscriber(), queue.environment
    with pytest.raises(errors.ClosedError), subscriber.receive(timeout=0):
        environment.close()
    with queue.opened() as other:
        assert drained(other.new_subscriber("a")) == [b"x"]
