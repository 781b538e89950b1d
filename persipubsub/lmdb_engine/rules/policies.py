"""What can be set on a subscriber: whether it is shared, and how often messages are handed out to it."""

from typing import Optional

from persipubsub.engine.policies import Policy, applied, is_shared, require_changeable
from persipubsub.engine.values import Delivering
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters


def apply(txn: Transaction, identifier: bytes, given: Delivering) -> int:
    """Add a subscriber, or change how messages are handed out to it; give how many dead letters became too many.

    :raise ArgumentError: it does not fit to the subscriber
    """
    record = txn.subscriber(identifier)
    policy = applied(given, None if record is None else record.policy)
    if record is None:
        cursors.add_subscriber(txn, identifier, policy)
        return 0
    if policy == record.policy:
        return 0
    if is_shared(record.policy) != is_shared(policy):
        _change_kind(txn, identifier, record, policy)
        return 0
    changed, dropped = dead_letters.trim(txn, record._replace(policy=policy))
    txn.put_subscriber(identifier, changed)
    return dropped


def _change_kind(txn: Transaction, identifier: bytes, record: SubscriberRecord, policy: Optional[Policy]) -> None:
    """Make a shared subscriber of a plain one, or the other way round. It is a new one, at the same place.

    So open handles, which know only the one kind, learn that they are of a subscriber that is there no more.

    :raise ArgumentError: the new one could not take over what the old one has
    """
    require_changeable(identifier.decode(), record.policy, policy, record.in_flight + record.requeued,
                       record.dead_letters)
    if record.policy is not None:
        dead_letters.forget(txn, record)
    header = txn.header
    txn.put_subscriber(identifier, SubscriberRecord(header.next_subscriber_number, record.next_id, record.taken,
                                                    policy))
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    txn.published = True  # who waits as the old one must learn it
