"""The files of an open queue: whether they are still the ones at its path.

The system lets anybody delete or replace files that are open: who has them open would go on sending into a file that
nobody else sees. With another ``lock.mdb`` two would write at one time.

- Every write looks whether the data file still has a name: that is exact, and costs a microsecond.
- Whether the files at the path are the same costs some more: who finds nothing to receive looks, who opens the database
  again, and now and then who writes. It tells of a directory that was moved, too, in which the messages are safe.
"""

import os
import pathlib
from typing import Dict, Optional, Tuple

from persipubsub import errors, os_errors
from persipubsub.lmdb_engine.process import files

_NAMES = (files.DATA_FILE, files.LOCK_FILE, files.USE_FILE)


class FileIdentity:
    """What the files of a queue were when it was first opened in this process or, if that came before, its parent.

    An inode that somebody has open is not given away again.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._identities = self._found()
        self._data_fd: Optional[int] = None
        self.hold()

    def _found(self) -> Dict[str, Optional[Tuple[int, int]]]:
        return {name: _identity(self._path / name) for name in _NAMES}

    def are_there(self) -> bool:
        """Tell whether the files at the path are known to be the ones that were opened."""
        try:
            return self._found() == self._identities
        except errors.PathError:
            return False

    def require(self) -> None:
        """Make sure that they are.

        :raise ReplacedError: they are not
        :raise PathError: this user may not look
        """
        if self._found() != self._identities:
            raise self.replaced()

    def replaced(self) -> errors.ReplacedError:
        """Say what has become of the files."""
        found = self._found()
        changed = [name for name in _NAMES if found[name] != self._identities[name]] or [files.DATA_FILE]
        what = "deleted" if all(found[name] is None for name in changed) else "replaced"
        return errors.ReplacedError(
            f"Files of the queue at {self._path} were {what} while it was open: {', '.join(changed)}. Nothing was "
            "changed. Close its Environments in all processes, put back what was there or set the queue up anew with "
            "Environment.new_control(), and open it again.")

    def holds(self) -> bool:
        """Tell whether the descriptor is still that of the data file: the program may have closed it, as daemons do."""
        return self._data_fd is not None and (os_errors.identity(self._data_fd) == self._identities[files.DATA_FILE])

    def hold(self) -> None:
        """Hold the data file again if the program has closed the descriptor. LMDB must be about to open it anew."""
        if not self.holds():
            # O_PATH opens nothing: to close it drops no lock.
            with os_errors.errors_about(self._path / files.DATA_FILE):
                self._data_fd = os.open(self._path / files.DATA_FILE, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)

    def require_for_write(self, thoroughly: bool) -> None:
        """Make sure that the data file still has a name, here or elsewhere; thoroughly, that all are as they were.

        :raise ReplacedError: it is not so
        :raise StorageError: the program has closed descriptors, so LMDB could write into another file
        """
        assert self._data_fd is not None  # it is not closed
        try:
            status = os.fstat(self._data_fd)
        except OSError as error:
            raise self._closed() from error
        if (status.st_dev, status.st_ino) != self._identities[files.DATA_FILE]:
            raise self._closed()
        if thoroughly or not status.st_nlink:
            self.require()

    def _closed(self) -> errors.StorageError:
        return errors.StorageError(
            f"The program has closed descriptors of the queue at {self._path} that it does not own, as daemons do when "
            "they start. Nothing was changed. Open the queue after that, in a process that had it not open.")

    def close(self) -> None:
        """Let go of them; more than once is fine."""
        # Forgotten first: its number may be another file's as soon as it is closed.
        fd, self._data_fd = self._data_fd, None
        if fd is not None:
            os_errors.close_own(fd, self._identities[files.DATA_FILE])


def _identity(file: pathlib.Path) -> Optional[Tuple[int, int]]:
    try:
        status = os.stat(file, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        # Nothing is known: it may well be there.
        raise os_errors.path_error(error, file) from error
    return status.st_dev, status.st_ino
