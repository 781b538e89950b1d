"""Whether a program synced what must be on the disk, judged from its system calls.

A power cut shows a missing sync only where it comes at the right moment, and where the file system forgets enough. The
order of the calls shows it each time.
"""

import pathlib
import re
import subprocess
import sys
from typing import List, Optional, Set

#: Files that mean nothing after a boot, or have no name yet that anybody looks for.
PASSING = {"lock.mdb", "use.lock", "wakeup", "data.mdb.new"}

_CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_ON_FD = re.compile(r"^(?P<fd>\d+)<(?P<path>[^>]*)>")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<directory>[^>]*)>, )?"(?P<path>[^"]*)"')
_SYNCS = {"fsync", "fdatasync"}
_WRITES = {"write", "pwrite64", "writev", "pwritev", "ftruncate", "sendfile", "copy_file_range"}
_NAMES = {
    "open", "openat", "rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat", "unlink", "unlinkat"
}


class SyncOrder:
    """Follows the calls below a directory, and notes what is not on the disk when it should be."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root.resolve()
        self._known = {self._root, *self._root.rglob("*")}
        self._unsynced: Set[pathlib.Path] = set()  # files whose bytes, and directories whose entries, may be lost
        self._syncing_fds: Set[int] = set()  # what is written to these is on the disk; LMDB writes its meta pages so
        self.faults: List[str] = []

    def run(self, program: str, *arguments: object) -> None:
        """Run a Python program, and follow what it does."""
        trace = self._root.with_name(f"{self._root.name}.trace")
        calls = ",".join(sorted(f"?{name}" for name in _SYNCS | _WRITES | _NAMES))
        subprocess.run([
            "strace", "-f", "-y", "-qq", "-o", trace, "-e", f"trace={calls}", sys.executable, "-c", program,
            *map(str, arguments)
        ],
                       check=True)
        for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
            call = _CALL.match(line)
            if call is not None and int(call["result"]) >= 0:
                self._follow(call["name"], call["arguments"], int(call["result"]))
        left = {path for path in self._unsynced if path.name not in PASSING}
        self.faults.extend(f"{path.relative_to(self._root)} is not synced in the end" for path in sorted(left))

    def _follow(self, name: str, arguments: str, result: int) -> None:
        on_fd = _ON_FD.match(arguments)
        if name in _SYNCS and on_fd is not None:
            self._unsynced.discard(pathlib.Path(on_fd["path"]))
        elif name in _WRITES and on_fd is not None:
            if int(on_fd["fd"]) not in self._syncing_fds:
                self._changed(pathlib.Path(on_fd["path"]))
        elif name in _NAMES:
            paths = [pathlib.Path(found["directory"] or "/", found["path"]) for found in _PATH.finditer(arguments)]
            if name.startswith("open"):
                self._opened(paths[0], arguments, result)
            elif name.startswith("mkdir"):
                self._appeared(paths[0])
            elif name.startswith("unlink"):
                self._deleted(paths[0])
            else:
                self._renamed(*paths)

    def _opened(self, path: pathlib.Path, flags: str, fd: int) -> None:
        self._syncing_fds.discard(fd)
        if "O_DSYNC" in flags or "O_SYNC" in flags:
            self._syncing_fds.add(fd)
        if "O_CREAT" in flags and path not in self._known:
            self._appeared(path)

    def _renamed(self, old: pathlib.Path, new: pathlib.Path) -> None:
        if old in self._unsynced:
            self.faults.append(f"{old.name} got the name {new.name} before it was synced")
            self._unsynced.discard(old)
        if new in self._known and new.parent in self._unsynced:
            self.faults.append(f"{new.name} was replaced before another name in its directory was synced")
        self._appeared(new)

    def _deleted(self, path: pathlib.Path) -> None:
        self._known.discard(path)
        if path.name == "unclean" and path.with_name("data.mdb") in self._unsynced:
            self.faults.append("unclean was deleted before data.mdb was synced")

    def _appeared(self, path: pathlib.Path) -> None:
        self._known.add(path)
        if path.name not in PASSING:
            self._changed(path.parent)

    def _changed(self, path: pathlib.Path) -> None:
        if self._is_below(path):
            self._unsynced.add(path)

    def _is_below(self, path: pathlib.Path) -> Optional[bool]:
        return path == self._root or self._root in path.parents
