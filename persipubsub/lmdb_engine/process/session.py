"""A queue's database behind its gate: transactions of many threads, and reopening between them."""

import functools
import pathlib
import threading
from threading import get_ident
from typing import Any, Callable, List, Optional, TypeVar

from persipubsub import errors, os_errors
from persipubsub.lmdb_engine.process import files, opening_check, queue_file, unclean_marker, write_lock_watchdog
from persipubsub.lmdb_engine.process.file_identity import FileIdentity
from persipubsub.lmdb_engine.process.files import UseLock
from persipubsub.lmdb_engine.process.gate import Closer, Gate
from persipubsub.lmdb_engine.process.write_lock_watchdog import WriteLockWatchdog
from persipubsub.lmdb_engine.records import database, layouts
from persipubsub.lmdb_engine.records.database import Database
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.records.turns import reentry_error

T = TypeVar("T")

#: Number of write transactions between two checks of the files. They check for growth, which dead readers may cause,
#: and whether the files are still the ones at the path. They cost some microseconds.
WRITES_BETWEEN_LOOKS = 64

#: Obstacles that are removed only once. One that comes again is raised.
ONCE_REMOVABLE = (database.ReadersFullError, database.PanicError)

# What a fork copied while it was in use. Ending it in the child would change what belongs to the parent.
_ORPHANS: List[object] = []


