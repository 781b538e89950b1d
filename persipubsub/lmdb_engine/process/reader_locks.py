"""Notice that two processes receive as one plain subscriber, which is rarely meant.

Each process locks a byte of ``use.lock`` for each plain subscriber that it has open, with a shared lock of the open
file (see fcntl(2), ``F_OFD_SETLK``), which ends with the process. Then it asks whether an exclusive lock would be
refused.
These locks and that on the whole file do not affect each other.
"""

import fcntl
import os
import pathlib
import struct
import threading
from typing import Dict, Optional

from persipubsub.lmdb_engine.process import files

#: The byte of the subscriber with number 0.
_FIRST_BYTE = 1024
_FORMAT = "hhqqi"
_SET = getattr(fcntl, "F_OFD_SETLK", None)
_GET = getattr(fcntl, "F_OFD_GETLK", None)


class ReaderLocks:
    """The locks of one process."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._fd: Optional[int] = None
        self._counts: Dict[int, int] = {}  # of announcements, by the number of the subscriber
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread

    def announce(self, number: int) -> bool:
        """Announce that this process receives as a subscriber.

        :return: whether this is the first announcement of this process, and another process receives, too
        """
        with self._lock:
            self._counts[number] = count = self._counts.get(number, 0) + 1
            return count == 1 and self._set(number, fcntl.F_RDLCK) and self._is_locked_elsewhere(number)

    def renounce(self, number: int) -> None:
        """Take an announcement back."""
        with self._lock:
            count = self._counts.pop(number, 0)
            if count > 1:
                self._counts[number] = count - 1
            elif count:
                self._set(number, fcntl.F_UNLCK)

    def _set(self, number: int, kind: int) -> bool:
        """Lock or unlock a byte; return whether that was possible. Without locks, nothing is noticed."""
        if _SET is None:
            return False
        try:
            if self._fd is None:
                self._fd = os.open(self._path / files.USE_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.fcntl(self._fd, _SET, _lock(number, kind))
        except OSError:
            return False
        return True

    def _is_locked_elsewhere(self, number: int) -> bool:
        """Return whether another process has locked a byte."""
        assert self._fd is not None and _GET is not None
        try:
            found = fcntl.fcntl(self._fd, _GET, _lock(number, fcntl.F_WRLCK))
        except OSError:
            return False
        return bool(struct.unpack(_FORMAT, found)[0] != fcntl.F_UNLCK)

    def close(self) -> None:
        """Release all locks. In a forked child this leaves the parent's locks alone."""
        self._lock = threading.RLock()  # in a child, a thread of the parent may seem to hold it
        fd, self._fd = self._fd, None
        self._counts = {}
        if fd is not None:
            os.close(fd)


def _lock(number: int, kind: int) -> bytes:
    """Return the argument of fcntl(2) that means the byte of a subscriber."""
    return struct.pack(_FORMAT, kind, os.SEEK_SET, _FIRST_BYTE + number, 1, 0)
