"""The LMDB environment of a queue. The only module that imports lmdb."""

import errno
import logging
import os
import pathlib
from typing import Callable, Iterable, List, NamedTuple, NoReturn, Optional, Type, TypeVar

import lmdb

from persipubsub import clock, errors, os_errors
from persipubsub.lmdb_engine.records import layouts, reader_table
from persipubsub.lmdb_engine.records.known import Known
from persipubsub.lmdb_engine.records.layouts import Header, Run, SubDatabases
from persipubsub.lmdb_engine.records.lifecycle import HANDLES
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.records.turns import Turn, Turns
from persipubsub.status import LAG_COMMITS_MIN

T = TypeVar("T")

_LOGGER = logging.getLogger("persipubsub.database")  # the name that programs filter by
#: LMDB's name. The other names are in :mod:`persipubsub.lmdb_engine.process.files`, which imports this module.
_LOCK_FILE = "lock.mdb"

MAX_READERS = 1024
#: The size of LMDB's lock file for MAX_READERS.
LOCK_FILE_BYTES = 65664
MAP_BYTES_MIN = 40 * 1024**3
#: Check for stale readers after the file has grown by this much: readers that died may be the cause. A check takes
#: longer with more processes: 0.3 ms with 200.
GROWTH_PAGES_MIN = 64
WARN_EVERY_S = 60.0
#: A disk with less free space than this counts as full: LMDB reports an I/O error after a write that fits only in
#: part. It writes 256 KiB at once, and the space that ext4 reserves for itself varies.
ROOM_BYTES_MIN = 1024 * 1024
#: 13 are used; the rest is room for later ones.
SUB_DATABASES_MAX = 32


class Reader(NamedTuple):
    """A read in progress: how many commits were made since it began, and in which process it is."""

    lag_commits: int
    process: int


