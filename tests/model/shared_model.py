"""What a queue does with subscribers that are shared, or limit their deliveries: see :mod:`tests.model.model`."""

import dataclasses
from typing import Dict, Iterable, List, Optional, Set, Tuple

from tests.model.lasting_model import LastingModel
from tests.model.model import Message, SubscriberRecord

#: A message outside the log has its id plus this.
OUTSIDE = 2**63
#: The name of the exception that makes messages dead letters at once.
REJECT = "Reject"


@dataclasses.dataclass
class Entry:
    """What is known of a message that was handed out and not yet acknowledged."""

    deliveries: int
    claim: int = 0
    due_us: int = 0
    failure: str = ""  # the name of the last exception


@dataclasses.dataclass
class Dead:
    """A dead letter."""

    message: Message
    deliveries: int
    died_us: int
    failure: str
    reason: str


@dataclasses.dataclass
class PolicyPlace(SubscriberRecord):  # pylint: disable=too-many-instance-attributes  # one per fact
    """A subscriber that is shared, or limits its deliveries."""

    shared: bool = False
    max_deliveries: int = 5
    dead_letters_max: int = 10_000
    lease_us: int = 0
    retry_delay_us: int = 0
    retry_delay_max_us: int = 0
    entries: Dict[int, Entry] = dataclasses.field(default_factory=dict)
    outside: Dict[int, Message] = dataclasses.field(default_factory=dict)  # requeued
    dead: Dict[int, Dead] = dataclasses.field(default_factory=dict)

    def position(self) -> int:
        """Return the cursor."""
        entries = list(self.entries) if self.shared else []
        return min(self.next_id, *entries) if entries else self.next_id


