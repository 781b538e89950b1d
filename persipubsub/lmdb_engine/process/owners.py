"""The owner of the files of a queue.

Every new file of a queue belongs to the owner and the group of the queue, as far as the system allows. A file of root,
or of another user of the group, would lock the owner out.
"""

import contextlib
import logging
import os
import pathlib
import stat
from typing import NamedTuple

_LOGGER = logging.getLogger("persipubsub.owners")  # the name that programs filter by

#: A queue's data file. Its owner and group are those of the queue.
DATA_FILE = "data.mdb"


class Owner(NamedTuple):
    """A user and a group, by number."""

    user: int
    group: int


def of_queue(path: pathlib.Path) -> Owner:
    """Return the owner of the queue in a directory, or of the directory if it has no queue yet."""
    try:
        status = os.stat(path / DATA_FILE, follow_symlinks=False)
    except FileNotFoundError:
        status = os.stat(path)
    return Owner(status.st_uid, status.st_gid)


def set_owner(fd: int, owner: Owner, mode: int) -> None:
    """Set the owner of a new file or directory, as far as the system allows, and its mode.

    Where the group cannot be changed, it gets only the permissions of everybody else: the mode is meant for the group
    of the queue.
    """
    found = os.fstat(fd)
    if owner != (found.st_uid, found.st_gid):
        # Users may change the group only to one of theirs. Without privileges, or in a user namespace, not even that.
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, owner.group)
        with contextlib.suppress(OSError):
            os.fchown(fd, owner.user, -1)
    if os.fstat(fd).st_gid != owner.group:
        mode &= ~0o070 | (mode & 0o007) << 3
    # Afterwards, since changing the owner may clear bits. Explicitly, since the umask may remove bits of the mode.
    if stat.S_IMODE(found.st_mode) != mode or owner != (found.st_uid, found.st_gid):
        os.fchmod(fd, mode)


def warn_of_foreign_owner(path: pathlib.Path) -> None:
    """Warn if a queue, or its directory, belongs to a user other than this one and root.

    It may have been put there to read what this user sends. There is no warning for root, nor for a queue that is
    shared with a group of this user: that is intended.
    """
    user = os.geteuid()
    if not user:
        return
    for record in (path / DATA_FILE, path):
        status = os.stat(record)
        shared = status.st_mode & stat.S_IWGRP and status.st_gid in {os.getegid(), *os.getgroups()}
        if status.st_uid not in (0, user) and not shared:
            _LOGGER.warning(
                "The queue at %s belongs to the user with id %d, not to this one (%d), and is not shared through a "
                "group of this user. That user can read and change all messages. If this is not intended, use a "
                "directory of your own.", path, status.st_uid, user)
            return
