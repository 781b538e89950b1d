"""The log of messages: the queue's clock, and deleting and counting messages; on an open transaction.

:func:`.appending.put` appends a message to the log, where it stays until all subscribers have acknowledged it. A
subscriber has a *cursor* in the log: :func:`.cursors.look` finds the messages there, and :func:`.cursors.acknowledge`
moves the cursor on. The lowest cursor is the *low-water mark*: no subscriber awaits the messages below it, and they are
deleted, unless they are retained (:mod:`.retention`). Messages are also deleted when they are older than the message
timeout (:func:`expire`), and when the queue overflows (:func:`.appending.put`).

Each subscriber's record counts the messages that it acknowledged. The header counts by reason those that were deleted
otherwise.

:mod:`.invariants` lists what holds before and after each function, and what ``check()`` verifies.
"""

from typing import Tuple

from persipubsub import clock
from persipubsub.engine.values import NEVER_US
from persipubsub.lmdb_engine.records import deletions
from persipubsub.lmdb_engine.records.layouts import Header, require_count, wrapped
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import retention
from persipubsub.queue import RECORD_BYTES_MAX

#: The maximum number of messages, and of parts of long ones, that one call deletes; the others wait below
#: ``Header.first``.
DELETIONS_MAX = 10_000


def begin(txn: Transaction) -> None:
    """Begin a write transaction: set the clock for this boot, and delete some of the messages that wait for it."""
    header = txn.header
    if header.boot_id != clock.boot_id():
        txn.put_header(with_clock(txn))
    if header.waiting:
        remove_below(txn, header.first)
    if header.retention_us and retention.is_over(txn, now_us(txn)):
        remove_dangling(txn)


def with_clock(txn: Transaction) -> Header:
    """Return the header with the clock offset for this boot.

    Even if the wall clock was set back, the queue's time is not before the newest commit.
    """
    header, boot_id = txn.header, clock.boot_id()
    if header.boot_id == boot_id:
        return header
    start_us = max(clock.wall_us(), txn.log().newest().time_us)
    return header._replace(boot_id=boot_id, clock_offset_us=start_us - clock.boottime_us())


def now_us(txn: Transaction) -> int:
    """Return the queue's time, in microseconds since the epoch."""
    return clock.boottime_us() + with_clock(txn).clock_offset_us


# Deleting


def expire(txn: Transaction) -> int:
    """Delete the messages that are older than the message timeout; return how many were deleted.

    The first that is not older is found by bisection, since commit times never decrease.
    """
    # Messages that all subscribers acknowledged do not count as expired.
    retained = retained_messages(txn) if txn.header.retention_us else 0
    settle(txn)
    count = remove_below(txn, first_unexpired_id(txn, now_us(txn)))
    header, expired = txn.header, max(0, count - retained)
    txn.put_header(header._replace(pruned_timeout=header.pruned_timeout + expired))
    txn.expired += expired
    return count


def first_unexpired_id(txn: Transaction, time_us: int) -> int:
    """Return the first id whose message, if it is stored, has not expired at a time; the next id if all have."""
    return txn.log().first_id_since(time_us - txn.header.message_timeout_us)


def first_kept_id(txn: Transaction, time_us: int) -> int:
    """Return the first id whose message, if it is stored, has not expired at a time, and is awaited or to be retained.

    Messages with lower ids may stay stored until the next write, but they count as deleted.
    """
    unexpired_id = first_unexpired_id(txn, time_us)
    return max(unexpired_id, retention.bound(txn, time_us)) if txn.header.retention_us else unexpired_id


