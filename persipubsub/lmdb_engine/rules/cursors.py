"""Subscribers and their cursors: what comes next for each, and what it has acknowledged; on an open transaction."""

import bisect
from typing import List, Optional, Sequence

import icontract

from persipubsub import clock, errors
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import NEVER_US, NOTHING, Cleared, Failure, Found, Settled, Subscription
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import dead_letters, retention
from persipubsub.lmdb_engine.rules.message_log import (clear_delayed, count_from, expire, first_live_id,
                                                       first_unexpired_id, now_us, prune_dangling, remove_below,
                                                       retained_messages, with_clock)


def subscribe(txn: Transaction, identifier: bytes) -> Subscription:
    """Find a subscriber.

    :raise UnknownSubscriberError: there is none
    """
    record = txn.subscriber(identifier)
    if record is None:
        names = ", ".join(repr(name.decode()) for name, _ in txn.subscribers()[:20]) or "none"
        raise errors.UnknownSubscriberError(f"The queue has no subscriber {identifier.decode()!r}; it has: {names}. "
                                            "Add it with Control.add_subscriber, or with persipubsub subscriber add.")
    return Subscription(identifier, record.number, record.policy is not None and record.policy.shared)


# What holds afterwards is looked at in the same transaction: others may change it in the next one.


@icontract.ensure(lambda txn, identifier: txn.subscriber(identifier) is not None, enabled=icontract.SLOW)
def add_subscriber(txn: Transaction, identifier: bytes, policy: Optional[Policy] = None) -> bool:
    """Add a subscriber at the end of the queue; tell whether it was missing. One that exists stays as it is."""
    if txn.subscriber(identifier) is not None:
        return False
    header = txn.header
    next_id = txn.log().next_id()
    txn.put_subscriber(identifier, SubscriberRecord(header.next_subscriber_number, next_id, policy=policy))
    txn.count_cursor(next_id, 1)
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    return True


@icontract.ensure(lambda txn, identifier: txn.subscriber(identifier) is None, enabled=icontract.SLOW)
def remove_subscriber(txn: Transaction, identifier: bytes) -> int:
    """Remove a subscriber, and what it alone still awaited; give how many dead letters went with it.

    :raise UnknownSubscriberError: there is none
    """
    record = own_record(txn, subscribe(txn, identifier))
    _remove_record(txn, identifier, record)
    prune_dangling(txn)
    return record.dead_letters


def clear_subscribers(txn: Transaction) -> Cleared:
    """Remove all subscribers and all messages; those that had expired do not count."""
    expire(txn)
    retained, places = retained_messages(txn), list(txn.subscribers())
    for identifier, record in places:
        _remove_record(txn, identifier, record)
    count = remove_below(txn, txn.log().next_id())
    header = txn.header
    txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count - retained))
    return Cleared(count + clear_delayed(txn), sum(record.dead_letters for _, record in places))


def _remove_record(txn: Transaction, identifier: bytes, record: SubscriberRecord) -> None:
    txn.delete_subscriber(identifier)
    txn.count_cursor(dead_letters.position(txn, record), -1)
    if record.policy is not None:
        dead_letters.remove_all(txn, record)
    txn.published = True  # who waits as this subscriber must learn that it is gone


def look(txn: Transaction, subscription: Subscription, max_messages: int, max_bytes: int) -> Optional[Found]:
    """Find the next messages of a subscriber: at most so many, and at most so many bytes, but at least one.

    :return: None where the next message has expired

    :raise UnknownSubscriberError: the subscriber was removed
    """
    record = own_record(txn, subscription)
    start = max(record.next_id, txn.header.first)
    if record.policy is not None:
        requeued = dead_letters.next_requeued(txn, record)
        if requeued is not None:
            return Found([requeued[0]], [requeued[1]], expires_us=NEVER_US)
        if record.policy.max_deliveries == 1 or dead_letters.failed_before(txn, record, start):
            max_messages = 1  # what has failed, or may be a last try, comes alone: no other one fails with it
    ids, payloads = txn.messages(start, max_messages, max_bytes)
    found = _unexpired(txn, ids, payloads) if ids else NOTHING
    return found if found is None or txn.header.next_due_us == NEVER_US else _with_due_time(txn, found)


def look_at_top(txn: Transaction, subscription: Subscription) -> Optional[Found]:
    """Find the latest message of a subscriber.

    :return: None where it has expired

    :raise UnknownSubscriberError: the subscriber was removed
    """
    start = max(own_record(txn, subscription).next_id, txn.header.first)
    last_id = txn.last_id()
    found = NOTHING if last_id is None or last_id < start else _unexpired(txn, *txn.messages(last_id, 1, 0))
    if found is None:
        return None
    found = found._replace(since=start)
    return found if txn.header.next_due_us == NEVER_US else _with_due_time(txn, found)


def _with_due_time(txn: Transaction, found: Found) -> Found:
    """Say when something is due: now, if time does not go on yet, because nobody has written since the boot."""
    return found._replace(due_us=delayed_until_us(txn))


