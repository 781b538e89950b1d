"""Read the next messages of a subscriber without delivering them; on an open transaction, which is not changed.

For a shared subscriber, and for one that limits its deliveries, each receive counts as a delivery. So a program that
only shows the next messages must not receive them.
"""

import itertools
from typing import Iterator, List

from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters, message_log

#: Only the number of messages limits a read.
_BYTES_MAX = 2**63 - 1


def read(txn: Transaction, identifier: bytes, max_messages: int) -> List[bytes]:
    """Read the messages that a subscriber would receive next, up to a maximum number.

    Those that workers of a shared subscriber hold, and those that wait for a retry, are not among them.

    :raise UnknownSubscriberError: there is no such subscriber
    """
    record = cursors.own_record(txn, cursors.subscribe(txn, identifier))
    now_us = message_log.now_us(txn)
    first_id = max(txn.header.first, message_log.first_unexpired_id(txn, now_us))
    payloads = list(itertools.islice(_delivered_before(txn, record, now_us, first_id), max_messages))
    left = max_messages - len(payloads)
    if left:
        payloads += txn.messages(max(record.next_id, first_id), left, _BYTES_MAX)[1]
    return payloads


def _delivered_before(txn: Transaction, record: SubscriberRecord, now_us: int, first_id: int) -> Iterator[bytes]:
    """Iterate over the payloads that come before the messages of the log that were never delivered."""
    if record.policy is None:
        return
    deliveries = txn.in_flight(record)
    if not record.policy.shared:
        for message_id, _ in deliveries.all(REQUEUED):
            yield txn.dead_letters(record.number).get(message_id - REQUEUED).payload
        return
    for due_us, message_id in deliveries.due():
        if due_us > now_us:
            return
        entry = deliveries.get(message_id)
        payload = dead_letters.payload_of(txn, record, message_id) if message_id >= first_id else None
        if entry is not None and payload is not None and entry.deliveries < record.policy.max_deliveries:
            yield payload
