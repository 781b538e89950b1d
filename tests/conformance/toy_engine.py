"""An engine in the memory of one process: the smallest that an Environment can use.

It shows that nothing above the seam knows LMDB. It has no high-water mark, no expiry, no deduplication, no shared
subscribers and no delayed messages.
"""

import threading
from typing import Any, Callable, Dict, List, NamedTuple, NoReturn, Optional, Sequence, cast

from persipubsub import clock, errors
from persipubsub.engine import location
from persipubsub.engine.commands import Acknowledge, Command, Fail, Outcome, Put
from persipubsub.engine.protocols import Administration, Watch
from persipubsub.engine.values import (NEVER_US, Configuration, Delivering, Details, Found, Position, Settled,
                                       Subscription)

# pylint: disable=unused-argument  # the protocols have more than this engine needs

SCHEME = "toy"


class Message(NamedTuple):
    """A message, and what is known of it."""

    payload: bytes
    headers: bytes
    sent_us: int


class ToyWatch:
    """Waits on the condition of the queue."""

    def __init__(self, engine: "ToyEngine") -> None:
        self._engine = engine
        self._changes = 0

    def arm(self) -> None:
        """Note how many changes there were."""
        self._changes = self._engine.changes

    def wait(self, timeout_s: float) -> None:
        """Return once there was another change."""
        with self._engine.changed:
            self._engine.changed.wait_for(lambda: self._engine.changes != self._changes, timeout_s)

    def reserve(self, due_us: int) -> bool:
        """Return that nobody else waits for that moment."""
        return due_us != NEVER_US

    def close(self) -> None:
        """Do nothing."""


