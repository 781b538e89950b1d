"""Retention: keep messages that all subscribers have acknowledged, to be read again; on an open transaction.

Retained messages are below the low-water mark. They are deleted when they are older than ``retention_s``. If the queue
reaches its high-water mark before that, they are deleted first, since no subscriber awaits them.
"""

from persipubsub.lmdb_engine.records.transaction import Transaction


def bound(txn: Transaction, time_us: int) -> int:
    """Return the id below which no message is kept at a time: below the low-water mark, and past the retention."""
    log, low_water_mark = txn.log(), txn.low_water_mark()
    end = log.next_id() if low_water_mark is None else low_water_mark
    header = txn.header
    return min(end, log.first_id_since(time_us - header.retention_us)) if header.retention_us else end


def is_over(txn: Transaction, time_us: int) -> bool:
    """Return whether there may be messages below :func:`bound`; this is cheaper than to find the bound."""
    log, low_water_mark = txn.log(), txn.low_water_mark()
    oldest = log.oldest()
    return (oldest.time_us < time_us - txn.header.retention_us
            and oldest.first_id < (log.next_id() if low_water_mark is None else low_water_mark))
