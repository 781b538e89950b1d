"""What a queue looks like at one moment."""

import dataclasses
import pathlib
from typing import Dict, Mapping, Optional, Tuple, Union

from persipubsub import dead_letters, queue
from persipubsub.configuration import Durability, HighWaterMark, Strategy, stored_high_watermark, stored_seconds
from persipubsub.records import Place, Policy
from persipubsub.transaction import Transaction


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


def _public(policy: Policy) -> SubscriberPolicy:
    times_us = (policy.lease_us, policy.retry_delay_us, policy.retry_delay_max_us)
    lease_s, delay_s, delay_max_s = (stored_seconds(time_us) if policy.shared else None for time_us in times_us)
    return SubscriberPolicy(policy.shared, lease_s, policy.max_deliveries, delay_s, delay_max_s,
                            policy.dead_letters_max)


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


def read(txn: Transaction, path: pathlib.Path, reader_lag: int) -> QueueStatus:
    """Read the status of a queue in one transaction. Its cost does not depend on the backlog.

    :param reader_lag: which no transaction can tell
    """
    header = txn.header
    now_us = queue.now_us(txn)
    kept_id = queue.first_kept_id(txn, now_us)
    next_id = txn.log().next_id()
    floor = txn.floor()

    def counted(start: int) -> Tuple[int, Optional[float]]:
        """Count the messages from an id on, and tell the age of the oldest of them."""
        messages, first_id = queue.count_from(txn, max(start, kept_id))
        age_us = max(0, now_us - txn.log().at(first_id).time_us)
        return messages, age_us / 1e6 if messages else None

    def plain(place: Place) -> SubscriberStatus:
        return SubscriberStatus(place.next_id, *counted(place.next_id), place.taken, 0, 0, None)

    def with_policy(place: Place) -> SubscriberStatus:
        """Tell of one that awaits messages before its next, or outside the log."""
        pending, age_s = counted(place.next_id)
        earlier = dead_letters.awaited(txn, place, max(kept_id, queue.first_live_id(txn)))
        if earlier.oldest_us is not None:
            age_s = max(age_s or 0, (now_us - earlier.oldest_us) / 1e6)
        return SubscriberStatus(place.next_id, pending + earlier.messages, age_s, place.taken, earlier.messages,
                                place.dead_letters, _public(dead_letters.policy_of(place)))

    messages, oldest_age_s = counted(0)
    awaited, _ = (0, None) if floor is None else counted(floor)
    return QueueStatus(path=path,
                       messages=messages,
                       size_bytes=queue.live_bytes(txn),
                       oldest_age_s=oldest_age_s,
                       next_id=next_id,
                       sent=next_id - 1,
                       pruned=PrunedStatus(header.pruned_timeout, header.pruned_overflow, header.pruned_dangling),
                       floor=next_id if floor is None else floor,
                       high_watermark=stored_high_watermark(header),
                       strategy=Strategy(header.strategy),
                       durability=Durability(header.durability),
                       message_type=txn.message_type(),
                       retention_s=stored_seconds(header.retention_us),
                       retained=messages - awaited,
                       deduplication_window_s=stored_seconds(header.deduplication_window_us),
                       deduplication_max=header.deduplication_max,
                       delayed=header.delayed,
                       reader_lag=reader_lag,
                       subscribers={
                           identifier.decode(): plain(place) if place.policy is None else with_policy(place)
                           for identifier, place in txn.places()
                       })
