"""What a queue does with delayed and with retained messages, and with those that are sent repeatedly."""

import bisect
import copy
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union

from persipubsub import errors
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.lmdb_engine.rules.deduplication import FORGOTTEN_MAX
from persipubsub.queue import Strategy
from tests.model.model import Headers, Message, Model

T = TypeVar("T")


class Outgoing(NamedTuple):
    """A message to send."""

    payload: bytes
    headers: Headers = ()
    identifier: Optional[str] = None


class Delayed(NamedTuple):
    """A delayed message."""

    due_us: int
    number: int
    message: Outgoing


class Once(NamedTuple):
    """A message that was sent with a deduplication id. Those of one time are forgotten in their order."""

    time_us: int
    #: That of a delayed message is its number, and more than those of others.
    message_id: int
    due_us: int = 0


class _Refused(errors.PersipubsubError):
    """The first message of some that was refused."""

    def __init__(self, index: int, error: errors.PersipubsubError) -> None:
        super().__init__()
        self.index = index
        self.error = error


#: Added to the number of a delayed message.
LATER = 2**63


class LastingModel(Model):  # pylint: disable=too-many-instance-attributes,too-many-public-methods  # all there is to know
    """A queue that may retain messages and delay them; each of its operations begins with :meth:`write`."""

    def __init__(self, appended_max: int) -> None:
        super().__init__()
        self.retention_us = 0
        self.delayed: List[Delayed] = []
        self.delays = 0
        self.appended_max = appended_max
        self.deduplication_window_us, self.deduplication_max = 120_000_000, 100_000
        self.once: Dict[str, Once] = {}

    def whole(self, operation: Callable[[], T]) -> T:
        """Do something completely or not at all: if it is refused, all is as before."""
        before = self._copied() if self.strategy == Strategy.refuse else {}
        try:
            return operation()
        except errors.PersipubsubError:
            vars(self).update(before)
            raise

    def _copied(self) -> Dict[str, Any]:
        """Return a copy of all that an operation may change."""
        places = {name: copy.copy(place) for name, place in self.places.items()}
        return {**{name: copy.copy(value) for name, value in vars(self).items()}, "places": places}

    def write(self) -> None:
        """Begin to write: retained messages whose time is over are deleted, and what is due is appended."""
        super().write()
        if self.retention_us:
            self.log = self.kept(self.log)
        due = [one.message for one in self.delayed[:self.appended_max] if one.due_us <= self.now_us()]
        del self.delayed[:len(due)]
        if due:
            self.append(due, accepted=True)

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

    def send(self, messages: Sequence[Outgoing]) -> List[int]:
        """Send messages at one time, except those with an id that was used before, or none; return their ids."""
        return self.whole(lambda: self._send(messages))

    def _send(self, messages: Sequence[Outgoing]) -> List[int]:
        self.write()
        known = {one.identifier: self.known(one.identifier) for one in messages}
        first: Dict[Union[str, int], int] = {}  # of those that are sent, by id or index
        for index, one in enumerate(messages):
            if known[one.identifier] is None:
                first.setdefault(one.identifier or index, index)
        fresh = list(first.values())
        new_ids = dict(zip(fresh, self.append([messages[index] for index in fresh]) if fresh else []))
        ids = []
        for index, one in enumerate(messages):
            before = known[one.identifier]
            if before is None:
                ids.append(new_ids[first[one.identifier or index]])
            else:
                ids.append(0 if before.message_id >= LATER else before.message_id)
        for identifier, index in first.items():
            if isinstance(identifier, str):
                self.remember(identifier, Once(self.now_us(), new_ids[index]))
        return ids

    def put_together(self, messages: Sequence[Outgoing]) -> List[Union[int, errors.PersipubsubError]]:
        """Send messages in one transaction; if one is refused, those before it, this one and the others in three."""
        try:
            return list(self.whole(lambda: self._append_each(messages)))
        except _Refused as refused:
            if len(messages) == 1:
                return [refused.error]
            index = refused.index
            parts = messages[:index], messages[index:index + 1], messages[index + 1:]
            return [outcome for part in parts if part for outcome in self.put_together(part)]

    def _append_each(self, messages: Sequence[Outgoing]) -> List[int]:
        self.write()
        ids = []
        for index, message in enumerate(messages):
            try:
                ids += self.append([message])
            except errors.PersipubsubError as error:
                raise _Refused(index, error) from error
        return ids

    def append(self, messages: Sequence[Outgoing], accepted: bool = False) -> List[int]:
        """Append messages one by one at one time; return their ids.

        :param accepted: whether a full queue does not refuse them
        """
        self.let_go(self.young(self.log), "timeout")
        ids = list(range(self.next_id, self.next_id + len(messages)))
        refuses = self.strategy == Strategy.refuse
        if not self.places and not self.retention_us:
            self.pruned["dangling"] += len(ids)
        else:
            if refuses and not accepted:
                self.make_room(len(messages))
            self.newest_us = self.now_us()
            for message_id, message in zip(ids, messages):
                while not refuses and len(self.log) >= self.messages_max():
                    self._overflow(ids[0])
                self.log.append(Message(message_id, self.newest_us, message.payload, message.headers))
        self.next_id += len(ids)
        return ids

    def make_room(self, count: int) -> None:
        """Delete retained messages for new ones, or refuse those."""
        surplus = len(self.log) + count - self.messages_max()
        if surplus > 0 and self.retention_us and count <= self.messages_max():
            retained = len([one for one in self.log if not self.is_awaited(one)])
            self.log = self.log[min(int(surplus), retained):]
        self.require_room(len(self.log), count)

    def known(self, identifier: Optional[str]) -> Optional[Once]:
        """Return the message that was sent with an id, unless it is forgotten."""
        found = None if identifier is None else self.once.get(identifier)
        return found if found is not None and found.time_us >= self.now_us() - self.deduplication_window_us else None

    def remember(self, identifier: str, once: Once) -> None:
        """Remember an id, and forget some that are too old or too many."""
        self.once[identifier] = once
        for _ in range(FORGOTTEN_MAX):
            oldest = min(self.once, key=lambda one: self.once[one], default=None)
            oldest_us = self.now_us() - self.deduplication_window_us
            if oldest is not None and (self.once[oldest].time_us < oldest_us
                                       or len(self.once) > self.deduplication_max):
                del self.once[oldest]

    def _overflow(self, first_new_id: int) -> None:
        """Drop what nobody awaits, and only if there is no such message what the strategy says."""
        count = len(self.log) // 2 + 1
        retained = len([one for one in self.log if one.id < first_new_id and not self.is_awaited(one)])
        if retained:
            self.log = self.log[min(count, retained):]
        else:
            self.pruned["overflow"] += count
            self.log = self.log[count:] if self.strategy == Strategy.prune_first else self.log[:-count]

    def delay(self, message: Outgoing, delay_us: int) -> Tuple[int, int]:
        """Send a message for later, or for before; return its due time and its number."""
        return self.whole(lambda: self._delay(message, delay_us))

    def _delay(self, message: Outgoing, delay_us: int) -> Tuple[int, int]:
        self.write()
        before = self.known(message.identifier)
        if before is not None:
            return before.due_us or before.time_us, max(0, before.message_id - LATER)
        if len(self.delayed) >= self.messages_max():
            raise errors.TooManyDelayedError
        due_us = max(0, self.now_us() + delay_us)
        if due_us <= self.now_us() and self.strategy == Strategy.refuse:
            self.let_go(self.young(self.log), "timeout")
            self.make_room(1)
        self.delays += 1
        number = self.delays
        bisect.insort(self.delayed, Delayed(due_us, number, message))
        if message.identifier is not None:
            self.remember(message.identifier, Once(self.now_us(), number + LATER, due_us))
        self.write()
        return due_us, number

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
