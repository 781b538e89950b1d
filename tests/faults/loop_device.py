"""A file system that can lose power: ext4 in a file, which forgets at once what it has not flushed."""

import fcntl
import os
import pathlib
import struct
import subprocess
import time

#: Sparse. Room for what is sent, and for what a recovery makes of it.
SIZE_BYTES = 4 * 1024**3
#: EXT4_IOC_SHUTDOWN, and its flag not to flush the journal: what a loss of power does.
SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
UNMOUNT_S_MAX = 30


class LoopDevice:
    """A file system of its own. To be used where mounts vanish with the process: see campaigns.py."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._file = directory / "ext4"
        self.path = directory / "mounted"
        self.path.mkdir()
        with open(self._file, "wb") as file:
            file.truncate(SIZE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._file], check=True)
        self.mount()

    def mount(self) -> None:
        """Mount it; what its journal holds is brought into place. The kernel writes back after a second."""
        subprocess.run(["mount", "-o", "loop,commit=1", self._file, self.path], check=True)

    def cut(self) -> None:
        """Lose power: from now on nothing reaches the disk any more."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it, once nobody uses it any more."""
        deadline = time.monotonic() + UNMOUNT_S_MAX
        while subprocess.run(["umount", self.path], check=False, stderr=subprocess.DEVNULL).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path} cannot be unmounted")
            time.sleep(0.05)

    def __enter__(self) -> "LoopDevice":
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Lazily, as something may still use it after a failure. The loop device goes with the mount.
        subprocess.run(["umount", "--lazy", self.path], check=False, stderr=subprocess.DEVNULL)
