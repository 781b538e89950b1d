"""The file system of a queue: whether it is local to this machine."""

import errno
import os
import pathlib
from typing import Dict

from persipubsub import errors, os_errors

#: Other machines may have these mounted as well, and share neither LMDB's locks nor its mapped pages.
REMOTE_TYPES = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs", "fuse.grpcfuse", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs",
    "virtiofs"
})


def type_of(directory: pathlib.Path) -> str:
    """Return the type of a directory's file system, as in ``mount``, or an empty string where it is unknown.

    The mount is found by its id, not by path or device: mounts may cover each other, and btrfs has a device for each
    subvolume. ``statfs`` would need ctypes.
    """
    try:
        # O_PATH does not open the content: it needs no permission except to reach the directory.
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Bytes: a process that dropped its privileges may be unable to load a codec.
            fields: Dict[bytes, bytes] = {}
            for line in pathlib.Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines():
                name, _, value = line.partition(b":")
                fields[name] = value.strip()
        finally:
            os.close(fd)
        for mount in pathlib.Path("/proc/self/mountinfo").read_bytes().splitlines():
            # 36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw
            before, _, after = mount.partition(b" - ")
            if before.split()[0] == fields.get(b"mnt_id"):
                return after.split()[0].decode()
    except (OSError, AttributeError) as error:
        if os_errors.shortage(getattr(error, "errno", None)) is not None:
            raise  # nothing is known: it may be a remote one
        # There is no such directory, no /proc, or no O_PATH, as on other systems than Linux.
    return ""


def require_local(path: pathlib.Path) -> None:
    """Make sure that a queue lies, or would lie, on a file system of this machine.

    :raise PathError: other machines may have it mounted
    """
    directory = path
    while not os.path.isdir(directory) and directory != directory.parent:  # is_dir() raises without permission
        directory = directory.parent
    try:
        kind = type_of(directory)
    except OSError as error:
        raise errors.StorageError(
            f"The queue at {path} cannot be opened: {os_errors.shortage(error.errno)}.") from error
    if kind in REMOTE_TYPES:
        raise errors.PathError(
            errno.EREMOTE,
            f"It is on a file system that other machines may use ({kind}), where two writers at the same "
            "time would destroy a queue. Use a local disk, or, if only this machine ever uses the queue, make the "
            "Environment with allow_remote=True", os.fspath(path))
