"""Using a queue and writing down what is done, so that the oracle can judge it."""

import itertools
import pathlib
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Sequence, Set

from persipubsub import Delivery, Publisher, Reject, Retry, Subscriber, errors
from persipubsub.dead_letters import DeadLetter
from tests.faults import oracle
from tests.faults.journal import Event, Journal, envelope, message, name_of, name_with_headers

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

    def send(self, publisher: Publisher, msgs: Sequence[bytes], timeout_s: float = 0) -> None:
        """Send messages with their headers; wait for room if the queue is full."""
        names = [name_of(msg) for msg in msgs]
        self._journal.note(oracle.SENDING, names)
        try:
            envelopes = [envelope(msg) for msg in msgs]
            first = (publisher.send(envelopes[0], timeout=timeout_s)
                     if len(msgs) == 1 else publisher.send_many(envelopes, timeout=timeout_s)[0])
        except errors.QueueFullError:
            self._journal.note(oracle.REFUSED, names, durably=True)
            return
        self._journal.note(oracle.SENT, [str(first), *names], durably=True)

    def take(self, subscriber: Subscriber, max_messages: int, timeout_s: float) -> int:
        """Receive and acknowledge messages; return how many."""
        with subscriber.receive_deliveries(max_messages=max_messages, timeout=timeout_s) as deliveries:
            words = self._handed(subscriber, deliveries)
        self._journal.note(oracle.TAKEN, words, durably=True)
        return len(deliveries)

    def retry(self, subscriber: Subscriber, max_messages: int, delay_s: float) -> None:
        """Receive messages, and have them delivered again."""
        with subscriber.receive_deliveries(max_messages=max_messages, timeout=0) as deliveries:
            self._handed(subscriber, deliveries)
            raise Retry(delay_s)

    def reject(self, subscriber: Subscriber) -> None:
        """Receive a message, and make it a dead letter."""
        with subscriber.receive_deliveries(max_messages=1, timeout=0) as deliveries:
            self._handed(subscriber, deliveries)
            raise Reject("on purpose")

    def _handed(self, subscriber: Subscriber, deliveries: "Sequence[Delivery[bytes]]") -> List[str]:
        """Note what was received; return the words of the note."""
        words = [subscriber.identifier, *(name_with_headers(one.message, one.headers) for one in deliveries)]
        self._journal.note(oracle.HANDED, words)
        return words

    def drain(self, subscriber: Subscriber, dead_letters: Iterable[DeadLetter] = ()) -> None:
        """Note everything that is left in the end, and acknowledge it. The dead letters were rejected before."""
        for letter in dead_letters:
            self._left(subscriber, letter.payload, letter.headers)
        for one in subscriber.deliveries(timeout=0, acknowledge_every=1000):
            self._left(subscriber, one.message, one.headers)

    def _left(self, subscriber: Subscriber, payload: bytes, headers: Mapping[str, str]) -> None:
        self._journal.note(oracle.LEFT, [subscriber.identifier, name_with_headers(payload, headers)])

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
