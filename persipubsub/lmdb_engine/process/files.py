"""The directory of a queue: its files, their modes, and who uses them."""

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
#: A data file in the making. It gets its name when it is whole, so that a queue is there or is not.
NEW_DATA_FILE = "data.mdb.new"
#: Of the directories above that of a queue, where they are made, less the umask.
PARENT_MODE = 0o755
#: How long concurrent creators may block each other.
CREATE_WAIT_S_MAX = 1.0
_CREATE_LOOK_S = 0.005
FILES = (DATA_FILE, LOCK_FILE, USE_FILE, WAKEUP_FILE, UNCLEAN_FILE)

_LOGGER = logging.getLogger("persipubsub.files")  # the name that programs filter by


class UseLock:
    """A shared lock on the queue's ``use.lock``: it tells other processes that the queue is open, and dies with us."""

    def __init__(self, path: pathlib.Path, mode: int) -> None:
        self._fd: Optional[int] = None
        self._own: Optional[os_errors.Identity] = None
        with errors_about(path / USE_FILE):
            self._fd = open_or_create(path / USE_FILE, mode)
            self._own = os_errors.identity(self._fd)

    def share(self) -> None:
        """Take the lock with others; waits while somebody has it alone."""
        fcntl.flock(self._descriptor(), fcntl.LOCK_SH)

    def try_share(self) -> bool:
        """Take the lock with others, unless somebody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def try_alone(self) -> bool:
        """Take the lock alone, unless somebody has it. Where somebody does, this one is not held any more either."""
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
        """Give the lock back; more than once is fine."""
        if self._fd is not None:
            # Closing is not enough: a child that was forked meanwhile has the same file open, and would keep the lock.
            if os_errors.identity(self._fd) == self._own:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """Let a child go of the lock that it has inherited; its parent keeps it."""
        # Forgotten first: its number may be another file's as soon as it is closed.
        fd, self._fd = self._fd, None
        if fd is not None:
            os_errors.close_own(fd, self._own)


def open_or_create(file: pathlib.Path, mode: int) -> int:
    """Open a file of a queue for reading and writing. Links are not followed.

    A file that is missing is made with exactly that mode, for the owner and the group of the queue.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # not blocking: a FIFO would wait for a reader
    while True:
        try:
            return os.open(file, flags)
        except FileNotFoundError:
            pass
        try:
            fd = os.open(file, flags | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue  # another process was faster
        owners.give(fd, owners.of_queue(file.parent), mode)
        return fd


def queue_key(path: pathlib.Path) -> Tuple[int, int]:
    """Identify the queue at a path by the device and inode of its data file.

    :raise NotInitializedError: there is none
    :raise PathError: the path is a file, or may not be looked into
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
    """Tell whether the queue at a path was open before: then what lies there is ours."""
    return os.path.lexists(path / USE_FILE)


def require_no_links(path: pathlib.Path) -> None:
    """Make sure that the files of a queue are files: a link could lead to somebody else's.

    :raise PathError: one is a link, or a device or the like
    """
    for name in FILES:
        try:
            mode = os.lstat(path / name).st_mode
            # A directory leads nowhere; whoever opens it says so.
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OSError(errno.ELOOP, "It is no regular file, and links are not followed")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise path_error(error, path / name) from error


def is_queue(path: pathlib.Path) -> bool:
    """Tell whether there is a queue at a path.

    :raise PathError: the path may not be looked into
    """
    try:
        return (path / DATA_FILE).exists()
    except OSError as error:
        raise path_error(error, path) from error


def data_file_mode(path: pathlib.Path) -> int:
    """Give the mode of the queue's data file, which its other files share."""
    with errors_about(path / DATA_FILE):
        return stat.S_IMODE(os.stat(path / DATA_FILE).st_mode)


def directory_mode(mode: int) -> int:
    """Give the mode of a directory for files of a mode: who may read or write in it may enter it."""
    return mode | (mode & 0o444) >> 2 | (mode & 0o222) >> 1


def create(path: pathlib.Path, header: Header, first_run: Run, mode: int) -> None:
    """Make the directory and the files of a queue, durably, unless they are there.

    :param mode: of the files
    :raise PathError: the path is a file, or the directory may not be made or written
    :raise DiskFullError: there is no room
    :raise InUseError: its data file was deleted, and somebody still has it open
    """
    deadline = clock.monotonic_s() + CREATE_WAIT_S_MAX
    with errors_about(path):
        _make_directory(path, directory_mode(mode))
        while not is_queue(path):
            use_lock = UseLock(path, mode)
            try:
                if not use_lock.try_alone():
                    # Somebody is just making it: wait for the end.
                    use_lock.share()
                    if not is_queue(path):
                        _require_time_left(path, deadline)
                elif not is_queue(path):
                    _write_files(path, header, first_run, mode)
            finally:
                use_lock.close()


def _require_time_left(path: pathlib.Path, deadline: float) -> None:
    """Wait a moment, so that one of those who want to make a queue gets the lock alone."""
    if clock.monotonic_s() > deadline:
        raise errors.InUseError(
            f"The queue at {path} has no {DATA_FILE}, but some process still has it open: it was deleted meanwhile. "
            "Close it there, and try again.")
    clock.sleep(_CREATE_LOOK_S)


def _make_directory(path: pathlib.Path, mode: int, like: Optional[pathlib.Path] = None) -> None:
    """Make a directory with exactly that mode, unless it is there, and its parents.

    :param like: a queue whose owner it gets
    """
    missing: List[pathlib.Path] = []
    target = path
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        # Made by ourselves: the directories that LMDB makes have its file mode, with which nobody can enter them. The
        # queue's own is closed until it has its owner and mode. The parents are as by the umask, but for no others to
        # write into: they could put another queue in the place of this one.
        with contextlib.suppress(FileExistsError):  # another process was faster
            directory.mkdir(0o700 if directory == target else PARENT_MODE)
            if directory == target:
                with opened(directory, os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
                    # A directory that hands on its group keeps doing so.
                    kept = stat.S_IMODE(os.fstat(fd).st_mode) & stat.S_ISGID
                    owners.give(fd, owners.of_queue(like or directory), mode | kept)
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
    """A data file in the making."""

    path: pathlib.Path
    #: Open for reading and writing.
    fd: int


@contextlib.contextmanager
def new_data_file(path: pathlib.Path, mode: int, like: Optional[pathlib.Path] = None) -> Iterator[NewFile]:
    """Have a data file written, which takes its place in a single step when it is whole.

    Until then only this user can read it. Where there is one already, the caller must hold ``use.lock`` exclusively:
    nobody waits for the lock in the old one, or reads it.

    :param like: the queue whose owner the file gets, unless it is this one
    :raise PathError: this user may not
    :raise DiskFullError: there is no room; all is as before
    """
    new_file = path / NEW_DATA_FILE
    with errors_about(new_file):
        new_file.unlink(missing_ok=True)
        try:
            with opened(new_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as fd:
                yield NewFile(new_file, fd)
                owners.give(fd, owners.of_queue(like or path), mode)
                os.fsync(fd)
                new_file.rename(path / DATA_FILE)
            sync(path)
        finally:
            # It takes no room where there is little. On a disk that fails this fails as well; then the next opening
            # removes it.
            with contextlib.suppress(OSError):
                new_file.unlink(missing_ok=True)


def warn_of_stranger(path: pathlib.Path) -> None:
    """Warn if a queue, or its directory, belongs to a user whom this one need not trust."""
    with errors_about(path):
        owners.warn_of_stranger(path)


def remove_leftovers(path: pathlib.Path) -> None:
    """Remove a data file whose making was cut off. The caller must hold ``use.lock``, so nobody makes one now."""
    try:
        (path / NEW_DATA_FILE).unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.warning("%s is left of a process that was ended, and cannot be removed (%s). Remove it.",
                        path / NEW_DATA_FILE, error)


@contextlib.contextmanager
def new_queue(path: pathlib.Path, mode: int, like: pathlib.Path) -> Iterator[NewFile]:
    """Have the data file of a new queue written, which is there when the file is whole, and not before.

    :param mode: of the files
    :param like: the queue whose owner it gets
    :raise PathError: there is a queue or something else at the path, or this user may not
    :raise DiskFullError: there is no room
    """
    with errors_about(path):
        _make_directory(path, directory_mode(mode), like)
        # Whoever was ended in the midst of this left some of these.
        if not {entry.name for entry in path.iterdir()} <= {NEW_DATA_FILE, LOCK_FILE, USE_FILE}:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        use_lock = UseLock(path, mode)
    try:
        if not use_lock.try_alone() or is_queue(path):
            raise path_error(OSError(errno.EEXIST, "Somebody else makes a queue there"), path)
        with new_data_file(path, mode, like) as new_file:
            _make_lock_file(path, mode)
            yield new_file
    finally:
        use_lock.close()


def set_modes(path: pathlib.Path, mode: int) -> None:
    """Set the modes of the directory and of the files of a queue.

    :raise PathError: this user may not; all modes are as before
    """
    before: Dict[pathlib.Path, int] = {}
    with errors_about(path):
        try:
            for file in (path, *(path / name for name in FILES)):
                with contextlib.suppress(FileNotFoundError):
                    found = stat.S_IMODE(os.stat(file).st_mode)
                    # The bits by which a directory hands on its group, and keeps others from deleting, stay. By path:
                    # opening and closing lock.mdb in a process that uses it would drop LMDB's locks.
                    file.chmod((directory_mode(mode) if file == path else mode) | found & (stat.S_ISGID | stat.S_ISVTX))
                    before[file] = found
        except OSError:
            for file, found in before.items():
                file.chmod(found)
            raise


def allocate(file: pathlib.Path, size_bytes: int, mode: int) -> None:
    """Give a file all its blocks, unless it has them: a full disk turns a write to a mapped hole into SIGBUS.

    Of ``lock.mdb`` only while this process does not have the queue open.

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
    """Make a directory, have a copy of a data file written into it, and bring it to the disk.

    It gets the owner, the group and the mode of the source, so whoever may use that may use the restored copy. What
    ends it in the midst leaves no queue there that lacks something.

    :param source: the directory of the queue that is copied
    :param copy: writes to a descriptor
    :raise PathError: the directory cannot be made, or it is not empty
    :raise DiskFullError: there is no room
    """
    mode = data_file_mode(source)
    with errors_about(path):
        _make_directory(path, directory_mode(mode), source)
        if any(entry.name != NEW_DATA_FILE for entry in path.iterdir()):  # that one is left of a try before this
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
    with new_data_file(path, mode, source) as new_file:
        copy(new_file.fd)


@contextlib.contextmanager
def opened(path: pathlib.Path, flags: int) -> Iterator[int]:
    """Have a descriptor of a file within the block; one that is made is for its owner alone."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def sync(path: pathlib.Path, flags: int = os.O_DIRECTORY) -> None:
    """Bring a file, or the entries of a directory, to the disk."""
    with opened(path, flags) as fd:
        os.fsync(fd)
