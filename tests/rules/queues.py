"""A queue on which a test runs rules and commands, without what lies above them."""

import contextlib
import pathlib
import tempfile
from typing import Any, Callable, Iterator, List, Optional, Sequence, TypeVar

import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, clock
from persipubsub.engine.commands import Acknowledge, Command, Put, PutOnce
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import Batch, Found, Subscription
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.engine import LmdbEngine
from persipubsub.lmdb_engine.records.transaction import Transaction

T = TypeVar("T")

START_US = 10**12


class Queue:
    """A queue whose time stands still until it is moved."""

    def __init__(self, environment: Environment, engine: LmdbEngine) -> None:
        self.environment = environment
        self.now_us = START_US
        self._engine = engine

    @property
    def control(self) -> Control:
        """Return a control of the queue."""
        return self.environment.new_control(create=False)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)

    def run(self, command: Command) -> Any:
        """Run a command."""
        return self._engine.run(command)

    def put(self, batch: Batch, identifiers: Sequence[Optional[bytes]] = ()) -> Sequence[int]:
        """Send messages, some of them with deduplication ids; return the message ids."""
        ids: Sequence[int] = self.run(PutOnce(batch, identifiers) if identifiers else Put(*batch))
        return ids

    def write(self, rule: Callable[..., T], *arguments: Any) -> T:
        """Run a rule in a write transaction."""
        writer = self._engine._writer  # pylint: disable=protected-access  # no command runs this rule by itself
        return writer.run(rule, arguments)

    def read(self, rule: Callable[[Transaction], T]) -> T:
        """Run a rule in a read transaction."""
        return self._engine.read(rule)

    def subscription(self, identifier: str = "a") -> Subscription:
        """Return the subscription of a subscriber."""
        return self._engine.subscribe(identifier.encode())

    def look(self, max_messages: int = 2**31, identifier: str = "a") -> Found:
        """Return the next messages of a subscriber with their details."""
        return self._engine.look(self.subscription(identifier), max_messages, RECEIVE_BYTES_MAX, True)

    def claim(self, max_messages: int, identifier: str) -> Found:
        """Claim messages of a shared subscriber, with their details."""
        return self._engine.claim(self.subscription(identifier), max_messages, RECEIVE_BYTES_MAX, True)

    def acknowledge(self, max_messages: int, identifier: str = "a") -> List[bytes]:
        """Acknowledge the next messages of a subscriber that is not shared; return them."""
        found = self.look(max_messages, identifier)
        if found.ids:
            self.run(Acknowledge(self.subscription(identifier), found.ids))
        return found.payloads


@contextlib.contextmanager
def opened(*identifiers: str, **configuration: Any) -> Iterator[Queue]:
    """Set up a queue with its own directory, as each example of a property needs one. It has to be sound at the end."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = pathlib.Path(directory) / "queue"
        with persipubsub.new_environment(path) as environment:
            environment.new_control(identifiers, durability=Durability.PROCESS_CRASH, **configuration)
            engine = open_queues.acquire(path)
            queue = Queue(environment, engine)
            patch.setattr(clock, "boottime_us", lambda: queue.now_us)
            try:
                yield queue
                assert queue.control.check() == ()
            finally:
                open_queues.release(engine)
