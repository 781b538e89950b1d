"""The directory of a queue: its files, their modes, and the lock of those that use them."""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import stat
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from persipubsub import clock, errors, os_errors
from persipubsub.lmdb_engine.process import owners
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.layouts import Header, Run
from persipubsub.os_errors import errors_about, path_error

DATA_FILE = owners.DATA_FILE
LOCK_FILE = "lock.mdb"
USE_FILE = "use.lock"
WAKEUP_FILE = "wakeup"
#: See :mod:`persipubsub.lmdb_engine.process.unclean_marker`.
UNCLEAN_FILE = "unclean"
#: An unfinished data file. It is renamed when it is complete, so a queue exists completely or not at all.
NEW_DATA_FILE = "data.mdb.new"
#: The mode of missing parent directories, less the umask.
PARENT_MODE = 0o755
#: How long concurrent creators may block each other.
CREATE_WAIT_S_MAX = 1.0
_CREATE_LOOK_S = 0.005
FILES = (DATA_FILE, LOCK_FILE, USE_FILE, WAKEUP_FILE, UNCLEAN_FILE)

_LOGGER = logging.getLogger("persipubsub.files")  # the name that programs filter by


class UseLock:
    """A lock on a queue's ``use.lock``. It shows that the queue is open, and ends with this process."""

    def __init__(self, path: pathlib.Path, mode: int) -> None:
        self._fd: Optional[int] = None
        self._own: Optional[os_errors.Identity] = None
        with errors_about(path / USE_FILE):
            self._fd = open_or_create(path / USE_FILE, mode)
            self._own = os_errors.identity(self._fd)

    def share(self) -> None:
        """Share the lock. Wait while somebody holds it exclusively."""
        fcntl.flock(self._descriptor(), fcntl.LOCK_SH)

    def try_share(self) -> bool:
        """Share the lock unless somebody holds it exclusively. Return whether it is shared."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Lock exclusively unless somebody else holds the lock. On failure the shared lock is lost as well."""
        return self._try(fcntl.LOCK_EX)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _descriptor(self) -> int:
        assert self._fd is not None  # it is not closed
        return self._fd

    def close(self) -> None:
        """Release the lock. Closing more than once is harmless."""
        if self._fd is not None:
            # Closing is not enough: a child that was forked meanwhile has the same file open and would keep the lock.
            if os_errors.identity(self._fd) == self._own:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """Close the inherited lock in a forked child. The parent keeps the lock."""
        # Cleared first: the number may belong to another file as soon as the descriptor is closed.
        fd, self._fd = self._fd, None
        if fd is not None:
            os_errors.close_own(fd, self._own)


def open_or_create(file: pathlib.Path, mode: int) -> int:
    """Open a file of a queue for reading and writing. Links are not followed.

    A missing file is created with exactly the given mode, for the owner and the group of the queue.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # non-blocking: a FIFO would wait for a reader
    while True:
        try:
            return os.open(file, flags)
        except FileNotFoundError:
            pass
        try:
            fd = os.open(file, flags | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue  # another process was faster
        owners.set_owner(fd, owners.of_queue(file.parent), mode)
        return fd


def queue_key(path: pathlib.Path) -> Tuple[int, int]:
    """Identify the queue at a path by the device and inode of its data file.

    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file or not accessible
    """
    try:
        status = os.stat(path / DATA_FILE)
    except FileNotFoundError:
        raise errors.NotInitializedError(
            f"There is no queue at {path}. Set it up once with Environment.new_control(), or from the command line: "
            f"persipubsub create {path} --subscriber NAME") from None
    except OSError as error:
        raise path_error(error, path) from error
    return status.st_dev, status.st_ino


def was_opened(path: pathlib.Path) -> bool:
    """Return whether the queue at a path was opened before. If so, its files belong to this library."""
    return os.path.lexists(path / USE_FILE)


def require_no_links(path: pathlib.Path) -> None:
    """Make sure that the files of a queue are regular files. A link could lead to another user's file.

    :raise PathError: one is a link, a device or similar
    """
    for name in FILES:
        try:
            mode = os.lstat(path / name).st_mode
            # A directory is harmless: opening it raises an error.
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(errno.ELOOP, "It is not a regular file, and links are not followed")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise path_error(error, path / name) from error


def is_queue(path: pathlib.Path) -> bool:
    """Return whether there is a queue at a path.

    :raise PathError: the path is not accessible
    """
    try:
        return (path / DATA_FILE).exists()
    except OSError as error:
        raise path_error(error, path) from error


def data_file_mode(path: pathlib.Path) -> int:
    """Return the mode of the queue's data file. The other files have the same mode."""
    with errors_about(path / DATA_FILE):
        return stat.S_IMODE(os.stat(path / DATA_FILE).st_mode)


