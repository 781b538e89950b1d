"""Messages outside the log: dead letters, and those of them that were requeued; each step on an open transaction.

A message becomes a dead letter (:func:`bury`) when it was handed out to a subscriber as often as its policy allows, and
was never taken. It leaves the log, for that subscriber, and lies in ``letter_db``, where no other subscriber sees it.
From there it goes (:func:`discard`), or it is handed out to its subscriber again, and to nobody else (:func:`requeue`):
then it has an entry in ``index_db`` and counts for no place, since its payload is not in the log.
"""

from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import Failure
from persipubsub.lmdb_engine.records.delivery_layouts import (LEASE_RAN_OUT, NO_TOKEN, RAISED, REQUEUED,
                                                              DeadLetterPayload, Death, Delivery)
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord, require_count
from persipubsub.lmdb_engine.records.transaction import Transaction

#: One transaction requeues or deletes at most so many dead letters, and ends with the one that reaches so many parts.
CHANGED_MAX = 10_000

REASONS = {RAISED: "raised", LEASE_RAN_OUT: "lease ran out"}


class Added(NamedTuple):
    """A subscriber after a burial, and how many of its dead letters went since they became too many."""

    record: SubscriberRecord
    dropped: int


def policy_of(record: SubscriberRecord) -> Policy:
    """Give the policy of a subscriber that has one."""
    assert record.policy is not None
    return record.policy


def position(txn: Transaction, record: SubscriberRecord) -> int:
    """Give the place of a subscriber: the id of the first message that it has not taken, or its next."""
    if record.policy is None or not record.policy.shared:
        return record.next_id
    first_id = txn.in_flight(record).first_id()
    return record.next_id if first_id is None else min(first_id, record.next_id)


def payload_of(txn: Transaction, record: SubscriberRecord, message_id: int) -> Optional[bytes]:
    """Read a message that has an entry; None if it has gone from the log."""
    if message_id >= REQUEUED:
        return txn.dead_letters(record.number).get(message_id - REQUEUED).payload
    if not is_there(txn, message_id):
        return None
    return txn.messages(message_id, 1, 0)[1][0]


def is_there(txn: Transaction, message_id: int) -> bool:
    """Tell whether a message that has an entry has not gone from the log."""
    return message_id >= REQUEUED or (message_id >= txn.header.first and txn.has_message(message_id))


def add_dead_letter(txn: Transaction, record: SubscriberRecord, message_id: int, death: Death,
                    before: Optional[Delivery]) -> Added:
    """Make a dead letter of a message that is in the log or was requeued. The caller stores the place.

    :param before: its entry
    """
    letters, deliveries = txn.dead_letters(record.number), txn.in_flight(record)
    if before is not None:
        deliveries.delete_many((message_id, ), before)
    if message_id >= REQUEUED:
        record = record._replace(requeued=record.requeued - 1)
    elif policy_of(record).shared:
        record = record._replace(in_flight=record.in_flight - 1)
    letter_id = message_id % REQUEUED
    if message_id < REQUEUED:
        record = _forget_requeued(txn, record, letter_id)
        letters.put(letter_id, DeadLetterPayload(txn.log().at(letter_id).time_us, txn.messages(letter_id, 1, 0)[1][0]))
    if letters.death(letter_id) is None:
        record = record._replace(dead_letters=record.dead_letters + 1)
    letters.add_dead_letter(letter_id, death)
    return trim(txn, record)


def _forget_requeued(txn: Transaction, record: SubscriberRecord, letter_id: int) -> SubscriberRecord:
    """Have a message be outside the log no more, where it is once more handed out from the log."""
    deliveries = txn.in_flight(record)
    entry = deliveries.get(letter_id + REQUEUED)
    if entry is None:
        return record
    deliveries.delete_many((letter_id + REQUEUED, ), entry)
    txn.dead_letters(record.number).delete(letter_id)
    return record._replace(requeued=record.requeued - 1)


