"""Receiving messages."""

import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Generic, Iterator, List, Optional, Tuple, Type, TypeVar

from persipubsub import arguments, clock, errors
from persipubsub.delivery_records import Failure, failure_of
from persipubsub.engine import Engine
from persipubsub.queue import Found, Subscription

if TYPE_CHECKING:
    from persipubsub.environment import Environment

#: A batch ends here, so that a backlog of large messages does not fill the memory.
RECEIVE_BYTES_MAX = 64 * 1024**2
#: The longest sleep between two looks, so that a wait notices in any case what happens to the queue.
SLEEP_S_MAX = 1.0
#: More retries are this many, so that time can be reckoned with them.
RETRIES_MAX = 10**9

#: What is noted of a message at which a loop over messages() ended: a break and an exception look alike from there.
LEFT = Failure("GeneratorExit", "The loop over messages() was left, by an exception or a break.")
_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


class Receipt(Generic[T]):
    """What a ``with`` block receives: taken when the block ends, kept if it raises."""

    def __init__(self,
                 subscriber: "Subscriber",
                 wait: Callable[[], Found],
                 value: Callable[[Found], T],
                 skipping: bool = False) -> None:
        self._subscriber = subscriber
        self._wait = wait
        self._value = value
        self._skipping = skipping
        self._found: Optional[Found] = None

    def __enter__(self) -> T:
        self._found = self._wait()
        return self._value(self._found)

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        found = self._found
        if found is None or not found.ids:
            return
        # pylint: disable=protected-access  # of this module
        if exc is None:
            self._subscriber._take(found, len(found.ids), self._skipping)
        elif not self._skipping:
            self._subscriber._fail(found, exc)


def _one(found: Found) -> Optional[bytes]:
    return found.payloads[0] if found.payloads else None


def _all(found: Found) -> List[bytes]:
    return found.payloads


