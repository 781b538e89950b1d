"""Receiving messages."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, List, Optional, Sequence, Tuple, Type, TypeVar

from persipubsub import arguments, clock, errors
from persipubsub.engine import Engine, Watch
from persipubsub.publisher import Msg
from persipubsub.queue import Found
from persipubsub.records import NEVER_US

if TYPE_CHECKING:
    from persipubsub.environment import Environment
    from persipubsub.typed import Codec

#: A batch ends here, so that a backlog of large messages does not fill the memory.
RECEIVE_BYTES_MAX = 64 * 1024**2
#: The longest sleep between two looks, so that a wait notices in any case what happens to the queue.
SLEEP_S_MAX = 1.0
#: So long do those who wait for a delayed message leave it to one of them to append it.
APPENDING_S_MAX = 0.05
#: More retries are this many, so that time can be reckoned with them.
RETRIES_MAX = 10**9

T = TypeVar("T")


class Receipt(Generic[T]):
    """What a ``with`` block receives: taken when the block ends, kept if it raises."""

    def __init__(self,
                 subscriber: "Subscriber[Any]",
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
        if exc_type is None and self._found is not None and self._found.ids:
            # pylint: disable-next=protected-access  # of this module
            self._subscriber._take(self._found.ids, self._skipping)


# Any: in the place of the payloads stand messages where the subscriber has a type, see Subscriber._reading.


def _one(found: Found) -> Any:
    return found.payloads[0] if found.payloads else None


def _all(found: Found) -> Any:
    return found.payloads


def _sleep(watch: Watch, longest_s: float, due_us: int) -> None:
    """Sleep until something was published, or a delayed message is due; of many who wait for that one looks first."""
    due_s = longest_s if due_us == NEVER_US else max(0, due_us - clock.boottime_us()) / 1e6
    watch.wait(min(longest_s, due_s))
    if due_us <= clock.boottime_us() and not watch.claim(due_us):
        watch.wait(min(longest_s, APPENDING_S_MAX))


class Subscriber(Generic[Msg]):
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_subscriber`.

    A ``Subscriber[bytes]`` gives bytes, one that was made with a ``message_type`` messages of that type. What is no
    message of that type raises :class:`DecodeError` when it is its turn, and stays; :meth:`pop` takes it unread.

    Two threads or processes that receive as one subscriber may both get the same message; taking it twice is taking it
    once.
    """

    def __init__(self,
                 environment: "Environment",
                 engine: Engine,
                 identifier: str,
                 codec: "Optional[Codec[Any]]" = None) -> None:
        self._environment = environment
        self._engine = engine
        self._identifier = identifier
        self._codec = codec  # None: messages are bytes
        self._subscription = engine.subscribe(arguments.identifier(identifier))
        self._closed = False

    @property
    def identifier(self) -> str:
        """Give the name of the subscriber."""
        return self._identifier

    def receive(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Msg]]:
        """Receive the next message, or None if none comes in time. It is taken when the ``with`` block ends.

        If the block raises, the message comes again.

        :param timeout: seconds to wait; 0 looks once, None waits for ever
        :param retries: how often to look meanwhile, at least, where there is no wake-up
        :return: a context manager of the message, or of None
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or less than one retry
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise DecodeError: it is no message of the subscriber's type; it stays
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        return Receipt(self, self._waiting(self._next(1), timeout, retries), _one)

    def receive_to_top(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Msg]]:
        """Receive the latest message; everything up to it is taken when the ``with`` block ends.

        What is sent during the block stays. Arguments and errors are those of :meth:`receive`.
        """

        def look() -> Found:
            return self._engine.look_at_top(self._subscription)

        return Receipt(self, self._waiting(self._reading(look), timeout, retries), _one, skipping=True)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     retries: int = 10,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> Receipt[List[Msg]]:
        """Receive what is there, in order, waiting only for the first message; all are taken in one commit.

        It ends before what is no message of the subscriber's type: the error comes when that is the first.
        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: at most so many
        :param max_bytes: at most so many bytes together, but always one message
        :return: a context manager of a list of messages, empty if none came in time
        """
        look = self._next(arguments.at_least_one("max_messages", max_messages),
                          arguments.at_least_one("max_bytes", max_bytes))
        return Receipt(self, self._waiting(look, timeout, retries), _all)

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[Msg]:
        """Iterate over messages; each is taken when the loop asks for the next one.

        Leaving the loop, by ``break`` or an exception, takes exactly those whose turn of the loop had ended.

        :param timeout: seconds to wait for a message before the loop ends; None waits for ever
        :param acknowledge_every: take so many in one commit; after a crash at most so many come again
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: a negative timeout, or a number less than one
        :raise UnknownSubscriberError: the subscriber was removed, also while this waits
        :raise DecodeError: it is the turn of what is no message of the subscriber's type; it stays, those before are
            taken
        :raise ClosedError: the subscriber or its Environment is closed, also while this waits
        """
        wait = self._waiting(self._next(arguments.at_least_one("acknowledge_every", acknowledge_every)), timeout, 1)
        return self._messages(wait)

    def _messages(self, wait: Callable[[], Found]) -> Iterator[Any]:
        while True:
            found = wait()
            if not found.ids:
                return
            finished = 0
            try:
                for count, payload in enumerate(found.payloads, 1):
                    if clock.boottime_us() > found.expires_us:
                        break  # some have expired while the loop was at others before them: look again
                    yield payload
                    finished = count
            finally:
                if finished:
                    self._take(found.ids[:finished])

    def front(self) -> Optional[Msg]:
        """Look at the next message without taking it; None if there is none.

        :raise UnknownSubscriberError: the subscriber was removed
        :raise DecodeError: it is no message of the subscriber's type
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._require_open()
        found: Optional[Msg] = _one(self._next(1)())
        return found

    def pop(self) -> None:
        """Take the next message without reading it.

        :raise EmptyError: there is none
        :raise UnknownSubscriberError: the subscriber was removed
        :raise ClosedError: the subscriber or its Environment is closed
        """
        self._require_open()
        found = self._engine.look(self._subscription, 1, RECEIVE_BYTES_MAX)  # not to be decoded
        if not found.ids:
            raise errors.EmptyError(f"Nothing is pending for the subscriber {self._identifier!r}. "
                                    "Look with front(), or receive with a timeout.")
        self._take(found.ids)

    def _next(self, max_messages: int, max_bytes: int = RECEIVE_BYTES_MAX) -> Callable[[], Found]:

        def look() -> Found:
            return self._engine.look(self._subscription, max_messages, max_bytes)

        # No call where there is nothing to do: this is done for every message.
        return look if self._codec is None else self._reading(look)

    def _reading(self, look: Callable[[], Found]) -> Callable[[], Found]:
        """Give a look that finds messages in the place of payloads, if the subscriber has a type."""
        codec = self._codec
        return look if codec is None else lambda: codec.decoded(look(), self._identifier, self._environment.path)

    def _take(self, ids: Sequence[int], skipping: bool = False) -> None:
        self._require_open()
        self._engine.take(self._subscription, ids, skipping)

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
                _sleep(watch, min(SLEEP_S_MAX, left_s), found.due_us)

        return wait

    def _require_open(self) -> None:
        if self._closed:
            raise errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_subscriber.")

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Its place in the queue stays."""
        self._closed = True

    def __enter__(self) -> "Subscriber[Msg]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        return type(self._environment).new_subscriber, (self._environment, self._identifier,
                                                        None if self._codec is None else self._codec.message_type)

    def __repr__(self) -> str:
        messages = "" if self._codec is None else f" for {self._codec.name}"
        return (f"<Subscriber {self._identifier!r} of {self._environment.path}{messages}"
                f"{' (closed)' if self._closed else ''}>")
