"""The subscribers of a recovered queue: their cursors, messages in flight and dead letters.

If the record that shows an acknowledgement is lost, the message is delivered again. So the messages
before the cursor of a shared subscriber count as in flight, unless all of ``index_db`` could be read. If it is unknown
whether a dead letter was requeued, it stays a dead letter, so that somebody examines it.
"""

from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Union

from persipubsub import errors
from persipubsub.engine import limits
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import Failure
from persipubsub.lmdb_engine.records.delivery_layouts import (NO_TOKEN, RAISED, REQUEUED, DeadLetterPayload, Death,
                                                              Delivery)
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.repair.orphan_pages import ID_MAX
from persipubsub.lmdb_engine.repair.salvage import Salvage
from persipubsub.lmdb_engine.rules import message_log

if TYPE_CHECKING:
    from persipubsub.lmdb_engine.records.transaction import Transaction

#: Limit of one transaction of the new queue.
ENTRIES_PER_STEP = 1000
SUBSCRIBER_NUMBER_MAX = 2**32 - 1
#: A message that may have been in flight: it is due at once, and its deliveries are counted from 0.
_UNCOUNTED = Delivery(0, NO_TOKEN, 0)
#: The failure of a dead letter whose record is lost.
_LOST = Failure("persipubsub.errors.DamagedError", "The queue was damaged, and this dead letter's reason is lost.")

Step = Callable[["Transaction"], None]


class RecoveredSubscriber:  # pylint: disable=too-many-instance-attributes  # what was found, and what of it was saved
    """A subscriber of the new queue."""

    def __init__(self, identifier: bytes, record: SubscriberRecord, number: int, found: Salvage) -> None:
        self.identifier = identifier
        self.dead_letters = 0
        self.requeued = 0
        self.letters_lost = 0
        #: The ids of messages whose number of deliveries is known.
        self.counted: List[int] = []
        self._found = found
        self._number_found = record.number
        self._fates = {
            message_id: _fate(found, record.number, message_id)
            for message_id in found.dead_letter_parts[record.number]
        }
        self._known = record.requeued + record.dead_letters if found.is_whole("subscriber_db") else 0
        policy = record.policy
        if policy is None and self._fates:  # it was set after the record that was found
            policy = Policy(False, limits.MAX_DELIVERIES_MAX, limits.DEAD_LETTERS_MAX_DEFAULT)
        self._entries: Dict[int, Delivery] = {}
        self.record = record._replace(policy=policy, requeued=0, dead_letters=0)
        if policy is not None:
            self._find_entries(policy)
        in_flight = len(self._entries) if policy is not None and policy.shared else 0
        self.record = self.record._replace(number=number, in_flight=in_flight)

    def _find_entries(self, policy: Policy) -> None:
        record, found = self.record, self._found
        entries = {
            message_id: entry
            for message_id, entry in found.entries[record.number].items() if message_id in found.messages
        }
        if policy.shared:
            # A lost record may have had a later cursor.
            self.record = record = record._replace(next_id=max([record.next_id, *(id_ + 1 for id_ in entries)]))
            for message_id in self._perhaps_in_flight():
                entries.setdefault(message_id, _UNCOUNTED)
        first = 0 if found.header is None else found.header.first
        self._entries = {
            message_id: entry
            for message_id, entry in entries.items()
            if message_id >= first and (message_id < record.next_id) == policy.shared
        }
        self.counted = [message_id for message_id, entry in self._entries.items() if entry is not _UNCOUNTED]

    def _perhaps_in_flight(self) -> Iterator[int]:
        """Return the ids of messages that may be in flight."""
        found = self._found
        if found.is_whole("index_db") or (found.is_whole("subscriber_db") and not self.record.in_flight):
            return
        start = min(found.cursors, default=ID_MAX) if found.is_whole("pending_db") else 0
        for message_id in found.messages:
            if start <= message_id < self.record.next_id:
                yield message_id

    @property
    def position(self) -> int:
        """Return the id of the first message that it has not acknowledged."""
        return min([self.record.next_id, *self._entries]) if self.record.in_flight else self.record.next_id

    @property
    def next_id(self) -> int:
        """Return an id above all ids that are known here."""
        return max([self.record.next_id, *(message_id + 1 for message_id in self._fates)])

    def steps(self) -> Iterator[Step]:
        """Return the transactions that write the subscriber. All messages must be written before."""
        ids = sorted(self._entries)
        for start in range(0, len(ids), ENTRIES_PER_STEP):
            yield self._putting_entries(ids[start:start + ENTRIES_PER_STEP])
        # The latest first: if there are too many, the oldest are dropped.
        for message_id in sorted(self._fates, reverse=True):
            yield from self._dead_letter(message_id)
        # The number that the subscriber counted, less those that were dropped since there were too many.
        self.letters_lost = max(self.letters_lost, self._known - self.dead_letters - self.requeued)
        yield self._put_subscriber

    def _putting_entries(self, ids: List[int]) -> Step:

        def put(txn: "Transaction") -> None:
            deliveries, now_us = txn.in_flight(self.record), message_log.now_us(txn)
            for message_id in ids:
                deliveries.put(message_id, self._waiting(self._entries[message_id], now_us))

        return put

    def _waiting(self, entry: Delivery, now_us: int) -> Delivery:
        """Return an entry that no claim holds: its worker has closed the queue. A delay before a retry continues."""
        policy = self.record.policy
        latest_us = 0
        if policy is not None and policy.shared:
            latest_us = now_us + (policy.retry_delay_max_us if entry.token == NO_TOKEN else 0)
        return entry._replace(due_us=min(entry.due_us, latest_us),
                              deliveries=min(entry.deliveries, limits.MAX_DELIVERIES_MAX))

    def _dead_letter(self, message_id: int) -> Iterator[Step]:
        fate, policy = self._fates[message_id], self.record.policy
        assert policy is not None
        if fate is None or (isinstance(fate, Death) and self.dead_letters == policy.dead_letters_max):
            return
        try:
            letter = self._found.dead_letter(self._number_found, message_id)
        except errors.DamagedError as error:
            self._found.problems.append(str(error))
            self.letters_lost += 1
            return
        if isinstance(fate, Death):
            self.dead_letters += 1
        else:
            self.requeued += 1
        yield self._putting_dead_letter(message_id, letter, fate)

    def _putting_dead_letter(self, message_id: int, letter: DeadLetterPayload, fate: Union[Death, Delivery]) -> Step:

        def put(txn: "Transaction") -> None:
            dead_letters = txn.dead_letters(self.record.number)
            dead_letters.put(message_id, letter)
            if isinstance(fate, Death):
                dead_letters.add_dead_letter(message_id,
                                             fate if fate.died_us else fate._replace(died_us=message_log.now_us(txn)))
            else:
                entry = self._waiting(fate, message_log.now_us(txn))
                txn.in_flight(self.record).put(message_id + REQUEUED, entry)

        return put

    def _put_subscriber(self, txn: "Transaction") -> None:
        self.record = self.record._replace(requeued=self.requeued, dead_letters=self.dead_letters)
        txn.put_subscriber(self.identifier, self.record)
        txn.count_cursor(self.position, 1)


