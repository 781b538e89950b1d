"""Messages outside the log: dead letters and requeued messages; on an open transaction.

A message becomes a dead letter (:func:`add_dead_letter`) when it was delivered to a subscriber as often as the policy
allows, and was never acknowledged. Its payload is copied to ``letter_db``, where no other subscriber sees it, and the
subscriber no longer awaits it in the log. A dead letter is deleted (:func:`discard`), or requeued to its subscriber
only (:func:`requeue`). A requeued message has an entry in ``index_db``, but does not affect the cursor, since its
payload is not in the log.
"""

from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine import headers
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import Failure
from persipubsub.lmdb_engine.records.delivery_layouts import (LEASE_RAN_OUT, NO_TOKEN, RAISED, REJECTED, REQUEUED,
                                                              DeadLetterPayload, Death, Delivery)
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord, require_count
from persipubsub.lmdb_engine.records.transaction import Transaction

#: The maximum number of dead letters that one transaction requeues or deletes. It also ends with the dead letter that
#: reaches this number of parts.
CHANGED_MAX = 10_000

REASONS = {RAISED: "raised", LEASE_RAN_OUT: "lease ran out", REJECTED: "rejected"}


class Added(NamedTuple):
    """A subscriber after dead letters were added, and how many of its oldest were deleted to keep the limit."""

    record: SubscriberRecord
    dropped: int


def policy_of(record: SubscriberRecord) -> Policy:
    """Return the policy of a subscriber that has one."""
    assert record.policy is not None
    return record.policy


def position(txn: Transaction, record: SubscriberRecord) -> int:
    """Return the cursor of a subscriber: the id of the first message that it has not acknowledged, or its next id."""
    if not record.in_flight:  # as of every subscriber that is not shared
        return record.next_id
    first_id = txn.in_flight(record).first_id()
    return record.next_id if first_id is None else min(first_id, record.next_id)


def payload_of(txn: Transaction, record: SubscriberRecord, message_id: int) -> Optional[bytes]:
    """Read a message that has an entry; return None if it was deleted from the log."""
    if message_id >= REQUEUED:
        return txn.dead_letters(record.number).get(message_id - REQUEUED).payload
    if not is_stored(txn, message_id):
        return None
    return txn.messages(message_id, 1, 0)[1][0]


def is_stored(txn: Transaction, message_id: int) -> bool:
    """Return whether a message that has an entry is still stored."""
    return message_id >= REQUEUED or (message_id >= txn.header.first and txn.has_message(message_id))


def add_dead_letter(txn: Transaction, record: SubscriberRecord, message_id: int, death: Death,
                    before: Optional[Delivery]) -> Added:
    """Make a message of the log, or a requeued one, a dead letter. The caller stores the returned record.

    :param before: its entry, if it has one
    """
    dead_letters, deliveries = txn.dead_letters(record.number), txn.in_flight(record)
    if before is not None:
        deliveries.delete_many((message_id, ), before)
    if message_id >= REQUEUED:
        record = record._replace(requeued=record.requeued - 1)
    elif policy_of(record).shared:
        record = record._replace(in_flight=record.in_flight - 1)
    dead_id = message_id % REQUEUED
    if message_id < REQUEUED:
        record = _forget_requeued(txn, record, dead_id)
        payload, encoded = txn.messages(dead_id, 1, 0)[1][0], txn.parts().headers(dead_id)
        dead_letters.put(dead_id, DeadLetterPayload(txn.log().at(dead_id).time_us, payload, encoded))
    if dead_letters.death(dead_id) is None:
        record = record._replace(dead_letters=record.dead_letters + 1)
    dead_letters.add_dead_letter(dead_id, death)
    return trim(txn, record)


def _forget_requeued(txn: Transaction, record: SubscriberRecord, message_id: int) -> SubscriberRecord:
    """Delete the requeued copy of a message that was delivered from the log again."""
    deliveries = txn.in_flight(record)
    entry = deliveries.get(message_id + REQUEUED)
    if entry is None:
        return record
    deliveries.delete_many((message_id + REQUEUED, ), entry)
    txn.dead_letters(record.number).delete(message_id)
    return record._replace(requeued=record.requeued - 1)


def trim(txn: Transaction, record: SubscriberRecord) -> Added:
    """Delete the oldest dead letters if there are too many. The caller stores the returned record."""
    surplus = max(0, record.dead_letters - policy_of(record).dead_letters_max)
    dead_letters = txn.dead_letters(record.number)
    for message_id in _first(dead_letters.dead_ids(), surplus):
        dead_letters.discard(message_id)
    return Added(record._replace(dead_letters=record.dead_letters - surplus), surplus)


