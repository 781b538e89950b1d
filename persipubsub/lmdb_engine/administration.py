"""Configuration and maintenance of an LMDB queue."""

import functools
import pathlib
from typing import Callable, Iterator, List, Optional, Protocol, Sequence, Tuple, TypeVar

from persipubsub.dead_letters import DeadLetter
from persipubsub.engine.values import Cleared, Configuration, Delivering, Position, Relayed, Route, Subscription
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import (cursors, dead_letters, invariants, message_log, peek, relaying, replay,
                                           settings, status)
from persipubsub.lmdb_engine.rules.dead_letters import Changed
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation

T = TypeVar("T")

#: A transaction that reads dead letters ends at this many letters, or with the one that reaches this many bytes.
DEAD_LETTERS_AT_ONCE_MAX = 100
DEAD_LETTERS_AT_ONCE_BYTES_MAX = 1024**2


class Transactions(Protocol):
    """What the administration needs of the engine: transactions of the queue, and what lies beside them."""

    path: pathlib.Path

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction."""

    def read_present(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction after appending the due messages."""

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction, and sync it to the disk."""

    def subscribe(self, identifier: bytes) -> Subscription:
        """Return the subscription of a subscriber."""

    def reader_lag(self) -> int:
        """Return the number of commits since the oldest active read of any process began."""

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy of the queue into a directory."""


class LmdbAdministration:  # pylint: disable=too-many-public-methods  # as the protocol
    """See :class:`persipubsub.engine.protocols.Administration`."""

    def __init__(self, engine: Transactions) -> None:
        self._engine = engine

    def is_initialized(self) -> bool:
        """Return whether the files of the queue still exist.

        :raise PathError: its directory is not accessible
        """
        return files.is_queue(self._engine.path)

    def configure(self, configuration: Configuration, identifiers: Sequence[bytes], mode: Optional[int]) -> None:
        """Change the queue, then the modes of its files. If either fails, nothing is changed."""

        def change(txn: Transaction) -> None:
            settings.configure(txn, configuration, identifiers)
            if mode is not None:
                files.set_modes(self._engine.path, mode)

        self._engine.change(change)

    def require_message_type(self, name: str) -> None:
        """Make sure that the queue accepts messages of a type."""
        self._engine.read(lambda txn: settings.require_message_type(txn, name))

    def add_subscriber(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber at a position, or change one; return how many dead letters were deleted."""
        return self._engine.change(lambda txn: replay.add_subscriber(txn, identifier, start, given))

    def remove_subscriber(self, identifier: bytes) -> int:
        """Remove a subscriber; return how many dead letters were deleted with it."""
        return self._engine.change(lambda txn: cursors.remove_subscriber(txn, identifier))

    def rewind(self, identifier: bytes, position: Position) -> int:
        """Move the cursor of a subscriber back; return how many messages the subscriber awaits then."""
        return self._engine.change(lambda txn: replay.rewind(txn, identifier, position))

    def expire_and_prune(self) -> int:
        """Delete messages that have expired or that nobody awaits; return how many."""
        return self._engine.change(lambda txn: message_log.expire(txn) + message_log.prune_dangling(txn))

    def acknowledge_all(self, identifier: bytes) -> int:
        """Move the cursor of a subscriber to the end; return how many messages it skips."""
        return self._engine.change(lambda txn: cursors.acknowledge_all(txn, identifier))

    def clear_messages(self) -> int:
        """Delete all messages; return how many."""
        return self._engine.change(message_log.clear)

    def clear_subscribers(self) -> Cleared:
        """Remove all subscribers and delete all messages."""
        return self._engine.change(cursors.clear_subscribers)

    def history(self, start: Position, end: Position) -> Iterator[StoredMessage]:
        """Iterate over the messages that are stored between two positions, reading a few at a time."""
        left = self._engine.read_present(lambda txn: replay.span(txn, start, end))
        while messages := self._engine.read(functools.partial(replay.read, ids=left)):
            left = range(messages[-1].id + 1, left.stop)
            yield from messages

    def peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        """Return the next messages of a subscriber without handing them out."""
        return self._engine.read_present(lambda txn: peek.read(txn, identifier, max_messages))

    def dead_letters(self, identifier: bytes) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, reading a few at a time."""
        number = self._engine.subscribe(identifier).number
        return self._dead_letters(number)

    def _dead_letters(self, number: int) -> Iterator[DeadLetter]:
        start = 0

        def read(txn: Transaction) -> List[DeadLetter]:
            return dead_letters.read(txn, number, start, DEAD_LETTERS_AT_ONCE_MAX, DEAD_LETTERS_AT_ONCE_BYTES_MAX)

        while found := self._engine.read(read):
            yield from found
            start = found[-1].id + 1

    def requeue_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Requeue the dead letters with the given ids, or all; return how many."""
        return self._change_dead_letters(
            identifier, ids,
            lambda txn, record, chosen: dead_letters.requeue(txn, record, chosen, message_log.now_us(txn)))

    def discard_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Delete the dead letters with the given ids, or all; return how many."""
        return self._change_dead_letters(identifier, ids, dead_letters.discard)

    def _change_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]],
                             change: Callable[[Transaction, SubscriberRecord, List[int]], Changed]) -> int:
        subscription = self._engine.subscribe(identifier)
        if ids is None:
            left = self._engine.read(lambda txn: dead_letters.all_ids(txn, subscription.number))
        else:
            left = sorted(set(ids))

        def operation(txn: Transaction) -> Changed:
            changed = change(txn, cursors.own_record(txn, subscription), left)
            if changed.letters:
                txn.put_subscriber(identifier, changed.record)
            return changed

        count = 0
        while True:
            changed = self._engine.change(operation)
            count, left = count + changed.letters, left[changed.ids:]
            if not left:
                return count

    def identity(self) -> bytes:
        """Return the identity of the queue, which is made when it is first asked for."""
        return self._engine.read(lambda txn: relaying.of(txn).identity()) or self._engine.change(relaying.identity)

    def route(self, identifier: bytes, target: bytes) -> Route:
        """Return the route of a relay that receives as a subscriber, which is made when it is first asked for."""
        found = self._engine.read(lambda txn: relaying.of(txn).route(identifier))
        return found or self._engine.change(lambda txn: relaying.route(txn, identifier, target))

    def relayed(self, origin: bytes) -> Relayed:
        """Return how far a relay has come that brings messages into this queue."""
        return self._engine.change(lambda txn: relaying.relayed(txn, origin))

    def status(self) -> QueueStatus:
        """Return the current status of the queue. This writes nothing, so it does not wait for a stopped writer."""
        lag = self._engine.reader_lag()
        return self._engine.read(lambda txn: status.read(txn, self._engine.path, lag))

    def check(self) -> Tuple[Violation, ...]:
        """Return the violations of the queue's invariants."""
        return self._engine.read(invariants.check)

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy of the queue into a directory."""
        self._engine.backup(path)