class SharedModel(LastingModel):
    """A queue with all kinds of subscribers."""

    def __init__(self, appended_max: int) -> None:
        super().__init__(appended_max)
        self.claims = 0
        #: The numbers of the subscribers whose last claim found something: the next one does not look first.
        self.busy: Set[int] = set()

    def policy_place(self, name: str, number: int) -> Optional[PolicyPlace]:
        """Return a subscriber with a policy, if it is still that one."""
        place = self.places.get(name)
        return place if isinstance(place, PolicyPlace) and place.number == number else None

    def floor(self) -> int:
        """Return the low-water mark."""
        places = self.places.values()
        return min((place.position() if isinstance(place, PolicyPlace) else place.next_id for place in places),
                   default=self.next_id)

    def awaited(self, name: str) -> List[Message]:
        """Return all that is in the log for a subscriber, old or not."""
        place = self.places[name]
        early = place.entries if isinstance(place, PolicyPlace) and place.shared else ()
        return [message for message in self.log if message.id >= place.next_id or message.id in early]

    def outside(self, name: str) -> List[Message]:
        """Return what was requeued to a subscriber."""
        place = self.places[name]
        return [place.outside[message_id]
                for message_id in sorted(place.outside)] if isinstance(place, PolicyPlace) else []

    def take_all(self, name: str) -> int:
        """Move a subscriber to the end, and have its workers hold nothing; return what it skips."""
        count, place = len(self.outside(name)), self.places[name]
        if isinstance(place, PolicyPlace):
            count += len(self.young(self.awaited(name)))
            place.entries, place.outside = {}, {}
            super().take_all(name)
            return count
        return super().take_all(name)

    def rewind(self, name: str, first_id: int = 0, time_us: int = 0) -> int:
        """Move a subscriber back, and end its workers' leases from there on; return how many it then awaits."""
        super().rewind(name, first_id, time_us)
        place = self.places[name]
        if isinstance(place, PolicyPlace) and place.shared:
            place.entries = {one: entry for one, entry in place.entries.items() if not place.next_id <= one < OUTSIDE}
        return len(self.young(self.awaited(name)) + self.outside(name))

    # Of a subscriber that is not shared

    def look(self, name: str, top: bool = False) -> List[Message]:
        """Return what a subscriber finds: first requeued messages, one by one; what has failed comes alone."""
        if self.outside(name) and not top:
            return self.outside(name)[:1]
        found, place = super().look(name, top), self.places[name]
        alone = found and isinstance(place, PolicyPlace) and (place.max_deliveries == 1 or found[0].id in place.entries)
        return found[:1] if alone and not top else found

    def take(self, name: str, number: int, last_id: int, ids: Iterable[int] = ()) -> None:
        """Acknowledge messages: of those outside the log exactly the given ones."""
        place = self.policy_place(name, number)
        if place is None or last_id < OUTSIDE:
            super().take(name, number, last_id, ids)
        else:
            self.write()
        if place is not None and last_id >= OUTSIDE:
            place.taken += place.outside.pop(last_id, None) is not None
            place.entries.pop(last_id, None)
        elif place is not None:
            place.entries = {one: entry for one, entry in place.entries.items() if one >= place.next_id}

    def fail(self, name: str, number: int, ids: List[int], failure: str) -> None:
        """Count the failure of a block that had received messages, or make them dead letters if it rejected them."""
        place = self.policy_place(name, number)
        if place is None or not ids:
            return
        self.write()
        for message_id in ids:
            if message_id < place.next_id or message_id >= OUTSIDE and message_id not in place.outside:
                continue
            entry = place.entries.setdefault(message_id, Entry(0))
            entry.deliveries += 1
            entry.failure = failure
            awaited = self.awaited(name)
            is_next = message_id >= OUTSIDE or awaited and awaited[0].id == message_id
            if is_next and (entry.deliveries >= place.max_deliveries or failure == REJECT):
                self.add_dead_letter(place, message_id, "rejected" if failure == REJECT else "raised")
                place.next_id = message_id + 1 if message_id < OUTSIDE else place.next_id
                place.entries = {one: entry for one, entry in place.entries.items() if one >= place.next_id}
        self.let_go(self.log)

    # Of a shared one

    def claim(self, name: str, max_messages: int, max_bytes: int) -> Tuple[int, List[Message]]:
        """Hand messages out; return the number of the claim, and them."""
        place = self.places[name]
        assert isinstance(place, PolicyPlace)
        max_messages = 1 if place.max_deliveries == 1 else max_messages
        self.claims += 1
        while place.number in self.busy or self._has_work(place):
            self.busy.discard(place.number)
            self.write()
            self.let_go(self.young(self.log), "timeout")
            found = self._claim_due(place, max_messages, max_bytes)
            if not found:
                for message in [message for message in self.log if message.id >= place.next_id][:max_messages]:
                    max_bytes -= len(message.payload)
                    if found and max_bytes < 0:
                        break
                    found.append(message)
                    place.entries[message.id] = Entry(0)
                    place.next_id = message.id + 1
            for message in found:
                entry = place.entries[message.id]
                entry.claim, entry.deliveries = self.claims, entry.deliveries + 1
                entry.due_us = self.now_us() + place.lease_us
            self.let_go(self.log)
            if found:
                self.busy.add(place.number)
                return self.claims, found
        return self.claims, []

    def _has_work(self, place: PolicyPlace) -> bool:
        """Return whether there may be something to claim; it may be due where time stands still."""
        is_early = self.boot != self.clock_boot and bool(place.entries)
        return (self.is_due() or is_early or bool(self.due(place))
                or any(message.id >= place.next_id for message in self.log))

    def due(self, place: PolicyPlace) -> List[int]:
        """List what may be claimed once more, in the order of time."""
        due = sorted((entry.due_us, message_id) for message_id, entry in place.entries.items())
        return [message_id for due_us, message_id in due if due_us <= self.now_us()]

    def message(self, place: PolicyPlace, message_id: int) -> Optional[Message]:
        """Find a message with an entry, in the log or outside."""
        return next((message for message in [*self.log, *place.outside.values()] if message.id == message_id), None)

    def _claim_due(self, place: PolicyPlace, max_messages: int, max_bytes: int) -> List[Message]:
        found: List[Message] = []
        for message_id in self.due(place):
            if message_id not in place.entries:
                continue  # requeued; the same message of the log became a dead letter
            entry, message = place.entries[message_id], self.message(place, message_id)
            if message is None or entry.deliveries >= place.max_deliveries:
                if found:
                    break
                self.add_dead_letter(place, message_id,
                                     "raised" if not entry.claim and entry.failure else "lease ran out")
                continue
            max_bytes -= len(message.payload)
            if found and (entry.deliveries or max_bytes < 0):
                break
            found.append(message)
            if entry.deliveries or len(found) == max_messages:
                break
        return found

    def held(self, place: PolicyPlace, claim: int, messages: List[Message]) -> List[int]:
        """List what is still of a claim."""
        return [one.id for one in messages if one.id in place.entries and place.entries[one.id].claim == claim]

    def acknowledge(self, place: PolicyPlace, ids: List[int]) -> None:
        """Acknowledge messages that are held."""
        self.write()
        for message_id in ids:
            del place.entries[message_id]
            place.outside.pop(message_id, None)
            place.taken += 1
        self.let_go(self.log)

    def give_back(self, place: PolicyPlace, ids: List[int], failure: str, delay_us: Optional[int] = None) -> None:
        """Give messages back that are held.

        :param failure: the name of the exception; empty if the delivery does not count
        :param delay_us: before the next delivery; None for that of the subscriber
        """
        self.write()
        for message_id in ids:
            entry = place.entries.get(message_id)
            if entry is None:
                continue  # requeued; the same message of the log became a dead letter
            entry.claim = 0
            if not failure:
                entry.deliveries, entry.due_us = entry.deliveries - 1, self.now_us()
                continue
            entry.failure = failure
            delays_us = min(place.retry_delay_us * 2**(entry.deliveries - 1), place.retry_delay_max_us)
            entry.due_us = self.now_us() + (delays_us if delay_us is None else delay_us)
            if entry.deliveries >= place.max_deliveries or failure == REJECT:
                self.add_dead_letter(place, message_id, "rejected" if failure == REJECT else "raised")
        self.let_go(self.log)

    # Dead letters

    def add_dead_letter(self, place: PolicyPlace, message_id: int, reason: str) -> None:
        """Make a dead letter of a message, if it is still there."""
        message, entry = self.message(place, message_id), place.entries.pop(message_id)
        place.outside.pop(message_id, None)
        if message is not None:
            letter_id = message_id % OUTSIDE
            place.entries.pop(letter_id + OUTSIDE, None)
            place.outside.pop(letter_id + OUTSIDE, None)
            place.dead[letter_id] = Dead(message._replace(id=letter_id), entry.deliveries, self.now_us(), entry.failure,
                                         reason)
        self.trim(place)

    def trim(self, place: PolicyPlace) -> None:
        """Delete the oldest dead letters where there are too many."""
        for letter_id in sorted(place.dead)[:max(0, len(place.dead) - place.dead_letters_max)]:
            del place.dead[letter_id]

    def requeue(self, place: PolicyPlace, ids: List[int]) -> None:
        """Hand dead letters out again."""
        for letter_id in ids:
            message_id = letter_id + OUTSIDE
            place.outside[message_id] = place.dead.pop(letter_id).message._replace(id=message_id)
            place.entries[message_id] = Entry(0, due_us=self.now_us() if place.shared else 0)