def _first(ids: Iterable[int], count: int) -> List[int]:
    return [message_id for _, message_id in zip(range(count), ids)]


def all_ids(txn: Transaction, number: int) -> List[int]:
    """List the ids of the dead letters of a subscriber."""
    return list(txn.dead_letters(number).dead_ids())


class Changed(NamedTuple):
    """A subscriber after some of its dead letters were requeued or deleted."""

    record: SubscriberRecord
    letters: int  # the number of dead letters that were changed
    ids: int  # the number of given ids, from the first on, that were processed


def requeue(txn: Transaction, record: SubscriberRecord, ids: Sequence[int], now_us: int) -> Changed:
    """Requeue dead letters, to be delivered as if for the first time. The caller stores the returned record.

    At most :data:`CHANGED_MAX` of the ids are processed, from the first on.
    """
    dead_letters, deliveries = txn.dead_letters(record.number), txn.in_flight(record)
    found = [message_id for message_id in ids[:CHANGED_MAX] if dead_letters.death(message_id) is not None]
    for message_id in found:
        dead_letters.restore(message_id)
    if found:
        deliveries.put_many([message_id + REQUEUED for message_id in found],
                            Delivery(0, NO_TOKEN, now_us if policy_of(record).shared else 0))
        txn.published = True
    record = record._replace(dead_letters=record.dead_letters - len(found), requeued=record.requeued + len(found))
    return Changed(record, len(found), min(len(ids), CHANGED_MAX))


def discard(txn: Transaction, record: SubscriberRecord, ids: Sequence[int]) -> Changed:
    """Delete dead letters, from the first id on, up to a limit. The caller stores the returned record."""
    dead_letters = txn.dead_letters(record.number)
    deleted = parts = done = 0
    for message_id in ids:
        if max(done, parts) >= CHANGED_MAX:
            break
        done += 1
        if dead_letters.death(message_id) is not None:
            parts += dead_letters.discard(message_id)
            deleted += 1
    return Changed(record._replace(dead_letters=record.dead_letters - deleted), deleted, done)


def read(txn: Transaction, number: int, start: int, max_letters: int, max_bytes: int) -> List[DeadLetter]:
    """Read the dead letters of a subscriber from an id on.

    :param max_letters: the maximum number of dead letters
    :param max_bytes: the maximum size of their payloads; one dead letter is read in any case
    """
    dead_letters, found = txn.dead_letters(number), list[DeadLetter]()
    for message_id in _first(dead_letters.dead_ids(start), max_letters):
        death, message = dead_letters.death(message_id), dead_letters.get(message_id)
        assert death is not None
        max_bytes -= len(message.payload)
        if found and max_bytes < 0:
            break
        found.append(
            DeadLetter(message_id, message.payload, REASONS[death.reason], death.deliveries,
                       death.failure.type, death.failure.text, message.sent_us / 1e6, death.died_us / 1e6,
                       headers.decoded(message.headers), death.failure.traceback))
    return found


# For a plain subscriber: its entries count how often the block of a receive raised.


def next_requeued(txn: Transaction, record: SubscriberRecord) -> Optional[Tuple[int, bytes]]:
    """Return the id and the payload of the first requeued message, or None if there is none."""
    if not record.requeued:
        return None
    message_id = txn.in_flight(record).first_id(REQUEUED)
    if message_id is None:
        raise _lacks_requeued(record)
    return message_id, txn.dead_letters(record.number).get(message_id - REQUEUED).payload


def _lacks_requeued(record: SubscriberRecord) -> errors.DamagedError:
    return errors.DamagedError(f"Subscriber number {record.number} lacks the entries of its requeued messages.")


def failed_before(txn: Transaction, record: SubscriberRecord, start: int) -> bool:
    """Return whether the next message from an id on was delivered before, and not acknowledged."""
    message_id = txn.first_id(start)
    return message_id is not None and txn.in_flight(record).get(message_id) is not None


# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # the fields of a command, and two more
def fail(txn: Transaction,
         record: SubscriberRecord,
         ids: Iterable[int],
         failure: Failure,
         now_us: int,
         rejects: bool = False) -> Added:
    """Count a failed delivery: the block that received the messages raised. The first may become dead letters.

    The caller stores the returned record, whose next id is then after those.

    :param rejects: whether they become dead letters even if they could be delivered again
    """
    deliveries, dropped = txn.in_flight(record), 0
    for message_id in ids:
        if message_id < record.next_id:
            continue  # another endpoint has acknowledged it
        before = deliveries.get(message_id)
        if before is None and message_id >= REQUEUED:
            continue
        count = 1 + (0 if before is None else before.deliveries)
        is_next = message_id >= REQUEUED or txn.first_id(max(record.next_id, txn.header.first)) == message_id
        if not is_next or count < policy_of(record).max_deliveries and not rejects:
            deliveries.put(message_id, Delivery(count, NO_TOKEN, 0, failure))
        else:
            death = Death(REJECTED if rejects else RAISED, count, now_us, failure)
            record, more = add_dead_letter(txn, record, message_id, death, before)
            dropped += more
            if message_id < REQUEUED:
                record = record._replace(next_id=message_id + 1)
                forget_below(txn, record, message_id + 1)  # earlier ones that were deleted from the log
    return Added(record, dropped)


def settle(txn: Transaction, record: SubscriberRecord, ids: Iterable[int]) -> SubscriberRecord:
    """Acknowledge requeued messages. The caller stores the returned record."""
    deliveries = txn.in_flight(record)
    for message_id in ids:
        entry = deliveries.get(message_id)
        if entry is not None:
            deliveries.delete_many((message_id, ), entry)
            txn.dead_letters(record.number).delete(message_id - REQUEUED)
            record = record._replace(requeued=record.requeued - 1, taken=record.taken + 1)
    return record


def forget_below(txn: Transaction, record: SubscriberRecord, bound: int) -> None:
    """Delete the entries of messages of the log before an id, which count their failures."""
    deliveries = txn.in_flight(record)
    for message_id, entry in list(deliveries.all(0, bound)):
        deliveries.delete_many((message_id, ), entry)


# For every subscriber with a policy


class Awaited(NamedTuple):
    """The messages that a subscriber awaits before its next id and outside the log."""

    messages: int
    oldest_us: Optional[int]  # when the oldest of them was sent


def awaited(txn: Transaction, record: SubscriberRecord, start: int) -> Awaited:
    """Count the messages that a subscriber awaits before its next id and outside the log.

    :param start: the id of the first message in the log that has not expired
    """
    deliveries, log = txn.in_flight(record), txn.log()
    sent_us = []
    if record.requeued:
        first_id = deliveries.first_id(REQUEUED)
        if first_id is None:
            raise _lacks_requeued(record)
        sent_us.append(txn.dead_letters(record.number).get(first_id - REQUEUED).sent_us)
    in_flight = 0
    if record.in_flight:
        ids = (message_id for message_id, _ in deliveries.all(start, record.next_id))
        first_id = next((message_id for message_id in ids if txn.has_message(message_id)), None)
        if first_id is not None:
            sent_us.append(log.at(first_id).time_us)
            if log.messages_before(record.next_id) - log.messages_before(first_id) == record.next_id - first_id:
                in_flight = require_count(record.in_flight - sum(1 for _ in deliveries.all(0, first_id)))
            else:  # an overflow dropped some in between
                in_flight = 1 + sum(map(txn.has_message, ids))
    return Awaited(in_flight + record.requeued, min(sent_us, default=None))


def forget_from(txn: Transaction, record: SubscriberRecord, start: int) -> SubscriberRecord:
    """End the leases of a shared subscriber's workers on messages of the log from an id on.

    The caller stores the returned record.
    """
    if not record.in_flight:
        return record
    deliveries = txn.in_flight(record)
    held = list(deliveries.all(start, REQUEUED))
    for message_id, entry in held:
        deliveries.delete_many((message_id, ), entry)
    return record._replace(in_flight=record.in_flight - len(held))


def forget(txn: Transaction, record: SubscriberRecord) -> SubscriberRecord:
    """Delete a subscriber's entries and its requeued messages. The caller stores the returned record."""
    deliveries, dead_letters = txn.in_flight(record), txn.dead_letters(record.number)
    for message_id, entry in list(deliveries.all()):
        deliveries.delete_many((message_id, ), entry)
        if message_id >= REQUEUED:
            dead_letters.delete(message_id - REQUEUED)
    return record._replace(in_flight=0, requeued=0)


def remove_all(txn: Transaction, record: SubscriberRecord) -> None:
    """Delete a subscriber's entries, requeued messages and dead letters."""
    dead_letters = txn.dead_letters(record.number)
    forget(txn, record)
    for message_id in all_ids(txn, record.number):
        dead_letters.discard(message_id)
