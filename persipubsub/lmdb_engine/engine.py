"""One process's access to one queue, shared by all its Environments."""

import pathlib
from typing import Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from persipubsub import clock
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import values
from persipubsub.engine.protocols import Watch
from persipubsub.engine.values import NEVER_US, Batch, Claims, DueTime, Failure, Found, Sent, Settled, Subscription
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.process.gate import Closer
from persipubsub.lmdb_engine.process.group_commit import Outcome, Write, Writer
from persipubsub.lmdb_engine.process.session import Storage
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, cursors, deduplication, delays, leases, message_log

T = TypeVar("T")

Key = Tuple[int, int]


class Share:
    """Somebody who uses a queue."""

    handle: "Optional[Handle]" = None

    def __init__(self, named: bool = True) -> None:
        self.named = named  # whether it is released by itself, and not as one of those of a handle


class Handle:  # pylint: disable=too-many-public-methods  # one per thing that an engine does
    """The LMDB engine of a queue: see :class:`persipubsub.engine.Engine`. Made by :func:`acquire`."""

    _wakeup: Wakeup
    _writer: Writer

    def __init__(self, path: pathlib.Path, key: Key) -> None:
        self.path = path
        self.key = key
        self.users: Dict[Share, None] = {}
        self._storage = Storage(path)
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

    def tell(self) -> None:
        """Warn of messages that went and of which no warning told yet."""
        if self._is_open:
            self._writer.tell(at_once=True)

    @property
    def is_open(self) -> bool:
        """Tell whether it was opened wholly."""
        return self._is_open

    @property
    def is_closing(self) -> bool:
        """Tell whether closing has begun."""
        return self._storage.is_closing

    @property
    def is_closed(self) -> bool:
        """Tell whether closing has ended."""
        return self._storage.is_closed

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation of :mod:`persipubsub.queue` in a read transaction.

        :raise ReplacedError: the files that were opened are not at the path any more
        """
        self._storage.require_files()
        return self._storage.read(operation)

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction and bring it to the disk under either durability."""
        return self._writer.run(operation, durable=True)

    def run_all(self, writes: Sequence[Write]) -> List[Outcome]:
        """Run what many tasks want to write in as few transactions as it fits in; each succeeds or fails alone."""
        return self._writer.run_all(writes)

    def reader_lag(self) -> int:
        """Count the commits since the read began that goes on longest, in whatever process."""
        return self._storage.reader_lag()

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy into a directory, which becomes a queue."""
        files.backup(self.path, path, self._storage.copy)

    # What endpoints call

    def put(self, batch: Batch) -> Sent:
        """Append messages, all or none."""
        return self._writer.run(lambda txn: appending.put(txn, batch), False, len(batch.payloads), batch.size_bytes)

    def put_once(self, batch: Batch, deduplication_id: bytes) -> Sent:
        """Append a message, unless one was sent with the id."""
        return self._writer.run(lambda txn: deduplication.put(txn, batch, deduplication_id), False, len(batch.payloads),
                                batch.size_bytes)

    def put_later(self, payload: bytes, due: DueTime) -> DelayedMessage:
        """Store a message that is to be appended when it is due."""
        return self._writer.run(lambda txn: delays.put(txn, payload, due), False, 1, len(payload))

    def cancel(self, message: DelayedMessage) -> bool:
        """Delete a delayed message; tell whether it was not appended yet."""
        return self._writer.run(lambda txn: delays.cancel(txn, message))

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber."""
        return self._storage.read(lambda txn: cursors.subscribe(txn, identifier))

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them."""
        return self._present(lambda txn: cursors.look(txn, subscription, max_messages, max_bytes))

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""
        return self._present(lambda txn: cursors.look_at_top(txn, subscription))

    def _present(self, look: Callable[[Transaction], Optional[Found]]) -> Found:
        """Look once what has expired is gone, and what is due is there, or as much of it as a look needs."""
        appended = False
        while True:
            found = self._storage.read(look)
            if found is None:
                # So that nobody has to walk over them again.
                self._writer.run(message_log.expire)
            elif found.due_us == NEVER_US or found.due_us > clock.boottime_us() or (appended and found.ids):
                if not found.payloads:
                    self._storage.require_files()  # nothing would ever come
                return found
            else:
                self._writer.run(just_begin)
                appended = True

    def read_present(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction once what is due is there, or as much as goes into a transaction.

        :raise ReplacedError: the files that were opened are not at the path any more
        """
        self._storage.require_files()
        result, wants_write = self._storage.read(lambda txn: (operation(txn), delays.wants_write(txn)))
        if not wants_write:
            return result
        self._writer.run(just_begin)
        return self._storage.read(operation)

    def take(self, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
        """Take messages that a subscriber was handed out."""
        self._writer.run(lambda txn: cursors.take(txn, subscription, ids, since))

    def counts_failures(self, subscription: Subscription) -> bool:
        """Tell whether a subscriber that is not shared has its failures counted."""
        return self._storage.read(lambda txn: cursors.counts_failures(txn, subscription))

    def fail(self, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
        """Count that a block raised which was handed messages."""
        return self._writer.run(lambda txn: cursors.fail(txn, subscription, ids, failure))

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages out to one worker."""
        dropped = 0
        while True:
            # In a read transaction: most of those who wait find nothing.
            due_us = self._storage.read(lambda txn: leases.due_us(txn, subscription))
            if due_us > clock.boottime_us():
                self._storage.require_files()  # nothing would ever come
                return values.NOTHING._replace(due_us=due_us, dropped=dropped)
            found = self._writer.run(lambda txn: leases.claim(txn, subscription, max_messages, max_bytes))
            dropped += found.dropped
            if found.ids:
                return found._replace(dropped=dropped)

    def acknowledge(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Settled:
        """Take messages that a worker has claimed."""
        return self._writer.run(lambda txn: leases.acknowledge(txn, subscription, ids, token))

    def give_back(self, subscription: Subscription, ids: Sequence[int], token: bytes,
                  failure: Optional[Failure]) -> Settled:
        """Give messages back that a worker has claimed."""
        return self._writer.run(lambda txn: leases.give_back(txn, subscription, ids, token, failure))

    def extend(self, subscription: Subscription, claims: Claims) -> Settled:
        """Have the lease of all messages of some claims begin now."""
        return self._writer.run(lambda txn: leases.extend(txn, subscription, claims))

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait."""
        return self._wakeup.watch(longest_sleep_s)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait a while until those that are going on have ended."""
        self._storage.before_fork(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Go on as before."""
        self._storage.after_fork_in_parent(closer)

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent, and of what its other threads were doing. Twice is once."""
        self._storage.after_fork_in_child()
        if self._is_open:
            self._writer = Writer(self._storage, self._wakeup)


def just_begin(_txn: Transaction) -> None:
    """Do nothing: a write transaction begins with appending what is due."""
