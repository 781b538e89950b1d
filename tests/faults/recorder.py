"""Using a queue and writing down what is done, so that the oracle can judge it."""

import itertools
import pathlib
from typing import Callable, Dict, Iterator, List, Sequence, Set

from persipubsub import Publisher, Subscriber
from tests.faults import oracle
from tests.faults.journal import Event, Journal, message, name_of

#: A change of the control, with its kind and its value: before the call, and, durably, after it.
DOING, DONE = "doing", "done"


class Recorder:
    """What one thread does, with its journal."""

    def __init__(self, journals: pathlib.Path, name: str) -> None:
        self._journal = Journal(journals / name)
        self._name = name
        self._numbers: Iterator[int] = itertools.count()

    def messages(self, *sizes_bytes: int) -> List[bytes]:
        """Make the next messages of this sender."""
        return [message(self._name, next(self._numbers), size_bytes) for size_bytes in sizes_bytes]

    def send(self, publisher: Publisher, msgs: Sequence[bytes]) -> None:
        """Send messages."""
        names = [name_of(msg) for msg in msgs]
        self._journal.note(oracle.SENDING, names)
        first = publisher.send(msgs[0]) if len(msgs) == 1 else publisher.send_many(msgs)[0]
        self._journal.note(oracle.SENT, [str(first), *names], durably=True)

    def take(self, subscriber: Subscriber, max_messages: int, timeout_s: float) -> int:
        """Receive and acknowledge messages; return how many."""
        with subscriber.receive_many(max_messages=max_messages, timeout=timeout_s) as msgs:
            words = [subscriber.identifier, *map(name_of, msgs)]
            self._journal.note(oracle.HANDED, words)
        self._journal.note(oracle.TAKEN, words, durably=True)
        return len(msgs)

    def drain(self, subscriber: Subscriber) -> None:
        """Receive and acknowledge everything that is left, in the end."""
        for msg in subscriber.messages(timeout=0, acknowledge_every=1000):
            self._journal.note(oracle.LEFT, [subscriber.identifier, name_of(msg)])

    def change(self, kind: str, value: object, change: Callable[[], object]) -> None:
        """Change something to a value."""
        self._journal.note(DOING, [kind, str(value)])
        change()
        self._journal.note(DONE, [kind, str(value)], durably=True)

    def note(self, what: str, *words: object) -> None:
        """Write something else down, durably."""
        self._journal.note(what, map(str, words), durably=True)


def allowed_values(events: Sequence[Event]) -> Dict[str, Set[str]]:
    """Return what each kind of change may have left: the last value that was set, and those that may have been."""
    found: Dict[str, Set[str]] = {}
    for event in events:
        if event.what == DOING:
            found.setdefault(event.words[0], {""}).add(event.words[1])
        elif event.what == DONE:
            found[event.words[0]] = {event.words[1]}
    return found
