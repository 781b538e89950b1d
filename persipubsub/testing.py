"""Helpers for tests of programs that use persipubsub: checked queues, a clock to move, :func:`publish`, :func:`drain`.

With pytest, use the fixtures ``persipubsub_queue`` (a :class:`QueueFactory`) and ``persipubsub_clock`` (a
:class:`Clock`), which come with the installed package.
"""

import contextlib
import pathlib
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Optional, Protocol, TypeVar, Union, overload

from persipubsub import clock, errors
from persipubsub.environment import Environment, new_environment
from persipubsub.message import Delivery, Envelope
from persipubsub.publisher import Publisher
from persipubsub.queue import Durability, HighWaterMark, Strategy
from persipubsub.subscriber import Receipt, Subscriber

if TYPE_CHECKING:
    from persipubsub.environment import MessageType
    from persipubsub.message import BytesLike

__all__ = ["Clock", "QueueFactory", "checked_queues", "drain", "drain_deliveries", "publish"]

M = TypeVar("M")

#: The maximum total that a clock is moved: about 30 years.
FORWARD_S_MAX = 10**9


class QueueFactory(Protocol):
    """What the fixture ``persipubsub_queue`` provides: each call sets up a queue in a fresh directory."""

    def __call__(self,
                 subscriber_ids: Iterable[str] = (),
                 high_watermark: Optional[HighWaterMark] = None,
                 strategy: Optional[Strategy] = None,
                 durability: Durability = Durability.PROCESS_CRASH,
                 **settings: Any) -> Environment:
        """Set up a queue; the arguments and the errors are those of :meth:`Environment.new_control`.

        :param subscriber_ids: its subscribers
        :param high_watermark: its limits; none by default
        :param strategy: what happens when a message is sent and a limit is reached
        :param durability: ``PROCESS_CRASH`` here, since the messages of a test need not survive a power cut
        :param settings: other settings, such as ``retention_s`` and ``message_type``
        :return: the Environment, which is closed after the test
        """


