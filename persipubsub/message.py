"""Envelopes, which are sent; deliveries, which arrive; and the exceptions that retry or reject a message."""

import dataclasses
import datetime
from typing import Generic, Mapping, Optional, Tuple, TypeVar

from persipubsub import errors
from persipubsub.engine import checks, limits
from persipubsub.engine.values import BytesLike

__all__ = ["BytesLike", "Delivery", "Envelope", "Reject", "Retry"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class Envelope(Generic[T_co]):
    """A message to send, with its headers and its deduplication id. It may stand wherever a message may."""

    message: T_co
    #: Names and texts that travel with the message, such as ``traceparent``: at most 64, and 64 KiB as JSON.
    headers: Optional[Mapping[str, str]] = dataclasses.field(default=None, hash=False)
    #: The queue stores one message for each id that it remembers: see :meth:`Publisher.send`.
    deduplication_id: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Delivery(Generic[T_co]):
    """A message that was received, with its id, its time, its headers, and how many times it was delivered."""

    message: T_co
    #: The message id that ``send`` returned. It stays the same when the message is delivered again.
    id: int
    #: When it was sent, in UTC, by the queue's clock; it may be up to 10 ms early. A delayed message is sent when it is
    #: due.
    sent_at: datetime.datetime
    #: How many times it has been delivered, this delivery included. Only a shared subscriber, and one with
    #: ``max_deliveries``, stores this number. Any other one counts the failures that this object has seen.
    delivery_count: int
    #: The headers that it was sent with.
    headers: Mapping[str, str] = dataclasses.field(hash=False)


class Retry(errors.PersipubsubError):
    """Raise this in the block or handler of a message to have the message delivered again. The block swallows it.

    It counts as a failed delivery, so a message that is retried too often becomes a dead letter. A worker of a shared
    subscriber receives other messages meanwhile. A plain subscriber keeps the order, so later messages wait as well.

    :param delay_s: seconds until it is delivered again, from 0 to 10 ** 9. None stands for the ``retry_delay_s`` of a
        shared subscriber, and for no delay of a plain one
    """

    def __init__(self, delay_s: Optional[float] = None) -> None:
        super().__init__("The message is to be delivered again." if delay_s is
                         None else f"The message is to be delivered again after {delay_s} seconds.")
        self.delay_s = None if delay_s is None else checks.seconds("delay_s", delay_s, 0, limits.DELAY_S_MAX)

    def __reduce__(self) -> Tuple[object, ...]:
        return Retry, (self.delay_s, )


class Reject(errors.PersipubsubError):
    """Raise this in the block or handler of a message to make it a dead letter at once. The block swallows it.

    A subscriber has dead letters if it is shared or has ``max_deliveries``. If not, the block raises
    :class:`SubscriberKindError`, and the message stays.

    :param reason: kept with the dead letter, up to 1,000 characters
    """

    def __init__(self, reason: str = "") -> None:
        if not isinstance(reason, str):
            raise errors.ArgumentTypeError(
                f"reason must be a str, got {type(reason).__name__}: for that of an exception, pass str(...).")
        super().__init__(reason)
        self.reason = reason
