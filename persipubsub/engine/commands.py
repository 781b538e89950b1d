"""Commands, which an engine runs alone or together with others: writes as data."""

from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

from persipubsub.delayed import DelayedMessage
from persipubsub.engine.values import Batch, Claims, DueTime, Failure, Relayed, Subscription


class Put(NamedTuple):
    """Append messages, at least one, all or none. The result is their ids. The fields are those of a Batch."""

    payloads: Sequence[bytes]
    size_bytes: int
    largest_bytes: int
    headers: Optional[Sequence[bytes]] = None


class PutOnce(NamedTuple):
    """Append messages, except those with an id that one was sent with before. The result is an id for each.

    For a message that was sent before, it is the id of the first one; 0 if that was delayed.
    """

    batch: Batch
    #: Of each message; None for one without.
    deduplication_ids: Sequence[Optional[bytes]]


class PutLater(NamedTuple):
    """Store a message to append when it is due. The result is a :class:`DelayedMessage`."""

    payload: bytes
    due: DueTime
    headers: bytes = b""
    #: If a message was sent with it before, nothing is stored, and the result is that of the first one.
    deduplication_id: Optional[bytes] = None


class PutRelayed(NamedTuple):
    """Append messages that a relay brings from another queue, if the relay has come as far as it knows; all or none.

    The same commit stores how far it has come. The result is a :class:`.Relayed`. It is ``last`` if the messages are
    stored, by this command or by an earlier one with the same ``last``. Otherwise nothing is stored, and it is how far
    the relay has come.
    """

    batch: Batch
    #: The identity of the relay: that of its route.
    origin: bytes
    #: How far the relay had come before.
    after: Relayed
    #: How far it has come with these messages.
    last: Relayed


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
    #: Whether they become dead letters at once.
    rejects: bool = False


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
    #: The delay before they are delivered again; None for that of the subscriber.
    delay_us: Optional[int] = None
    #: Whether they become dead letters at once.
    rejects: bool = False


class Extend(NamedTuple):
    """Restart the lease of all messages of some claims. The result is a :class:`Settled`."""

    subscription: Subscription
    claims: Claims


#: The commands about messages that were received.
Settlement = Union[Acknowledge, Fail, AcknowledgeClaimed, GiveBack, Extend]
Command = Union[Put, PutOnce, PutLater, PutRelayed, Cancel, Acknowledge, Fail, AcknowledgeClaimed, GiveBack, Extend]

#: The commands that append messages.
SENDING = frozenset({Put, PutOnce, PutLater, PutRelayed})


def load(command: Union[Command, Tuple[()]]) -> Tuple[int, int]:
    """Return how many messages a command appends, and how many bytes."""
    if isinstance(command, Put):
        return len(command.payloads), command.size_bytes
    if isinstance(command, (PutOnce, PutRelayed)):
        return len(command.batch.payloads), command.batch.size_bytes
    if isinstance(command, PutLater):
        return 1, len(command.payload) + len(command.headers)
    return 0, 0


class Outcome(NamedTuple):
    """The outcome of a command: its result, or its error."""

    result: Any
    error: Optional[Exception]
