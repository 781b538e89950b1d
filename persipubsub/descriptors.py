"""File descriptors: whether one is still ours, and what to say where there are none left."""

import errno
import os
import resource
from typing import Optional, Tuple

#: How many descriptors a process holds for each queue that it has open: three of LMDB, ``use.lock``, that of the mapped
#: ``wakeup``, and one that keeps the inode of the data file from being given away again.
OF_A_QUEUE = 6

Identity = Tuple[int, int]


def identity(fd: int) -> Optional[Identity]:
    """Return device and inode of the file behind a descriptor, or None where none is open."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None
    return status.st_dev, status.st_ino


def close_own(fd: int, own: Optional[Identity]) -> None:
    """Close a descriptor, unless the program closed it, as daemons do, and it is another file's by now."""
    if identity(fd) == own:
        os.close(fd)


def shortage(code: Optional[int]) -> Optional[str]:
    """Return which limit of open files was reached, and the remedy; None where an error is another one.

    :param code: the number of the system's error
    """
    if code == errno.ENFILE:
        return "the machine has too many files open. Raise its limit (sysctl fs.file-max), or close some"
    if code == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"this process has too many files open: its limit is {limit} descriptors, and a queue takes {OF_A_QUEUE} "
            "of them. Close some, or raise the limit (ulimit -n, LimitNOFILE of systemd)")
    return None
