"""Append messages, and keep the queue below its high-water mark; on an open transaction."""

from typing import NamedTuple, Optional, Sequence

from persipubsub import clock, errors
from persipubsub.engine.settings import giving_way, survivors
from persipubsub.engine.values import Batch
from persipubsub.lmdb_engine.records import deletions
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import Header, Run, bytes_between
from persipubsub.lmdb_engine.records.runs import joining_us, joins
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules.message_log import (expire, first_live_id, live_bytes, live_messages, remove_below,
                                                       retained_messages)
from persipubsub.queue import RECORD_BYTES_MAX, Strategy


class Room(NamedTuple):
    """Bounds within which messages are simply appended: they join the newest run, nothing expires, no limit is near.

    They hold until the header or the runs change, or a subscriber is removed.
    """

    until_us: int  # on the clock of persipubsub.clock.boottime_us
    largest_bytes: int
    end_id: int


def put(txn: Transaction,
        payloads: Sequence[bytes],
        size_bytes: int,
        largest_bytes: int,
        headers: Optional[Sequence[bytes]] = None) -> range:
    """Append messages, and enforce the high-water mark as if each had been sent alone; return their ids.

    :param payloads: with the other arguments, the fields of a :class:`.Batch`
    :raise MessageTooLargeError: one is larger than the queue may be
    :raise BatchTooLargeError: the queue refuses messages at its high-water mark, and they exceed it by themselves
    :raise QueueFullError: the queue refuses messages at its high-water mark, and has no room for them
    """
    known = txn.known
    room: Optional[Room] = known["room"]
    first_id = known["next_id"]
    if room is None or first_id is None:
        return _put_with_care(txn, Batch(payloads, size_bytes, largest_bytes, headers))
    until_us, most_bytes, end_id = room
    ids = range(first_id, first_id + len(payloads))
    if largest_bytes > most_bytes or ids.stop > end_id or clock.boottime_us() > until_us:
        return _put_with_care(txn, Batch(payloads, size_bytes, largest_bytes, headers))
    txn.published = True
    txn.append(first_id, payloads, largest_bytes, headers)
    return ids


def put_accepted(txn: Transaction, batch: Batch) -> None:
    """Append messages that were accepted earlier, so that a queue at its high-water mark does not refuse them.

    With another strategy than ``refuse``, those that are too large are dropped: the mark may have been lowered.
    """
    if txn.header.strategy != Strategy.refuse.value:
        sizes, size_max = batch.sizes(), txn.header.hwm_db_size
        fitting = [index for index, size_bytes in enumerate(sizes) if size_bytes <= size_max]
        _skip_ids(txn, len(sizes) - len(fitting))
        batch = batch.selected(fitting)
    if batch.payloads:
        _put_with_care(txn, batch, may_refuse=False)


def _put_with_care(txn: Transaction, batch: Batch, may_refuse: bool = True) -> range:
    """Append messages wherever they may begin a run, expire others or reach a limit; find the room for later ones."""
    header = txn.header
    if may_refuse:
        require_below_mark(header, batch.largest_bytes)
    newest, first_id = txn.newest(), txn.next_id()
    ids = range(first_id, first_id + len(batch.payloads))
    if ids.stop > REQUEUED:
        raise errors.StorageError(
            f"The queue has used the message ids up to {first_id - 1}, and ids must be below 2 ** 63, so "
            f"{len(ids)} messages cannot be sent. Set up another queue.")
    if txn.low_water_mark() is None and not header.retention_us:
        txn.mark_end(ids.stop)
        remove_below(txn, ids.stop)
        header = txn.header
        txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + len(ids)))
        txn.unawaited += len(ids)
        return ids
    txn.published = True
    # Not now_us: message_log.begin() has set the offset for this boot.
    time_us = max(clock.boottime_us() + header.clock_offset_us, newest.time_us)
    oldest = txn.oldest()
    if oldest.time_us < time_us - header.message_timeout_us:
        expire(txn)
        newest, oldest = txn.newest(), txn.oldest()
    if not _certainly_below_mark(header, oldest, newest, batch, first_id):
        if header.strategy != Strategy.refuse.value:
            _put_at_mark(txn, time_us, first_id, batch)
            return ids
        if may_refuse:
            require_room(txn, batch)
            newest, oldest = txn.newest(), txn.oldest()
    if not joins(newest, time_us, batch.largest_bytes, header.message_timeout_us):
        newest = txn.begin_run(time_us, batch.largest_bytes)
        oldest = txn.oldest()
    txn.append(first_id, batch.payloads, batch.largest_bytes, batch.headers)
    txn.own_known()["room"] = _room(txn.header, oldest, newest)
    return ids


