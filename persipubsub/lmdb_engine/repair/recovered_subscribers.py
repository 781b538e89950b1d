"""What the subscribers of a recovered queue have: their places, what was in flight, and their letters.

Where a record is lost that would tell that a message was taken, the message comes again. So what is behind the place of
a shared subscriber counts as in flight, unless all of ``index_db`` could be read. A letter of which nobody knows
whether it is dead is dead: so somebody looks at it.
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

#: One transaction of the fresh queue.
ENTRIES_PER_STEP = 1000
SUBSCRIBER_NUMBER_MAX = 2**32 - 1
#: A message that may have been in flight: its deliveries are counted anew, and it comes at once.
_ANEW = Delivery(0, NO_TOKEN, 0)
#: Of a dead letter about which nothing else is known.
_LOST = Failure("persipubsub.errors.DamagedError", "The queue was damaged, and it is lost why the message died.")

Step = Callable[["Transaction"], None]


class RecoveredSubscriber:  # pylint: disable=too-many-instance-attributes  # what is found, and what of it is saved
    """A subscriber of the fresh queue."""

    def __init__(self, identifier: bytes, record: SubscriberRecord, number: int, found: Salvage) -> None:
        self.identifier = identifier
        self.dead_letters = 0
        self.requeued = 0
        self.letters_lost = 0
        #: The ids of messages of which it is known how often they were handed out.
        self.counted: List[int] = []
        self._found = found
        self._number_found = record.number
        self._letters = {
            message_id: _fate(found, record.number, message_id)
            for message_id in found.letters[record.number]
        }
        self._known = record.requeued + record.dead_letters if found.is_whole("subscriber_db") else 0
        policy = record.policy
        if policy is None and self._letters:  # set after what is left of the subscriber was written
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
            # A lost record may have told of a later place.
            self.record = record = record._replace(next_id=max([record.next_id, *(id_ + 1 for id_ in entries)]))
            for message_id in self._perhaps_in_flight():
                entries.setdefault(message_id, _ANEW)
        first = 0 if found.header is None else found.header.first
        self._entries = {
            message_id: entry
            for message_id, entry in entries.items()
            if message_id >= first and (message_id < record.next_id) == policy.shared
        }
        self.counted = [message_id for message_id, entry in self._entries.items() if entry is not _ANEW]

    def _perhaps_in_flight(self) -> Iterator[int]:
        """Give the ids of messages that somebody may have been handed out and not taken."""
        found = self._found
        if found.is_whole("index_db") or (found.is_whole("subscriber_db") and not self.record.in_flight):
            return
        start = min(found.positions, default=ID_MAX) if found.is_whole("pending_db") else 0
        for message_id in found.messages:
            if start <= message_id < self.record.next_id:
                yield message_id

    @property
    def position(self) -> int:
        """The id of the first message that it has not taken."""
        return min([self.record.next_id, *self._entries]) if self.record.in_flight else self.record.next_id

    @property
    def next_id(self) -> int:
        """An id behind all that are known here."""
        return max([self.record.next_id, *(message_id + 1 for message_id in self._letters)])

    def steps(self) -> Iterator[Step]:
        """Give the transactions that write it, behind all messages."""
        ids = sorted(self._entries)
        for start in range(0, len(ids), ENTRIES_PER_STEP):
            yield self._putting_entries(ids[start:start + ENTRIES_PER_STEP])
        # The latest first: where there are too many, the oldest go.
        for message_id in sorted(self._letters, reverse=True):
            yield from self._letter(message_id)
        # What the subscriber counted, but for those that went since they were too many.
        self.letters_lost = max(self.letters_lost, self._known - self.dead_letters - self.requeued)
        yield self._put_place

    def _putting_entries(self, ids: List[int]) -> Step:

        def put(txn: "Transaction") -> None:
            deliveries, now_us = txn.in_flight(self.record), message_log.now_us(txn)
            for message_id in ids:
                deliveries.put(message_id, self._waiting(self._entries[message_id], now_us))

        return put

    def _waiting(self, entry: Delivery, now_us: int) -> Delivery:
        """Give an entry that nobody holds: whoever did has closed the queue. A delay before a retry goes on."""
        policy = self.record.policy
        latest_us = 0
        if policy is not None and policy.shared:
            latest_us = now_us + (policy.retry_delay_max_us if entry.token == NO_TOKEN else 0)
        return entry._replace(due_us=min(entry.due_us, latest_us),
                              deliveries=min(entry.deliveries, limits.MAX_DELIVERIES_MAX))

    def _letter(self, message_id: int) -> Iterator[Step]:
        fate, policy = self._letters[message_id], self.record.policy
        assert policy is not None
        if fate is None or (isinstance(fate, Death) and self.dead_letters == policy.dead_letters_max):
            return
        try:
            letter = self._found.letter(self._number_found, message_id)
        except errors.DamagedError as error:
            self._found.problems.append(str(error))
            self.letters_lost += 1
            return
        if isinstance(fate, Death):
            self.dead_letters += 1
        else:
            self.requeued += 1
        yield self._putting_letter(message_id, letter, fate)

    def _putting_letter(self, message_id: int, letter: DeadLetterPayload, fate: Union[Death, Delivery]) -> Step:

        def put(txn: "Transaction") -> None:
            letters = txn.dead_letters(self.record.number)
            letters.put(message_id, letter)
            if isinstance(fate, Death):
                letters.add_dead_letter(message_id,
                                        fate if fate.died_us else fate._replace(died_us=message_log.now_us(txn)))
            else:
                entry = self._waiting(fate, message_log.now_us(txn))
                txn.in_flight(self.record).put(message_id + REQUEUED, entry)

        return put

    def _put_place(self, txn: "Transaction") -> None:
        self.record = self.record._replace(requeued=self.requeued, dead_letters=self.dead_letters)
        txn.put_subscriber(self.identifier, self.record)
        txn.count_cursor(self.position, 1)


def _fate(found: Salvage, number: int, message_id: int) -> Optional[Union[Death, Delivery]]:
    """Tell what became of a letter: it died, or it was requeued and has an entry; None where it has gone."""
    death, entry = found.deaths[number].get(message_id), found.entries[number].get(message_id + REQUEUED)
    index_is_whole, deaths_are_whole = found.is_whole("index_db"), found.is_whole("dead_letter_db")
    if entry is not None and (death is None or (index_is_whole and not deaths_are_whole)):
        return entry
    if death is not None:
        return death
    return None if index_is_whole and deaths_are_whole else Death(RAISED, 0, 0, _LOST)


def recovered_subscribers(found: Salvage) -> List[RecoveredSubscriber]:
    """Give all subscribers, each with a number of its own."""
    places = found.places
    numbers = [record.number for record in places.values()]
    ambiguous = len(set(numbers)) != len(numbers) or max(numbers, default=0) >= SUBSCRIBER_NUMBER_MAX
    return [
        RecoveredSubscriber(identifier, record, number if ambiguous else record.number, found)
        for number, (identifier, record) in enumerate(sorted(places.items()), 1)
    ]


def dead_letters_of_nobody(found: Salvage) -> int:
    """Count the letters of subscribers that are lost. A letter outside the trees may be of one that was removed."""
    numbers = {record.number for record in found.places.values()}
    count = sum(len(letters) for number, letters in found.letters.items() if number not in numbers)
    if not count or not found.is_whole("letter_db"):
        return 0
    found.problems.append(f"{count:,} letters are of subscribers that are lost")
    return count
