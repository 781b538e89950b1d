"""A queue's database behind its gate: transactions of many threads, and reopening it under them."""

import pathlib
import threading
from typing import Callable, List, Optional, TypeVar

from persipubsub import errors, os_errors
from persipubsub.lmdb_engine.process import files, opening_check, unclean_marker, write_lock_watchdog
from persipubsub.lmdb_engine.process.file_identity import FileIdentity
from persipubsub.lmdb_engine.process.files import UseLock
from persipubsub.lmdb_engine.process.gate import Closer, Gate
from persipubsub.lmdb_engine.process.write_lock_watchdog import WriteLockWatchdog
from persipubsub.lmdb_engine.records import database, layouts
from persipubsub.lmdb_engine.records.database import Database
from persipubsub.lmdb_engine.records.transaction import SubDatabases, Transaction
from persipubsub.lmdb_engine.records.turns import reentry_error

T = TypeVar("T")

#: After so many write transactions it is looked at whether the file has grown, since readers that died may be the
#: reason, and whether the files are still the ones at the path. Looking costs some microseconds.
WRITES_BETWEEN_LOOKS = 16

#: What is as before after it was removed can only be reported.
ONCE_REMOVABLE = (database.ReadersFullError, database.PanicError)

# Transactions that a fork copied in mid-flight. Ending them in the child would touch what belongs to the parent.
_ORPHANS: List[object] = []


