"""Messages outside the log: dead letters, and those of them that were requeued; each step on an open transaction.

A message becomes a dead letter (:func:`bury`) when it was handed out to a subscriber as often as its policy allows, and
was never taken. It leaves the log, for that subscriber, and lies in ``letter_db``, where no other subscriber sees it.
From there it goes (:func:`discard`), or it is handed out to its subscriber again, and to nobody else (:func:`requeue`):
then it has an entry in ``index_db`` and counts for no place, since its payload is not in the log.
"""

import dataclasses
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.delivery_records import LEASE_RAN_OUT, NO_TOKEN, RAISED, REQUEUED, Death, Delivery, Failure, Letter
from persipubsub.records import Place, Policy, require_count
from persipubsub.transaction import Transaction

#: One transaction requeues or deletes at most so many dead letters, and ends with the one that reaches so many parts.
CHANGED_MAX = 10_000

REASONS = {RAISED: "raised", LEASE_RAN_OUT: "lease ran out"}


@dataclasses.dataclass(frozen=True)
class DeadLetter:  # pylint: disable=too-many-instance-attributes  # one per fact
    """A message that a subscriber did not take, however often it was handed out."""

    #: The message id that ``send`` gave it.
    id: int
    #: The message.
    payload: bytes
    #: ``"raised"``: the block that received it last raised an exception; ``"lease ran out"``: its last worker died, or
    #: held it for longer than the lease.
    reason: str
    #: How often it was handed out.
    deliveries: int
    #: Class of the last exception of a block that received it, with its module; empty if there was none.
    error_type: str
    #: Text of that exception, at most 1,000 characters of it.
    error_text: str
    #: When it was sent, in seconds since the epoch.
    sent_time_s: float
    #: When it became a dead letter, in seconds since the epoch.
    died_time_s: float


class Buried(NamedTuple):
    """A subscriber after a burial, and how many of its dead letters went since they became too many."""

    place: Place
    dropped: int


def policy_of(place: Place) -> Policy:
    """Give the policy of a subscriber that has one."""
    assert place.policy is not None
    return place.policy


def position(txn: Transaction, place: Place) -> int:
    """Give the place of a subscriber: the id of the first message that it has not taken, or its next."""
    if place.policy is None or not place.policy.shared:
        return place.next_id
    first_id = txn.deliveries(place).first_id()
    return place.next_id if first_id is None else min(first_id, place.next_id)


def payload_of(txn: Transaction, place: Place, message_id: int) -> Optional[bytes]:
    """Read a message that has an entry; None if it has gone from the log."""
    if message_id >= REQUEUED:
        return txn.letters(place.number).get(message_id - REQUEUED).payload
    if not is_there(txn, message_id):
        return None
    return txn.messages(message_id, 1, 0)[1][0]


def is_there(txn: Transaction, message_id: int) -> bool:
    """Tell whether a message that has an entry has not gone from the log."""
    return message_id >= REQUEUED or (message_id >= txn.header.first and txn.has_message(message_id))


def bury(txn: Transaction, place: Place, message_id: int, death: Death, before: Optional[Delivery]) -> Buried:
    """Make a dead letter of a message that is in the log or was requeued. The caller stores the place.

    :param before: its entry
    """
    letters, deliveries = txn.letters(place.number), txn.deliveries(place)
    if before is not None:
        deliveries.delete_many((message_id, ), before)
    if message_id >= REQUEUED:
        place = place._replace(requeued=place.requeued - 1)
    elif policy_of(place).shared:
        place = place._replace(in_flight=place.in_flight - 1)
    letter_id = message_id % REQUEUED
    if message_id < REQUEUED:
        place = _forget_requeued(txn, place, letter_id)
        letters.put(letter_id, Letter(txn.log().at(letter_id).time_us, txn.messages(letter_id, 1, 0)[1][0]))
    if letters.death(letter_id) is None:
        place = place._replace(dead_letters=place.dead_letters + 1)
    letters.bury(letter_id, death)
    return trim(txn, place)


