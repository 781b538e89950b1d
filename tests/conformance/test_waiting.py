"""Waiting: a message ends it at once, and so do other things; a timeout ends it with nothing."""

import contextlib
import functools
import inspect
import itertools
import signal
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from persipubsub import Subscriber, errors
from persipubsub.aio import AsyncSubscriber
from tests.conformance.forms import AnySubscriber
from tests.conformance.queues import NewQueue, drained, numbered, received, start

#: The delay between the beginning of a wait and what ends it.
LATER_S = 0.05

Receive = Callable[[AnySubscriber, Any], Any]


def _many(subscriber: AnySubscriber, timeout: Any) -> Any:
    with subscriber.receive_many(timeout=timeout) as msgs:
        return msgs[0] if msgs else None


def _to_top(subscriber: AnySubscriber, timeout: Any) -> Any:
    with subscriber.receive_to_top(timeout) as msg:
        return msg


def _loop(subscriber: AnySubscriber, timeout: Any) -> Any:
    return next(iter(subscriber.messages(timeout)), None)


WAYS = pytest.mark.parametrize("receive", [
    pytest.param(received, id="receive"),
    pytest.param(_many, id="receive_many"),
    pytest.param(_to_top, id="receive_to_top"),
    pytest.param(_loop, id="messages")
])


@pytest.mark.both_forms
@WAYS
def test_a_timeout_ends_a_wait(receive: Receive, new_queue: NewQueue) -> None:
    """A wait without a message ends with nothing, and not before its timeout."""
    subscriber, begin = new_queue("a").subscriber(), time.monotonic()
    assert receive(subscriber, 0.05) is None
    assert time.monotonic() - begin >= 0.05


@pytest.mark.both_forms
@pytest.mark.parametrize("timeout", [None, 60, 1e9, 1e300])
def test_a_message_ends_a_wait(timeout: Any, new_queue: NewQueue) -> None:
    """However long a subscriber would wait, a message that is sent ends the wait."""
    queue = new_queue("a")
    sending = start(lambda: queue.environment.new_publisher().send(b"x"), LATER_S)
    assert received(queue.subscriber(), timeout) == b"x"
    sending.result()


@pytest.mark.both_forms
@WAYS
def test_every_way_to_receive_waits(receive: Receive, new_queue: NewQueue) -> None:
    """Each way to receive waits for a message, and returns it."""
    queue = new_queue("a")
    sending = start(lambda: queue.environment.new_publisher().send(b"x"), LATER_S)
    assert receive(queue.subscriber(), 60) == b"x"
    sending.result()


@pytest.mark.parametrize("kind", [Subscriber, AsyncSubscriber])
@pytest.mark.parametrize("way, timeout_s", [("receive", 60), ("receive_many", 60), ("receive_to_top", 60),
                                            ("messages", None)])
def test_the_default_timeouts(way: str, timeout_s: Any, kind: type) -> None:
    """By default a wait takes a minute at most, and a loop waits for ever."""
    assert inspect.signature(getattr(kind, way)).parameters["timeout"].default == timeout_s


@pytest.mark.both_forms
def test_a_wait_costs_no_processor_time(new_queue: NewQueue) -> None:
    """A subscriber that waits sleeps."""
    subscriber, begin = new_queue("a").subscriber(), time.process_time()
    assert received(subscriber, 0.5) is None
    assert time.process_time() - begin < 0.2


def test_waiting_threads_wake_in_time(new_queue: NewQueue) -> None:
    """Two threads that wait for each other wake each time: forty messages take no seconds of sleep."""
    queue = new_queue("ping", "pong")

    def answer() -> None:
        publisher = queue.environment.new_publisher()
        for msg in itertools.islice(queue.environment.new_subscriber("ping").messages(timeout=None), 20):
            publisher.send(msg)

    # Each subscriber gets the messages of both, so it waits for the answer behind its own message.
    answering, publisher, begin = start(answer), queue.environment.new_publisher(), time.monotonic()
    seen = []
    messages = queue.environment.new_subscriber("pong").messages(timeout=60)
    for number in range(10):
        publisher.send(b"%d" % number)
        seen += [next(messages), next(messages)]
    answering.result()
    assert len(seen) == 20
    assert time.monotonic() - begin < 5


def test_one_message_wakes_all_subscribers(new_queue: NewQueue) -> None:
    """A message ends the waits of all subscribers."""
    identifiers = [f"subscriber {number}" for number in range(20)]
    queue = new_queue(*identifiers)
    subscribers = [queue.environment.new_subscriber(identifier) for identifier in identifiers]
    waiting = [start(functools.partial(received, one, None)) for one in subscribers]
    queue.environment.new_publisher().send(b"x")
    assert [one.result(60) for one in waiting] == [b"x"] * 20


@pytest.mark.both_forms
def test_a_loop_waits_for_each_message(new_queue: NewQueue) -> None:
    """A loop waits for each further message."""
    queue = new_queue("a")
    publisher = queue.environment.new_publisher()

    def send() -> None:
        for msg in numbered(3):
            time.sleep(LATER_S)
            publisher.send(msg)

    sending = start(send)
    assert list(itertools.islice(queue.subscriber().messages(timeout=60), 3)) == numbered(3)
    sending.result()


@pytest.mark.both_forms
@WAYS
def test_the_end_of_the_subscriber_ends_a_wait(receive: Receive, new_queue: NewQueue) -> None:
    """Whoever waits as a subscriber that is removed gets UnknownSubscriberError; others wait on."""
    queue = new_queue("a", "b")
    other = start(lambda: received(queue.environment.new_subscriber("b"), 60))
    removing = start(lambda: queue.control.remove_subscriber("a"), LATER_S)
    with pytest.raises(errors.UnknownSubscriberError):
        receive(queue.subscriber(), 60)
    removing.result()
    queue.environment.new_publisher().send(b"x")
    assert other.result(60) == b"x"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["subscriber", "environment"])
