"""The files of an open queue: whether they are still the ones at its path.

The system lets anybody delete or replace open files. A process that has them open would continue to send into a file
that nobody else sees. With another ``lock.mdb``, two processes would write at the same time.

- Every write checks that the data file still has a name. The check is exact and costs a microsecond.
- Checking that the files at the path are the same costs more. This happens when a subscriber finds nothing to
  receive, when the database is opened again, and once every few writes. It also reports a directory that was moved,
  in which the messages are safe.
"""

import os
import pathlib
from typing import Dict, Optional, Tuple

from persipubsub import errors, os_errors
from persipubsub.lmdb_engine.process import files

_NAMES = (files.DATA_FILE, files.LOCK_FILE, files.USE_FILE)


class FileIdentity:
    """The identity of a queue's files when this process, or a parent before a fork, first opened the queue.

    The system does not reuse an inode that is open.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._paths = {name: os.fspath(path / name) for name in _NAMES}  # made once: to join paths takes longer
        self._identities = self._found()
        self._data_fd: Optional[int] = None
        self.hold()

    def _found(self) -> Dict[str, Optional[Tuple[int, int]]]:
        return {name: _identity(file) for name, file in self._paths.items()}

    def are_there(self) -> bool:
        """Return whether the files at the path are known to be the ones that were opened."""
        try:
            return self._found() == self._identities
        except errors.PathError:
            return False

    def require(self) -> None:
        """Make sure that the files at the path are the ones that were opened.

        :raise ReplacedError: they are not
        :raise PathError: this user may not access them
        """
        if self._found() != self._identities:
            raise self.replaced()

    def replaced(self) -> errors.ReplacedError:
        """Return an error that says what happened to the files."""
        found = self._found()
        changed = [name for name in _NAMES if found[name] != self._identities[name]] or [files.DATA_FILE]
        what = "deleted" if all(found[name] is None for name in changed) else "replaced"
        return errors.ReplacedError(
            f"Files of the queue at {self._path} were {what} while it was open: {', '.join(changed)}. Nothing was "
            "changed. Close its Environments in all processes, restore the files or set the queue up again with "
            "Environment.new_control(), and open it again.")

    def holds(self) -> bool:
        """Return whether the descriptor is still that of the data file. Daemons close descriptors when they start."""
        return self._data_fd is not None and (os_errors.identity(self._data_fd) == self._identities[files.DATA_FILE])

    def hold(self) -> None:
        """Hold the data file again if the program closed the descriptor. The caller must then open LMDB again."""
        if not self.holds():
            # O_PATH does not open the content, so closing it drops no lock.
            with os_errors.errors_about(self._path / files.DATA_FILE):
                self._data_fd = os.open(self._path / files.DATA_FILE, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)

    def is_named(self) -> bool:
        """Return whether the data file still has a name, at the path or elsewhere.

        :raise StorageError: the program closed descriptors, so LMDB could write into another file
        """
        assert self._data_fd is not None  # it is not closed
        try:
            status = os.fstat(self._data_fd)
        except OSError as error:
            raise self._closed() from error
        if (status.st_dev, status.st_ino) != self._identities[files.DATA_FILE]:
            raise self._closed()
        return bool(status.st_nlink)

    def _closed(self) -> errors.StorageError:
        return errors.StorageError(
            f"The program has closed descriptors of the queue at {self._path} that it does not own, as daemons do when "
            "they start. Nothing was changed. Open the queue afterwards, in a process that did not have it open.")

    def close(self) -> None:
        """Close the descriptor. Closing more than once is harmless."""
        # Cleared first: the number may belong to another file as soon as the descriptor is closed.
        fd, self._data_fd = self._data_fd, None
        if fd is not None:
            os_errors.close_own(fd, self._identities[files.DATA_FILE])


def _identity(file: str) -> Optional[Tuple[int, int]]:
    try:
        status = os.stat(file, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        # The file may exist.
        raise os_errors.path_error(error, pathlib.Path(file)) from error
    return status.st_dev, status.st_ino
