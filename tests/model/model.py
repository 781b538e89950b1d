"""What a queue does, in plain Python and without saying how. The state machine compares the library with it."""

import collections
import dataclasses
import math
from typing import Any, Counter, Dict, Iterable, List, NamedTuple, Tuple

from persipubsub import errors
from persipubsub.queue import NO_LIMITS, Durability, HighWaterMark, Strategy

#: Names and texts, in the order of the names.
Headers = Tuple[Tuple[str, str], ...]


class Message(NamedTuple):
    """A message that is in the queue."""

    id: int
    time_us: int
    payload: bytes
    headers: Headers = ()


@dataclasses.dataclass
class SubscriberRecord:
    """A subscriber: the number distinguishes it from a later one of the same name."""

    number: int
    next_id: int
    taken: int = 0


class Model:  # pylint: disable=too-many-instance-attributes  # all there is to know of a queue and its clocks
    """A queue: a log of messages, and a cursor for each subscriber; and the clocks of the machine."""

    def __init__(self) -> None:
        self.boot, self.boottime_us, self.wall_us = 1, 10**9, 10**15
        self.clock_boot = self.clock_offset_us = self.newest_us = 0
        self.high_watermark, self.strategy, self.durability = NO_LIMITS, Strategy.prune_first, Durability(0)
        self.log: List[Message] = []
        self.places: Dict[str, SubscriberRecord] = {}
        self.next_id = self.next_number = 1
        self.pruned: Counter[str] = collections.Counter()

    def now_us(self) -> int:
        """Return the time: the wall clock counts only until the first write of a boot."""
        return (self.boottime_us +
                self.clock_offset_us if self.boot == self.clock_boot else max(self.wall_us, self.newest_us))

    def write(self) -> None:
        """Begin to write."""
        self.clock_boot, self.clock_offset_us = self.boot, self.now_us() - self.boottime_us

    def floor(self) -> int:
        """Return the low-water mark."""
        return min((place.next_id for place in self.places.values()), default=self.next_id)

    def keep(self, kept: List[Message], reason: str = "") -> int:
        """Keep some of the messages, if a subscriber awaits them; return how many were dropped."""
        self.write()
        before, self.log = len(self.log), [message for message in kept if message.id >= self.floor()]
        self.pruned[reason] += before - len(self.log)
        return before - len(self.log)

    # Limits

    def with_limits(self, mark: HighWaterMark) -> HighWaterMark:
        """Return all limits once some are set: those that are left out stay."""
        limits: Any = {**self.high_watermark.limits(), **mark.limits()}
        return HighWaterMark(**limits)

    def messages_max(self) -> float:
        """Return the number of messages at which the queue is full."""
        limit = self.high_watermark.max_messages
        return math.inf if limit is None else limit

    def young(self, messages: List[Message]) -> List[Message]:
        """Return those that have not expired."""
        timeout_s = self.high_watermark.message_timeout
        if timeout_s is None:
            return list(messages)
        oldest_us = self.now_us() - round(timeout_s * 1e6)
        return [message for message in messages if message.time_us >= oldest_us]

    def require_room(self, stored: int, new: int) -> None:
        """Refuse messages that do not fit below the mark."""
        if new > self.messages_max():
            raise errors.BatchTooLargeError
        if stored + new > self.messages_max():
            raise errors.QueueFullError

    def put(self, payloads: List[bytes]) -> List[int]:
        """Send messages one by one at one time, or none of them; return their ids."""
        young = [message for message in self.young(self.log) if message.id >= self.floor()]
        refuses = self.strategy == Strategy.refuse
        if self.places and refuses:
            self.require_room(len(young), len(payloads))
        self.keep(young, "timeout")
        self.newest_us = self.now_us()
        for message_id, payload in enumerate(payloads, self.next_id):
            while self.places and not refuses and len(self.log) >= self.messages_max():
                count = len(self.log) // 2 + 1
                self.pruned["overflow"] += count
                self.log = self.log[count:] if self.strategy == Strategy.prune_first else self.log[:-count]
            self.log += [Message(message_id, self.newest_us, payload)] if self.places else []
        self.pruned["dangling"] += 0 if self.places else len(payloads)
        self.next_id += len(payloads)
        return list(range(self.next_id - len(payloads), self.next_id))

    # Subscribers

    def add(self, name: str) -> None:
        """Add a subscriber at the end."""
        if name not in self.places:
            self.places[name] = SubscriberRecord(self.next_number, self.next_id)
            self.next_number += 1

    def awaited(self, name: str) -> List[Message]:
        """Return all that is there for a subscriber, old or not."""
        return [message for message in self.log if message.id >= self.places[name].next_id]

    def has_between(self, name: str, bound: int) -> bool:
        """Return whether there is something between the cursor of a subscriber and an id."""
        return any(self.places[name].next_id <= message.id < bound for message in self.log)

    def look(self, name: str, top: bool = False) -> List[Message]:
        """Return what a subscriber finds. If the next message (or the latest) is too old, all old ones expire."""
        if self.awaited(name) and not self.young(self.awaited(name)[-1 if top else 0:][:1]):
            self.keep(self.young(self.log), "timeout")
        return self.awaited(name)[-1 if top else 0:]

    def take(self, name: str, number: int, last_id: int, ids: Iterable[int] = ()) -> None:
        """Move a subscriber past an id, if it is still that one; of some ids it has acknowledged those it passes."""
        if name in self.places and self.places[name].number == number:
            place = self.places[name]
            place.taken += sum(place.next_id <= message_id <= last_id for message_id in ids)
            place.next_id = max(place.next_id, last_id + 1)
        self.keep(self.log)