class Session:  # pylint: disable=too-many-instance-attributes  # what a reopening changes, together
    """The database of one queue in this process. Every transaction, also a read, passes its gate.

    It is opened when first used: after a fork, after it was reopened, or after an error.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._database: Optional[Database] = None
        self._to_close: Optional[Database] = None  # the same one, also while it is being opened or closed
        self._use_lock: Optional[UseLock] = None
        self._admitted = False  # whether the lock is held as somebody who uses the queue holds it
        self._files: FileIdentity = None  # type: ignore[assignment]  # from the first opening to the end it is there
        # A write transaction that finds the queue relaxed reopens it.
        self._sync = True
        self._marked = False  # whether it is written down that commits may not be on the disk
        self._closed = False
        self._lost_in_fork = False
        self._writes = 0
        self._gate = Gate()
        self._watchdog = WriteLockWatchdog(path, self._waiting)
        self._opening = threading.RLock()
        self._is_opening = False

    def open(self) -> None:
        """Open the queue for the first time in this process.

        Whatever this opens is an attribute before anything may raise, so :meth:`close` finds it. To call it again goes
        on where an interrupt ended it.
        """
        self._gate.alone(self._open)

    def _open(self) -> Database:
        """Give the database, opened if need be. To be called inside the gate, or with the gate closed."""
        with self._opening:
            if self._is_opening:
                # LMDB must not be opened twice.
                raise reentry_error()
            try:
                self._is_opening = True
                if self._database is None:
                    with os_errors.errors_about(self.path):
                        return self._open_anew()
                return self._database
            finally:
                self._is_opening = False

    def _open_anew(self) -> Database:
        if self._closed:
            raise errors.ClosedError(f"The queue at {self.path} is closed. Open it with a new Environment.")
        if self._lost_in_fork:
            raise errors.ForkError(
                f"This process was forked while a transaction on the queue at {self.path} was going on, so it cannot "
                "use the queue. Fork while no thread uses the queue, or start the process with multiprocessing's spawn "
                "or forkserver.")
        self._close_database()  # of which an interrupt may have left a part
        self.require_files()
        if not files.was_opened(self.path):
            # Nothing is left beside what is not ours.
            files.require_no_links(self.path)
            opening_check.require_queue(self.path / files.DATA_FILE, SubDatabases._fields)
        mode = files.data_file_mode(self.path)
        if not self._admitted:
            self._admit(mode)
        self.require_files()  # until the lock was there, somebody could compact it
        files.allocate(self.path / files.LOCK_FILE, database.LOCK_FILE_BYTES, mode)
        if self._files is None:
            self._files = FileIdentity(self.path)
        self._files.hold()
        self._to_close = opened = Database(self.path, self._sync)
        opened.open()
        self._database = opened
        return opened

    def _admit(self, mode: int) -> None:
        """Take ``use.lock`` with others once the queue is fit for use. On an error the lock is not held at all."""
        if self._use_lock is None:
            self._use_lock = UseLock(self.path, mode)
        try:
            opening_check.admit(self.path, self._use_lock)
            self._admitted = True
        finally:
            # Twice, for an interrupt may come in the first.
            try:
                if not self._admitted:
                    self._give_back_use_lock()
            finally:
                if not self._admitted:
                    self._give_back_use_lock()

    def _give_back_use_lock(self) -> None:
        self._admitted = False
        if self._use_lock is not None:
            self._use_lock.close()
            self._use_lock = None

    @property
    def syncs(self) -> bool:
        """Tell whether commits wait for the disk, as far as this process knows."""
        return self._sync

    def close(self) -> None:
        """Close the database once the transactions inside have ended. To call it again ends what was interrupted."""
        self._gate.alone(self._close)

    def _close(self) -> None:
        self._closed = True
        self._watchdog.close()
        self._close_database()
        try:
            # A mark that lies there now may be another queue's.
            if self._admitted and self._files is not None and self._files.are_there() and self._be_alone():
                unclean_marker.remove(self.path)
        finally:
            # Twice, for an interrupt may come in the first: the lock may be held alone, and then all others wait.
            try:
                self._let_go()
            finally:
                self._let_go()

    def _be_alone(self) -> bool:
        return self._use_lock is not None and self._use_lock.try_alone()

    def _let_go(self) -> None:
        self._give_back_use_lock()
        if self._files is not None:
            self._files.close()
            self._files = None  # type: ignore[assignment]  # it has ended

    @property
    def is_closing(self) -> bool:
        """Tell whether closing has begun; it cannot be opened any more."""
        return self._closed

    @property
    def is_closed(self) -> bool:
        """Tell whether closing has ended."""
        return self._closed and self._to_close is None and self._use_lock is None and self._files is None

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction, which sees one state of the queue."""
        obstacle = None
        while True:
            txn = Transaction()
            try:
                self._gate.enter(txn)
                (self._database or self._open()).begin(txn, False)
                result = operation(txn)
                self._end(txn)
                return result
            except (*database.LMDB_ERRORS, MemoryError) as error:
                obstacle = self._obstacle(error, obstacle)
            except layouts.DECODING_ERRORS as error:
                raise errors.damaged(self.path, f"a record cannot be read ({error})") from error
            finally:
                # Twice, for an interrupt may strike in the first. Where it has ended, nothing is called: an interrupt
                # could strike before the call does anything.
                if txn in self._gate.inside:
                    try:
                        self._end(txn)
                    finally:
                        self._end(txn)
            self._remove(obstacle)

    # pylint: disable-next=too-many-branches  # wherever an interrupt strikes: in one place
    def write(self, operation: Callable[[Transaction], None]) -> Transaction:
        """Run an operation in a write transaction: all of it is committed, or nothing. Give the transaction.

        It may be run again where LMDB's map had to grow first.
        """
        obstacle = None
        while True:
            txn = Transaction()
            fits = True
            try:
                self._gate.enter(txn)
                opened = self._database or self._open()
                if not write_lock_watchdog.THREADS:
                    write_lock_watchdog.start()
                opened.begin(txn, True)
                # LMDB's flag is fixed at open: one relaxed writer beside durable ones can destroy the file.
                fits = opened.sync_commits == (txn.header.durability == layouts.POWER_LOSS)
                if fits:
                    self._files.require_for_write(thoroughly=self._writes % WRITES_BETWEEN_LOOKS == 0)
                    if not opened.sync_commits and not self._marked:
                        unclean_marker.write(self.path, files.data_file_mode(self.path))
                        self._marked = True
                    operation(txn)
                    txn.commit()
                    if txn.durable and not opened.sync_commits:
                        opened.sync()
                    self._writes += 1
                    if self._writes % WRITES_BETWEEN_LOOKS == 0:
                        opened.clear_stale_readers_if_grown()
                    self._gate.leave(txn)
                    return txn
            except (*database.LMDB_ERRORS, MemoryError) as error:  # of memory, it is luck who notices first
                obstacle = self._obstacle(error, obstacle, txn.committed or txn.commit_failed and opened.gave_up())
            except layouts.DECODING_ERRORS as error:
                raise errors.damaged(self.path, f"a record cannot be read ({error})") from error
            finally:
                # Twice, for an interrupt may strike in the first. Where it has ended, nothing is called: an interrupt
                # could strike before the call does anything.
                if txn in self._gate.inside:
                    try:
                        self._end(txn)
                    finally:
                        self._end(txn)
            if fits:
                self._remove(obstacle)
            else:
                self._reopen(sync=not self._sync)

    def require_files(self) -> None:
        """Make sure that the files that were opened are the ones at the path.

        :raise ReplacedError: they were deleted or replaced
        """
        if self._files is not None:  # else it is just being opened for the first time
            self._files.require()

    def require_no_reentry(self) -> None:
        """Make sure that the calling thread may wait for the transactions of others.

        :raise ReentryError: they may be waiting for it: it is in a transaction or a fork, or reopens the database
        """
        self._gate.require_no_reentry()

    def _waiting(self) -> List[Transaction]:
        """List the transactions that have not begun."""
        return [token for token in list(self._gate.inside) if isinstance(token, Transaction) and not token.has_begun]

    def _end(self, txn: Transaction) -> None:
        txn.abort()
        self._gate.leave(txn)

    def _obstacle(self, error: Exception, before: Optional[Exception], unknown: bool = False) -> Exception:
        """Give an error that can be removed, or raise it as one of ours.

        :param before: what was removed last
        :param unknown: whether the changes are stored
        """
        error = database.unwrapped(error)
        again = isinstance(error, ONCE_REMOVABLE) and isinstance(before, type(error))
        if unknown or again or not isinstance(error, database.REMOVABLE_ERRORS):
            database.raise_translated(error, self.path, unknown)
        return error

    def _remove(self, obstacle: Optional[Exception]) -> None:
        self._gate.alone(lambda: self._remove_alone(obstacle))

    def _remove_alone(self, obstacle: Optional[Exception]) -> None:
        try:
            if isinstance(obstacle, database.MapFullError):
                self._open().grow()
            elif isinstance(obstacle, database.MapResizedError):
                self._open().adopt_size()
            elif isinstance(obstacle, database.PanicError):
                self._close_database()  # the next use opens it again
            else:
                self._open().clear_stale_readers()
        except (database.LmdbError, MemoryError) as error:
            # Where a larger map finds no address space, LMDB has none at all now. The next use opens it again.
            self._close_database()
            database.raise_translated(error, self.path)

    def _reopen(self, sync: bool) -> None:
        self._gate.alone(lambda: self._reopen_alone(sync))

    def _reopen_alone(self, sync: bool) -> None:
        if self._sync != sync:
            self._close_database(synced=True)
        self._sync = sync

    def _close_database(self, synced: bool = False) -> None:
        # Forgotten first: an interrupt must not leave a closed one behind, which nobody would open again.
        self._database = None
        opened = self._to_close
        if opened is not None and self._files is not None and not self._files.holds():
            # The numbers of LMDB's descriptors may be those of other files by now, which it would close.
            _ORPHANS.append(opened)
            self._to_close = None
            return
        if opened is not None:
            try:
                if synced:
                    opened.sync()
            except database.LmdbError as error:
                database.raise_translated(error, self.path, unknown=True)
            finally:
                # Twice, for an interrupt may come in the first.
                try:
                    opened.close()
                finally:
                    opened.close()
            self._to_close = None

    def reader_lag(self) -> int:
        """Count the commits since the read began that goes on longest, in whatever process."""
        token = object()
        try:
            self._gate.enter(token)
            return self._open().oldest_reader().lag_commits
        except database.LmdbError as error:
            database.raise_translated(error, self.path)
        finally:
            self._gate.leave(token)

    def copy(self, fd: int) -> None:
        """Write a compact, consistent copy of the queue to a descriptor of an empty file."""
        token = object()
        try:
            self._gate.enter(token)
            self._open().copy(fd)
        except database.LmdbError as error:
            database.raise_translated(error, self.path)
        finally:
            self._gate.leave(token)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait a while until none is going on: then the child may close what it inherits."""
        self._gate.close(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Let transactions in again."""
        self._gate.open(closer)

    def after_fork_in_child(self) -> None:
        """Let go of what was inherited; the database is opened again on first use. Twice is once."""
        self._opening = threading.RLock()
        self._is_opening = False
        self._marked = False  # the mark may go before the child has use.lock again
        if self._gate.was_quiet():
            self._close_database()
            use_lock, self._use_lock = self._use_lock, None
            if use_lock is not None:
                use_lock.leave_to_parent()
        else:
            self._lost_in_fork = True
            inside = list(self._gate.inside)  # what other threads of the parent were doing
            _ORPHANS.extend((self._to_close, self._use_lock, inside))
            self._database = self._to_close = self._use_lock = None
            for token in inside:
                if isinstance(token, Transaction):
                    _ORPHANS.append(token.disown())
        self._admitted = False
        # Last, so that an interrupt before it has all of this done again.
        self._gate = Gate()
