"""Receive messages."""

import functools
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from persipubsub import clock, errors
from persipubsub.endpoints import spans
from persipubsub.endpoints.receipt import Receipt, as_found
from persipubsub.endpoints.receiving import Loop, Receiver
from persipubsub.engine import checks
from persipubsub.engine.limits import RECEIVE_BYTES_MAX, RETRIES_MAX, SLEEP_S_MAX
from persipubsub.engine.protocols import Watch
from persipubsub.engine.values import NEVER_US, Found, Msg, Origin
from persipubsub.message import Delivery

__all__ = ["Receipt", "SharedSubscriber", "Subscriber", "receive_found"]

#: When a delayed message is due, the time for which other waiting subscribers leave the append to one of them.
APPENDING_S_MAX = 0.05

# Any: the payloads are decoded messages if the subscriber has a message type.


def _one(found: Found) -> Any:
    return found.payloads[0] if found.payloads else None


def _all(found: Found) -> Any:
    return found.payloads


def _sleep(watch: Watch, longest_s: float, due_us: int) -> None:
    """Sleep until something is published or a delayed message is due; one of the waiting subscribers looks first."""
    due_s = longest_s if due_us == NEVER_US else max(0, due_us - clock.boottime_us()) / 1e6
    watch.wait(min(longest_s, due_s))
    if due_us <= clock.boottime_us() and not watch.reserve(due_us):
        watch.wait(min(longest_s, APPENDING_S_MAX))


class Patience(NamedTuple):
    """How long a call waits for messages, and how long it may sleep between two looks."""

    timeout_s: Optional[float]
    sleep_s: float


def _patience(timeout: Optional[float], retries: int) -> Patience:
    try:
        return _checked_patience(timeout, retries)
    except TypeError:  # it cannot be hashed
        return _checked_patience.__wrapped__(timeout, retries)


@functools.lru_cache(maxsize=16, typed=True)
def _checked_patience(timeout: Optional[float], retries: int) -> Patience:
    timeout_s = checks.timeout(timeout)
    retries = min(checks.at_least_one("retries", retries), RETRIES_MAX)
    return Patience(timeout_s, SLEEP_S_MAX if timeout_s is None else min(SLEEP_S_MAX, timeout_s / retries))


