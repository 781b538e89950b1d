"""Deduplication: append a message once, even if it is sent repeatedly; on an open transaction.

The transaction that appends the message also stores the sender's id, so that both are stored or neither. Another send
with that id, within the queue's deduplication window, finds the id and appends nothing.
"""

from persipubsub.engine.values import Batch, Sent
from persipubsub.lmdb_engine.records.layouts import Deduplicated
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, message_log

#: The maximum number of ids that one send forgets. It adds one, so ids over the limits, as after the limits were
#: lowered, are forgotten step by step, and the cost of a send is bounded.
FORGOTTEN_MAX = 8


def put(txn: Transaction, batch: Batch, identifier: bytes) -> Sent:
    """Append a message, unless one was sent with the id; then return the id of that message."""
    ids, time_us = txn.deduplication_ids(), message_log.now_us(txn)
    before = ids.get(identifier)
    if before is not None and before.time_us >= time_us - txn.header.deduplication_window_us:
        # Written again, so that this commit syncs: the sync of the first send may have failed, which may be why the
        # message is sent again.
        ids.put(identifier, before)
        return Sent(range(before.message_id, before.message_id + 1), True)
    sent = appending.put(txn, *batch)
    ids.put(identifier, Deduplicated(sent.ids.start, time_us))
    for _ in range(FORGOTTEN_MAX):
        is_old = ids.oldest_us() < time_us - txn.header.deduplication_window_us
        if not is_old and txn.deduplication_count() <= txn.header.deduplication_max:
            break
        ids.delete_oldest()
    return sent
