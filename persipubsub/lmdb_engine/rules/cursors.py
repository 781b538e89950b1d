"""Subscribers and their cursors: what each receives next, and what it has acknowledged; on an open transaction."""

import bisect
from typing import List, Optional, Sequence

import icontract

from persipubsub import clock, errors, lazy_imports
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import NEVER_US, NOTHING, Cleared, Failure, Found, Settled, Subscription, make
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.relays import Relays
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import dead_letters, details, retention
from persipubsub.lmdb_engine.rules.message_log import (clear_delayed, count_from, expire, first_live_id,
                                                       first_unexpired_id, now_us, prune_dangling, remove_below,
                                                       retained_messages, with_clock)

#: Acknowledged messages are deleted when the low-water mark passes a multiple of this. Until then they are stored below
#: it, and count as deleted. To delete one costs about as much as to move the cursor.
DELETED_TOGETHER = 64
#: Larger ones are deleted at once, so that the file does not grow by those that wait.
SMALL_BYTES_MAX = 4096
#: The maximum number of subscribers that an error names.
NAMES_IN_ERROR = 20


def subscribe(txn: Transaction, identifier: bytes) -> Subscription:
    """Find a subscriber.

    :raise UnknownSubscriberError: there is none
    """
    record = txn.subscriber(identifier)
    if record is None:
        raise _unknown(identifier.decode(), [name.decode() for name, _ in txn.subscribers()])
    return Subscription(identifier, record.number, record.policy is not None and record.policy.shared)


def _unknown(identifier: str, names: List[str]) -> errors.UnknownSubscriberError:
    try:
        with lazy_imports.NoFork():
            import difflib  # here, since few programs need it
        close = difflib.get_close_matches(identifier, names, n=1)
    except (ImportError, OSError):  # no descriptors are left to import with
        close = []
    meant = f" Did you mean {close[0]!r}?" if close else ""
    known = ", ".join(map(repr, names[:NAMES_IN_ERROR])) or "none"
    return errors.UnknownSubscriberError(f"The queue has no subscriber {identifier!r}; it has: {known}.{meant} "
                                         "Add it with Control.add_subscriber, or with persipubsub subscriber add.")


# Postconditions are checked in the same transaction, since another process may change the records after it.


@icontract.ensure(lambda txn, identifier: txn.subscriber(identifier) is not None, enabled=icontract.SLOW)
def add_subscriber(txn: Transaction, identifier: bytes, policy: Optional[Policy] = None) -> bool:
    """Add a subscriber at the end of the queue; return whether it was added. One that exists stays unchanged."""
    if txn.subscriber(identifier) is not None:
        return False
    header = txn.header
    next_id = txn.next_id()
    txn.put_subscriber(identifier, SubscriberRecord(header.next_subscriber_number, next_id, policy=policy))
    txn.count_cursor(next_id, 1)
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    return True


@icontract.ensure(lambda txn, identifier: txn.subscriber(identifier) is None, enabled=icontract.SLOW)
def remove_subscriber(txn: Transaction, identifier: bytes) -> int:
    """Remove a subscriber, and the messages that only it awaited; return how many dead letters it had.

    :raise UnknownSubscriberError: there is none
    """
    record = own_record(txn, subscribe(txn, identifier))
    _remove_record(txn, identifier, record)
    prune_dangling(txn)
    return record.dead_letters


def clear_subscribers(txn: Transaction) -> Cleared:
    """Remove all subscribers and all messages; those that had expired do not count."""
    expire(txn)
    retained, subscribers = retained_messages(txn), list(txn.subscribers())
    for identifier, record in subscribers:
        _remove_record(txn, identifier, record)
    count = remove_below(txn, txn.next_id())
    header = txn.header
    txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count - retained))
    return Cleared(count + clear_delayed(txn), sum(record.dead_letters for _, record in subscribers))


def _remove_record(txn: Transaction, identifier: bytes, record: SubscriberRecord) -> None:
    txn.delete_subscriber(identifier)
    Relays(txn.lmdb_cursor("queue_db")).delete_route(identifier)
    txn.count_cursor(dead_letters.position(txn, record), -1)
    if record.policy is not None:
        dead_letters.remove_all(txn, record)
    txn.published = True  # to wake those that wait as this subscriber, which must raise now


