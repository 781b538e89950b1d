"""Read the status of a queue, on an open transaction."""

import pathlib
from typing import Optional, Tuple

from persipubsub.engine.policies import Policy
from persipubsub.engine.settings import stored_seconds
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import dead_letters, message_log
from persipubsub.lmdb_engine.rules.settings import stored_high_watermark
from persipubsub.queue import Durability, Strategy
from persipubsub.status import PrunedStatus, QueueStatus, SubscriberPolicy, SubscriberStatus


def _public(policy: Policy) -> SubscriberPolicy:
    times_us = (policy.lease_us, policy.retry_delay_us, policy.retry_delay_max_us)
    lease_s, delay_s, delay_max_s = (stored_seconds(time_us) if policy.shared else None for time_us in times_us)
    return SubscriberPolicy(policy.shared, lease_s, policy.max_deliveries, delay_s, delay_max_s,
                            policy.dead_letters_max)


def read(txn: Transaction, path: pathlib.Path, reader_lag: int) -> QueueStatus:
    """Read the status of a queue in one transaction. Its cost does not depend on the backlog.

    :param reader_lag: the commits since the oldest read began, which a transaction does not know
    """
    header = txn.header
    now_us = message_log.now_us(txn)
    kept_id = message_log.first_kept_id(txn, now_us)
    next_id = txn.log().next_id()
    low_water_mark = txn.low_water_mark()

    def counted(start: int) -> Tuple[int, Optional[float]]:
        """Return the number of messages from an id on, and the age of the oldest of them."""
        messages, first_id = message_log.count_from(txn, max(start, kept_id))
        age_us = max(0, now_us - txn.log().at(first_id).time_us)
        return messages, age_us / 1e6 if messages else None

    def plain(record: SubscriberRecord) -> SubscriberStatus:
        return SubscriberStatus(record.next_id, *counted(record.next_id), record.taken, 0, 0, None)

    def with_policy(record: SubscriberRecord) -> SubscriberStatus:
        """Return the status of a subscriber that may await messages before its next id, or outside the log."""
        pending, age_s = counted(record.next_id)
        earlier = dead_letters.awaited(txn, record, max(kept_id, message_log.first_live_id(txn)))
        if earlier.oldest_us is not None:
            age_s = max(age_s or 0, (now_us - earlier.oldest_us) / 1e6)
        return SubscriberStatus(record.next_id, pending + earlier.messages, age_s, record.taken, earlier.messages,
                                record.dead_letters, _public(dead_letters.policy_of(record)))

    messages, oldest_age_s = counted(0)
    awaited, _ = (0, None) if low_water_mark is None else counted(low_water_mark)
    return QueueStatus(path=path,
                       messages=messages,
                       size_bytes=message_log.live_bytes(txn),
                       oldest_age_s=oldest_age_s,
                       next_id=next_id,
                       sent=next_id - 1,
                       pruned=PrunedStatus(header.pruned_timeout, header.pruned_overflow, header.pruned_dangling),
                       floor=next_id if low_water_mark is None else low_water_mark,
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
                           identifier.decode(): plain(record) if record.policy is None else with_policy(record)
                           for identifier, record in txn.subscribers()
                       })
