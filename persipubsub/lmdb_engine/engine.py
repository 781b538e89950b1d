"""The LMDB engine: runs each command by a rule, which a table assigns to it, and reads the queue."""

import pathlib
from typing import Any, Callable, Dict, List, Optional, Sequence, Type, TypeVar

from persipubsub import clock, errors
from persipubsub.engine.commands import (Acknowledge, AcknowledgeClaimed, Cancel, Command, Extend, Fail, GiveBack,
                                         Outcome, Put, PutLater, PutOnce, PutRelayed)
from persipubsub.engine.protocols import Watch
from persipubsub.engine.values import NEVER_US, NOTHING, Found, Settled, Subscription
from persipubsub.lmdb_engine.administration import LmdbAdministration
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.process.gate import Closer
from persipubsub.lmdb_engine.process.group_commit import Writer
from persipubsub.lmdb_engine.process.reader_locks import ReaderLocks
from persipubsub.lmdb_engine.process.session import Session
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, cursors, deduplication, delays, leases, message_log, relaying

T = TypeVar("T")

#: The rule that runs each kind of command: its arguments are a transaction and the fields of the command.
RULES: Dict[Type[Command], Callable[..., Any]] = {
    Put: appending.put,
    PutOnce: deduplication.put,
    PutLater: delays.put,
    PutRelayed: relaying.put,
    Cancel: delays.cancel,
    Acknowledge: cursors.acknowledge,
    Fail: cursors.fail,
    AcknowledgeClaimed: leases.acknowledge,
    GiveBack: leases.give_back,
    Extend: leases.extend,
}