def require_room(txn: Transaction, batch: Batch) -> None:
    """Make sure that a queue that refuses messages at its high-water mark has room for some.

    Retained messages are deleted for them, since no subscriber awaits those.

    :raise BatchTooLargeError: the messages exceed the mark by themselves
    :raise QueueFullError: there is no room
    """
    header, count = txn.header, len(batch.payloads)
    exceeded = exceeded_limits(header, count, batch.size_bytes)
    if exceeded:
        raise errors.BatchTooLargeError(
            f"A batch of {count} messages and {batch.size_bytes} bytes never fits below the high-water mark of the "
            f"queue, {exceeded}. None was sent: send them in several batches, or raise the limit with "
            "Control.set_hwm.")
    surplus = live_messages(txn) + count - header.max_messages
    if surplus > 0 and header.retention_us:
        _remove_oldest(txn, min(surplus, retained_messages(txn)))
    if live_bytes(txn) + batch.size_bytes > header.hwm_db_size and header.retention_us:
        _remove_oldest(txn, retained_messages(txn))
    messages, size_bytes = live_messages(txn), live_bytes(txn)
    exceeded = exceeded_limits(header, messages + count, size_bytes + batch.size_bytes)
    if exceeded:
        raise errors.QueueFullError(
            f"The queue has {messages} messages of {size_bytes} bytes, and refuses {count} more of {batch.size_bytes} "
            f"bytes because of its high-water mark, {exceeded}. Nothing was sent. Wait for room with a timeout, have "
            "the subscribers receive, or raise the limit with Control.set_hwm.")


def exceeded_limits(header: Header, messages: int, size_bytes: int) -> str:
    """Return the limits that a number and a size exceed, as an error names them; nothing if they exceed none."""
    limits = (("max_messages", messages, header.max_messages), ("hwm_db_size", size_bytes, header.hwm_db_size))
    return " and ".join(f"{name}={limit}" for name, value, limit in limits if value > limit)


def _room(header: Header, oldest: Run, newest: Run) -> Room:
    """Return the bounds up to which messages can join the newest run."""
    time_us = min(newest.time_us + joining_us(header.message_timeout_us), oldest.time_us + header.message_timeout_us)
    earlier = newest.messages_before - oldest.messages_before
    earlier_bytes = bytes_between(oldest, newest) + RECORD_BYTES_MAX * earlier
    fitting = (_fitting_bytes(header) - earlier_bytes) // (newest.largest_bytes + RECORD_BYTES_MAX)
    end_id = newest.first_id + min(header.max_messages - earlier, fitting)
    return Room(time_us - header.clock_offset_us, newest.largest_bytes, min(end_id, REQUEUED))


def _fitting_bytes(header: Header) -> int:
    """Return how many bytes of payloads and records surely fit below ``hwm_db_size``: a page is at least half full."""
    return (header.hwm_db_size - 16 * 4096) // 2 - 1


def require_below_mark(header: Header, size_bytes: int) -> None:
    """Raise MessageTooLargeError if a message is larger than the queue may be."""
    if size_bytes > header.hwm_db_size:
        raise errors.MessageTooLargeError(
            f"A message of {size_bytes} bytes is over the high-water mark of the queue, hwm_db_size="
            f"{header.hwm_db_size} bytes. Send a smaller one, or raise the high-water mark with Control.set_hwm.")


def _skip_ids(txn: Transaction, count: int) -> None:
    """Assign ids to messages that are dropped because of the high-water mark."""
    if count:
        txn.mark_end(txn.next_id() + count)
        _count_overflow(txn, count)