class ToyEngine:
    """A queue: all messages that were ever sent, and a cursor for each subscriber."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.changes = 0  # so that no wait misses one
        self.messages: List[Message] = []
        self.cursors: Dict[bytes, List[int]] = {}  # the number of the subscriber, and how many it has acknowledged
        self._numbers = 0

    def change(self) -> None:
        """End all waits. The caller holds the condition."""
        self.changes += 1
        self.changed.notify_all()

    def run(self, command: Command) -> Any:
        """Run a command."""
        with self.changed:
            if isinstance(command, Put):
                return self._put(command)
            if isinstance(command, Acknowledge):
                found = self.cursors.get(command.subscription.identifier)
                if found is not None and found[0] == command.subscription.number:
                    found[1] = max(found[1], command.ids[-1])
                return None
            if isinstance(command, Fail) and not command.rejects:
                return Settled()
        raise lack("dead letters" if isinstance(command, Fail) else type(command).__name__)

    def _put(self, command: Put) -> Sequence[int]:
        first_id, sent_us = len(self.messages) + 1, clock.wall_us()
        headers = command.headers or [b""] * len(command.payloads)
        self.messages += [Message(*one, sent_us) for one in zip(command.payloads, headers)]
        self.change()
        return range(first_id, len(self.messages) + 1)

    def submit(self, commands: Sequence[Command]) -> List[Outcome]:
        """Run commands one by one."""
        outcomes = []
        for command in commands:
            try:
                outcomes.append(Outcome(self.run(command), None))
            except errors.PersipubsubError as error:
                outcomes.append(Outcome(None, error))
        return outcomes

    def add(self, identifier: bytes) -> None:
        """Add a subscriber at the end of the queue."""
        with self.changed:
            if identifier not in self.cursors:
                self._numbers += 1
                self.cursors[identifier] = [self._numbers, len(self.messages)]

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber."""
        found = self.cursors.get(identifier)
        if found is None:
            names = ", ".join(repr(name.decode()) for name in self.cursors) or "none"
            raise errors.UnknownSubscriberError(f"There is no subscriber {identifier.decode()!r}; there are: {names}.")
        return Subscription(identifier, found[0], False)

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Find the next messages of a subscriber."""
        start = self._cursor(subscription)
        found = self.messages[start:start + max_messages]
        while len(found) > 1 and sum(len(one.payload) for one in found) > max_bytes:
            found.pop()
        ids = range(start + 1, start + 1 + len(found))
        details = [Details(number, one.sent_us, 0, one.headers) for number, one in zip(ids, found)] if detailed else ()
        return Found(ids, [one.payload for one in found], NEVER_US, details=details)

    def glance(self, subscription: Subscription) -> Found:
        """Find the next message: nothing here waits."""
        return self.look(subscription, 1, 0)

    def look_at_top(self, subscription: Subscription, detailed: bool = False) -> Found:
        """Find the latest message of a subscriber."""
        del detailed  # it knows no headers
        start, top = self._cursor(subscription), len(self.messages)
        payloads = [one.payload for one in self.messages[max(start, top - 1):top]]
        return Found(range(top + 1 - len(payloads), top + 1), payloads, NEVER_US, since=start + 1)

    def _cursor(self, subscription: Subscription) -> int:
        found = self.cursors.get(subscription.identifier)
        if found is None or found[0] != subscription.number:
            raise errors.UnknownSubscriberError(f"The subscriber {subscription.identifier.decode()!r} was removed.")
        return found[1]

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Raise: no subscriber is shared."""
        raise lack("shared subscribers")

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait."""
        return ToyWatch(self)

    watch_room = watch  # nobody waits for it, since no message is refused

    def interrupt(self) -> None:
        """End all waits, even if a signal handler calls this while its own thread holds the condition."""
        with self.changed:
            self.change()

    def announce(self, subscription: Subscription) -> bool:
        """Return that no other process receives: none can."""
        return False

    def renounce(self, subscription: Subscription) -> None:
        """Do nothing."""

    @property
    def administration(self) -> Administration:
        """Return what sets the queue up."""
        return cast(Administration, ToyAdministration(self))


class ToyAdministration:
    """Adds and removes subscribers; all else is lacking."""

    def __init__(self, engine: ToyEngine) -> None:
        self._engine = engine

    def configure(self, configuration: Configuration, identifiers: Sequence[bytes], mode: Optional[int]) -> None:
        """Add subscribers; settings change nothing."""
        for identifier in identifiers:
            self._engine.add(identifier)

    def add_subscriber(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber."""
        if given != Delivering():
            raise lack("shared subscribers and limits of deliveries")
        self._engine.add(identifier)
        return 0

    def remove_subscriber(self, identifier: bytes) -> int:
        """Remove a subscriber."""
        self._engine.subscribe(identifier)
        with self._engine.changed:
            del self._engine.cursors[identifier]
            self._engine.change()
        return 0

    def peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        """Return the next messages."""
        return list(self._engine.look(self._engine.subscribe(identifier), max_messages, 2**63).payloads)

    def require_message_type(self, name: str) -> None:
        """Do nothing: the queue is bound to none."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        """Return a method that says that this engine lacks it."""

        def method(*_arguments: object) -> NoReturn:
            raise lack(name)

        return method


def lack(what: str) -> errors.UnsupportedError:
    """Return the error that says what this engine cannot do."""
    return errors.UnsupportedError(f"The toy engine cannot do this: {what}. Use a queue in a directory.")


_QUEUES: Dict[str, ToyEngine] = {}


class ToyAccess:
    """The queue of a URL, which lasts as long as the process."""

    def __init__(self, url: str) -> None:
        self.location = url

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it is."""
        _QUEUES.setdefault(self.location, ToyEngine())

    def open(self) -> ToyEngine:
        """Return the queue."""
        if self.location not in _QUEUES:
            raise errors.NotInitializedError(f"There is no queue at {self.location}.")
        return _QUEUES[self.location]

    def close(self) -> None:
        """Do nothing."""


def register() -> None:
    """Let Environments open queues at URLs of the toy engine."""
    location.ACCESSES[SCHEME] = ToyAccess
