"""Values that pass between the endpoints and an engine."""

import operator
import pathlib
import traceback
from typing import TYPE_CHECKING, Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from persipubsub.engine.limits import (ERROR_TEXT_CHARACTERS_MAX, ERROR_TRACEBACK_CHARACTERS_MAX,
                                       ERROR_TYPE_CHARACTERS_MAX)
from persipubsub.queue import NO_LIMITS, Durability, HighWaterMark, Strategy

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # With a default, so that a plain Subscriber is a Subscriber[bytes]. Python itself supports that from 3.13 on.
    Msg = TypeVar("Msg", default=bytes)
    Sendable = TypeVar(  # pylint: disable=typevar-name-incorrect-variance  # readers see the name in signatures
        "Sendable",
        default="BytesLike",
        contravariant=True)
else:
    from typing import TypeVar
    Msg = TypeVar("Msg")
    Sendable = TypeVar(  # pylint: disable=typevar-name-incorrect-variance  # as above
        "Sendable", contravariant=True)

BytesLike = Union[bytes, bytearray, memoryview]

#: Makes a named tuple of a sequence of all its fields, in half the time, where that happens for every message.
make = tuple.__new__

#: A moment that never comes, on the clock of :func:`persipubsub.clock.boottime_us`.
NEVER_US = 2**64 - 1

# Sending


class Batch(NamedTuple):
    """Messages to send together, at least one."""

    payloads: Sequence[bytes]
    #: The size of all of them, with their headers.
    size_bytes: int
    #: No message is larger, with its headers.
    largest_bytes: int
    #: The encoded headers of each message, empty for one without; None if no message has any.
    headers: Optional[Sequence[bytes]] = None

    def part(self, start: int, stop: Optional[int] = None) -> "Batch":
        """Return some of the messages: those of a slice."""
        return batch_of(self.payloads[start:stop], None if self.headers is None else self.headers[start:stop])

    def selected(self, indexes: Sequence[int]) -> "Batch":
        """Return the messages with some indexes."""
        if len(indexes) == len(self.payloads):
            return self
        headers = None if self.headers is None else [self.headers[index] for index in indexes]
        return batch_of([self.payloads[index] for index in indexes], headers)

    def sizes(self) -> List[int]:
        """Return the size of each message, with its headers."""
        sizes = map(len, self.payloads)
        return list(sizes if self.headers is None else map(operator.add, sizes, map(len, self.headers)))


def batch_of(payloads: Sequence[bytes], headers: Optional[Sequence[bytes]] = None) -> Batch:
    """Return a batch with its sizes."""
    if headers is not None and not any(headers):
        headers = None
    sizes = Batch(payloads, 0, 0, headers).sizes()
    return Batch(payloads, sum(sizes), max(sizes, default=0), headers)


class DueTime(NamedTuple):
    """When a delayed message is due: at a time since the epoch, or after a delay."""

    delay_us: int = 0
    at_us: Optional[int] = None


# Relaying


class Route(NamedTuple):
    """From a plain subscriber of one queue to another queue, along which a relay brings messages."""

    #: The identity of the relay, by which the other queue knows it: 16 random bytes.
    origin: bytes
    #: The identity of the other queue.
    target: bytes


class Relayed(NamedTuple):
    """How far a relay has come: the last message that it brought, as its source knows it; zeros before the first."""

    message_id: int = 0
    #: When it was sent, by the clock of the source; with the id, this tells it from a message of a restored queue.
    sent_us: int = 0


# Receiving


class Subscription(NamedTuple):
    """A subscriber of an endpoint. The number distinguishes it from a later one with the same identifier."""

    identifier: bytes
    number: int
    shared: bool


class Found(NamedTuple):
    """The next messages of a subscriber: ids and payloads, in order.

    Moments are on the clock of :func:`persipubsub.clock.boottime_us`, which also advances while the machine sleeps.
    """

    #: Message ids. That of a requeued dead letter has :data:`.limits.MESSAGE_ID_END` added.
    ids: Sequence[int]
    payloads: List[bytes]
    #: When the first of them expires, or is delivered to another worker.
    expires_us: int = 0
    #: When messages may become available without a send: a delayed message is due or, if nothing was found, the lease
    #: of another worker ends.
    due_us: int = NEVER_US
    #: The token of the claim, for a shared subscriber.
    token: bytes = b""
    #: How many dead letters were deleted, because there were too many.
    dropped: int = 0
    #: For the latest message: the id from which on the messages before it are skipped.
    since: Optional[int] = None
    #: Of each message, if they were asked for.
    details: Sequence["Details"] = ()