def look(txn: Transaction,
         subscription: Subscription,
         max_messages: int,
         max_bytes: int,
         detailed: bool = False) -> Optional[Found]:
    """Find the next messages of a subscriber.

    :param max_messages: the maximum number of messages
    :param max_bytes: the maximum size of their payloads; one message is found in any case
    :return: None if the next message has expired
    :raise UnknownSubscriberError: the subscriber was removed
    """
    record = own_record(txn, subscription)
    start = max(record.next_id, txn.header.first)
    if record.policy is not None:
        requeued = dead_letters.next_requeued(txn, record)
        if requeued is not None:
            found = Found([requeued[0]], [requeued[1]], expires_us=NEVER_US)
            return _with_details(txn, record, found) if detailed else found
        if record.policy.max_deliveries == 1 or dead_letters.failed_before(txn, record, start):
            max_messages = 1  # after a failure, or for the last delivery, so that no other message fails with it
    ids, payloads = txn.next_message(start) if max_messages == 1 else txn.messages(start, max_messages, max_bytes)
    unexpired = _unexpired(txn, ids, payloads) if ids else NOTHING
    if unexpired is None:
        return None
    if detailed:
        unexpired = _with_details(txn, record, unexpired)
    return unexpired if txn.header.next_due_us == NEVER_US else _with_due_time(txn, unexpired)


def glance(txn: Transaction, subscription: Subscription) -> Found:
    """Find the next message of a plain subscriber if it has been read ahead, has not expired, and nothing is due."""
    record = txn.known["subscribers"].get(subscription.identifier)
    if (record is None or record.number != subscription.number or record.policy is not None
            or txn.header.next_due_us != NEVER_US):
        return NOTHING
    ids, payloads = txn.message_ahead(max(record.next_id, txn.header.first))
    return (_unexpired(txn, ids, payloads) if ids else None) or NOTHING


def look_at_top(txn: Transaction, subscription: Subscription, detailed: bool = False) -> Optional[Found]:
    """Find the latest message of a subscriber.

    :return: None if it has expired
    :raise UnknownSubscriberError: the subscriber was removed
    """
    record = own_record(txn, subscription)
    start = max(record.next_id, txn.header.first)
    last_id = txn.last_id()
    found = NOTHING if last_id is None or last_id < start else _unexpired(txn, *txn.messages(last_id, 1, 0))
    if found is None:
        return None
    found = found._replace(since=txn.first_id(start))
    if detailed:
        found = _with_details(txn, record, found)
    return found if txn.header.next_due_us == NEVER_US else _with_due_time(txn, found)


def _with_details(txn: Transaction, record: SubscriberRecord, found: Found) -> Found:
    return found._replace(details=details.read(txn, record, found.ids))


def _with_due_time(txn: Transaction, found: Found) -> Found:
    """Return what was found, with the time at which the first delayed message is due."""
    return found._replace(due_us=delayed_until_us(txn))


def delayed_until_us(txn: Transaction) -> int:
    """Return the time since boot at which the first delayed message is due, or NEVER_US if there is none.

    It is 0 if there was no write since the boot, because the queue's time does not advance before the first one.
    """
    header = txn.header
    if header.next_due_us == NEVER_US:
        return NEVER_US
    return max(0, header.next_due_us - header.clock_offset_us) if header.boot_id == clock.boot_id() else 0


def known_record(txn: Transaction, subscription: Subscription) -> Optional[SubscriberRecord]:
    """Return the record of a subscriber, or None if it was removed, even if one of that name was added again."""
    # own_record and acknowledge do so without this call, since they run for every message.
    record = txn.subscriber(subscription.identifier)
    return None if record is None or record.number != subscription.number else record


def own_record(txn: Transaction, subscription: Subscription) -> SubscriberRecord:
    """Return the record of a subscriber.

    :raise UnknownSubscriberError: it was removed, even if one of that name was added again
    """
    record = txn.subscriber(subscription.identifier)
    if record is None or record.number != subscription.number:
        raise errors.UnknownSubscriberError(
            f"The subscriber {subscription.identifier.decode()!r} was removed from the queue. If it was added again, "
            "it is a new one: open it with Environment.new_subscriber.")
    return record


def _unexpired(txn: Transaction, ids: Sequence[int], payloads: List[bytes]) -> Optional[Found]:
    """Return what was found, or None if the first message has expired: none after it was committed earlier."""
    header = txn.header
    if header.boot_id != clock.boot_id():
        header = with_clock(txn)
    expires_us = txn.run_of(ids[0]).time_us + header.message_timeout_us - header.clock_offset_us
    if expires_us < clock.boottime_us():
        return None
    return make(Found, (ids, payloads, expires_us, NEVER_US, b"", 0, None, ()))