def _forget_requeued(txn: Transaction, place: Place, letter_id: int) -> Place:
    """Have a message be outside the log no more, where it is once more handed out from the log."""
    deliveries = txn.deliveries(place)
    entry = deliveries.get(letter_id + REQUEUED)
    if entry is None:
        return place
    deliveries.delete_many((letter_id + REQUEUED, ), entry)
    txn.letters(place.number).delete(letter_id)
    return place._replace(requeued=place.requeued - 1)


def trim(txn: Transaction, place: Place) -> Buried:
    """Let the oldest dead letters go where there are too many."""
    surplus = max(0, place.dead_letters - policy_of(place).dead_letters_max)
    letters = txn.letters(place.number)
    for message_id in _first(letters.dead_ids(), surplus):
        letters.discard(message_id)
    return Buried(place._replace(dead_letters=place.dead_letters - surplus), surplus)


def _first(ids: Iterable[int], count: int) -> List[int]:
    return [message_id for _, message_id in zip(range(count), ids)]


def all_ids(txn: Transaction, number: int) -> List[int]:
    """List the ids of the dead letters of a subscriber."""
    return list(txn.letters(number).dead_ids())


class Changed(NamedTuple):
    """A subscriber after some of its dead letters were requeued or deleted."""

    place: Place
    letters: int  # how many
    ids: int  # so many of the ids that were given are done with


def requeue(txn: Transaction, place: Place, ids: Sequence[int], now_us: int) -> Changed:
    """Hand dead letters out again, as if for the first time: the first of some ids. The caller stores the place."""
    letters, deliveries = txn.letters(place.number), txn.deliveries(place)
    found = [message_id for message_id in ids[:CHANGED_MAX] if letters.death(message_id) is not None]
    for message_id in found:
        letters.raise_(message_id)
    if found:
        deliveries.put_many([message_id + REQUEUED for message_id in found],
                            Delivery(0, NO_TOKEN, now_us if policy_of(place).shared else 0))
        txn.published = True
    place = place._replace(dead_letters=place.dead_letters - len(found), requeued=place.requeued + len(found))
    return Changed(place, len(found), min(len(ids), CHANGED_MAX))


def discard(txn: Transaction, place: Place, ids: Sequence[int]) -> Changed:
    """Delete dead letters: the first of some ids. The caller stores the place."""
    letters = txn.letters(place.number)
    deleted = parts = done = 0
    for message_id in ids:
        if max(done, parts) >= CHANGED_MAX:
            break
        done += 1
        if letters.death(message_id) is not None:
            parts += letters.discard(message_id)
            deleted += 1
    return Changed(place._replace(dead_letters=place.dead_letters - deleted), deleted, done)


def read(txn: Transaction, number: int, start: int, max_letters: int, max_bytes: int) -> List[DeadLetter]:
    """Read the dead letters of a subscriber from an id on: at most so many bytes of them, but at least one letter."""
    letters, found = txn.letters(number), list[DeadLetter]()
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


def next_requeued(txn: Transaction, place: Place) -> Optional[Tuple[int, bytes]]:
    """Give the id and the payload of the first message that was requeued."""
    if not place.requeued:
        return None
    message_id = txn.deliveries(place).first_id(REQUEUED)
    if message_id is None:
        raise _lacks_requeued(place)
    return message_id, txn.letters(place.number).get(message_id - REQUEUED).payload


def _lacks_requeued(place: Place) -> errors.DamagedError:
    return errors.DamagedError(f"Subscriber number {place.number} lacks the entries of its requeued messages.")


def failed_before(txn: Transaction, place: Place, start: int) -> bool:
    """Tell whether the next message from an id on was handed out before, and not taken."""
    message_id = txn.first_id(start)
    return message_id is not None and txn.deliveries(place).get(message_id) is not None