class LmdbEngine:  # pylint: disable=too-many-public-methods  # one per thing that an engine does
    """The access of one process to one queue, shared by all its Environments: see the protocol :class:`.Engine`.

    Created by :func:`persipubsub.lmdb_engine.open_queues.acquire`.
    """

    _wakeup: Wakeup
    _writer: Writer

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._session = Session(path)
        self._readers = ReaderLocks(path)
        self._is_open = False
        # Whether the last claim of a subscription found nothing. If one finds something, the next one probably does.
        self._idle: Dict[Subscription, bool] = {}

    def open(self) -> None:
        """Open the database unless it is open. Calling it again continues where an interrupt stopped it."""
        if not self._is_open:
            self._session.open()
            self._wakeup = Wakeup(self.path, files.data_file_mode(self.path))
            self._writer = Writer(self._session, self._wakeup)
            self._is_open = True

    def close(self) -> None:
        """Close the database. Calling it again continues where an interrupt stopped it."""
        self._readers.close()
        self._session.close()

    def report(self) -> None:
        """Warn of messages that were lost and that no warning has reported yet."""
        if self._is_open:
            self._writer.report(at_once=True)

    @property
    def is_open(self) -> bool:
        """Return whether it was opened completely."""
        return self._is_open

    @property
    def is_closing(self) -> bool:
        """Return whether closing has begun."""
        return self._session.is_closing

    @property
    def is_closed(self) -> bool:
        """Return whether closing has ended."""
        return self._session.is_closed

    @property
    def administration(self) -> LmdbAdministration:
        """Return the administration of the queue."""
        return LmdbAdministration(self)

    # Commands

    def run(self, command: Command) -> Any:
        """Run a command in a write transaction, by itself or in a group."""
        if isinstance(command, Fail) and self._does_nothing(command):
            return Settled()
        return self._writer.run(RULES[type(command)], command)

    def submit(self, all_commands: Sequence[Command]) -> List[Outcome]:
        """Run commands in as few transactions as possible. Each succeeds or fails independently."""
        if len(all_commands) == 1:
            try:
                return [Outcome(self.run(all_commands[0]), None)]
            except Exception as error:  # pylint: disable=broad-exception-caught  # raised where the task waits
                return [Outcome(None, error)]
        outcomes = [Outcome(Settled(), None)] * len(all_commands)
        indexes, writes = [], []
        for index, command in enumerate(all_commands):
            try:
                if isinstance(command, Fail) and self._does_nothing(command):
                    continue
            except errors.PersipubsubError as error:
                outcomes[index] = Outcome(None, error)
                continue
            indexes.append(index)
            writes.append((RULES[type(command)], command))
        for index, outcome in zip(indexes, self._writer.run_all(writes)):
            outcomes[index] = outcome
        return outcomes

    def _does_nothing(self, command: Fail) -> bool:
        """Return whether the subscriber does not count failed deliveries, as most do not."""
        return not command.rejects and not self._session.read(cursors.counts_failures, command.subscription)

    # Looking

    def subscribe(self, identifier: bytes) -> Subscription:
        """Return the subscription of a subscriber."""
        return self._session.read(cursors.subscribe, identifier)

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Return the next messages of a subscriber without delivering them."""
        found = self._session.read(cursors.look, subscription, max_messages, max_bytes, detailed)
        if found is not None and found.ids and found.due_us == NEVER_US:
            return found
        return self._present(found, cursors.look, subscription, max_messages, max_bytes, detailed)

    def glance(self, subscription: Subscription) -> Found:
        """Return the next message if it has been read ahead. This neither waits nor reads messages from the file."""
        if self._session.is_free:
            return self._session.read(cursors.glance, subscription)
        return NOTHING

    def look_at_top(self, subscription: Subscription, detailed: bool = False) -> Found:
        """Return the latest message of a subscriber without delivering it."""
        found = self._session.read(cursors.look_at_top, subscription, detailed)
        return self._present(found, cursors.look_at_top, subscription, detailed)

    def _present(self, found: Optional[Found], look: Callable[..., Optional[Found]], *arguments: Any) -> Found:
        """Delete what has expired, append as many due messages as the look needs, and look again where necessary."""
        appended = False
        while True:
            if found is None:
                # So that no later look has to skip it.
                self._writer.run(message_log.expire)
            elif found.due_us == NEVER_US or found.due_us > clock.boottime_us() or (appended and found.ids):
                if not found.payloads:
                    self._session.require_files()  # in replaced files no message would ever arrive
                return found
            else:
                self._writer.run(append_due)
                appended = True
            found = self._session.read(look, *arguments)

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Lease messages of a shared subscriber to one worker."""
        dropped = 0
        while True:
            if self._idle.pop(subscription, True):
                # In a read transaction, since most waiting workers find nothing.
                due_us = self._session.read(leases.due_us, subscription)
                if due_us > clock.boottime_us():
                    self._session.require_files()  # in replaced files no message would ever arrive
                    self._idle[subscription] = True
                    return NOTHING._replace(due_us=due_us, dropped=dropped)
            found = self._writer.run(lambda txn: leases.claim(txn, subscription, max_messages, max_bytes, detailed))
            dropped += found.dropped
            if found.ids:
                self._idle[subscription] = False
                return found._replace(dropped=dropped) if dropped else found

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait for messages of the queue."""
        return self._wakeup.watch(longest_sleep_s)

    def watch_room(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait until messages are deleted."""
        return self._wakeup.watch_room(longest_sleep_s)

    def announce(self, subscription: Subscription) -> bool:
        """Announce that this process receives as a subscriber; return whether another process does, too."""
        return self._readers.announce(subscription.number)

    def renounce(self, subscription: Subscription) -> None:
        """Take one announcement back."""
        self._readers.renounce(subscription.number)

    def interrupt(self) -> None:
        """Let all waits of this process return now."""
        if self._is_open:
            self._wakeup.interrupt()

    # For the administration

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction.

        :raise ReplacedError: the files that were opened are no longer at the path
        """
        self._session.require_files()
        return self._session.read(operation)

    def read_present(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction after appending the due messages, as many as one transaction can.

        :raise ReplacedError: the files that were opened are no longer at the path
        """
        self._session.require_files()
        result, wants_write = self._session.read(lambda txn: (operation(txn), delays.wants_write(txn)))
        if not wants_write:
            return result
        self._writer.run(append_due)
        return self._session.read(operation)

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction and sync it to the disk, whatever the durability of the queue."""

        def change(txn: Transaction) -> T:
            message_log.settle(txn)  # so that it meets, and counts, only messages that are not acknowledged
            return operation(txn)

        return self._writer.run(change, durable=True)

    def reader_lag(self) -> int:
        """Return the number of commits since the oldest active read of any process began."""
        return self._session.reader_lag()

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy of the queue into a directory."""
        files.backup(self.path, path, self._session.copy)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait until the active ones have ended, but not longer than the timeout."""
        self._session.before_fork(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Let transactions in again."""
        self._session.after_fork_in_parent(closer)

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent and its other threads. Calling this twice is harmless."""
        self._readers.close()
        self._session.after_fork_in_child()
        if self._is_open:
            self._wakeup.after_fork_in_child()
            self._writer = Writer(self._session, self._wakeup)


def append_due(_txn: Transaction) -> None:
    """Do nothing: each write transaction begins by appending the due messages."""
