"""What a queue does with delayed and with retained messages."""

import bisect
from typing import Dict, Iterable, List, NamedTuple, Tuple

from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.lmdb_engine.rules.deduplication import FORGOTTEN_MAX
from persipubsub.queue import Strategy
from tests.model.model import Message, Model


class Delayed(NamedTuple):
    """A delayed message."""

    due_us: int
    number: int
    payload: bytes


class LastingModel(Model):  # pylint: disable=too-many-instance-attributes  # all there is to know
    """A queue that may retain messages and delay them; each of its operations begins with :meth:`write`."""

    def __init__(self, appended_max: int) -> None:
        super().__init__()
        self.retention_us = 0
        self.delayed: List[Delayed] = []
        self.delays = 0
        self.appended_max = appended_max
        self.deduplication_window_us, self.deduplication_max = 120_000_000, 100_000
        self.once: Dict[str, Tuple[int, int]] = {}

    def write(self) -> None:
        """Begin to write: retained messages whose time is over are deleted, and what is due is appended."""
        super().write()
        if self.retention_us:
            self.log = self.kept(self.log)
        due = [one.payload for one in self.delayed[:self.appended_max] if one.due_us <= self.now_us()]
        del self.delayed[:len(due)]
        if due:
            self.append(due)

    # Going

    def is_awaited(self, message: Message) -> bool:
        """Return whether some subscriber has not acknowledged it."""
        return bool(self.places) and message.id >= self.floor()

    def kept(self, messages: List[Message]) -> List[Message]:
        """Leave out those that nobody awaits, unless they are retained."""
        oldest_us = self.now_us() - self.retention_us
        retains = self.retention_us > 0
        return [one for one in messages if self.is_awaited(one) or retains and one.time_us >= oldest_us]

    def there(self) -> List[Message]:
        """Return the messages that are there for anybody who looks."""
        return self.kept(self.young(self.log))

    def keep(self, kept: List[Message], reason: str = "") -> int:
        """Keep some of the messages that are there, if somebody awaits them; return how many were dropped."""
        going = {message.id for message in self.log} - {message.id for message in kept}
        self.write()
        return self.let_go([message for message in self.log if message.id not in going], reason)

    def let_go(self, kept: List[Message], reason: str = "") -> int:
        """Drop all but some, and those of them that nobody awaits; return how many were dropped."""
        staying = {message.id for message in self.kept(kept)}
        went = [message for message in self.log if message.id not in staying]
        self.log = [message for message in self.log if message.id in staying]
        # Retained ones do not count: everyone acknowledged them.
        self.pruned[reason] += len([message for message in went if self.is_awaited(message) or not self.retention_us])
        return len(went)

    def clear(self, reason: str = "") -> int:
        """Delete all messages, also delayed ones; return how many of them had not expired."""
        self.write()
        self.let_go(self.young(self.log), "timeout")
        delayed = len(self.delayed)
        self.delayed.clear()
        return delayed + self.let_go([], reason)

    # Sending

    def put(self, payloads: List[bytes]) -> List[int]:
        """Send messages one by one at one time; return their ids."""
        self.write()
        return self.append(payloads)

    def append(self, payloads: List[bytes]) -> List[int]:
        """Append messages one by one at one time; return their ids."""
        self.let_go(self.young(self.log), "timeout")
        ids = list(range(self.next_id, self.next_id + len(payloads)))
        if not self.places and not self.retention_us:
            self.pruned["dangling"] += len(ids)
        else:
            self.newest_us = self.now_us()
            for message_id, payload in zip(ids, payloads):
                while len(self.log) >= self.high_watermark.max_messages:
                    self._overflow(ids[0])
                self.log.append(Message(message_id, self.newest_us, payload))
        self.next_id += len(ids)
        return ids

    def put_once(self, payload: bytes, identifier: str) -> int:
        """Send a message unless one was sent with the id; return the id of that one, or of this one."""
        self.write()
        oldest_us = self.now_us() - self.deduplication_window_us
        known = self.once.get(identifier)
        if known is not None and known[0] >= oldest_us:
            return known[1]
        time_us, ids = self.now_us(), self.append([payload])
        self.once[identifier] = time_us, ids[0]
        for _ in range(FORGOTTEN_MAX):
            oldest = min(self.once, key=lambda one: self.once[one], default=None)
            if oldest is not None and (self.once[oldest][0] < oldest_us or len(self.once) > self.deduplication_max):
                del self.once[oldest]
        return ids[0]

    def _overflow(self, first_new_id: int) -> None:
        """Drop what nobody awaits, and only if there is no such message what the strategy says."""
        count = len(self.log) // 2 + 1
        retained = len([one for one in self.log if one.id < first_new_id and not self.is_awaited(one)])
        if retained:
            self.log = self.log[min(count, retained):]
        else:
            self.pruned["overflow"] += count
            self.log = self.log[count:] if self.strategy == Strategy.prune_first else self.log[:-count]

    def delay(self, payload: bytes, delay_us: int) -> Delayed:
        """Send a message for later, or for before."""
        self.delays += 1
        message = Delayed(max(0, self.now_us() + delay_us), self.delays, payload)
        bisect.insort(self.delayed, message)
        return message

    def cancel(self, due_us: int, number: int) -> bool:
        """Cancel a message; return whether it was still delayed."""
        self.write()
        before = len(self.delayed)
        self.delayed = [one for one in self.delayed if (one.due_us, one.number) != (due_us, number)]
        return len(self.delayed) < before

    # Receiving

    def is_due(self) -> bool:
        """Return whether a message is due and not yet appended, or may be, since time stands still."""
        return bool(self.delayed) and (self.boot != self.clock_boot or self.delayed[0].due_us <= self.now_us())

    def look(self, name: str, top: bool = False) -> List[Message]:
        """Return what a subscriber finds, once old messages are deleted and some due ones appended."""
        appended = False
        while True:
            found = self.awaited(name)[-1 if top else 0:]
            if found and not self.young(found[:1]):
                self.keep(self.young(self.log), "timeout")
            elif self.is_due() and not (appended and found):
                self.write()
                appended = True
            else:
                return found

    def take(self, name: str, number: int, last_id: int, ids: Iterable[int] = ()) -> None:
        """Move a subscriber past an id, if it is still that one; of some ids it has acknowledged those it passes."""
        self.write()
        if name in self.places and self.places[name].number == number:
            place = self.places[name]
            place.taken += sum(place.next_id <= message_id <= last_id for message_id in ids)
            place.next_id = max(place.next_id, last_id + 1)
        self.let_go(self.log)

    def take_all(self, name: str) -> int:
        """Move a subscriber to the end of the queue; return how many messages it skips."""
        count = len(self.young(self.awaited(name)))
        self.places[name].next_id = self.next_id
        self.let_go(self.log)
        return count

    def rewind(self, name: str, first_id: int = 0, time_us: int = 0) -> int:
        """Move a subscriber back to what is there from an id and a time on; return how many it then awaits."""
        place = self.places[name]
        start = [one.id for one in self.there() if one.id >= first_id and one.time_us >= time_us - RUN_US_MAX]
        place.next_id = min([place.next_id, *start])
        return len(self.young(self.awaited(name)))