def fail(txn: Transaction, place: Place, ids: Iterable[int], failure: Failure, now_us: int) -> Buried:
    """Count that a block raised which had received messages. The first of them may become dead letters.

    The caller stores the place, whose next is then behind those.
    """
    deliveries, dropped = txn.deliveries(place), 0
    for message_id in ids:
        if message_id < place.next_id:
            continue  # another one has taken it
        before = deliveries.get(message_id)
        if before is None and message_id >= REQUEUED:
            continue
        count = 1 + (0 if before is None else before.deliveries)
        is_next = message_id >= REQUEUED or txn.first_id(max(place.next_id, txn.header.first)) == message_id
        if count < policy_of(place).max_deliveries or not is_next:
            deliveries.put(message_id, Delivery(count, NO_TOKEN, 0, failure))
        else:
            place, more = bury(txn, place, message_id, Death(RAISED, count, now_us, failure), before)
            dropped += more
            if message_id < REQUEUED:
                place = place._replace(next_id=message_id + 1)
                forget_below(txn, place, message_id + 1)  # those before it that went from the log
    return Buried(place, dropped)


def settle(txn: Transaction, place: Place, ids: Iterable[int]) -> Place:
    """Take messages that were requeued. The caller stores the place."""
    deliveries = txn.deliveries(place)
    for message_id in ids:
        entry = deliveries.get(message_id)
        if entry is not None:
            deliveries.delete_many((message_id, ), entry)
            txn.letters(place.number).delete(message_id - REQUEUED)
            place = place._replace(requeued=place.requeued - 1, taken=place.taken + 1)
    return place


def forget_below(txn: Transaction, place: Place, bound: int) -> None:
    """Forget the failures of messages that lie before an id, in the log."""
    deliveries = txn.deliveries(place)
    for message_id, entry in list(deliveries.all(0, bound)):
        deliveries.delete_many((message_id, ), entry)


# Of every subscriber with a policy


class Awaited(NamedTuple):
    """What a subscriber awaits of the messages before its next, and outside the log."""

    messages: int
    oldest_us: Optional[int]  # when the oldest of them was sent


def awaited(txn: Transaction, place: Place, start: int) -> Awaited:
    """Tell what a subscriber awaits of the messages before its next, and outside the log.

    :param start: the id of the first message in the log, of those that have not expired
    """
    deliveries, log = txn.deliveries(place), txn.log()
    sent_us = []
    if place.requeued:
        first_id = deliveries.first_id(REQUEUED)
        if first_id is None:
            raise _lacks_requeued(place)
        sent_us.append(txn.letters(place.number).get(first_id - REQUEUED).sent_us)
    in_flight = 0
    if place.in_flight:
        ids = (message_id for message_id, _ in deliveries.all(start, place.next_id))
        first_id = next((message_id for message_id in ids if txn.has_message(message_id)), None)
        if first_id is not None:
            sent_us.append(log.at(first_id).time_us)
            if log.messages_before(place.next_id) - log.messages_before(first_id) == place.next_id - first_id:
                in_flight = require_count(place.in_flight - sum(1 for _ in deliveries.all(0, first_id)))
            else:  # an overflow took some in between
                in_flight = 1 + sum(map(txn.has_message, ids))
    return Awaited(in_flight + place.requeued, min(sent_us, default=None))


def forget_from(txn: Transaction, place: Place, start: int) -> Place:
    """Have the workers of a shared subscriber hold nothing of the log from an id on. The caller stores the place."""
    if not place.in_flight:
        return place
    deliveries = txn.deliveries(place)
    held = list(deliveries.all(start, REQUEUED))
    for message_id, entry in held:
        deliveries.delete_many((message_id, ), entry)
    return place._replace(in_flight=place.in_flight - len(held))


def forget(txn: Transaction, place: Place) -> Place:
    """Delete what a subscriber has in the index, and what was requeued to it. The caller stores the place."""
    deliveries, letters = txn.deliveries(place), txn.letters(place.number)
    for message_id, entry in list(deliveries.all()):
        deliveries.delete_many((message_id, ), entry)
        if message_id >= REQUEUED:
            letters.delete(message_id - REQUEUED)
    return place._replace(in_flight=0, requeued=0)


def remove_all(txn: Transaction, place: Place) -> None:
    """Delete all that a subscriber has outside the log, and in the index."""
    letters = txn.letters(place.number)
    forget(txn, place)
    for message_id in all_ids(txn, place.number):
        letters.discard(message_id)
