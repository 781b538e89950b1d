"""The unclean marker: a commit of this boot may not be on the disk, so the queue must be verified after the next boot.

A marker inside LMDB would not help: after a power cut such a file may open without an error, with its databases lost.
A process that commits without waiting for the disk writes the marker first. Only the holder of the exclusive
``use.lock`` removes it, after everything was synced to the disk or found to be sound.
"""

import os
import pathlib

from persipubsub import clock, os_errors
from persipubsub.lmdb_engine.process import files


def write(path: pathlib.Path, mode: int) -> None:
    """Record durably that commits of this boot may not be on the disk.

    :param mode: mode of the file
    :raise PathError: it cannot be written, or is a link
    """
    file = path / files.UNCLEAN_FILE
    try:
        fd = files.open_or_create(file, mode)
        try:
            # Several processes may do this at the same time: all write the same bytes.
            os.pwrite(fd, clock.boot_id(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        files.sync(path)
    except OSError as error:
        raise os_errors.path_error(error, file) from error


def of_other_boot(path: pathlib.Path) -> bool:
    """Return whether there is an unclean marker of another boot, or a broken one.

    :raise PathError: it cannot be read, or is a link
    """
    file = path / files.UNCLEAN_FILE
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise os_errors.path_error(error, file) from error
    try:
        with os_errors.errors_about(file):
            return os.read(fd, 64) != clock.boot_id()
    finally:
        os.close(fd)


def remove(path: pathlib.Path) -> None:
    """Sync the data file to the disk, and remove the unclean marker, if any.

    The caller must hold ``use.lock`` exclusively.

    :raise PathError: this user may not remove it
    """
    if not os.path.lexists(path / files.UNCLEAN_FILE):
        return
    try:
        files.sync(path / files.DATA_FILE, os.O_RDWR)
        (path / files.UNCLEAN_FILE).unlink(missing_ok=True)
        files.sync(path)
    except FileNotFoundError:
        pass  # the queue was deleted meanwhile, so nobody will open it
    except OSError as error:
        raise os_errors.path_error(error, path / files.UNCLEAN_FILE) from error
