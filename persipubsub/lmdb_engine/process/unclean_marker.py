"""The mark ``unclean``: some commit of this boot was not brought to the disk, so the next boot has to look closely.

A mark inside LMDB would not help: after a power cut such a file opens without an error, and its databases are gone.
Whoever commits without waiting for the disk writes the mark first. It is removed only by who has ``use.lock`` alone,
after everything was brought to the disk, or was found to be sound.
"""

import os
import pathlib

from persipubsub import clock, os_errors
from persipubsub.lmdb_engine.process import files


def write(path: pathlib.Path, mode: int) -> None:
    """Write down, durably, that commits of this boot may not be on the disk.

    :param mode: of the file
    :raise PathError: it cannot be written, or is a link
    """
    file = path / files.UNCLEAN_FILE
    try:
        fd = files.open_or_create(file, mode)
        try:
            # Several processes may do it at one time: all write the same bytes to the same place.
            os.pwrite(fd, clock.boot_id(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        files.sync(path)
    except OSError as error:
        raise os_errors.path_error(error, file) from error


def of_other_boot(path: pathlib.Path) -> bool:
    """Tell whether there is a mark of another boot, or one that is broken.

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
    """Bring the data file to the disk, and remove the mark if there is one. Who calls has ``use.lock`` alone.

    :raise PathError: this user may not
    """
    if not os.path.lexists(path / files.UNCLEAN_FILE):
        return
    try:
        files.sync(path / files.DATA_FILE, os.O_RDWR)
        (path / files.UNCLEAN_FILE).unlink(missing_ok=True)
        files.sync(path)
    except FileNotFoundError:
        pass  # the queue was deleted meanwhile, and nobody will open it
    except OSError as error:
        raise os_errors.path_error(error, path / files.UNCLEAN_FILE) from error