def directory_mode(mode: int) -> int:
    """Return the mode of a directory for files of a mode. Whoever may read or write the files may enter it."""
    return mode | (mode & 0o444) >> 2 | (mode & 0o222) >> 1


def create(path: pathlib.Path, header: Header, first_run: Run, mode: int) -> None:
    """Create the directory and the files of a queue durably, unless they exist.

    :param mode: of the files
    :raise PathError: the path is a file, or the directory cannot be created or written
    :raise DiskFullError: there is no room
    :raise InUseError: its data file was deleted, and a process still has it open
    """
    deadline = clock.monotonic_s() + CREATE_WAIT_S_MAX
    with errors_about(path):
        _make_directory(path, directory_mode(mode))
        while not is_queue(path):
            use_lock = UseLock(path, mode)
            try:
                if not use_lock.try_exclusive():
                    # Another process is creating it: wait until it has finished.
                    use_lock.share()
                    if not is_queue(path):
                        _require_time_left(path, deadline)
                elif not is_queue(path):
                    _write_files(path, header, first_run, mode)
            finally:
                use_lock.close()


def _require_time_left(path: pathlib.Path, deadline: float) -> None:
    """Wait a moment, so that one of several concurrent creators gets the exclusive lock."""
    if clock.monotonic_s() > deadline:
        raise errors.InUseError(
            f"The queue at {path} has no {DATA_FILE}, but a process still has it open: it was deleted meanwhile. "
            "Close it there, then try again.")
    clock.sleep(_CREATE_LOOK_S)