class Details(NamedTuple):
    """What is known of a message beside its payload."""

    #: Its message id, also of a requeued dead letter.
    message_id: int
    #: When it was sent, in microseconds since the epoch by the queue's clock; it may be up to 10 ms early.
    sent_us: int
    #: How many times it has been delivered, this delivery included; 0 if the subscriber does not store that.
    deliveries: int
    #: Its encoded headers; empty if it has none.
    headers: bytes


NOTHING = Found((), [])

#: The ids of the messages that a worker claimed, by the token of the claim.
Claims = Mapping[bytes, Sequence[int]]


class Settled(NamedTuple):
    """Side effects of acknowledging messages or giving them back."""

    #: The ids of messages that the worker no longer held.
    lost: Sequence[int] = ()
    #: How many dead letters were deleted, because there were too many.
    dropped: int = 0


class Failure(NamedTuple):
    """What is kept of the exception that a block raised."""

    type: str
    text: str
    traceback: str = ""


NO_FAILURE = Failure("", "")


def failure_of(error: BaseException) -> Failure:
    """Return what is kept of an exception."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception:  # pylint: disable=broad-exception-caught  # a program's own __str__
        text = ""
    return Failure(name[:ERROR_TYPE_CHARACTERS_MAX], text[:ERROR_TEXT_CHARACTERS_MAX], _traceback_of(error))


def _traceback_of(error: BaseException) -> str:
    """Return the innermost frames of the traceback of an exception, in whole lines."""
    try:
        text = "".join(traceback.format_tb(error.__traceback__))
    except Exception:  # pylint: disable=broad-exception-caught  # a source file that cannot be read, or is no text
        return ""
    if len(text) <= ERROR_TRACEBACK_CHARACTERS_MAX:
        return text
    return text[-ERROR_TRACEBACK_CHARACTERS_MAX:].partition("\n")[2]


# Administration


class Configuration(NamedTuple):
    """Settings of a queue: each one that is None keeps its stored value."""

    high_watermark: Optional[HighWaterMark] = None
    strategy: Optional[Strategy] = None
    durability: Optional[Durability] = None
    retention_s: Optional[float] = None
    deduplication_window_s: Optional[float] = None
    deduplication_max: Optional[int] = None
    #: The full name of the message type that the queue is bound to.
    message_type: Optional[str] = None


#: The defaults of a new queue, in the order of the fields of Configuration.
DEFAULTS = (NO_LIMITS, Strategy.prune_first, Durability.POWER_LOSS, 0, 120, 100_000)


class Delivering(NamedTuple):
    """How messages are delivered to a subscriber: None keeps the stored value, or means the default."""

    shared: Optional[bool] = None
    max_deliveries: Optional[int] = None
    dead_letters_max: Optional[int] = None
    lease_us: Optional[int] = None
    retry_delay_us: Optional[int] = None
    retry_delay_max_us: Optional[int] = None


class Cleared(NamedTuple):
    """How many messages and dead letters were deleted."""

    messages: int
    dead_letters: int


class Position(NamedTuple):
    """A point between two messages: before an id, or before the messages sent from a time on."""

    message_id: Optional[int] = None
    time_us: int = 0


EARLIEST = Position(message_id=0)
LATEST = Position(message_id=2**64 - 1)

# Endpoints


class Origin(NamedTuple):
    """The origin of an endpoint: the location of its queue, and its Environment, which can be pickled."""

    location: Union[pathlib.Path, str]
    environment: Any

    def reopening(self, method: str, *arguments: object) -> Tuple[object, ...]:
        """Return what pickle needs to make the endpoint again in another process."""
        return getattr(type(self.environment), method), (self.environment, *arguments)
