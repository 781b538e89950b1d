"""An engine in the memory of one process: the smallest that an Environment can use.

It shows that nothing above the seam knows LMDB. It has no high-water mark, no expiry, no shared subscribers, no delays.
"""

import threading
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, cast

from persipubsub import errors
from persipubsub.engine import location
from persipubsub.engine.commands import Acknowledge, Command, Fail, Outcome, Put
from persipubsub.engine.protocols import Administration, Watch
from persipubsub.engine.values import NEVER_US, Configuration, Delivering, Found, Position, Sent, Settled, Subscription

# pylint: disable=unused-argument  # the protocols have more than this engine needs

SCHEME = "toy"


class ToyWatch:
    """Waits on the condition of the queue."""

    def __init__(self, engine: "ToyEngine") -> None:
        self._engine = engine
        self._sent = 0

    def arm(self) -> None:
        """Note how many messages were sent."""
        self._sent = len(self._engine.messages)

    def wait(self, timeout_s: float) -> None:
        """Return once another message was sent, or the subscribers changed."""
        with self._engine.changed:
            self._engine.changed.wait_for(lambda: len(self._engine.messages) != self._sent, min(timeout_s, 0.05))

    def reserve(self, due_us: int) -> bool:
        """Return that nobody else waits for that moment."""
        return due_us != NEVER_US

    def close(self) -> None:
        """Do nothing."""


class ToyEngine:
    """A queue: all messages that were ever sent, and a cursor for each subscriber."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: List[bytes] = []
        self.cursors: Dict[bytes, List[int]] = {}  # the number of the subscriber, and how many it has acknowledged
        self._numbers = 0

    def run(self, command: Command) -> Any:
        """Run a command."""
        with self.changed:
            if isinstance(command, Put):
                first_id = len(self.messages) + 1
                self.messages += command.payloads
                self.changed.notify_all()
                return Sent(range(first_id, len(self.messages) + 1), bool(self.cursors))
            if isinstance(command, Acknowledge):
                found = self.cursors.get(command.subscription.identifier)
                if found is not None and found[0] == command.subscription.number:
                    found[1] = max(found[1], command.ids[-1])
                return None
            if isinstance(command, Fail):
                return Settled()
        raise lack(type(command).__name__)

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

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber."""
        start = self._cursor(subscription)
        payloads = self.messages[start:start + max_messages]
        while len(payloads) > 1 and sum(map(len, payloads)) > max_bytes:
            payloads.pop()
        return Found(range(start + 1, start + 1 + len(payloads)), payloads, NEVER_US)

    def glance(self, subscription: Subscription) -> Found:
        """Find the next message: nothing here waits."""
        return self.look(subscription, 1, 0)

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber."""
        start = self._cursor(subscription)
        ids = range(max(start, len(self.messages) - 1) + 1, len(self.messages) + 1)
        return Found(ids, self.messages[-1:] if ids else [], NEVER_US, since=start + 1)

    def _cursor(self, subscription: Subscription) -> int:
        found = self.cursors.get(subscription.identifier)
        if found is None or found[0] != subscription.number:
            raise errors.UnknownSubscriberError(f"The subscriber {subscription.identifier.decode()!r} was removed.")
        return found[1]

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Raise: no subscriber is shared."""
        raise lack("shared subscribers")

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait."""
        return ToyWatch(self)

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
            self._engine.changed.notify_all()
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