def remove_below(txn: Transaction, bound: int) -> int:
    """Delete all messages below an id; return how many were deleted.

    Deleting 500,000 messages takes LMDB most of a second, during which every process waits. So a transaction deletes a
    limited number. The others count as deleted at once, being below ``Header.first``, and each later write transaction
    deletes some of them (:func:`begin`).
    """
    header = txn.header
    bound = max(bound, header.first)
    deleted, all_deleted = deletions.delete_below(txn, bound, DELETIONS_MAX)
    if all_deleted and not header.waiting:
        return deleted
    log = txn.log()
    waiting = 0 if all_deleted else log.messages_before(bound) - log.messages_before(txn.first_id(0) or 0)
    txn.put_header(header._replace(first=bound, waiting=waiting))
    return deleted + waiting - header.waiting


def settle(txn: Transaction) -> None:
    """Delete the acknowledged messages that wait to be deleted together with others: see :func:`.cursors.move`."""
    if not txn.header.retention_us:
        remove_dangling(txn)


def prune_dangling(txn: Transaction) -> int:
    """Delete the messages that no subscriber awaits any longer, and count them; return how many were deleted."""
    count = remove_dangling(txn)
    header = txn.header
    if not header.retention_us:  # with a retention they were acknowledged, or were kept for as long as it says
        txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count))
    return count


def remove_dangling(txn: Transaction) -> int:
    """Delete the messages below the low-water mark, except those to be retained; return how many were deleted."""
    return remove_below(txn, retention.bound(txn, now_us(txn)))


def clear(txn: Transaction) -> int:
    """Delete all messages, also the delayed ones; return how many were deleted that had not expired."""
    expire(txn)
    return remove_below(txn, txn.log().next_id()) + clear_delayed(txn)


def clear_delayed(txn: Transaction) -> int:
    """Delete all delayed messages; return how many were deleted."""
    header = txn.header
    if header.delayed:
        txn.clear_delayed_messages()
        txn.put_header(header._replace(delayed=0, next_due_us=NEVER_US))
    return header.delayed


# Counting


def deleted_below(txn: Transaction) -> int:
    """Return the id below which messages count as deleted, though some of them may still be stored."""
    low_water_mark = None if txn.header.retention_us else txn.low_water_mark()
    return txn.header.first if low_water_mark is None else max(txn.header.first, low_water_mark)


def first_live_id(txn: Transaction, start: int = 0) -> int:
    """Return the id of the first message, from an id on, that does not count as deleted; the next id if none."""
    message_id = txn.first_id(max(start, deleted_below(txn)))
    return txn.next_id() if message_id is None else message_id


def live_messages(txn: Transaction) -> int:
    """Count the messages that do not count as deleted."""
    return count_from(txn, 0)[0]


def live_bytes(txn: Transaction) -> int:
    """Return the size of the messages: their pages, less the share of those that count as deleted; 0 only if none."""
    first_stored_id, first_id = txn.first_id(0), first_live_id(txn)
    if first_stored_id is None or first_stored_id == first_id:
        return txn.stored_bytes()
    stored_bytes = _size_from(txn, first_stored_id)
    return (txn.stored_bytes() * _size_from(txn, first_id) + stored_bytes - 1) // stored_bytes


def _size_from(txn: Transaction, start: int) -> int:
    """Return the maximum size of the payloads and records from an id on."""
    log, next_id = txn.log(), txn.next_id()
    messages = log.messages_before(next_id) - log.messages_before(start)
    return RECORD_BYTES_MAX * messages + wrapped(log.bytes_before(next_id) - log.bytes_before(start))


def retained_messages(txn: Transaction) -> int:
    """Count the messages that no subscriber awaits."""
    log, low_water_mark = txn.log(), txn.low_water_mark()
    end = log.next_id() if low_water_mark is None else low_water_mark
    return max(0, log.messages_before(end) - log.messages_before(first_live_id(txn)))


def count_from(txn: Transaction, start: int) -> Tuple[int, int]:
    """Count the messages from an id on that do not count as deleted.

    :return: the number, and the id of the first one, or the next id if there is none
    """
    first_id = first_live_id(txn, start)
    log = txn.log()
    return require_count(log.messages_before(log.next_id()) - log.messages_before(first_id)), first_id
