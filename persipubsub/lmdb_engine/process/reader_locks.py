"""Notice that two processes receive as one plain subscriber, which is rarely meant.

Each process locks a byte of ``use.lock`` for each plain subscriber that it has open, with a lock of the open file (see
fcntl(2), ``F_OFD_SETLK``), which ends with the process. These locks and that on the whole file do not affect each
other.
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
_SET = getattr(fcntl, "F_OFD_SETLK", None)


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
            return count == 1 and not self._set(number, fcntl.F_WRLCK)

    def renounce(self, number: int) -> None:
        """Take an announcement back."""
        with self._lock:
            count = self._counts.pop(number, 0)
            if count > 1:
                self._counts[number] = count - 1
            elif count:
                self._set(number, fcntl.F_UNLCK)

    def _set(self, number: int, kind: int) -> bool:
        """Lock or unlock a byte; return False if another process has locked it."""
        if _SET is None:
            return True
        try:
            if self._fd is None:
                self._fd = os.open(self._path / files.USE_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.fcntl(self._fd, _SET, struct.pack("hhqqi", kind, os.SEEK_SET, _FIRST_BYTE + number, 1, 0))
        except BlockingIOError:
            return False
        except OSError:
            pass  # without locks, nothing is noticed
        return True

    def close(self) -> None:
        """Release all locks. In a forked child this leaves the parent's locks alone."""
        self._lock = threading.RLock()  # in a child, a thread of the parent may seem to hold it
        fd, self._fd = self._fd, None
        self._counts = {}
        if fd is not None:
            os.close(fd)
