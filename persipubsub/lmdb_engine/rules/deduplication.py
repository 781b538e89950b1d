"""Deduplication: append a message once, even if it is sent repeatedly; on an open transaction.

The transaction that stores the message also stores the sender's id, so that both are stored or neither. Another send
with that id, within the queue's deduplication window, finds the id and stores nothing.
"""

from typing import Dict, List, Optional, Sequence

from persipubsub.engine.values import Batch
from persipubsub.lmdb_engine.records.layouts import DELAYED, Deduplicated
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, message_log

#: The maximum number of ids that one send forgets for each that it adds. So ids over the limits, as after the limits
#: were lowered, are forgotten step by step, and the cost of a send is bounded.
FORGOTTEN_MAX = 8


def put(txn: Transaction, batch: Batch, identifiers: Sequence[Optional[bytes]]) -> List[int]:
    """Append messages, except those with the id of a message that was sent before, also within the batch.

    :param identifiers: of each message; None for one without
    :return: the id of each; for a message that was sent before, that of the first one, or 0 if that was delayed
    """
    sent_before: Dict[bytes, Optional[Deduplicated]] = {
        identifier: find(txn, identifier)
        for identifier in identifiers if identifier is not None
    }
    first: Dict[bytes, int] = {}  # the first message of the batch with an id
    fresh = [
        index for index, identifier in enumerate(identifiers)
        if identifier is None or (sent_before[identifier] is None and first.setdefault(identifier, index) == index)
    ]
    new_ids = dict(zip(fresh, appending.put(txn, *batch.selected(fresh)))) if fresh else {}
    ids = []
    for index, identifier in enumerate(identifiers):
        before = None if identifier is None else sent_before[identifier]
        if before is not None:
            ids.append(0 if before.message_id >= DELAYED else before.message_id)
        else:
            ids.append(new_ids[index if identifier is None else first[identifier]])
    for identifier, index in first.items():
        remember(txn, identifier, new_ids[index])
    return ids


def find(txn: Transaction, identifier: bytes) -> Optional[Deduplicated]:
    """Return the message that was sent with an id, or None if none is remembered."""
    ids = txn.deduplication_ids()
    before = ids.get(identifier)
    if before is None or before.time_us < message_log.now_us(txn) - txn.header.deduplication_window_us:
        return None
    # Written again, so that this commit syncs: the sync of the first send may have failed, which may be why the message
    # is sent again.
    ids.put(identifier, before)
    return before


def remember(txn: Transaction, identifier: bytes, message_id: int, due_us: int = 0) -> None:
    """Remember an id, and forget some that are over the limits.

    :param message_id: of the message; for a delayed one, its number with the bit :data:`DELAYED`
    :param due_us: for a delayed message, when it is due
    """
    ids, time_us = txn.deduplication_ids(), message_log.now_us(txn)
    ids.put(identifier, Deduplicated(message_id, time_us, due_us))
    for _ in range(FORGOTTEN_MAX):
        is_old = ids.oldest_us() < time_us - txn.header.deduplication_window_us
        if not is_old and txn.deduplication_count() <= txn.header.deduplication_max:
            break
        ids.delete_oldest()