def _make_directory(path: pathlib.Path, mode: int, like: Optional[pathlib.Path] = None) -> None:
    """Create a directory with exactly the given mode, and its parents, unless they exist.

    :param like: the queue whose owner the directory gets
    """
    missing: List[pathlib.Path] = []
    target = path
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        # LMDB would create directories with its file mode, with which nobody can enter them. The queue's own directory
        # is closed until it has its owner and mode. The parents follow the umask, but other users may not write into
        # them: they could replace this queue with another one.
        with contextlib.suppress(FileExistsError):  # another process was faster
            directory.mkdir(0o700 if directory == target else PARENT_MODE)
            if directory == target:
                with opened(directory, os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
                    # Keep the bit by which a directory hands on its group.
                    kept = stat.S_IMODE(os.fstat(fd).st_mode) & stat.S_ISGID
                    owners.set_owner(fd, owners.of_queue(like or directory), mode | kept)
        sync(directory.parent)
    if not target.is_dir():
        raise FileExistsError(errno.EEXIST, "File exists", os.fspath(target))


def _write_files(path: pathlib.Path, header: Header, first_run: Run, mode: int) -> None:
    with new_data_file(path, mode) as new_file:
        database.create(new_file.path, header, first_run)
        _make_lock_file(path, mode)


def _make_lock_file(path: pathlib.Path, mode: int) -> None:
    (path / LOCK_FILE).unlink(missing_ok=True)
    allocate(path / LOCK_FILE, database.LOCK_FILE_BYTES, mode)


class NewFile(NamedTuple):
    """An unfinished data file."""

    path: pathlib.Path
    #: Open for reading and writing.
    fd: int


@contextlib.contextmanager
def new_data_file(path: pathlib.Path, mode: int, like: Optional[pathlib.Path] = None) -> Iterator[NewFile]:
    """Let the block write a data file, then move it into place in a single step.

    Until then only this user can read it. If there is a data file already, the caller must hold ``use.lock``
    exclusively, so that nobody reads the old file or waits for its lock.

    :param like: the queue whose owner the file gets, unless it is this one
    :raise PathError: this user may not write here
    :raise DiskFullError: there is no room; nothing was changed
    """
    new_file = path / NEW_DATA_FILE
    with errors_about(new_file):
        new_file.unlink(missing_ok=True)
        try:
            with opened(new_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd:
                yield NewFile(new_file, fd)
                owners.set_owner(fd, owners.of_queue(like or path), mode)
                os.fsync(fd)
                new_file.rename(path / DATA_FILE)
            sync(path)
        finally:
            # An unfinished file must not fill the disk. On a failing disk this fails as well; then the next opening
            # removes the file.
            with contextlib.suppress(OSError):
                new_file.unlink(missing_ok=True)


def warn_of_foreign_owner(path: pathlib.Path) -> None:
    """Warn if a queue, or its directory, belongs to a user whom this user need not trust."""
    with errors_about(path):
        owners.warn_of_foreign_owner(path)


def remove_leftovers(path: pathlib.Path) -> None:
    """Remove an unfinished data file. The caller must hold ``use.lock``, so nobody is writing one."""
    try:
        (path / NEW_DATA_FILE).unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.warning("%s was left by a process that was killed, and cannot be removed (%s). Remove it.",
                        path / NEW_DATA_FILE, error)


@contextlib.contextmanager
def new_queue(path: pathlib.Path, mode: int, like: pathlib.Path) -> Iterator[NewFile]:
    """Let the block write the data file of a new queue. The queue exists once the file is complete.

    :param mode: of the files
    :param like: the queue whose owner it gets
    :raise PathError: there is a queue or something else at the path, or this user may not write there
    :raise DiskFullError: there is no room
    """
    with errors_about(path):
        _make_directory(path, directory_mode(mode), like)
        # A process that was killed during this may have left some of these.
        if not {entry.name for entry in path.iterdir()} <= {NEW_DATA_FILE, LOCK_FILE, USE_FILE}:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        use_lock = UseLock(path, mode)
    try:
        if not use_lock.try_exclusive() or is_queue(path):
            raise path_error(OSError(errno.EEXIST, "Another process is creating a queue there"), path)
        with new_data_file(path, mode, like) as new_file:
            _make_lock_file(path, mode)
            yield new_file
    finally:
        use_lock.close()


def set_modes(path: pathlib.Path, mode: int) -> None:
    """Set the modes of the directory and of the files of a queue.

    :raise PathError: this user may not change them; all modes are as before
    """
    before: Dict[pathlib.Path, int] = {}
    with errors_about(path):
        try:
            for file in (path, *(path / name for name in FILES)):
                with contextlib.suppress(FileNotFoundError):
                    found = stat.S_IMODE(os.stat(file).st_mode)
                    # Keep the set-group-id and sticky bits of a directory. By path: opening and closing lock.mdb in
                    # a process that uses it would drop LMDB's locks.
                    file.chmod((directory_mode(mode) if file == path else mode) | found & (stat.S_ISGID | stat.S_ISVTX))
                    before[file] = found
        except OSError:
            for file, found in before.items():
                file.chmod(found)
            raise


def allocate(file: pathlib.Path, size_bytes: int, mode: int) -> None:
    """Allocate all blocks of a file, unless it has them. On a full disk a write to a mapped hole raises SIGBUS.

    For ``lock.mdb``, call this only while this process does not have the queue open.

    :raise PathError: it cannot be written
    :raise DiskFullError: there is no room
    """
    with errors_about(file):
        if file.exists() and os.stat(file).st_blocks * 512 >= size_bytes <= os.stat(file).st_size:
            return
        fd = open_or_create(file, mode)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size_bytes)
            elif os.fstat(fd).st_size < size_bytes:
                os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)


def backup(source: pathlib.Path, path: pathlib.Path, copy: Callable[[int], None]) -> None:
    """Create a directory, let ``copy`` write a data file into it, and sync it to the disk.

    It gets the owner, the group and the mode of the source, so whoever may use the source may use the restored copy. If
    the process is killed meanwhile, no incomplete queue is left.

    :param source: the directory of the queue that is copied
    :param copy: writes to a descriptor
    :raise PathError: the directory cannot be created, or it is not empty
    :raise DiskFullError: there is no room
    """
    mode = data_file_mode(source)
    with errors_about(path):
        _make_directory(path, directory_mode(mode), source)
        if any(entry.name != NEW_DATA_FILE for entry in path.iterdir()):  # left by an earlier attempt
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
    with new_data_file(path, mode, source) as new_file:
        copy(new_file.fd)


@contextlib.contextmanager
def opened(path: pathlib.Path, flags: int) -> Iterator[int]:
    """Open a file within the block. A file that this creates is accessible only to its owner."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def sync(path: pathlib.Path, flags: int = os.O_DIRECTORY) -> None:
    """Sync a file, or the entries of a directory, to the disk."""
    with opened(path, flags) as fd:
        os.fsync(fd)
