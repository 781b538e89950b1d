"""Commands, which an engine runs alone or together with others: writes as data."""

from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

from persipubsub.delayed import DelayedMessage
from persipubsub.engine.values import Batch, Claims, DueTime, Failure, Subscription


class Put(NamedTuple):
    """Append messages, at least one, all or none. The result is a :class:`Sent`."""

    payloads: Sequence[bytes]
    size_bytes: int
    largest_bytes: int


class PutOnce(NamedTuple):
    """Append a message unless one was sent with the same id. The result is the :class:`Sent` of the first one."""

    batch: Batch
    deduplication_id: bytes


class PutLater(NamedTuple):
    """Store a message to append when it is due. The result is a :class:`DelayedMessage`."""

    payload: bytes
    due: DueTime


class Cancel(NamedTuple):
    """Delete a delayed message. The result is whether it was still delayed."""

    message: DelayedMessage


class Acknowledge(NamedTuple):
    """Acknowledge messages that a subscriber received, up to the last of them. The result is None.

    Messages that it had acknowledged before are not counted again.
    """

    subscription: Subscription
    ids: Sequence[int]
    #: Also acknowledge the messages before them from this id on, which were skipped.
    since: Optional[int] = None


class Fail(NamedTuple):
    """Count a failed delivery of messages, if deliveries are limited. The result is a :class:`Settled`."""

    subscription: Subscription
    ids: Sequence[int]
    failure: Failure


# Of shared subscribers


class AcknowledgeClaimed(NamedTuple):
    """Acknowledge messages that a worker claimed. The result is a :class:`Settled`."""

    subscription: Subscription
    ids: Sequence[int]
    token: bytes


class GiveBack(NamedTuple):
    """Give back messages that a worker claimed. The result is a :class:`Settled`.

    With a failure, it counts as a delivery, and messages may become dead letters.
    """

    subscription: Subscription
    ids: Sequence[int]
    token: bytes
    failure: Optional[Failure]


class Extend(NamedTuple):
    """Restart the lease of all messages of some claims. The result is a :class:`Settled`."""

    subscription: Subscription
    claims: Claims


#: The commands about messages that were received.
Settlement = Union[Acknowledge, Fail, AcknowledgeClaimed, GiveBack, Extend]
Command = Union[Put, PutOnce, PutLater, Cancel, Acknowledge, Fail, AcknowledgeClaimed, GiveBack, Extend]

#: The commands that append messages.
SENDING = frozenset({Put, PutOnce, PutLater})


def load(command: Union[Command, Tuple[()]]) -> Tuple[int, int]:
    """Return how many messages a command appends, and how many bytes."""
    if isinstance(command, Put):
        return len(command.payloads), command.size_bytes
    if isinstance(command, PutOnce):
        return len(command.batch.payloads), command.batch.size_bytes
    if isinstance(command, PutLater):
        return 1, len(command.payload)
    return 0, 0


class Outcome(NamedTuple):
    """The outcome of a command: its result, or its error."""

    result: Any
    error: Optional[Exception]