def delayed_until_us(txn: Transaction) -> int:
    """Give the time since boot at which the first delayed message is due; NEVER_US where there is none.

    It is 0 where time does not go on yet, because nobody has written since the boot.
    """
    header = txn.header
    if header.next_due_us == NEVER_US:
        return NEVER_US
    return max(0, header.next_due_us - header.clock_offset_us) if header.boot_id == clock.boot_id() else 0


def known_record(txn: Transaction, subscription: Subscription) -> Optional[SubscriberRecord]:
    """Give the record of a subscriber; None if it was removed, also if one of that name was added again."""
    # own_place and take do so without this call, which test_counts would count: they are for every message.
    record = txn.subscriber(subscription.identifier)
    return None if record is None or record.number != subscription.number else record


def own_record(txn: Transaction, subscription: Subscription) -> SubscriberRecord:
    """Give the record of a subscriber as it was opened.

    :raise UnknownSubscriberError: it was removed, also if one of that name was added again
    """
    record = txn.subscriber(subscription.identifier)
    if record is None or record.number != subscription.number:
        raise errors.UnknownSubscriberError(
            f"The subscriber {subscription.identifier.decode()!r} was removed from the queue. If it was added again, "
            "it is a new one: open it with Environment.new_subscriber.")
    return record


def _unexpired(txn: Transaction, ids: Sequence[int], payloads: List[bytes]) -> Optional[Found]:
    """Give what was found, or that the first of it has expired; then none of those behind it was committed before."""
    sent_us = txn.log().at(ids[0]).time_us
    expires_us = sent_us + txn.header.message_timeout_us - with_clock(txn).clock_offset_us
    return None if expires_us < clock.boottime_us() else Found(ids, payloads, expires_us)


def acknowledge(txn: Transaction, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
    """Move a subscriber on behind messages that it was handed out. One that was removed is left alone.

    What it has taken before, as by another handle, is neither taken nor counted again. What went after it was handed
    out is counted: it was received.

    :param ids: of the messages, in order, at least one
    :param since: from which id on it takes those before them unread; those that are still there are counted
    """
    record, last_id = txn.subscriber(subscription.identifier), ids[-1]
    if record is None or record.number != subscription.number or record.next_id > last_id:
        return
    if last_id >= REQUEUED:
        txn.put_subscriber(subscription.identifier, dead_letters.settle(txn, record, ids))
        return
    first_id = ids[0] if since is None else since
    if record.next_id < first_id and first_live_id(txn, record.next_id) < first_id:
        return  # it was moved back meanwhile: it wants to have them all again
    if record.policy is not None:
        dead_letters.forget_below(txn, record, last_id + 1)
    taken = len(ids) - bisect.bisect_left(ids, record.next_id)
    if since is not None:
        log = txn.log()
        taken += max(0, log.messages_before(ids[0]) - log.messages_before(first_live_id(txn, record.next_id)))
    move(txn, subscription.identifier, record._replace(next_id=last_id + 1, taken=record.taken + taken), record.next_id,
         last_id + 1)


@icontract.ensure(lambda txn, identifier: not count_from(txn,
                                                         txn.subscriber(identifier).next_id)[0],
                  enabled=icontract.SLOW)
def acknowledge_all(txn: Transaction, identifier: bytes) -> int:
    """Move a subscriber to the end of the queue; give how many messages it no longer gets.

    What workers hold is theirs no more.

    :raise UnknownSubscriberError: there is none
    """
    record = own_record(txn, subscribe(txn, identifier))
    start, before = first_unexpired_id(txn, now_us(txn)), dead_letters.position(txn, record)
    pending, _ = count_from(txn, max(record.next_id, start))
    if record.policy is not None:
        pending += dead_letters.awaited(txn, record, max(start, first_live_id(txn))).messages
        record = dead_letters.forget(txn, record)
    next_id = txn.log().next_id()
    move(txn, identifier, record._replace(next_id=next_id), before, next_id)
    return pending


def move(txn: Transaction, identifier: bytes, record: SubscriberRecord, before: int, after: int) -> None:
    """Store a subscriber whose place was at one id and is now at another one."""
    txn.put_subscriber(identifier, record)
    if before == after:
        return
    txn.count_cursor(before, -1)
    txn.count_cursor(after, 1)
    floor = txn.low_water_mark()
    if floor is not None and floor > before:
        remove_below(txn, retention.bound(txn, now_us(txn)) if txn.header.retention_us else floor)


# Failing


def counts_failures(txn: Transaction, subscription: Subscription) -> bool:
    """Return whether a subscriber that is not shared limits its deliveries. One that was removed does not."""
    record = known_record(txn, subscription)
    return record is not None and record.policy is not None


def fail(txn: Transaction, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
    """Count that the block raised that received messages; some may become dead letters.

    When the last delivery that the policy allows has raised, the message becomes a dead letter and the cursor moves on
    behind it, so that it no longer stops those that come after it.
    """
    record = known_record(txn, subscription)
    if record is None or record.policy is None:
        return Settled()
    before = record.next_id
    record, dropped = dead_letters.fail(txn, record, ids, failure, now_us(txn))
    move(txn, subscription.identifier, record, before, record.next_id)
    return Settled(dropped=dropped)