class Subscriber:
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_subscriber`.

    Two threads or processes that receive as one subscriber may both get the same message; taking it twice is taking it
    once.
    """

    def __init__(self, environment: "Environment", engine: Engine, identifier: str, subscription: Subscription) -> None:
        self._environment = environment
        self._engine = engine
        self._identifier = identifier
        self._subscription = subscription
        self._closed = False

    @property
    def identifier(self) -> str:
        """Give the name of the subscriber."""
        return self._identifier

    def receive(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[bytes]]:
        """Receive the next message, or None if none comes in time. It is taken when the ``with`` block ends.

        If the block raises, the message comes again.

        :param timeout: seconds to wait; 0 looks once, None waits for ever
        :param retries: how often to look meanwhile, at least, where there is no wake-up
        :return: a context manager of Optional[bytes]
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or less than one retry
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        return Receipt(self, self._waiting(self._next(1), timeout, retries), _one)

    def receive_to_top(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[bytes]]:
        """Receive the latest message; everything up to it is taken when the ``with`` block ends.

        What is sent during the block stays. Arguments and errors are those of :meth:`receive`.
        """

        def look() -> Found:
            return self._engine.look_at_top(self._subscription)

        return Receipt(self, self._waiting(look, timeout, retries), _one, skipping=True)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     retries: int = 10,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> Receipt[List[bytes]]:
        """Receive what is there, in order, waiting only for the first message; all are taken in one commit.

        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: at most so many
        :param max_bytes: at most so many bytes together, but always one message
        :return: a context manager of a list of bytes, empty if none came in time
        """
        look = self._next(arguments.at_least_one("max_messages", max_messages),
                          arguments.at_least_one("max_bytes", max_bytes))
        return Receipt(self, self._waiting(look, timeout, retries), _all)

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[bytes]:
        """Iterate over messages; each is taken when the loop asks for the next one.

        Leaving the loop, by ``break`` or an exception, takes exactly those whose turn of the loop had ended.

        :param timeout: seconds to wait for a message before the loop ends; None waits for ever
        :param acknowledge_every: take so many in one commit; after a crash at most so many come again
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or a number less than one
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        wait = self._waiting(self._next(arguments.at_least_one("acknowledge_every", acknowledge_every)), timeout, 1)
        return self._messages(wait)

    def _messages(self, wait: Callable[[], Found]) -> Iterator[bytes]:
        while True:
            found = wait()
            if not found.ids:
                return
            finished = begun = 0
            try:
                for payload in found.payloads:
                    if clock.boottime_us() > found.expires_us:
                        break  # some have expired while the loop was at others before them: look again
                    begun += 1
                    yield payload
                    finished = begun
            finally:
                self._leave(found, finished, begun)

    def _leave(self, found: Found, finished: int, begun: int) -> None:
        """Take the first messages of a batch, whose turn of the loop has ended; the next one may have begun."""
        if finished:
            self._take(found, finished)
        if begun > finished and not self._closed:
            self._warn(self._engine.fail(self._subscription, found.ids[finished:begun], LEFT))

    def front(self) -> Optional[bytes]:
        """Look at the next message without taking it; None if there is none.

        :raise UnknownSubscriberError: the subscriber was removed
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._require_open()
        return _one(self._next(1)())

    def pop(self) -> None:
        """Take the next message without reading it.

        :raise EmptyError: there is none
        :raise UnknownSubscriberError: the subscriber was removed
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._require_open()
        found = self._next(1)()
        if not found.ids:
            raise errors.EmptyError(f"Nothing is pending for the subscriber {self._identifier!r}. "
                                    "Look with front(), or receive with a timeout.")
        self._take(found, len(found.ids))

    def extend_lease(self) -> None:
        """Have the lease of all messages that this object of a shared subscriber holds begin again now.

        :raise LeaseLostError: some are another worker's; the leases of the others begin again
        :raise SubscriberKindError: the subscriber is not shared, so that its messages have no lease
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._require_open()
        raise errors.SubscriberKindError(
            f"The subscriber {self._identifier!r} is not shared: its messages have no lease. "
            "See Control.add_subscriber.")

    def _next(self, max_messages: int, max_bytes: int = RECEIVE_BYTES_MAX) -> Callable[[], Found]:
        return lambda: self._engine.look(self._subscription, max_messages, max_bytes)

    def _take(self, found: Found, count: int, skipping: bool = False) -> None:
        """Take the first messages of what was found."""
        self._require_open()
        self._engine.take(self._subscription, found.ids[:count], skipping)

    def _fail(self, found: Found, error: BaseException) -> None:
        """Do what is to be done when the block raises which received messages."""
        if isinstance(error, Exception) and not self._closed:
            self._warn(self._engine.fail(self._subscription, found.ids, failure_of(error)))

    def _warn(self, dropped: int) -> None:
        """Say that dead letters were deleted: nobody should find out by missing them."""
        if dropped:
            _LOGGER.warning(
                "The subscriber %r of the queue at %s has too many dead letters: the oldest were deleted, %d.",
                self._identifier, self._environment.path, dropped)

    def _waiting(self, look: Callable[[], Found], timeout: Optional[float], retries: int) -> Callable[[], Found]:
        """Give a function that looks until something is found or the time is over."""
        timeout = arguments.timeout(timeout)
        retries = min(arguments.at_least_one("retries", retries), RETRIES_MAX)
        sleep_s = SLEEP_S_MAX if timeout is None else min(SLEEP_S_MAX, timeout / retries)

        def wait() -> Found:
            self._require_open()
            found = look()
            if found.ids or timeout == 0:
                return found
            deadline = None if timeout is None else time.monotonic() + timeout
            watch = self._engine.watch(sleep_s)
            while True:
                watch.arm()
                self._require_open()
                found = look()
                left_s = SLEEP_S_MAX if deadline is None else deadline - time.monotonic()
                if found.ids or left_s <= 0:
                    return found
                watch.wait(min(SLEEP_S_MAX, left_s, found.look_again_s))

        return wait

    def _require_open(self) -> None:
        if self._closed:
            raise errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_subscriber.")

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Its place in the queue stays."""
        self._closed = True

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        return type(self._environment).new_subscriber, (self._environment, self._identifier)

    def __repr__(self) -> str:
        return f"<Subscriber {self._identifier!r} of {self._environment.path}{' (closed)' if self._closed else ''}>"
