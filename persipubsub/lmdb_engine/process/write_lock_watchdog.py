"""Telling who keeps a queue's write lock for long. LMDB's lock knows no timeout: who waits for it, waits.

A process that was stopped (SIGSTOP, a debugger) while it holds the lock stops all that write. One thread of each
process that writes looks now and then who has been waiting. It costs a write nothing, for what it looks at is there
anyway: who is inside the gate. It ends before a fork, and the next write starts another one.
"""

import contextlib
import logging
import os
import pathlib
import struct
import threading
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

from persipubsub import clock
from persipubsub.lmdb_engine.process import files

_LOGGER = logging.getLogger("persipubsub.lock_watch")  # the name that programs filter by

#: Who has waited for so long is told about, once.
WARN_S = 5.0
LOOK_S = 1.0
#: A fork waits no longer for the end of the thread.
_END_S_MAX = 0.1

#: Where LMDB has its mutex of writers in ``lock.mdb``. Its first word is the thread that holds it: this is how the
#: kernel finds the robust futexes of a thread that dies (https://docs.kernel.org/locking/robust-futex-ABI.html).
_MUTEX_OFFSET = 64
_THREAD_MASK = 0x3FFFFFFF

_THREAD = 0


class WriteLockWatchdog:
    """What is waiting for the lock of one queue in this process."""

    def __init__(self, path: pathlib.Path, waiting: Callable[[], Iterable[object]]) -> None:
        """Watch a queue.

        :param waiting: gives the transactions that have not begun
        """
        self._path = path
        self._waiting = waiting
        self._since_s: Dict[object, float] = {}
        self._told: Set[object] = set()  # about whose wait it was told
        _WATCHES[id(self)] = self

    def close(self) -> None:
        """Watch no more; more than once is fine."""
        _WATCHES.pop(id(self), None)

    def look(self) -> None:
        """Tell about who has been waiting for long."""
        now_s = clock.monotonic_s()
        self._since_s = {token: self._since_s.get(token, now_s) for token in self._waiting()}
        longest_s = max((now_s - since_s for since_s in self._since_s.values()), default=0.0)
        self._told.intersection_update(self._since_s)
        if longest_s >= WARN_S and not self._told:
            self._told.update(self._since_s)
            _LOGGER.warning(
                "The queue at %s: a write has been waiting for %.0f s for the lock, which is held by %s. LMDB's lock "
                "knows no timeout: all writes go on when that gives it back or ends.", self._path, longest_s,
                holder(self._path))


# No weak references: what an interrupt does while one is being removed is lost.
_WATCHES: Dict[int, WriteLockWatchdog] = {}


class _Thread(threading.Thread):
    """Looks at all queues."""

    def __init__(self) -> None:
        super().__init__(name="persipubsub-lock-watch", daemon=True)
        self._ending = threading.Lock()
        # pylint: disable-next=consider-using-with  # released by who ends this thread
        self._ending.acquire()

    def run(self) -> None:
        """Look until told to end."""
        # pylint: disable-next=consider-using-with  # see above
        while THREADS.get(_THREAD) is self and not self._ending.acquire(timeout=LOOK_S):
            for watch in list(_WATCHES.values()):
                watch.look()

    def end(self) -> None:
        """Have it end; more than once is fine."""
        with contextlib.suppress(RuntimeError):
            self._ending.release()
        self.join(_END_S_MAX)


#: The thread of this process, if it is there: neither before the first write, nor after a fork.
THREADS: Dict[int, _Thread] = {}


def start() -> None:
    """Have the thread begin, unless it has. Where the machine has none left, or Python ends, nobody watches."""
    thread = _Thread()
    if THREADS.setdefault(_THREAD, thread) is thread:
        try:
            thread.start()
        except RuntimeError as error:
            THREADS.pop(_THREAD, None)  # the next write tries again
            _LOGGER.debug("Nobody watches who keeps the write locks of this process's queues: %s.", error)


def end() -> None:
    """End the thread, so that a process with no others has one thread when it forks."""
    thread = THREADS.pop(_THREAD, None)
    if thread is not None and thread.is_alive():
        thread.end()


def holder(path: pathlib.Path) -> str:
    """Say who holds the write lock of a queue that this process has open, as far as it can be known."""
    thread = _holding_thread(path / files.LOCK_FILE)
    if thread is None:
        return "a process that cannot be told"
    if not thread:
        return "nobody any more"
    try:
        lines = pathlib.Path(f"/proc/{thread}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        fields: Dict[str, str] = dict(_field(line) for line in lines)
        process, name, state = fields["Tgid"], fields["Name"], fields["State"]
    except (OSError, KeyError):
        return f"thread {thread}, of which nothing can be told: it runs in another pid namespace, or has ended"
    this = ", which is this one" if int(process) == os.getpid() else ""
    return f"process {process} ({name}, state {state}){this}"


def _field(line: str) -> Tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _holding_thread(file: pathlib.Path) -> Optional[int]:
    """Give the thread that holds the lock, 0 if none does.

    It is read from this process's memory: to open and close ``lock.mdb`` would drop LMDB's locks, and a mapping that is
    just going away is an error here, not the end of the process.
    """
    try:
        status = os.stat(file)
        # By device and inode: the path of a mapping is the real one, and the file's may lead through links.
        wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", str(status.st_ino)
        maps: List[str] = pathlib.Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        mapped = next(line for line in maps if tuple(line.split(maxsplit=5)[3:5]) == wanted)
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (word, ) = struct.unpack("=I", os.pread(fd, 4, int(mapped.partition("-")[0], 16) + _MUTEX_OFFSET))
        finally:
            os.close(fd)
    except (OSError, StopIteration, struct.error):
        return None
    return int(word) & _THREAD_MASK