def test_closing_ends_a_wait(what: str, new_queue: NewQueue) -> None:
    """Whoever waits gets ClosedError, in about a second, when another thread closes what it waits with."""
    queue = new_queue("a")
    subscriber = queue.subscriber()
    closing = start(subscriber.close if what == "subscriber" else queue.environment.close, LATER_S)
    begin = time.monotonic()
    with pytest.raises(errors.ClosedError):
        received(subscriber, None)
    assert time.monotonic() - begin < 5
    closing.result()


@contextlib.contextmanager
def alarmed(handler: Callable[[], object]) -> Iterator[List[int]]:
    """Have a signal come soon, whose handler does something; return a list of those that came."""
    came: List[int] = []

    def handle(number: int, _frame: object) -> None:
        came.append(number)
        handler()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, LATER_S)
    try:
        yield came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_whose_handler_returns(new_queue: NewQueue) -> None:
    """A signal whose handler returns does not end a wait."""
    queue = new_queue("a")
    sending = start(lambda: queue.environment.new_publisher().send(b"x"), 3 * LATER_S)
    with alarmed(lambda: None) as came:
        assert received(queue.subscriber(), 60) == b"x"
    assert came
    sending.result()


def test_a_signal_whose_handler_raises(new_queue: NewQueue) -> None:
    """An exception of a signal handler ends a wait at once, and nothing is acknowledged."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    queue, begin = new_queue("a"), time.monotonic()
    subscriber = queue.subscriber()
    with pytest.raises(KeyboardInterrupt), alarmed(interrupt):
        received(subscriber, None)
    assert time.monotonic() - begin < 5
    queue.publisher().send(b"x")
    assert received(subscriber) == b"x"


@pytest.mark.both_forms
@pytest.mark.capability("replay", "retention")
def test_a_rewind_ends_a_wait(new_queue: NewQueue) -> None:
    """A subscriber that waits gets what it is moved back to."""
    queue = new_queue("a", retention_s=100)
    queue.publisher().send(b"again")
    subscriber = queue.subscriber()
    assert received(subscriber) == b"again"
    rewinding = start(lambda: queue.control.rewind("a", "earliest"), LATER_S)
    assert received(subscriber, 60) == b"again"
    assert rewinding.result() == 1


def _shared(new_queue: NewQueue, **settings: Any) -> "Tuple[Any, AnySubscriber, AnySubscriber]":
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True, **settings)
    return queue, queue.subscriber(), queue.subscriber()


@pytest.mark.both_forms
@pytest.mark.capability("shared")
def test_a_message_ends_the_wait_of_a_worker(new_queue: NewQueue) -> None:
    """A worker that waits is woken by a send."""
    queue, worker, _ = _shared(new_queue)
    sending = start(lambda: queue.environment.new_publisher().send(b"x"), LATER_S)
    assert received(worker, 60) == b"x"
    sending.result()


@pytest.mark.both_forms
@pytest.mark.capability("shared")
def test_the_end_of_a_lease_ends_the_wait_of_a_worker(new_queue: NewQueue) -> None:
    """A worker that waits gets the message of another one when that one's lease has ended, though nobody sends."""
    queue, worker, another = _shared(new_queue, lease_s=0.2)
    queue.publisher().send(b"x")
    begin, block = time.monotonic(), another.receive(timeout=0)
    assert block.__enter__() == b"x"  # pylint: disable=unnecessary-dunder-call  # a block that does not end in time
    assert received(worker, 60) == b"x"
    assert 0.15 < time.monotonic() - begin < 5


@pytest.mark.both_forms
@pytest.mark.capability("shared")
def test_a_retry_ends_the_wait_of_a_worker(new_queue: NewQueue) -> None:
    """A worker that waits gets a message whose block raised when the delay before its retry is over."""
    queue, worker, another = _shared(new_queue, retry_delay_s=0.1)
    queue.publisher().send(b"x")
    begin = time.monotonic()
    with contextlib.suppress(ZeroDivisionError), another.receive(timeout=0):
        raise ZeroDivisionError
    assert received(worker, 60) == b"x"
    assert 0.1 <= time.monotonic() - begin < 5


@pytest.mark.both_forms
@pytest.mark.capability("shared")
def test_what_is_given_back_ends_the_wait_of_a_worker(new_queue: NewQueue) -> None:
    """A worker that waits is woken by what another one gives back."""
    queue, worker, _ = _shared(new_queue, retry_delay_s=0)
    queue.publisher().send(b"x")
    plain = queue.environment.new_subscriber("a")
    block = plain.receive(timeout=0)
    assert block.__enter__() == b"x"  # pylint: disable=unnecessary-dunder-call  # it ends in another thread
    error = ZeroDivisionError()
    failing = start(lambda: block.__exit__(ZeroDivisionError, error, None), LATER_S)
    assert received(worker, 60) == b"x"
    failing.result()


@pytest.mark.both_forms
@pytest.mark.capability("delayed")
def test_a_delayed_message_ends_a_wait(new_queue: NewQueue) -> None:
    """A subscriber that waits gets a delayed message when it is due, though nobody sends."""
    queue, begin = new_queue("a"), time.monotonic()
    queue.publisher().send_later(b"x", delay_s=0.1)
    assert received(queue.subscriber(), 60) == b"x"
    assert 0.09 < time.monotonic() - begin < 5
    assert not drained(queue.subscriber())
