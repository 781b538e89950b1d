"""Set a subscriber's policy: whether it is shared, and how often a message is delivered; on an open transaction."""

from typing import Optional

from persipubsub.engine.policies import Policy, applied, is_shared, require_changeable
from persipubsub.engine.values import Delivering
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters


def apply(txn: Transaction, identifier: bytes, given: Delivering) -> int:
    """Add a subscriber, or change its policy; return how many dead letters were deleted because of a lower limit.

    :raise ArgumentError: the subscriber cannot have this policy
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
    """Replace a plain subscriber with a shared one, or the reverse. The new one has the same cursor.

    Open endpoints know only one kind. They raise from then on, since their subscriber no longer exists.

    :raise ArgumentError: the old one has messages that the new one could not take over
    """
    require_changeable(identifier.decode(), record.policy, policy, record.in_flight + record.requeued,
                       record.dead_letters)
    if record.policy is not None:
        dead_letters.forget(txn, record)
    header = txn.header
    txn.put_subscriber(identifier, SubscriberRecord(header.next_subscriber_number, record.next_id, record.taken,
                                                    policy))
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    txn.published = True  # to wake those that wait as the old one, which must raise now