def _certainly_below_mark(header: Header, oldest: Run, newest: Run, batch: Batch, first_id: int) -> bool:
    """Return whether the totals of the log show that no limit of the high-water mark will be reached.

    This is cheaper than asking LMDB for its pages, each of which is at least half full. If it returns False, a limit
    may still not be reached.
    """
    in_newest = first_id - newest.first_id
    messages = newest.messages_before + in_newest + len(batch.payloads) - oldest.messages_before
    if messages > header.max_messages:
        return False
    payload_bytes = bytes_between(oldest, newest) + in_newest * newest.largest_bytes + batch.size_bytes
    return payload_bytes + RECORD_BYTES_MAX * messages <= _fitting_bytes(header)


def _put_at_mark(txn: Transaction, time_us: int, first_id: int, batch: Batch) -> None:
    """Append messages where a limit of the high-water mark may be reached."""
    live, count = live_messages(txn), len(batch.payloads)
    if txn.header.retention_us:
        removed = giving_way(live, count, txn.header.max_messages, retained_messages(txn))
        _remove_oldest(txn, removed)
        live -= removed
    strategy = Strategy(txn.header.strategy)
    head, tail = survivors(live, count, txn.header.max_messages, strategy)
    _remove(txn, live - min(live, head if strategy == Strategy.prune_last else max(0, tail - count)))
    overflowed = live + count - head - tail
    # The new messages that stay are those among the first `head` of all, and the last ones.
    first, last = batch.part(0, max(0, head - live)), batch.part(-tail)
    overflowed += _append_below_size_mark(txn, time_us, first)
    txn.mark_end(first_id + count - len(last.payloads))
    overflowed += _append_below_size_mark(txn, time_us, last)
    _count_overflow(txn, overflowed)


def _count_overflow(txn: Transaction, count: int) -> None:
    """Count messages that were dropped at the high-water mark. With ``max_messages=1`` there is no warning."""
    header = txn.header
    txn.put_header(header._replace(pruned_overflow=header.pruned_overflow + count))
    if header.max_messages > 1:
        txn.overflowed += count


def _append_below_size_mark(txn: Transaction, time_us: int, batch: Batch) -> int:
    """Append messages, and make room whenever ``hwm_db_size`` is reached; return how many were dropped for it."""
    overflowed = start = 0
    sizes = batch.sizes()
    while start < len(sizes):
        if live_bytes(txn) >= txn.header.hwm_db_size:
            overflowed += _make_room(txn)
        count = _count_that_fits(sizes[start:], txn.header.hwm_db_size - live_bytes(txn))
        part = batch.part(start, start + count)
        txn.begin_run(time_us, part.largest_bytes)
        txn.append(txn.next_id(), part.payloads, part.largest_bytes, part.headers)
        start += count
    return overflowed


def _count_that_fits(sizes: Sequence[int], room_bytes: int) -> int:
    """Return how many of the first messages certainly fit; at least one, which is appended in any case."""
    count, used_bytes = 0, 0
    for size_bytes in sizes:
        used_bytes += 2 * (size_bytes + RECORD_BYTES_MAX)
        if used_bytes >= room_bytes and count:
            break
        count += 1
    return count


def _make_room(txn: Transaction) -> int:
    """Delete messages until at most half of ``hwm_db_size`` is used; return how many were dropped.

    Retained messages are deleted first, and are not counted.
    """
    removed = 0
    while live_bytes(txn) > txn.header.hwm_db_size // 2:
        count = live_messages(txn) // 2 + 1
        retained = min(count, retained_messages(txn)) if txn.header.retention_us else 0
        if retained:
            _remove_oldest(txn, retained)
        else:
            _remove(txn, count)
            removed += count
    return removed


def _remove(txn: Transaction, count: int) -> None:
    """Delete the oldest or the latest messages, as the strategy says."""
    if not count:
        return
    if Strategy(txn.header.strategy) == Strategy.prune_last:
        deletions.delete_last(txn, count)
    else:
        _remove_oldest(txn, count)


def _remove_oldest(txn: Transaction, count: int) -> None:
    if count:
        log = txn.log()
        remove_below(txn, log.id_of(log.messages_before(first_live_id(txn)) + count))
