"""Delayed messages, on an open transaction: stored at once, and appended to the log when they are due.

A delayed message has no message id yet. Every write transaction, whoever's it is, begins with appending what has become
due by the queue's time (:func:`append_due`), as if it were sent then. Whoever looks and sees in the header that
something is due begins a write transaction for it, and who waits sleeps no longer than until then.
"""

from persipubsub import clock, errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.values import NEVER_US, Batch, DueTime
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, message_log

#: One transaction appends at most so many messages, and ends with the one that reaches so many bytes.
APPENDED_MESSAGES_MAX = 1000
APPENDED_BYTES_MAX = 16 * 1024**2


def put(txn: Transaction, payload: bytes, due: DueTime) -> DelayedMessage:
    """Store a message until it is due; where it is already, it is appended at once.

    :raise MessageTooLargeError: it is over the high-water mark
    :raise TooManyDelayedError: there are as many delayed messages as the high-water mark lets be
    """
    header = txn.header
    appending.require_below_mark(header, len(payload))
    if header.delayed >= header.max_messages or txn.delayed_bytes() + len(payload) > header.hwm_db_size:
        raise errors.TooManyDelayedError(
            f"{header.delayed} messages are delayed, as many as the high-water mark lets be (max_messages="
            f"{header.max_messages}, hwm_db_size={header.hwm_db_size} bytes). Cancel some, wait until they are due, or "
            "raise the mark with Control.set_hwm.")
    due_us = message_log.now_us(txn) + due.delay_us if due.at_us is None else due.at_us
    message = DelayedMessage(due_us, header.next_delayed_number)
    txn.delayed_messages().put(due_us, message.number, payload)
    if due_us < header.next_due_us:
        txn.published = True  # who waits must not sleep beyond it
    txn.put_header(
        header._replace(delayed=header.delayed + 1,
                        next_delayed_number=header.next_delayed_number + 1,
                        next_due_us=min(due_us, header.next_due_us)))
    append_due(txn)
    return message


def cancel(txn: Transaction, message: DelayedMessage) -> bool:
    """Delete a message; tell whether it was still delayed."""
    schedule = txn.delayed_messages()
    is_possible = 0 <= message.due_us < NEVER_US and 0 < message.number < txn.header.next_delayed_number
    if not is_possible or not schedule.delete(message.due_us, message.number):
        return False
    txn.put_header(txn.header._replace(delayed=txn.header.delayed - 1, next_due_us=schedule.next_due_us()))
    return True


def wants_write(txn: Transaction) -> bool:
    """Tell, where one only looks, whether a write transaction would append something.

    So it may as well where nobody has written since the boot: until then a wall clock that was set back stands still.
    """
    header = txn.header
    return header.next_due_us != NEVER_US and (header.boot_id != clock.boot_id()
                                               or header.next_due_us <= message_log.now_us(txn))


def append_due(txn: Transaction) -> None:
    """Append the first messages that are due; the next write transaction goes on where they are too many for one."""
    header, time_us = txn.header, message_log.now_us(txn)
    if header.next_due_us > time_us:
        return
    schedule = txn.delayed_messages()
    payloads = schedule.take_due(time_us, APPENDED_MESSAGES_MAX, APPENDED_BYTES_MAX)
    txn.put_header(header._replace(delayed=header.delayed - len(payloads), next_due_us=schedule.next_due_us()))
    # The mark may have been lowered meanwhile.
    fitting = [payload for payload in payloads if len(payload) <= header.hwm_db_size]
    appending.pass_over(txn, len(payloads) - len(fitting))
    if fitting:
        sizes = list(map(len, fitting))
        appending.put(txn, Batch(fitting, sum(sizes), max(sizes)))