class Clock:
    """The time of all queues of this process, which a test moves forward. It also advances by itself.

    By this time messages expire, delayed messages are due, leases end, failed messages are delivered again, and the
    retention and the deduplication window end.
    """

    def __init__(self) -> None:
        # The current functions, so that clocks can be nested.
        self._boottime_us = clock.boottime_us
        self._wall_us = clock.wall_us
        self._ahead_us = 0

    def forward(self, seconds: float) -> None:
        """Move the time forward. Whatever waits for a message notices within a second.

        :param seconds: 0 or more; at most 10 ** 9 in all
        :raise ArgumentTypeError: not a number
        :raise ArgumentError: negative, NaN, or further than the limit
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise errors.ArgumentTypeError(f"seconds must be a number, got {type(seconds).__name__}.")
        left_s = FORWARD_S_MAX - self._ahead_us / 1e6
        if not 0 <= seconds <= left_s:  # this also refuses NaN
            raise errors.ArgumentError(
                f"seconds must be from 0 to {left_s:g}, got {seconds}: the time of a queue never "
                f"goes back, and a clock moves by at most {FORWARD_S_MAX} seconds in all.")
        self._ahead_us += round(seconds * 1e6)

    def boottime_us(self) -> int:
        """Replace ``persipubsub.clock.boottime_us``."""
        return self._boottime_us() + self._ahead_us

    def wall_us(self) -> int:
        """Replace ``persipubsub.clock.wall_us``."""
        return self._wall_us() + self._ahead_us


@contextlib.contextmanager
def checked_queues(new_directory: Callable[[], pathlib.Path]) -> Iterator[QueueFactory]:
    """Provide a factory of queues; the end of the ``with`` block closes and verifies them.

    :param new_directory: returns another empty directory at each call
    :raise AssertionError: an invariant of a queue is broken; the text names the queue, the invariant and the record
    """
    made: List[Environment] = []

    def make(subscriber_ids: Iterable[str] = (),
             high_watermark: Optional[HighWaterMark] = None,
             strategy: Optional[Strategy] = None,
             durability: Durability = Durability.PROCESS_CRASH,
             **settings: Any) -> Environment:
        environment = Environment(new_directory() / "queue")
        made.append(environment)
        environment.new_control(subscriber_ids, high_watermark, strategy, durability, **settings).close()
        return environment

    try:
        yield make
    finally:
        # Close all of them first, so that a broken one leaves none open.
        for environment in made:
            environment.close()
    broken = "\n".join(line for environment in made for line in _broken(environment.path))
    if broken:
        raise AssertionError(broken)


def _broken(path: pathlib.Path) -> Iterator[str]:
    """Describe what is broken in a queue, unless the test has deleted it."""
    try:
        with new_environment(path) as environment:
            violations = environment.new_control(create=False).check()
    except errors.NotInitializedError:
        return
    except errors.PersipubsubError as error:
        yield f"The queue at {path} cannot be verified: {error}"
    else:
        for violation in violations:
            yield f"The queue at {path} is broken: {violation}"


@overload
def publish(env: Environment, *messages: "Union[BytesLike, Envelope[BytesLike]]") -> List[int]:
    ...


@overload
def publish(env: Environment, *messages: Union[M, Envelope[M]], message_type: "MessageType[M]") -> List[int]:
    ...


def publish(env: Environment, *messages: Any, message_type: "Optional[MessageType[Any]]" = None) -> List[int]:
    """Send messages in one commit, all or none.

    :param env: of a queue that is set up
    :param messages: what :meth:`Publisher.send_many` accepts, in their order; an :class:`Envelope` has headers
    :param message_type: as that of :meth:`Environment.new_publisher`
    :return: the message ids
    :raise PersipubsubError: see :meth:`Publisher.send_many`
    """
    publisher: Publisher[Any]
    with env.new_publisher(message_type=message_type) as publisher:
        return list(publisher.send_many(messages))


@overload
def drain(env: Environment, identifier: str) -> List[bytes]:
    ...


@overload
def drain(env: Environment, identifier: str, message_type: "MessageType[M]") -> List[M]:
    ...


def drain(env: Environment, identifier: str, message_type: "Optional[MessageType[Any]]" = None) -> List[Any]:
    """Receive and acknowledge all messages that are pending for a subscriber, without waiting.

    Messages that wait for a retry or that another worker holds are not included.

    :param env: of a queue that is set up
    :param identifier: of the subscriber, shared or not
    :param message_type: as that of :meth:`Environment.new_subscriber`
    :return: the messages in their order, empty if none is pending
    :raise UnknownSubscriberError: the queue has no such subscriber
    :raise PersipubsubError: see :meth:`Subscriber.receive_many`
    """
    return _drained(env, identifier, message_type, lambda subscriber: subscriber.receive_many(timeout=0))


@overload
def drain_deliveries(env: Environment, identifier: str) -> List[Delivery[bytes]]:
    ...


@overload
def drain_deliveries(env: Environment, identifier: str, message_type: "MessageType[M]") -> List[Delivery[M]]:
    ...


def drain_deliveries(env: Environment,
                     identifier: str,
                     message_type: "Optional[MessageType[Any]]" = None) -> List[Delivery[Any]]:
    """Receive and acknowledge all pending messages as deliveries. Otherwise this is :func:`drain`."""
    return _drained(env, identifier, message_type, lambda subscriber: subscriber.receive_deliveries(timeout=0))


def _drained(env: Environment, identifier: str, message_type: Any,
             receive: "Callable[[Subscriber[Any]], Receipt[List[Any]]]") -> List[Any]:
    drained: List[Any] = []
    with env.new_subscriber(identifier, message_type) as subscriber:
        while True:
            with receive(subscriber) as received:
                drained += received
            if not received:
                return drained