def trim(txn: Transaction, record: SubscriberRecord) -> Added:
    """Let the oldest dead letters go where there are too many."""
    surplus = max(0, record.dead_letters - policy_of(record).dead_letters_max)
    letters = txn.dead_letters(record.number)
    for message_id in _first(letters.dead_ids(), surplus):
        letters.discard(message_id)
    return Added(record._replace(dead_letters=record.dead_letters - surplus), surplus)


def _first(ids: Iterable[int], count: int) -> List[int]:
    return [message_id for _, message_id in zip(range(count), ids)]


def all_ids(txn: Transaction, number: int) -> List[int]:
    """List the ids of the dead letters of a subscriber."""
    return list(txn.dead_letters(number).dead_ids())


class Changed(NamedTuple):
    """A subscriber after some of its dead letters were requeued or deleted."""

    record: SubscriberRecord
    letters: int  # how many
    ids: int  # so many of the ids that were given are done with


def requeue(txn: Transaction, record: SubscriberRecord, ids: Sequence[int], now_us: int) -> Changed:
    """Hand dead letters out again, as if for the first time: the first of some ids. The caller stores the place."""
    letters, deliveries = txn.dead_letters(record.number), txn.in_flight(record)
    found = [message_id for message_id in ids[:CHANGED_MAX] if letters.death(message_id) is not None]
    for message_id in found:
        letters.restore(message_id)
    if found:
        deliveries.put_many([message_id + REQUEUED for message_id in found],
                            Delivery(0, NO_TOKEN, now_us if policy_of(record).shared else 0))
        txn.published = True
    record = record._replace(dead_letters=record.dead_letters - len(found), requeued=record.requeued + len(found))
    return Changed(record, len(found), min(len(ids), CHANGED_MAX))


def discard(txn: Transaction, record: SubscriberRecord, ids: Sequence[int]) -> Changed:
    """Delete dead letters: the first of some ids. The caller stores the place."""
    letters = txn.dead_letters(record.number)
    deleted = parts = done = 0
    for message_id in ids:
        if max(done, parts) >= CHANGED_MAX:
            break
        done += 1
        if letters.death(message_id) is not None:
            parts += letters.discard(message_id)
            deleted += 1
    return Changed(record._replace(dead_letters=record.dead_letters - deleted), deleted, done)


def read(txn: Transaction, number: int, start: int, max_letters: int, max_bytes: int) -> List[DeadLetter]:
    """Read the dead letters of a subscriber from an id on: at most so many bytes of them, but at least one letter."""
    letters, found = txn.dead_letters(number), list[DeadLetter]()
    for message_id in _first(letters.dead_ids(start), max_letters):
        death, letter = letters.death(message_id), letters.get(message_id)
        assert death is not None
        max_bytes -= len(letter.payload)
        if found and max_bytes < 0:
            break
        found.append(
            DeadLetter(message_id, letter.payload, REASONS[death.reason], death.deliveries, death.failure.type,
                       death.failure.text, letter.sent_us / 1e6, death.died_us / 1e6))
    return found


# Of a subscriber that is not shared: its entries count how often the block of a receive raised.


def next_requeued(txn: Transaction, record: SubscriberRecord) -> Optional[Tuple[int, bytes]]:
    """Give the id and the payload of the first message that was requeued."""
    if not record.requeued:
        return None
    message_id = txn.in_flight(record).first_id(REQUEUED)
    if message_id is None:
        raise _lacks_requeued(record)
    return message_id, txn.dead_letters(record.number).get(message_id - REQUEUED).payload


def _lacks_requeued(record: SubscriberRecord) -> errors.DamagedError:
    return errors.DamagedError(f"Subscriber number {record.number} lacks the entries of its requeued messages.")


def failed_before(txn: Transaction, record: SubscriberRecord, start: int) -> bool:
    """Tell whether the next message from an id on was handed out before, and not taken."""
    first_id = txn.in_flight(record).first_id(start)
    return first_id is not None and first_id == txn.first_id(start)