class Database:  # pylint: disable=too-many-instance-attributes  # what transactions need of it, and its checks
    """The open LMDB environment of a queue. A process opens it once: closing a second one would drop LMDB's locks."""

    environment: "lmdb.Environment" = None  # type: ignore[assignment]  # set by open()
    dbs: SubDatabases  # from the first write on

    def __init__(self, path: pathlib.Path, sync: bool) -> None:
        """Open nothing yet, so that the caller can close it if :meth:`open` raises."""
        self.path = path
        self.sync_commits = sync
        self._pages_at_check = 0
        self._warned_s = -WARN_EVERY_S
        self.has_handles = False  # until the first write
        self._turns: Turns[str] = Turns()
        #: What the last transaction knew, for the next one.
        self.known: Optional[Known] = None

    def open(self) -> None:
        """Open the environment. This does not wait for the transactions of other processes.

        :raise FormatError: the file belongs to another program or another version
        """
        try:
            reader_table.free_own_slots(self.path / _LOCK_FILE)
            self.environment = _open_environment(self.path, self.sync_commits)
            self.clear_stale_readers()
            txn = Transaction()
            try:
                self.begin(txn, False)
                hwm_db_size = txn.header.hwm_db_size
            finally:
                txn.abort()
            if layouts.NO_LIMIT > hwm_db_size > MAP_BYTES_MIN * 4 // 5:
                self.environment.set_mapsize(hwm_db_size * 5 // 4)
        except lmdb.Error as error:
            raise_translated(error, self.path)

    def begin(self, txn: Transaction, write: bool) -> None:
        """Begin a transaction; a write transaction waits for the other writers of all processes.

        The handles of the sub-databases are kept from the first write on: py-lmdb keeps only those that a write
        transaction has committed, and a reader that began one would wait for writers. So until then each read opens
        them for itself, one read at a time, since LMDB allows only one transaction at a time to open sub-databases.
        """
        if write and not self.has_handles:
            self._keep_handles()
        if self.has_handles:
            txn.begin(self, write)
        else:
            txn.begin_in_turn(self.environment, self._turns, _open_sub_databases)

    def _keep_handles(self) -> None:
        turn = Turn()
        try:
            with self.environment.begin(write=True) as opening:  # nothing is written in it
                self._turns.begin(HANDLES, turn)
                dbs = _open_sub_databases(self.environment, opening)
        finally:
            # Twice: an interrupt may end the first call early.
            try:
                self._turns.end(HANDLES, turn)
            finally:
                self._turns.end(HANDLES, turn)
        self.dbs = dbs
        self.has_handles = True

    def sync(self) -> None:
        """Sync everything that is committed to the disk."""
        self.environment.sync(True)

    def grow(self) -> None:
        """Double the size of the map, after LMDB refused a write or a delete because the map is full."""
        self.environment.set_mapsize(2 * self.environment.info()["map_size"])

    def adopt_size(self) -> None:
        """Adopt the map size of another process that has grown the map."""
        self.environment.set_mapsize(0)

    def clear_stale_readers(self) -> None:
        """Free the reader slots of processes that died during a read."""
        self.environment.reader_check()
        self._pages_at_check = self._pages()

    def oldest_reader(self) -> Reader:
        """Return the oldest read in progress."""
        last = self.environment.info()["last_txnid"]
        # A line for each slot: the process, its thread, and the transaction that it reads, or "-".
        slots = [line.split() for line in self.environment.readers().splitlines()]
        reads = [
            Reader(max(0, last - int(slot[2])), int(slot[0])) for slot in slots
            if len(slot) == 3 and slot[0].isdecimal() and slot[2].isdecimal()
        ]
        return max(reads, default=Reader(0, 0))

    def _warn_of_old_reader(self) -> None:
        """Warn, at most once a minute, if an old read makes the file grow."""
        reader, now_s = self.oldest_reader(), clock.monotonic_s()
        if reader.lag_commits >= LAG_COMMITS_MIN and now_s >= self._warned_s + WARN_EVERY_S:
            self._warned_s = now_s
            _LOGGER.warning(
                "The file of the queue at %s grows: process %d has been reading for %d commits, and LMDB cannot reuse "
                "the pages that were freed since. If the process is stopped (SIGSTOP, a debugger, a frozen container), "
                "resume or end it; a backup ends by itself.", self.path, reader.process, reader.lag_commits)

    def clear_stale_readers_if_grown(self) -> None:
        """Free the slots of dead readers if the file has grown: LMDB cannot reuse pages that a stale reader may read.

        Without this the file would grow without end.
        """
        if self._pages() >= self._pages_at_check + GROWTH_PAGES_MIN:
            self.clear_stale_readers()
            self._warn_of_old_reader()

    def _pages(self) -> int:
        return self.environment.info()["last_pgno"]

    def gave_up(self) -> bool:
        """Return whether LMDB refuses everything until it is opened again: its root may or may not be written."""
        try:
            self.environment.begin().abort()
        except lmdb.PanicError:
            return True
        except lmdb.Error:
            pass  # it is busy or full, which the next transaction reports
        return False

    def copy(self, fd: int) -> None:
        """Write a compact, consistent copy to the descriptor of an empty file."""
        self.environment.copyfd(fd, compact=True)

    def close(self) -> None:
        """Close the environment. It may be called more than once. No transaction may be open."""
        if self.environment is not None:
            self.environment.close()


def _open_environment(path: pathlib.Path, sync: bool) -> lmdb.Environment:
    """Open the environment of a queue, even if dead processes occupy all reader slots."""
    try:
        return _try_open_environment(path, sync)
    except lmdb.ReadersFullError:
        reader_table.free_stale_slots(path)
        return _try_open_environment(path, sync)


def _try_open_environment(path: pathlib.Path, sync: bool) -> lmdb.Environment:
    return lmdb.Environment(os.fsencode(path),
                            map_size=MAP_BYTES_MIN,
                            sync=sync,
                            create=False,
                            max_readers=MAX_READERS,
                            max_dbs=SUB_DATABASES_MAX)


def _open_sub_databases(environment: lmdb.Environment, txn: "lmdb.Transaction[bytes]") -> SubDatabases:
    """Open the sub-databases of this version.

    :raise FormatError: the file belongs to another program or another version
    """
    version = None
    try:
        dbs = SubDatabases(*(environment.open_db(name.encode(), txn=txn, create=False)
                             for name in SubDatabases._fields))
        version = txn.get(layouts.FORMAT_KEY, db=dbs.queue_db)
    except (lmdb.NotFoundError, lmdb.IncompatibleError):
        pass
    if version != layouts.NUMBER.pack(layouts.FORMAT_VERSION):
        found = "none" if version is None else str(int.from_bytes(version, "big"))
        raise layouts.other_version(environment.path(), found)
    return dbs


def verify(file: pathlib.Path) -> List[str]:
    """Read a whole data file in Python, without LMDB, and return what is wrong with its pages.

    No process may write to the file meanwhile.
    """
    from lmdb import verify as walker  # here, since it is seldom needed
    try:
        return list(walker.verify(os.fspath(file), subdir=False))  # type: ignore[no-untyped-call]  # it is untyped
    except Exception as error:  # pylint: disable=broad-exception-caught  # a hostile file may cause any
        return [str(error) or repr(error)]


def inspect(path: pathlib.Path, operation: Callable[[Transaction], T]) -> T:
    """Open a queue whose pages are sound, and run an operation in a read transaction."""
    opened, txn = Database(path, True), Transaction()
    try:
        opened.open()
        opened.begin(txn, False)
        return operation(txn)
    except lmdb.Error as error:
        raise_translated(error, path)
    finally:
        txn.abort()
        opened.close()


def compact(file: pathlib.Path, fd: int) -> None:
    """Write a compact copy of a data file to the descriptor of an empty file. No process may have the file open."""
    try:
        with lmdb.Environment(os.fsencode(file), subdir=False, readonly=True, lock=False,
                              max_dbs=SUB_DATABASES_MAX) as environment:
            environment.copyfd(fd, compact=True)
    except lmdb.Error as error:
        raise_translated(error, file.parent)


class _Filled:
    """A database while :func:`fill` writes to it."""

    known: Optional[Known] = None

    def __init__(self, environment: lmdb.Environment, dbs: SubDatabases) -> None:
        self.environment = environment
        self.dbs = dbs


def fill(file: pathlib.Path, steps: Iterable[Callable[[Transaction], None]], size_bytes: int) -> None:
    """Write to a data file that :func:`create` has created, one transaction per step, and sync it to the disk.

    :param size_bytes: the maximum size of what will be written
    """
    try:
        with lmdb.Environment(os.fsencode(file),
                              subdir=False,
                              lock=False,
                              sync=False,
                              map_size=MAP_BYTES_MIN + 2 * size_bytes,
                              max_dbs=SUB_DATABASES_MAX) as environment:
            with environment.begin(write=True) as opening:
                filled = _Filled(environment, _open_sub_databases(environment, opening))
            for step in steps:
                txn = Transaction()
                try:
                    txn.begin(filled, True)
                    step(txn)
                    txn.commit()
                finally:
                    txn.abort()
            environment.sync(True)
    except lmdb.Error as error:
        raise_translated(error, file)


def create(file: pathlib.Path, header: Header, first_run: Run) -> None:
    """Write a new queue to an empty data file, durably. Its name must be one that no process opens yet."""
    try:
        # Without lib_version the default of the installed py-lmdb would decide which of LMDB's formats is written.
        with lmdb.Environment(os.fsencode(file),
                              subdir=False,
                              lock=False,
                              map_size=MAP_BYTES_MIN,
                              max_dbs=SUB_DATABASES_MAX,
                              mode=0o600,
                              lib_version=0) as environment, environment.begin(write=True) as txn:
            dbs = SubDatabases(*(environment.open_db(name.encode(), txn=txn) for name in SubDatabases._fields))
            txn.put(layouts.FORMAT_KEY, layouts.NUMBER.pack(layouts.FORMAT_VERSION), db=dbs.queue_db)
            txn.put(layouts.HEADER_KEY, layouts.encode_header(header), db=dbs.queue_db)
            txn.put(*layouts.encode_run(first_run), db=dbs.meta_db)
    except lmdb.Error as error:
        raise_translated(error, file)


MapFullError = lmdb.MapFullError
MapResizedError = lmdb.MapResizedError
ReadersFullError = lmdb.ReadersFullError
LmdbError = lmdb.Error
PanicError = lmdb.PanicError
#: What LMDB's methods raise. py-lmdb mishandles some errors, which Python then turns into a SystemError.
LMDB_ERRORS = (lmdb.Error, SystemError)
#: Errors of a transaction whose cause can be removed, so that it can be tried again.
REMOVABLE_ERRORS = (MapFullError, MapResizedError, ReadersFullError, PanicError)


def unwrapped(error: Exception) -> Exception:
    """Return LMDB's own error if Python turned it into a SystemError, and any other error as it is.

    :raise SystemError: it is not caused by LMDB
    """
    if isinstance(error, SystemError):
        if not isinstance(error.__cause__, lmdb.Error):
            raise error
        return error.__cause__
    return error


def raise_translated(error: Exception, path: pathlib.Path, unknown: bool = False) -> NoReturn:
    """Raise an error of this package for LMDB's error: it says what happened, to which queue, and what to do.

    :param unknown: whether it is unknown if the changes are stored
    """
    code = getattr(error, "code", 0)
    shortage = os_errors.shortage(code)
    kind: Type[errors.PersipubsubError] = errors.StorageError
    what = "was refused by LMDB; nothing was changed"
    if unknown:
        kind, what = errors.CommitUnknownError, (
            "had an error in the commit itself, so it is unknown whether the change is "
            "stored: check before you repeat it. The queue works again when the disk does")
    elif isinstance(error, lmdb.ReadersFullError):
        kind, what = errors.ReadersFullError, f"has more than {MAX_READERS} readers at one time. Use fewer processes"
    elif code in os_errors.NO_ROOM or code == errno.EIO and not os_errors.has_room(path, ROOM_BYTES_MIN):
        kind, what = errors.DiskFullError, "has no room left on its disk; nothing was changed. Make room and try again"
    elif shortage is not None:
        what = f"cannot be opened: {shortage}. Nothing was changed"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind, what = errors.PathError, "may not be opened by this user. Correct the permissions of its files"
    elif isinstance(error, (lmdb.MemoryError, MemoryError)):
        what = ("cannot get memory, or address space for its file: a queue needs at least "
                f"{MAP_BYTES_MIN >> 30} GiB of address space (not of memory). Raise the limit, see ulimit -v. "
                "Nothing was changed")
    elif code == errno.EAGAIN:
        what = (f"is used by another process with the same pid ({os.getpid()}), so this one runs in another pid "
                "namespace, as containers do. Have both share one (docker run --pid=container:NAME or --pid=host; "
                "shareProcessNamespace in Kubernetes). Nothing was changed")
    elif isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
        kind, what = errors.FormatError, "is not an LMDB file that this version can read. It was not changed"
    elif isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PageFullError, lmdb.CursorFullError)):
        kind = errors.DamagedError
        what = ("has a damaged file. Close it, and save what can still be read with persipubsub recover, or replace it "
                "with a backup")
    raise kind(f"The queue at {path} {what} (LMDB: {error}).") from error
