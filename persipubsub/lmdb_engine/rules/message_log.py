"""The life of a message in the queue, from put to pop, each step on an open transaction.

A message is appended to one log (:func:`put`) and stays until all subscribers have taken it. A subscriber is a *place*
in the log: :func:`look` finds what lies there, :func:`take` moves the place on. The smallest of all places is the
*floor*: messages below it await nobody and are deleted, unless they are retained (``rules.retention``).
Messages also go when they are older than the timeout (:func:`expire`), or when the queue overflows (:func:`put`).

Each subscriber's record counts the messages that it has taken; the header counts those that went otherwise, by reason.

What holds before and after each function, and what ``check()`` verifies, is listed in
:mod:`persipubsub.lmdb_engine.rules.invariants`.
"""

from typing import Tuple

from persipubsub import clock
from persipubsub.engine.values import NEVER_US
from persipubsub.lmdb_engine.records.layouts import Header, require_count
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import retention

#: How many messages (and parts of long ones) one removal deletes at most; the others wait behind ``Header.first``.
DELETIONS_MAX = 10_000


def begin(txn: Transaction) -> None:
    """Start a write transaction: the clock holds for this boot, and some of what has gone for everybody is deleted."""
    header = txn.header
    if header.boot_id != clock.boot_id():
        txn.put_header(with_clock(txn))
    if header.waiting:
        remove_below(txn, header.first)
    if header.retention_us and retention.is_over(txn, now_us(txn)):
        remove_dangling(txn)


def with_clock(txn: Transaction) -> Header:
    """Give the header with the offset for this boot; a clock set back at boot makes no commit older than the newest."""
    header, boot_id = txn.header, clock.boot_id()
    if header.boot_id == boot_id:
        return header
    start_us = max(clock.wall_us(), txn.log().newest().time_us)
    return header._replace(boot_id=boot_id, clock_offset_us=start_us - clock.boottime_us())


def now_us(txn: Transaction) -> int:
    """Give the queue's time, in microseconds since the epoch."""
    return clock.boottime_us() + with_clock(txn).clock_offset_us


# Removing


def expire(txn: Transaction) -> int:
    """Remove what is older than the timeout; give how many messages went. Commit times never fall: bisection."""
    # What all have taken is not let go: it has served.
    retained = retained_messages(txn) if txn.header.retention_us else 0
    count = remove_below(txn, first_unexpired_id(txn, now_us(txn)))
    header, expired = txn.header, max(0, count - retained)
    txn.put_header(header._replace(pruned_timeout=header.pruned_timeout + expired))
    txn.expired += expired
    return count


def first_unexpired_id(txn: Transaction, time_us: int) -> int:
    """Give the first id whose message, if it is there, has not expired at a time; the next id where all have."""
    return txn.log().first_id_since(time_us - txn.header.message_timeout_us)


def first_kept_id(txn: Transaction, time_us: int) -> int:
    """Give the first id whose message, if it is there, neither has expired at a time nor been retained for long enough.

    What is below may still be stored, until somebody writes. For everybody it has gone.
    """
    unexpired_id = first_unexpired_id(txn, time_us)
    return max(unexpired_id, retention.bound(txn, time_us)) if txn.header.retention_us else unexpired_id


def remove_below(txn: Transaction, bound: int) -> int:
    """Remove all messages below an id; give how many went.

    Deleting 500,000 messages takes LMDB most of a second, in which every process waits. So a transaction deletes a
    limited number. Those left are gone at once for everybody, being below ``Header.first``, and each later write
    transaction deletes some of them (:func:`begin`).
    """
    header = txn.header
    bound = max(bound, header.first)
    deleted, all_gone = txn.delete_below(bound, DELETIONS_MAX)
    if all_gone and not header.waiting:
        return deleted
    log = txn.log()
    waiting = 0 if all_gone else log.messages_before(bound) - log.messages_before(txn.first_id(0) or 0)
    txn.put_header(header._replace(first=bound, waiting=waiting))
    return deleted + waiting - header.waiting


def prune_dangling(txn: Transaction) -> int:
    """Remove the messages that nobody awaits, since who did was removed; give how many went."""
    count = remove_dangling(txn)
    header = txn.header
    if not header.retention_us:  # else they had been taken, or have been kept for as long as was wanted
        txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count))
    return count


def remove_dangling(txn: Transaction) -> int:
    """Remove the messages below the floor, but for those that are to be retained; give how many went."""
    return remove_below(txn, retention.bound(txn, now_us(txn)))


def clear(txn: Transaction) -> int:
    """Remove all messages, also the delayed ones; give how many went, of those that had not expired."""
    expire(txn)
    return remove_below(txn, txn.log().next_id()) + clear_delayed(txn)


def clear_delayed(txn: Transaction) -> int:
    header = txn.header
    if header.delayed:
        txn.clear_delayed_messages()
        txn.put_header(header._replace(delayed=0, next_due_us=NEVER_US))
    return header.delayed


# Counting


def first_live_id(txn: Transaction, start: int = 0) -> int:
    """Give the id of the first message from an id on that is not gone; the next id where there is none."""
    message_id = txn.first_id(max(start, txn.header.first))
    return txn.log().next_id() if message_id is None else message_id


def live_messages(txn: Transaction) -> int:
    """Count the messages."""
    return txn.stored_messages() - txn.header.waiting


def live_bytes(txn: Transaction) -> int:
    """Give the size of the messages: their pages, less the share of the messages that wait to be deleted."""
    stored = txn.stored_messages()
    return txn.stored_bytes() * (stored - txn.header.waiting) // stored if stored else 0


def retained_messages(txn: Transaction) -> int:
    """Count the messages that are there though nobody awaits them."""
    log, floor = txn.log(), txn.low_water_mark()
    end = log.next_id() if floor is None else floor
    return max(0, log.messages_before(end) - log.messages_before(first_live_id(txn)))


def count_from(txn: Transaction, start: int) -> Tuple[int, int]:
    """Count the messages from an id on that are not gone.

    :return: the number, and the id of the first one, or the next id where there is none
    """
    first_id = first_live_id(txn, start)
    log = txn.log()
    return require_count(log.messages_before(log.next_id()) - log.messages_before(first_id)), first_id
