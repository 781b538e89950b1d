"""The LMDB engine: runs commands by a table from command to rule, and looks into the queue."""

import functools
import pathlib
from typing import Any, Callable, Dict, List, Optional, Sequence, Type, TypeVar

from persipubsub import clock, errors
from persipubsub.engine import commands
from persipubsub.engine.commands import (Acknowledge, AcknowledgeClaimed, Cancel, Command, Extend, Fail, GiveBack,
                                         Outcome, Put, PutLater, PutOnce)
from persipubsub.engine.protocols import Watch
from persipubsub.engine.values import NEVER_US, NOTHING, Found, Settled, Subscription
from persipubsub.lmdb_engine.administration import LmdbAdministration
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.process.gate import Closer
from persipubsub.lmdb_engine.process.group_commit import Write, Writer
from persipubsub.lmdb_engine.process.session import Session
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, cursors, deduplication, delays, leases, message_log

T = TypeVar("T")

#: The rule that runs each kind of command: its arguments are a transaction and the fields of the command.
RULES: Dict[Type[Command], Callable[..., Any]] = {
    Put: appending.put,
    PutOnce: deduplication.put,
    PutLater: delays.put,
    Cancel: delays.cancel,
    Acknowledge: cursors.acknowledge,
    Fail: cursors.fail,
    AcknowledgeClaimed: leases.acknowledge,
    GiveBack: leases.give_back,
    Extend: leases.extend,
}


class LmdbEngine:  # pylint: disable=too-many-public-methods  # one per thing that an engine does
    """One process's access to one queue, shared by all its Environments: see :class:`persipubsub.engine.Engine`.

    Made by :func:`persipubsub.lmdb_engine.open_queues.acquire`.
    """

    _wakeup: Wakeup
    _writer: Writer

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._storage = Session(path)
        self._is_open = False

    def open(self) -> None:
        """Open the database unless it is open. To call it again goes on where an interrupt ended it."""
        if not self._is_open:
            self._storage.open()
            self._wakeup = Wakeup(self.path, files.data_file_mode(self.path))
            self._writer = Writer(self._storage, self._wakeup)
            self._is_open = True

    def close(self) -> None:
        """Close the database. To call it again ends what was interrupted."""
        self._storage.close()

    def report(self) -> None:
        """Warn of messages that were dropped or expired and of which no warning told yet."""
        if self._is_open:
            self._writer.report(at_once=True)

    @property
    def is_open(self) -> bool:
        """Return whether it was opened wholly."""
        return self._is_open

    @property
    def is_closing(self) -> bool:
        """Return whether closing has begun."""
        return self._storage.is_closing

    @property
    def is_closed(self) -> bool:
        """Return whether closing has ended."""
        return self._storage.is_closed

    @property
    def administration(self) -> LmdbAdministration:
        """Return what sets the queue up and looks after it."""
        return LmdbAdministration(self)

    # Commands

    def run(self, command: Command) -> Any:
        """Run a command in a write transaction, alone or in a group."""
        if isinstance(command, Fail) and not self._counts_failures(command.subscription):
            return Settled()
        messages, size_bytes = commands.load(command)
        return self._writer.run(functools.partial(_run_rule, RULES[type(command)], command), False, messages,
                                size_bytes)

    def submit(self, all_commands: Sequence[Command]) -> List[Outcome]:
        """Run commands in as few transactions as they fit in; each succeeds or fails alone."""
        outcomes = [Outcome(Settled(), None)] * len(all_commands)
        indexes, writes = [], []
        for index, command in enumerate(all_commands):
            try:
                if isinstance(command, Fail) and not self._counts_failures(command.subscription):
                    continue
            except errors.PersipubsubError as error:
                outcomes[index] = Outcome(None, error)
                continue
            indexes.append(index)
            writes.append(Write(functools.partial(_run_rule, RULES[type(command)], command), *commands.load(command)))
        for index, outcome in zip(indexes, self._writer.run_all(writes)):
            outcomes[index] = outcome
        return outcomes

    def _counts_failures(self, subscription: Subscription) -> bool:
        """Return whether the failures of a subscriber that is not shared are counted; most are not."""
        return self._storage.read(lambda txn: cursors.counts_failures(txn, subscription))

    # Looking

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber."""
        return self._storage.read(lambda txn: cursors.subscribe(txn, identifier))

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber; nothing is handed out."""
        return self._present(lambda txn: cursors.look(txn, subscription, max_messages, max_bytes))

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber; nothing is handed out."""
        return self._present(lambda txn: cursors.look_at_top(txn, subscription))

    def _present(self, look: Callable[[Transaction], Optional[Found]]) -> Found:
        """Look once what has expired is deleted, and what is due is appended, or as much of it as a look needs."""
        appended = False
        while True:
            found = self._storage.read(look)
            if found is None:
                # So that no later look has to pass it.
                self._writer.run(message_log.expire)
            elif found.due_us == NEVER_US or found.due_us > clock.boottime_us() or (appended and found.ids):
                if not found.payloads:
                    self._storage.require_files()  # nothing would ever come
                return found
            else:
                self._writer.run(append_due)
                appended = True

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages of a shared subscriber out to one worker."""
        dropped = 0
        while True:
            # In a read transaction: most of those who wait find nothing.
            due_us = self._storage.read(lambda txn: leases.due_us(txn, subscription))
            if due_us > clock.boottime_us():
                self._storage.require_files()  # nothing would ever come
                return NOTHING._replace(due_us=due_us, dropped=dropped)
            found = self._writer.run(lambda txn: leases.claim(txn, subscription, max_messages, max_bytes))
            dropped += found.dropped
            if found.ids:
                return found._replace(dropped=dropped)

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait for messages of the queue."""
        return self._wakeup.watch(longest_sleep_s)

    # What the administration asks for

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction.

        :raise ReplacedError: the files that were opened are no longer at the path
        """
        self._storage.require_files()
        return self._storage.read(operation)

    def read_present(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction once what is due is appended, or as much as one transaction may.

        :raise ReplacedError: the files that were opened are no longer at the path
        """
        self._storage.require_files()
        result, wants_write = self._storage.read(lambda txn: (operation(txn), delays.wants_write(txn)))
        if not wants_write:
            return result
        self._writer.run(append_due)
        return self._storage.read(operation)

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction and bring it to the disk under either durability."""
        return self._writer.run(operation, durable=True)

    def reader_lag(self) -> int:
        """Count the commits since the read began that goes on longest, in whatever process."""
        return self._storage.reader_lag()

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy into a directory, which becomes a queue."""
        files.backup(self.path, path, self._storage.copy)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait a while until those that are going on have ended."""
        self._storage.before_fork(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Let transactions in again."""
        self._storage.after_fork_in_parent(closer)

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent, and of what its other threads were doing. Twice is once."""
        self._storage.after_fork_in_child()
        if self._is_open:
            self._writer = Writer(self._storage, self._wakeup)


def _run_rule(rule: Callable[..., T], command: Command, txn: Transaction) -> T:
    return rule(txn, *command)


def append_due(_txn: Transaction) -> None:
    """Do nothing: each write transaction begins with appending what is due."""
