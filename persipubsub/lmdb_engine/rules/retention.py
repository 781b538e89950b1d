"""Keeping messages that all subscribers have taken, for those who want to read them again.

Retained messages lie below the floor. They go when they are older than ``retention_s``, and before that where the queue
reaches its high-water mark: then they give way first, since nobody awaits them.
"""

from persipubsub.lmdb_engine.records.transaction import Transaction


def bound(txn: Transaction, time_us: int) -> int:
    """Give the id below which nothing needs to be kept at a time: below the floor, and retained for long enough."""
    log, floor = txn.log(), txn.low_water_mark()
    end = log.next_id() if floor is None else floor
    header = txn.header
    return min(end, log.first_id_since(time_us - header.retention_us)) if header.retention_us else end


def is_over(txn: Transaction, time_us: int) -> bool:
    """Tell whether there may be something below :func:`bound`; cheaper than to find the bound."""
    log, floor = txn.log(), txn.low_water_mark()
    oldest = log.oldest()
    return (oldest.time_us < time_us - txn.header.retention_us
            and oldest.first_id < (log.next_id() if floor is None else floor))


def giving_way(stored: int, new: int, mark: int, retained: int) -> int:
    """Tell how many retained messages go when messages are put one by one.

    Where the mark is reached, as many go as in any overflow, n // 2 + 1, but only retained ones while there are any.

    :param stored: how many messages are in the queue
    :param new: how many are put
    :param mark: ``max_messages``
    :param retained: how many of the stored ones nobody awaits
    """
    gone = 0
    while gone < retained and stored + new > mark:
        put = max(0, mark - stored)
        stored, new = stored + put, new - put
        count = min(retained - gone, stored // 2 + 1)
        stored, gone = stored - count, gone + count
    return gone
