"""What is known of messages beside their payloads: time of sending, number of deliveries, headers."""

from typing import List, Sequence

from persipubsub.engine.values import Details
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction


def read(txn: Transaction, record: SubscriberRecord, ids: Sequence[int]) -> List[Details]:
    """Return the details of messages that a subscriber has found or claimed."""
    parts, found = txn.parts(), []
    for message_id, deliveries in zip(ids, _deliveries(txn, record, ids)):
        if message_id >= REQUEUED:
            message = txn.dead_letters(record.number).get(message_id - REQUEUED)
            found.append(Details(message_id - REQUEUED, message.sent_us, deliveries, message.headers))
        else:
            found.append(Details(message_id, txn.run_of(message_id).time_us, deliveries, parts.headers(message_id)))
    return found


def _deliveries(txn: Transaction, record: SubscriberRecord, ids: Sequence[int]) -> List[int]:
    """Return how many times each message has been delivered, with the delivery that is about to begin; 0: unknown."""
    if record.policy is None:
        return [0] * len(ids)
    # An entry of a shared subscriber counts the deliveries that have begun, that of another one those that have failed.
    more = 0 if record.policy.shared else 1
    return [more if entry is None else entry.deliveries + more for entry in txn.in_flight(record).get_many(ids)]