class Session:  # pylint: disable=too-many-instance-attributes  # reopening changes them together
    """The database of one queue in this process. Every transaction, even a read, passes its gate.

    The first use after a fork, after a change of the durability or after an error opens the database again.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._database: Optional[Database] = None
        self._to_close: Optional[Database] = None  # the same one, even while it is being opened or closed
        self._use_lock: Optional[UseLock] = None
        self._shares_use_lock = False  # whether the lock is shared, as users of the queue share it
        self._files: FileIdentity = None  # type: ignore[assignment]  # it is set from the first opening to the end
        # A write transaction that finds another durability reopens the database.
        self._sync = True
        self._wrote_marker = False  # whether this process wrote the unclean marker
        self._closed = False
        self._lost_in_fork = False
        self._writes = 0
        self._gate = Gate()
        self._watchdog = WriteLockWatchdog(path, self._waiting)
        self._opening = threading.RLock()
        self._is_opening = False

    def open(self) -> None:
        """Open the queue for the first time in this process.

        Whatever this opens is an attribute before anything can raise, so :meth:`close` finds it. Calling it again
        continues where an interrupt ended it.
        """
        self._gate.exclusively(self._open)

    def _open(self) -> Database:
        """Return the database, and open it if necessary. The caller must be inside the gate or have closed it."""
        with self._opening:
            if self._is_opening:
                # LMDB must not be opened twice.
                raise reentry_error()
            try:
                self._is_opening = True
                if self._database is None:
                    with os_errors.errors_about(self.path):
                        return self._open_database()
                return self._database
            finally:
                self._is_opening = False

    def _open_database(self) -> Database:
        if self._closed:
            raise errors.ClosedError(f"The queue at {self.path} is closed. Open it with a new Environment.")
        if self._lost_in_fork:
            raise errors.ForkError(
                f"This process was forked during a transaction on the queue at {self.path}, so it cannot use the "
                "queue. Fork while no thread uses the queue, or start the process with multiprocessing's spawn or "
                "forkserver.")
        self._close_database()  # an interrupt may have left a part of it
        self.require_files()
        if not files.was_opened(self.path):
            # Leave no new files in a directory that is not a queue.
            files.require_no_links(self.path)
            queue_file.require_queue(self.path / files.DATA_FILE, SubDatabases._fields)
        mode = files.data_file_mode(self.path)
        if not self._shares_use_lock:
            self._share_use_lock(mode)
        self.require_files()  # until this process had the lock, another one could compact the queue
        files.allocate(self.path / files.LOCK_FILE, database.LOCK_FILE_BYTES, mode)
        if self._files is None:
            self._files = FileIdentity(self.path)
        self._files.hold()
        self._to_close = opened = Database(self.path, self._sync)
        opened.open()
        self._database = opened
        return opened

    def _share_use_lock(self, mode: int) -> None:
        """Share ``use.lock`` once the opening check has passed. On an error the lock is not held at all."""
        if self._use_lock is None:
            self._use_lock = UseLock(self.path, mode)
        try:
            opening_check.check_and_share(self.path, self._use_lock)
            self._shares_use_lock = True
        finally:
            # Twice: an interrupt may end the first call early.
            try:
                if not self._shares_use_lock:
                    self._release_use_lock()
            finally:
                if not self._shares_use_lock:
                    self._release_use_lock()

    def _release_use_lock(self) -> None:
        self._shares_use_lock = False
        if self._use_lock is not None:
            self._use_lock.close()
            self._use_lock = None

    @property
    def syncs(self) -> bool:
        """Return whether commits wait for the disk, as far as this process knows."""
        return self._sync

    def close(self) -> None:
        """Close the database once all transactions have ended. Calling it again finishes an interrupted close."""
        self._gate.exclusively(self._close)

    def _close(self) -> None:
        self._closed = True
        self._watchdog.close()
        self._close_database()
        try:
            # The marker at the path may be another queue's.
            if (self._shares_use_lock and self._files is not None and self._files.are_there()
                    and self._use_lock is not None and self._use_lock.try_exclusive()):
                unclean_marker.remove(self.path)
        finally:
            # Twice: an interrupt may end the first call early. All others wait while the lock is held exclusively.
            try:
                self._release()
            finally:
                self._release()

    def _release(self) -> None:
        self._release_use_lock()
        if self._files is not None:
            self._files.close()
            self._files = None  # type: ignore[assignment]  # the session has ended

    @property
    def is_closing(self) -> bool:
        """Return whether closing has begun. Then it cannot be opened again."""
        return self._closed

    @property
    def is_closed(self) -> bool:
        """Return whether closing has ended."""
        return self._closed and self._to_close is None and self._use_lock is None and self._files is None

    @property
    def is_free(self) -> bool:
        """Return whether a read would not wait: nothing is being opened or reopened, and no fork is being made."""
        return not self._gate.closers and self._database is not None and self._database.has_handles

    def read(self, rule: Callable[..., T], *arguments: Any) -> T:
        """Run a rule in a read transaction, which sees one state of the queue.

        :param arguments: of the rule, after the transaction
        """
        obstacle = None
        while True:
            txn, gate = Transaction(), self._gate
            try:
                gate.inside[txn] = get_ident()
                if gate.closers:
                    gate.wait(txn)
                opened = self._database or self._open()
                if opened.has_handles:  # nearly always, so without a further call
                    txn.begin(opened, False)
                else:
                    opened.begin(txn, False)
                result = rule(txn, *arguments)
                txn.abort()
                opened.known = txn.known
                gate.inside.pop(txn)
                return result
            except (*database.LMDB_ERRORS, MemoryError) as error:
                obstacle = self._obstacle(error, obstacle)
            except layouts.DECODING_ERRORS as error:
                raise errors.damaged(self.path, f"a record cannot be read ({error})") from error
            finally:
                # Twice: an interrupt may end the first call early. After the normal end nothing is called: an interrupt
                # could come before the call does anything.
                if txn in gate.inside:
                    try:
                        self._end(txn)
                    finally:
                        self._end(txn)
            self._gate.exclusively(functools.partial(self._remove, obstacle))

    # pylint: disable-next=too-many-branches  # wherever an interrupt comes, one place handles it
    def write(self, operation: Callable[[Transaction], None]) -> Transaction:
        """Run an operation in a write transaction: all of it is committed, or nothing. Return the transaction.

        The operation runs again if LMDB's map had to grow first.
        """
        obstacle = None
        while True:
            txn, gate = Transaction(), self._gate
            fits = True
            try:
                gate.inside[txn] = get_ident()
                if gate.closers:
                    gate.wait(txn)
                opened = self._database or self._open()
                if not write_lock_watchdog.THREADS:
                    write_lock_watchdog.start()
                if opened.has_handles:
                    txn.begin(opened, True)
                else:
                    opened.begin(txn, True)
                # LMDB's flag is fixed at opening. A writer that does not sync, beside others that do, can destroy the
                # file.
                fits = opened.sync_commits == (txn.header.durability == layouts.POWER_LOSS)
                if fits:
                    if not self._files.is_named() or not self._writes % WRITES_BETWEEN_LOOKS:
                        self._files.require()
                    if not opened.sync_commits and not self._wrote_marker:
                        unclean_marker.write(self.path, files.data_file_mode(self.path))
                        self._wrote_marker = True
                    operation(txn)
                    txn.commit()
                    if txn.changed:
                        opened.known = txn.known
                    if txn.durable and not opened.sync_commits:
                        opened.sync()
                    self._writes += 1
                    if self._writes % WRITES_BETWEEN_LOOKS == 0:
                        opened.clear_stale_readers_if_grown()
                    gate.inside.pop(txn)
                    return txn
            except (*database.LMDB_ERRORS, MemoryError) as error:  # either may notice first that memory is short
                obstacle = self._obstacle(error, obstacle, txn.committed or txn.commit_failed and opened.gave_up())
            except layouts.DECODING_ERRORS as error:
                raise errors.damaged(self.path, f"a record cannot be read ({error})") from error
            finally:
                # Twice: an interrupt may end the first call early. After the normal end nothing is called: an interrupt
                # could come before the call does anything.
                if txn in gate.inside:
                    try:
                        self._end(txn)
                    finally:
                        self._end(txn)
            if fits:
                self._gate.exclusively(functools.partial(self._remove, obstacle))
            else:
                self._gate.exclusively(functools.partial(self._reopen, not self._sync))

    def require_files(self) -> None:
        """Make sure that the files that were opened are the ones at the path.

        :raise ReplacedError: they were deleted or replaced
        """
        if self._files is not None:  # else this is the first opening
            self._files.require()

    def require_no_reentry(self) -> None:
        """Raise ReentryError if the calling thread would wait for itself: see :meth:`.Gate.require_no_reentry`."""
        self._gate.require_no_reentry()

    def _waiting(self) -> List[Transaction]:
        """Return the transactions that have not begun."""
        return [token for token in list(self._gate.inside) if isinstance(token, Transaction) and not token.has_begun]

    def _end(self, txn: Transaction) -> None:
        txn.abort()
        self._gate.leave(txn)

    def _obstacle(self, error: Exception, before: Optional[Exception], unknown: bool = False) -> Exception:
        """Return an error whose cause can be removed, or raise it as an error of this library.

        :param before: the error whose cause was removed last
        :param unknown: whether the changes are stored
        """
        error = database.unwrapped(error)
        again = isinstance(error, ONCE_REMOVABLE) and isinstance(before, type(error))
        if unknown or again or not isinstance(error, database.REMOVABLE_ERRORS):
            database.raise_translated(error, self.path, unknown)
        return error

    def _remove(self, obstacle: Optional[Exception]) -> None:
        """Remove what kept a transaction from succeeding. The gate must be closed."""
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
            # If a larger map found no address space, LMDB has no map at all. The next use opens it again.
            self._close_database()
            database.raise_translated(error, self.path)

    def _reopen(self, sync: bool) -> None:
        """Reopen the database with another durability. The gate must be closed."""
        if self._sync != sync:
            self._close_database(synced=True)
        self._sync = sync

    def _close_database(self, synced: bool = False) -> None:
        # Cleared first: an interrupt must not leave a closed database behind, which nobody would open again.
        self._database = None
        opened = self._to_close
        if opened is not None and self._files is not None and not self._files.holds():
            # The numbers of LMDB's descriptors may belong to other files by now, which LMDB would close.
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
                # Twice: an interrupt may end the first call early.
                try:
                    opened.close()
                finally:
                    opened.close()
            self._to_close = None

    def reader_lag(self) -> int:
        """Return the number of commits since the oldest active read of any process began."""
        return self._inside(lambda: self._open().oldest_reader().lag_commits)

    def copy(self, fd: int) -> None:
        """Write a compact, consistent copy of the queue to a descriptor of an empty file."""
        self._inside(lambda: self._open().copy(fd))

    def _inside(self, action: Callable[[], T]) -> T:
        """Run something that needs the database, but no transaction, inside the gate."""
        token = object()
        try:
            self._gate.enter(token)
            return action()
        except database.LmdbError as error:
            database.raise_translated(error, self.path)
        finally:
            # Twice: an interrupt may end the first call early.
            try:
                self._gate.leave(token)
            finally:
                self._gate.leave(token)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait a limited time for active ones. Without any, the child may close all."""
        self._gate.close(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Let transactions in again."""
        self._gate.open(closer)

    def after_fork_in_child(self) -> None:
        """Drop what was inherited. The first use opens the database again. Calling this twice is harmless."""
        self._opening = threading.RLock()
        self._is_opening = False
        self._wrote_marker = False  # the unclean marker may be removed before the child has use.lock again
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
        self._shares_use_lock = False
        # Last, so that all of this is done again if an interrupt comes before it.
        self._gate = Gate()