class Subscriber(Generic[Msg]):
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_subscriber`.

    A ``Subscriber[bytes]`` receives bytes. A subscriber that was made with a ``message_type`` receives messages of that
    type. A message that cannot be decoded raises :class:`DecodeError` and is not acknowledged; :meth:`pop` acknowledges
    it unread.

    One name is one reader: two threads or processes that receive as one subscriber may both get the same message.
    Acknowledging it twice has the same effect as once. Workers share a subscriber that was added with ``shared=True``.
    """

    def __init__(self, origin: Origin, receiver: Receiver) -> None:
        self._origin = origin
        self._receiver = receiver

    @property
    def identifier(self) -> str:
        """Return the name of the subscriber."""
        return self._receiver.identifier

    def receive(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Msg]]:
        """Receive the next message, or None if none arrives in time. The end of the ``with`` block acknowledges it.

        If the block raises, the message is delivered again.

        :param timeout: seconds to wait; 0 looks once, None waits forever
        :param retries: the least number of looks during the wait, if there is no wake-up
        :return: a context manager of the message, or of None
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or fewer than one retry
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise DecodeError: it is not a message of the subscriber's type; it is not acknowledged
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        return Receipt(self, self._receiver.look, _patience(timeout, retries), _one)

    def receive_to_top(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Msg]]:
        """Receive the latest message. The end of the ``with`` block acknowledges it and all messages before it.

        Messages that are sent during the block stay. If the subscriber is moved back during the block, nothing is
        acknowledged.
        Arguments and errors are those of :meth:`receive`.
        """
        self._receiver.require_plain("receive_to_top")
        return Receipt(self, self._receiver.look_at_top, _patience(timeout, retries), _one, skipping=True)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     retries: int = 10,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> Receipt[List[Msg]]:
        """Receive the available messages in order, waiting only for the first; one commit acknowledges all of them.

        The list ends before a message that cannot be decoded; the error is raised when that message is the first.
        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: the maximum number of messages; at most 10,000 for a worker of a shared subscriber
        :param max_bytes: the maximum size of all messages together; the first message may exceed it
        :return: a context manager of a list of messages, empty if none arrived in time
        """
        look = functools.partial(self._receiver.look, checks.at_least_one("max_messages", max_messages),
                                 checks.at_least_one("max_bytes", max_bytes))
        return Receipt(self, look, _patience(timeout, retries), _all)

    def receive_delivery(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Delivery[Msg]]]:
        """Receive the next message as a :class:`.Delivery`, with its id, time, headers and how often it was delivered.

        Otherwise this is :meth:`receive`.
        """
        look = functools.partial(self._receiver.look, detailed=True)
        return Receipt(self, look, _patience(timeout, retries), self._one_delivery)

    def _one_delivery(self, found: Found) -> Any:
        return self._receiver.deliveries(found)[0] if found.ids else None

    def receive_deliveries(self,
                           max_messages: int = 1000,
                           timeout: Optional[float] = 60,
                           retries: int = 10,
                           max_bytes: int = RECEIVE_BYTES_MAX) -> Receipt[List[Delivery[Msg]]]:
        """Receive the available messages as deliveries. Otherwise this is :meth:`receive_many`."""
        look = functools.partial(self._receiver.look, checks.at_least_one("max_messages", max_messages),
                                 checks.at_least_one("max_bytes", max_bytes), True)
        return Receipt(self, look, _patience(timeout, retries), self._receiver.deliveries)

    def deliveries(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[Delivery[Msg]]:
        """Iterate over messages as deliveries. Otherwise this is :meth:`messages`."""
        count = checks.at_least_one("acknowledge_every", acknowledge_every)
        look = functools.partial(self._receiver.look, count, detailed=True)
        return self._iterate(look, _patience(timeout, 1), self._receiver.deliveries)

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[Msg]:
        """Iterate over messages; each is acknowledged when the loop asks for the next one.

        Leaving the loop, by ``break`` or an exception, acknowledges exactly the messages whose iteration has ended.

        :param timeout: seconds to wait for a message before the loop ends; None waits forever
        :param acknowledge_every: how many messages one commit acknowledges; after a crash, at most that number of
            messages is delivered again
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or a number less than one
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise DecodeError: the next message is not of the subscriber's type; it is not acknowledged, those before it
            are
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        count = checks.at_least_one("acknowledge_every", acknowledge_every)
        return self._iterate(functools.partial(self._receiver.look, count), _patience(timeout, 1), _all)

    def _iterate(self, look: Callable[[], Found], patience: Patience, values: Callable[[Found],
                                                                                       List[Any]]) -> Iterator[Any]:
        loop, loops = Loop(), self._receiver.loops
        loops[loop] = None
        try:
            while True:
                found = self._wait(look, patience)
                if not found.ids:
                    return
                begun = 0
                loop.begin(found)
                try:
                    for value in values(found):
                        if begun and clock.boottime_us() > found.expires_us:
                            break  # some have expired while the loop handled earlier ones: look again
                        if begun and self._receiver.stopped:
                            break
                        begun += 1
                        if spans.tracer is None:
                            yield value
                        else:
                            with spans.tracer.processing(self._receiver, found, begun - 1):
                                yield value
                        loop.finished = begun
                finally:
                    if loop.end() is not None:
                        self._leave(found, loop.finished, begun)
        finally:
            loops.pop(loop, None)

    if not TYPE_CHECKING:  # a checker would accept a loop

        def __iter__(self) -> NoReturn:
            raise errors.ArgumentTypeError(f"{self!r} cannot be iterated over. Iterate over its messages(), which ends "
                                           "after a timeout, or over its deliveries().")

    def _leave(self, found: Found, finished: int, begun: int) -> None:
        """Acknowledge the messages of a batch whose iteration has ended; the next iteration may have begun."""
        try:
            if finished:
                self._receiver.run(self._receiver.acknowledge(found, finished))
        finally:
            self._receiver.run(self._receiver.leave(found, finished, begun))

    def front(self) -> Optional[Msg]:
        """Return the next message without acknowledging it; None if there is none.

        :raise UnknownSubscriberError: the subscriber was removed
        :raise DecodeError: it is not a message of the subscriber's type
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._receiver.require_plain("front")
        message: Optional[Msg] = _one(self._receiver.front())
        return message

    def front_delivery(self) -> Optional[Delivery[Msg]]:
        """Return the next message as a delivery, without acknowledging it; otherwise this is :meth:`front`.

        Its ``delivery_count`` includes a delivery that has not begun.
        """
        self._receiver.require_plain("front_delivery")
        delivery: Optional[Delivery[Msg]] = self._one_delivery(self._receiver.front(detailed=True))
        return delivery

    def pop(self) -> None:
        """Acknowledge the next message without reading it.

        :raise EmptyError: there is none
        :raise UnknownSubscriberError: the subscriber was removed
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._receiver.require_plain("pop")
        self._receiver.run(self._receiver.acknowledge(self._receiver.undecoded(), 1))

    def extend_lease(self) -> None:
        """Restart the lease of all messages that this object of a shared subscriber holds.

        :raise LeaseLostError: another worker holds some of them; the leases of the others are restarted
        :raise SubscriberKindError: the subscriber is not shared, so that its messages have no lease
        :raise ClosedError: the subscriber or its Environment is closed
        """
        for command in self._receiver.extend():
            self._receiver.settle_extension(self._receiver.engine.run(command))

    def _wait(self, look: Callable[[], Found], patience: Patience) -> Found:
        """Look until something is found or the timeout has passed."""
        receiver = self._receiver
        if receiver.closed:
            raise receiver.closed_error()
        found = look()
        if found.ids or patience.timeout_s == 0 or receiver.stopped:
            return found
        timeout_s, sleep_s = patience
        deadline = None if timeout_s is None else clock.monotonic_s() + timeout_s
        watch = receiver.engine.watch(sleep_s)
        try:
            while True:
                watch.arm()
                receiver.require_open()
                found = look()
                left_s = SLEEP_S_MAX if deadline is None else deadline - clock.monotonic_s()
                if found.ids or left_s <= 0 or receiver.stopped:
                    return found
                _sleep(watch, min(SLEEP_S_MAX, left_s), found.due_us)
        finally:
            watch.close()

    def stop(self) -> None:
        """Stop receiving: waits end now, and whatever receives next gets nothing at once.

        Messages that are being handled are acknowledged when their block or iteration ends, as always. Any thread and a
        signal handler may call this.
        """
        self._receiver.stop()

    @property
    def stopped(self) -> bool:
        """Return whether stop() was called."""
        return self._receiver.stopped

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Its cursor stays.

        Messages whose iteration in a loop over :meth:`messages` has ended are acknowledged first. A block that runs can
        end normally, which acknowledges its message, unless the Environment is closed as well.
        """
        self._receiver.close()

    def __enter__(self) -> "Subscriber[Msg]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._receiver.codec
        return self._origin.reopening("new_subscriber", self.identifier, None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._receiver)


class SharedSubscriber(Subscriber[Msg]):
    """A worker's access to a shared subscriber, whose messages each go to one worker at a time.

    The worker holds a message for as long as the subscriber's lease. The message is acknowledged when the block that
    received it ends, and given back if the block raises. ``receive_to_top``, ``front`` and ``pop`` raise
    :class:`SubscriberKindError`, since other workers receive messages at the same time.
    """


def receive_found(subscriber: "Subscriber[bytes]", max_messages: int, timeout: Optional[float],
                  max_bytes: int) -> Receipt[Found]:
    """Receive messages as :meth:`Subscriber.receive_deliveries` does, in the form in which the engine finds them.

    For the modules of this package that pass messages on.

    :meta private:
    """
    # pylint: disable-next=protected-access  # of this module
    look = functools.partial(subscriber._receiver.look, max_messages, max_bytes, True)
    return Receipt(subscriber, look, _patience(timeout, 1), as_found)
