"""What a queue looks like at one moment."""

import dataclasses
import pathlib
from typing import Dict, Mapping, NamedTuple, Optional, Union

from persipubsub.queue import Durability, HighWaterMark, Strategy

#: A read that goes on for this many commits is old, and worth a warning.
LAG_COMMITS_MIN = 1000


@dataclasses.dataclass(frozen=True)
class SubscriberPolicy:
    """How messages are handed out to a subscriber that is shared, or limits its deliveries.

    See :meth:`Control.add_subscriber`. What is only for shared subscribers is None for another one.
    """

    #: Whether workers share its messages.
    shared: bool
    #: Seconds after which another worker is given a message.
    lease_s: Optional[float]
    #: How often a message is handed out before it becomes a dead letter.
    max_deliveries: int
    #: Seconds until a message that was given back comes again.
    retry_delay_s: Optional[float]
    #: The longest such delay.
    retry_delay_max_s: Optional[float]
    #: How many dead letters it keeps.
    dead_letters_max: int

    def settings(self) -> Dict[str, Union[str, int, float]]:
        """Give what is set, by the names of the arguments of :meth:`Control.add_subscriber`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class SubscriberStatus:
    """One subscriber at one moment."""

    #: Id of the first message that was never taken by it.
    next_id: int
    #: Number of messages it has not taken.
    pending: int
    #: Seconds since the oldest of them was sent; None if there is none.
    oldest_pending_age_s: Optional[float]
    #: How many messages it has taken since it was added: handed out and acknowledged, or skipped by ``pop`` or
    #: ``receive_to_top``. One that came again after an error or a crash counts once.
    taken: int
    #: How many of the pending messages are not just to be handed out next: those that workers of a shared subscriber
    #: hold, or have given back; and dead letters that were requeued.
    in_flight: int
    #: Number of its dead letters.
    dead_letters: int
    #: How messages are handed out to it; None: to whoever asks, again and again until they are taken.
    policy: Optional[SubscriberPolicy]


@dataclasses.dataclass(frozen=True)
class PrunedStatus:
    """How many messages a queue let go, since it was made, though some subscriber had not taken them.

    What all subscribers have taken, and what ``clear_messages`` or ``prune_all_messages_for`` were told to drop, is in
    none of the numbers. A message counts once, however many subscribers awaited it.
    """

    #: They had been there for longer than the message timeout.
    timeout: int
    #: The queue had reached its high-water mark.
    overflow: int
    #: Nobody awaited them any more: who did was removed, or the queue had no subscriber when they were sent.
    dangling: int


@dataclasses.dataclass(frozen=True)
class QueueStatus:  # pylint: disable=too-many-instance-attributes  # one per fact
    """A queue at one moment. Messages that have expired do not count."""

    #: The directory of the queue.
    path: pathlib.Path
    #: Number of messages that some subscriber has not taken, and of those that are retained.
    messages: int
    #: Bytes of the pages that the messages take.
    size_bytes: int
    #: Seconds since the oldest message was sent; None if there is none.
    oldest_age_s: Optional[float]
    #: Id that the next message will get.
    next_id: int
    #: How many messages were sent since the queue was made.
    sent: int
    #: How many of them were let go.
    pruned: PrunedStatus
    #: The smallest ``next_id`` of all subscribers; without subscribers that of the queue.
    floor: int
    #: When the queue overflows.
    high_watermark: HighWaterMark
    #: Which messages go when it overflows.
    strategy: Strategy
    #: What a sent message survives.
    durability: Durability
    #: The full name of the protobuf type that it is bound to, such as ``shop.Order``; None if it is bound to none.
    message_type: Optional[str]
    #: Seconds for which messages are kept that all subscribers have taken; 0: they go at once.
    retention_s: float
    #: How many of the messages are kept for that alone.
    retained: int
    #: Seconds for which a ``deduplication_id`` is remembered.
    deduplication_window_s: float
    #: How many of them are remembered at most.
    deduplication_max: int
    #: Number of messages that were sent for later, and have not come yet.
    delayed: int
    #: How many commits have come since the read began that goes on longest, in whatever process. Where it only rises, a
    #: process has stopped in a read, and the file grows.
    reader_lag: int
    #: The subscribers by identifier.
    subscribers: Mapping[str, SubscriberStatus]


class Violation(NamedTuple):
    """An invariant that does not hold: its name, where, and its meaning."""

    invariant: str
    found: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.invariant} ({self.meaning}): {self.found}"