def fail(txn: Transaction, record: SubscriberRecord, ids: Iterable[int], failure: Failure, now_us: int) -> Added:
    """Count that a block raised which had received messages. The first of them may become dead letters.

    The caller stores the place, whose next is then behind those.
    """
    deliveries, dropped = txn.in_flight(record), 0
    for message_id in ids:
        if message_id < record.next_id:
            continue  # another one has taken it
        before = deliveries.get(message_id)
        if before is None and message_id >= REQUEUED:
            continue
        count = 1 + (0 if before is None else before.deliveries)
        is_next = message_id >= REQUEUED or txn.first_id(max(record.next_id, txn.header.first)) == message_id
        if count < policy_of(record).max_deliveries or not is_next:
            deliveries.put(message_id, Delivery(count, NO_TOKEN, 0, failure))
        else:
            record, more = add_dead_letter(txn, record, message_id, Death(RAISED, count, now_us, failure), before)
            dropped += more
            if message_id < REQUEUED:
                record = record._replace(next_id=message_id + 1)
                forget_below(txn, record, message_id + 1)  # those before it that went from the log
    return Added(record, dropped)


def settle(txn: Transaction, record: SubscriberRecord, ids: Iterable[int]) -> SubscriberRecord:
    """Take messages that were requeued. The caller stores the place."""
    deliveries = txn.in_flight(record)
    for message_id in ids:
        entry = deliveries.get(message_id)
        if entry is not None:
            deliveries.delete_many((message_id, ), entry)
            txn.dead_letters(record.number).delete(message_id - REQUEUED)
            record = record._replace(requeued=record.requeued - 1, taken=record.taken + 1)
    return record


def forget_below(txn: Transaction, record: SubscriberRecord, bound: int) -> None:
    """Forget the failures of messages that lie before an id, in the log."""
    deliveries = txn.in_flight(record)
    for message_id, entry in list(deliveries.all(0, bound)):
        deliveries.delete_many((message_id, ), entry)


# Of every subscriber with a policy


class Awaited(NamedTuple):
    """What a subscriber awaits of the messages before its next, and outside the log."""

    messages: int
    oldest_us: Optional[int]  # when the oldest of them was sent


def awaited(txn: Transaction, record: SubscriberRecord, start: int) -> Awaited:
    """Tell what a subscriber awaits of the messages before its next, and outside the log.

    :param start: the id of the first message in the log, of those that have not expired
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
            else:  # an overflow took some in between
                in_flight = 1 + sum(map(txn.has_message, ids))
    return Awaited(in_flight + record.requeued, min(sent_us, default=None))


def forget_from(txn: Transaction, record: SubscriberRecord, start: int) -> SubscriberRecord:
    """Have the workers of a shared subscriber hold nothing of the log from an id on. The caller stores the place."""
    if not record.in_flight:
        return record
    deliveries = txn.in_flight(record)
    held = list(deliveries.all(start, REQUEUED))
    for message_id, entry in held:
        deliveries.delete_many((message_id, ), entry)
    return record._replace(in_flight=record.in_flight - len(held))


def forget(txn: Transaction, record: SubscriberRecord) -> SubscriberRecord:
    """Delete what a subscriber has in the index, and what was requeued to it. The caller stores the place."""
    deliveries, letters = txn.in_flight(record), txn.dead_letters(record.number)
    for message_id, entry in list(deliveries.all()):
        deliveries.delete_many((message_id, ), entry)
        if message_id >= REQUEUED:
            letters.delete(message_id - REQUEUED)
    return record._replace(in_flight=0, requeued=0)


def remove_all(txn: Transaction, record: SubscriberRecord) -> None:
    """Delete all that a subscriber has outside the log, and in the index."""
    letters = txn.dead_letters(record.number)
    forget(txn, record)
    for message_id in all_ids(txn, record.number):
        letters.discard(message_id)