def _fate(found: Salvage, number: int, message_id: int) -> Optional[Union[Death, Delivery]]:
    """Return the death of a dead letter, the entry of a requeued one, or None if it was deleted."""
    death, entry = found.deaths[number].get(message_id), found.entries[number].get(message_id + REQUEUED)
    index_is_whole, deaths_are_whole = found.is_whole("index_db"), found.is_whole("dead_letter_db")
    if entry is not None and (death is None or (index_is_whole and not deaths_are_whole)):
        return entry
    if death is not None:
        return death
    return None if index_is_whole and deaths_are_whole else Death(RAISED, 0, 0, _LOST)


def recovered_subscribers(found: Salvage) -> List[RecoveredSubscriber]:
    """Return all subscribers, each with a unique number."""
    records = found.subscribers
    numbers = [record.number for record in records.values()]
    ambiguous = len(set(numbers)) != len(numbers) or max(numbers, default=0) >= SUBSCRIBER_NUMBER_MAX
    return [
        RecoveredSubscriber(identifier, record, number if ambiguous else record.number, found)
        for number, (identifier, record) in enumerate(sorted(records.items()), 1)
    ]


def dead_letters_of_nobody(found: Salvage) -> int:
    """Count the dead letters of lost subscribers. One outside the trees may belong to a subscriber that was removed."""
    numbers = {record.number for record in found.subscribers.values()}
    count = sum(len(letters) for number, letters in found.dead_letter_parts.items() if number not in numbers)
    if not count or not found.is_whole("letter_db"):
        return 0
    found.problems.append(f"{count:,} dead letters belong to subscribers that are lost")
    return count
