"""Errors of the operating system as errors of this library, and checks that a descriptor is still the library's."""

import contextlib
import errno
import os
import pathlib
import resource
from typing import Iterator, Optional, Tuple

from persipubsub import errors


def path_error(error: OSError, path: pathlib.Path) -> errors.PersipubsubError:
    """Return an error that says what is wrong with a path and what to do: a DiskFullError where there is no room."""
    if error.errno in NO_ROOM:
        return errors.DiskFullError(f"There is no room on the disk for {path}. Make room and try again.")
    reason = shortage(error.errno)
    if reason is not None:
        return errors.StorageError(f"{path} cannot be opened: {reason}.")
    remedy = {
        PermissionError: "Correct its permissions, or run as a user who may use it",
        NotADirectoryError: "A part of the path is a file: use another path",
        FileExistsError: "There is a file at the path: use another path",
        FileNotFoundError: "It does not exist",
        IsADirectoryError: "There is a directory where a file of the queue belongs: move it away",
    }.get(type(error), "Correct it, or use another path")
    return errors.PathError(error.errno, f"{error.strerror}. {remedy}", os.fspath(path))


@contextlib.contextmanager
def errors_about(path: pathlib.Path) -> Iterator[None]:
    """Raise the errors of the system within the block as errors of this library about a path."""
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.PersipubsubError):  # a PathError is an OSError as well
            raise
        raise path_error(error, path) from error


#: The system's errors where the disk, or the user's quota, has no room.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def has_room(path: pathlib.Path, size_bytes: int) -> bool:
    """Return whether the disk has that much free space; True where the system does not show it."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return True
    return disk.f_bavail * disk.f_frsize >= size_bytes


#: Descriptors that a process holds for each open queue: three of LMDB, one of ``use.lock``, one of the mapped
#: ``wakeup``, and one that keeps the system from reusing the inode of the data file.
DESCRIPTORS_PER_QUEUE = 6

Identity = Tuple[int, int]


def identity(fd: int) -> Optional[Identity]:
    """Return the device and inode of the file behind a descriptor, or None if the descriptor is not open."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None
    return status.st_dev, status.st_ino


def close_own(fd: int, own: Optional[Identity]) -> None:
    """Close a descriptor unless the program closed it, as daemons do. Its number may belong to another file by now."""
    if identity(fd) == own:
        os.close(fd)


def shortage(code: Optional[int]) -> Optional[str]:
    """Return which limit of open files was reached, and the remedy, or None for any other error.

    :param code: the errno of the error
    """
    if code == errno.ENFILE:
        return "the machine has too many files open. Raise its limit (sysctl fs.file-max), or close some"
    if code == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"this process has too many files open: its limit is {limit} descriptors, and a queue "
            f"uses {DESCRIPTORS_PER_QUEUE} of them. Close some, or raise the limit (ulimit -n, LimitNOFILE of systemd)")
    return None
