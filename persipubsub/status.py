"""What a queue looks like at one moment."""

import dataclasses
import pathlib
from typing import Dict, Mapping, NamedTuple, Optional, Union

from persipubsub.queue import Durability, HighWaterMark, Strategy

#: A read that has lasted for this number of commits is worth a warning.
LAG_COMMITS_MIN = 1000


@dataclasses.dataclass(frozen=True)
class SubscriberPolicy:
    """How messages are delivered to a subscriber that is shared, or limits its deliveries.

    See :meth:`Control.add_subscriber`. Settings for shared subscribers only are None for another one.
    """

    #: Whether workers share its messages.
    shared: bool
    #: Seconds after which a message is delivered to another worker.
    lease_s: Optional[float]
    #: How many times a message is delivered before it becomes a dead letter.
    max_deliveries: int
    #: Seconds until a message that was given back is delivered again.
    retry_delay_s: Optional[float]
    #: The longest such delay.
    retry_delay_max_s: Optional[float]
    #: How many dead letters it keeps.
    dead_letters_max: int

    def settings(self) -> Dict[str, Union[str, int, float]]:
        """Return the settings, by the names of the arguments of :meth:`Control.add_subscriber`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class SubscriberStatus:
    """One subscriber at one moment."""

    #: The cursor: the id of the next message that it receives for the first time.
    next_id: int
    #: Number of messages that it has not acknowledged.
    pending: int
    #: Seconds since the oldest of them was sent; None if there is none.
    oldest_pending_age_s: Optional[float]
    #: How many messages it has acknowledged since it was added, including those skipped by ``pop`` or
    #: ``receive_to_top``. A message that was delivered again after an error or a crash counts once.
    taken: int
    #: How many of the pending messages are in flight: workers of a shared subscriber hold them or have given them
    #: back, or they are requeued dead letters.
    in_flight: int
    #: Number of its dead letters.
    dead_letters: int
    #: How messages are delivered to it; None: to any process that asks, until they are acknowledged.
    policy: Optional[SubscriberPolicy]


@dataclasses.dataclass(frozen=True)
class PrunedStatus:
    """How many messages a queue has deleted, since it was created, before all subscribers had acknowledged them.

    Messages that everyone acknowledged do not count, nor do those that ``clear_messages`` or ``prune_all_messages_for``
    dropped. A message counts once, however many subscribers awaited it.
    """

    #: They were older than the message timeout.
    timeout: int
    #: The queue had reached a limit, and its strategy drops messages.
    overflow: int
    #: No subscriber awaited them: those that did were removed, or the queue had none when the messages were sent.
    dangling: int


@dataclasses.dataclass(frozen=True)
class QueueStatus:  # pylint: disable=too-many-instance-attributes  # one per fact
    """A queue at one moment. Messages that have expired do not count."""

    #: The directory of the queue; or its URL, without secrets.
    path: Union[pathlib.Path, str]
    #: Number of messages that some subscriber has not acknowledged, and of retained messages.
    messages: int
    #: Bytes of the pages that the messages occupy.
    size_bytes: int
    #: Seconds since the oldest message was sent; None if there is none.
    oldest_age_s: Optional[float]
    #: Id that the next message will get.
    next_id: int
    #: How many messages were sent since the queue was created.
    sent: int
    #: How many of them were deleted before all subscribers had acknowledged them.
    pruned: PrunedStatus
    #: The low-water mark: the smallest ``next_id`` of all subscribers, or that of the queue if it has none.
    floor: int
    #: The limits of the queue; None is no limit.
    high_watermark: HighWaterMark
    #: What happens when a message is sent and a limit is reached.
    strategy: Strategy
    #: What a sent message survives.
    durability: Durability
    #: The name of the message type that it is bound to, such as ``shop.Order`` of protobuf, or ``json:Order`` of a
    #: class that is sent as JSON; None if it is bound to none.
    message_type: Optional[str]
    #: Seconds for which messages are kept that all subscribers have acknowledged; 0 deletes them at once.
    retention_s: float
    #: How many messages are kept only for this reason.
    retained: int
    #: Seconds for which a ``deduplication_id`` is remembered.
    deduplication_window_s: float
    #: The maximum number of ids that are remembered; None for no limit, on a cluster.
    deduplication_max: Optional[int]
    #: Number of delayed messages: those that are not due yet, and those that are due and that no send, receive or
    #: change has appended yet.
    delayed: int
    #: Number of commits since the oldest current read began, in any process. If it only rises, a process has stopped
    #: in a read, and the file grows.
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
