"""Delayed messages: stored at once, and appended to the log when they are due; on an open transaction.

A delayed message has no message id yet. Every write transaction of any process begins by appending the messages that
are due by the queue's time (:func:`append_due`), as if they were sent then. A reader that sees in the header that a
message is due begins a write transaction, and a waiting subscriber sleeps no longer than until the next one is due.
"""

from typing import Optional

from persipubsub import clock, errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.values import NEVER_US, DueTime, batch_of
from persipubsub.lmdb_engine.records.layouts import DELAYED
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, deduplication, message_log
from persipubsub.queue import Strategy

#: The maximum number of due messages that one transaction appends. It also ends with the message that exceeds the
#: number of bytes.
APPENDED_MESSAGES_MAX = 1000
APPENDED_BYTES_MAX = 16 * 1024**2


def put(txn: Transaction,
        payload: bytes,
        due: DueTime,
        headers: bytes = b"",
        identifier: Optional[bytes] = None) -> DelayedMessage:
    """Store a message until it is due; if it already is, it is appended at once.

    :param identifier: a deduplication id: if a message was sent with it before, that one is returned
    :raise MessageTooLargeError: it is over the high-water mark
    :raise TooManyDelayedError: the number or size of delayed messages has reached the high-water mark
    :raise QueueFullError: it is due, and the queue refuses messages at its high-water mark and has no room for it
    """
    before = None if identifier is None else deduplication.find(txn, identifier)
    if before is not None:
        return DelayedMessage(before.due_us or before.time_us, max(0, before.message_id - DELAYED))
    header, batch = txn.header, batch_of((payload, ), (headers, ))
    appending.require_below_mark(header, batch.size_bytes)
    delayed_bytes = txn.delayed_bytes()
    exceeded = appending.exceeded_limits(header, header.delayed + 1, delayed_bytes + batch.size_bytes)
    if exceeded:
        raise errors.TooManyDelayedError(
            f"The queue has {header.delayed} delayed messages of {delayed_bytes} bytes, and refuses one more of "
            f"{batch.size_bytes} bytes because of its high-water mark, {exceeded}. Cancel some, wait until they are "
            "due, or raise the high-water mark with Control.set_hwm.")
    due_us = message_log.now_us(txn) + due.delay_us if due.at_us is None else due.at_us
    if due_us <= message_log.now_us(txn) and header.strategy == Strategy.refuse.value:
        message_log.expire(txn)
        appending.require_room(txn, batch)
        header = txn.header
    message = DelayedMessage(due_us, header.next_delayed_number)
    txn.delayed_messages().put(due_us, message.number, payload, headers)
    if identifier is not None:
        deduplication.remember(txn, identifier, message.number + DELAYED, due_us)
    if due_us < header.next_due_us:
        txn.published = True  # waiting subscribers must not sleep longer than until then
    txn.put_header(
        header._replace(delayed=header.delayed + 1,
                        next_delayed_number=header.next_delayed_number + 1,
                        next_due_us=min(due_us, header.next_due_us)))
    append_due(txn)
    return message


def cancel(txn: Transaction, message: DelayedMessage) -> bool:
    """Delete a message; return whether it was still delayed."""
    delayed = txn.delayed_messages()
    is_possible = 0 <= message.due_us < NEVER_US and 0 < message.number < txn.header.next_delayed_number
    if not is_possible or not delayed.delete(message.due_us, message.number):
        return False
    txn.put_header(txn.header._replace(delayed=txn.header.delayed - 1, next_due_us=delayed.next_due_us()))
    return True


def wants_write(txn: Transaction) -> bool:
    """Return, in a read transaction, whether a write transaction might append a delayed message.

    It might if there was no write since the boot: until then the queue's time stands still if the wall clock was set
    back.
    """
    header = txn.header
    return header.next_due_us != NEVER_US and (header.boot_id != clock.boot_id()
                                               or header.next_due_us <= message_log.now_us(txn))


def append_due(txn: Transaction) -> None:
    """Append the first messages that are due; the next write transaction appends more if there are too many for one."""
    header, time_us = txn.header, message_log.now_us(txn)
    if header.next_due_us > time_us:
        return
    delayed = txn.delayed_messages()
    due = delayed.pop_due(time_us, APPENDED_MESSAGES_MAX, APPENDED_BYTES_MAX)
    txn.put_header(header._replace(delayed=header.delayed - len(due.payloads), next_due_us=delayed.next_due_us()))
    appending.put_accepted(txn, due)
