"""Who owns the files of a queue.

Whoever makes a file in a queue makes it for the owner and the group of the queue, as far as the system allows: a file
of root, or of another user of the group, would lock the owner out.
"""

import contextlib
import logging
import os
import pathlib
import stat
from typing import NamedTuple

_LOGGER = logging.getLogger("persipubsub.owners")  # the name that programs filter by

#: A queue's data file: what it belongs to, the queue belongs to.
DATA_FILE = "data.mdb"


class Owner(NamedTuple):
    """A user and a group, by number."""

    user: int
    group: int


def of_queue(path: pathlib.Path) -> Owner:
    """Return the owner of the queue in a directory; where there is none yet, the owner of the directory."""
    try:
        status = os.stat(path / DATA_FILE, follow_symlinks=False)
    except FileNotFoundError:
        status = os.stat(path)
    return Owner(status.st_uid, status.st_gid)


def give(fd: int, owner: Owner, mode: int) -> None:
    """Give a new file or directory to an owner, as far as the system allows, and set its mode.

    What of an owner cannot be given stays as it is. Where the group stays another one, it may do no more than everybody
    may: the mode is meant for the group of the queue.
    """
    found = os.fstat(fd)
    if owner != (found.st_uid, found.st_gid):
        # A user may give a file only to a group of their own. Without rights, or in a user namespace, not even that.
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, owner.group)
        with contextlib.suppress(OSError):
            os.fchown(fd, owner.user, -1)
    if os.fstat(fd).st_gid != owner.group:
        mode &= ~0o070 | (mode & 0o007) << 3
    # After it: to change the owner may clear bits. Explicit, since the umask would lock out users of the mode.
    if stat.S_IMODE(found.st_mode) != mode or owner != (found.st_uid, found.st_gid):
        os.fchmod(fd, mode)


def warn_of_stranger(path: pathlib.Path) -> None:
    """Warn if a queue, or its directory, belongs to a user who is neither this one nor root.

    It may have been put there to read what this user sends. A queue that is shared with a group of this user is meant
    so, and root may use all of them: there is no warning.
    """
    user = os.geteuid()
    if not user:
        return
    for record in (path / DATA_FILE, path):
        status = os.stat(record)
        shared = status.st_mode & stat.S_IWGRP and status.st_gid in {os.getegid(), *os.getgroups()}
        if status.st_uid not in (0, user) and not shared:
            _LOGGER.warning(
                "The queue at %s belongs to the user of number %d, not to this one (%d), and is not shared through a "
                "group of this user: that user can read and change all messages. If this is not meant, use a "
                "directory of your own.", path, status.st_uid, user)
            return