def acknowledge(txn: Transaction, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
    """Acknowledge messages that a plain subscriber received. If it was removed, nothing is changed.

    Messages that it acknowledged before, for example through another endpoint, are not counted again. Messages that
    were deleted after they were delivered are counted, since they were received.

    :param ids: of the messages, in order, at least one
    :param since: also acknowledge the messages from this id on, unread; those that are still stored are counted
    """
    record, last_id = txn.subscriber(subscription.identifier), ids[-1]
    if record is None or record.number != subscription.number or record.next_id > last_id:
        return
    if last_id >= REQUEUED:
        txn.put_subscriber(subscription.identifier, dead_letters.settle(txn, record, ids))
        return
    first_id = ids[0] if since is None else since
    if record.next_id < first_id and first_live_id(txn, record.next_id) < first_id:
        return  # it was moved back meanwhile, so it receives all of them again
    if record.policy is not None:
        dead_letters.forget_below(txn, record, last_id + 1)
    acknowledged = len(ids) - bisect.bisect_left(ids, record.next_id)
    if since is not None:
        log = txn.log()
        acknowledged += max(0, log.messages_before(ids[0]) - log.messages_before(first_live_id(txn, record.next_id)))
    moved = make(SubscriberRecord, (record.number, last_id + 1, record.taken + acknowledged, *record[3:]))
    move(txn, subscription.identifier, moved, record.next_id, last_id + 1)


@icontract.ensure(lambda txn, identifier: not count_from(txn,
                                                         txn.subscriber(identifier).next_id)[0],
                  enabled=icontract.SLOW)
def acknowledge_all(txn: Transaction, identifier: bytes) -> int:
    """Move a subscriber to the end of the queue; return how many messages it no longer receives.

    Workers lose their leases.

    :raise UnknownSubscriberError: there is none
    """
    record = own_record(txn, subscribe(txn, identifier))
    start, before = first_unexpired_id(txn, now_us(txn)), dead_letters.position(txn, record)
    pending, _ = count_from(txn, max(record.next_id, start))
    if record.policy is not None:
        pending += dead_letters.awaited(txn, record, max(start, first_live_id(txn))).messages
        record = dead_letters.forget(txn, record)
    next_id = txn.next_id()
    move(txn, identifier, record._replace(next_id=next_id), before, next_id)
    return pending


def move(txn: Transaction, identifier: bytes, record: SubscriberRecord, before: int, after: int) -> None:
    """Store a subscriber whose cursor moved from one id to another, and delete what no subscriber awaits now."""
    txn.put_subscriber(identifier, record)
    if before == after:
        return
    low_water_mark = txn.move_cursor(before, after)
    if low_water_mark is not None and low_water_mark > before and _deletes(txn, before, low_water_mark):
        remove_below(txn, retention.bound(txn, now_us(txn)) if txn.header.retention_us else low_water_mark)


def _deletes(txn: Transaction, before: int, low_water_mark: int) -> bool:
    """Return whether messages are to be deleted now that the low-water mark has moved. Small ones wait for others."""
    if txn.header.retention_us or before // DELETED_TOGETHER != low_water_mark // DELETED_TOGETHER:
        return True
    run = txn.run_of(before)
    return run.largest_bytes > SMALL_BYTES_MAX or (low_water_mark - before > 1
                                                   and txn.run_of(low_water_mark - 1) is not run)


# Failing


def counts_failures(txn: Transaction, subscription: Subscription) -> bool:
    """Return whether a plain subscriber limits its deliveries. One that was removed does not."""
    record = known_record(txn, subscription)
    return record is not None and record.policy is not None


def fail(txn: Transaction,
         subscription: Subscription,
         ids: Sequence[int],
         failure: Failure,
         rejects: bool = False) -> Settled:
    """Count a failed delivery: the block that received the messages raised. Some may become dead letters.

    A message whose last allowed delivery fails, or that is rejected, becomes a dead letter. The cursor moves past it,
    so that it no longer blocks the messages after it.

    :raise SubscriberKindError: messages are rejected, and the subscriber has no dead letters
    """
    record = known_record(txn, subscription)
    if record is None:
        return Settled()
    if record.policy is None:
        if rejects:
            raise errors.SubscriberKindError(
                f"The subscriber {subscription.identifier.decode()!r} has no dead letters, so it cannot reject a "
                "message, which stays. Set its max_deliveries with Control.add_subscriber.")
        return Settled()
    before = record.next_id
    record, dropped = dead_letters.fail(txn, record, ids, failure, now_us(txn), rejects)
    move(txn, subscription.identifier, record, before, record.next_id)
    return Settled(dropped=dropped)
