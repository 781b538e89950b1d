"""Sending a message once, however often it is sent, on an open transaction.

The id that the sender gives is remembered in the transaction that appends the message, so that either both are there or
none. Within the window of the queue another send with that id finds it, and does nothing.
"""

from persipubsub.engine.values import Batch, Sent
from persipubsub.lmdb_engine.records.layouts import Deduplicated
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, message_log

#: A send forgets at most so many ids, which is more than it adds: so the cost of a send is bounded, and what is over
#: the limits, as after they were lowered, goes by and by.
FORGOTTEN_MAX = 8


def put(txn: Transaction, batch: Batch, identifier: bytes) -> Sent:
    """Append a message, unless one was sent with the id; give what became of that one then."""
    once, time_us = txn.deduplication_ids(), message_log.now_us(txn)
    before = once.get(identifier)
    if before is not None and before.time_us >= time_us - txn.header.deduplication_window_us:
        # Written again, so that this commit syncs: that of the first send may have failed there, which was why its
        # sender knew nothing and came again.
        once.put(identifier, before)
        return Sent(range(before.message_id, before.message_id + 1), True)
    sent = appending.put(txn, batch)
    once.put(identifier, Deduplicated(sent.ids.start, time_us))
    for _ in range(FORGOTTEN_MAX):
        is_old = once.oldest_us() < time_us - txn.header.deduplication_window_us
        if not is_old and txn.deduplication_count() <= txn.header.deduplication_max:
            break
        once.delete_oldest()
    return sent
