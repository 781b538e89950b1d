"""Warn when a process holds a queue's write lock for too long. LMDB's lock has no timeout.

A process that is stopped (SIGSTOP, a debugger) while it holds the lock blocks all writers. So each process that writes
has one thread that regularly checks for long waits. This costs a write nothing: the thread reads which transactions are
inside the gate, which is known anyway. The thread ends before a fork, and the next write starts another one.
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

#: A wait that reaches this time is reported once.
WARN_S = 5.0
LOOK_S = 1.0
#: The longest time that a fork waits for the end of the thread.
_END_S_MAX = 0.1

#: Where ``lock.mdb`` holds LMDB's mutex of writers. Its first word is the thread that holds it: this is how the kernel
#: finds the robust futexes of a thread that dies (https://docs.kernel.org/locking/robust-futex-ABI.html).
_MUTEX_OFFSET = 64
_THREAD_MASK = 0x3FFFFFFF

_THREAD = 0


class WriteLockWatchdog:
    """Watches the transactions of this process that wait for the lock of one queue."""

    def __init__(self, path: pathlib.Path, waiting: Callable[[], Iterable[object]]) -> None:
        """Watch a queue.

        :param waiting: returns the transactions that have not begun
        """
        self._path = path
        self._waiting = waiting
        self._since_s: Dict[object, float] = {}
        self._warned: Set[object] = set()  # the waits that a warning has reported
        _WATCHES[id(self)] = self

    def close(self) -> None:
        """Stop watching. Closing more than once is harmless."""
        _WATCHES.pop(id(self), None)

    def look(self) -> None:
        """Warn if a transaction has been waiting for too long."""
        now_s = clock.monotonic_s()
        self._since_s = {token: self._since_s.get(token, now_s) for token in self._waiting()}
        longest_s = max((now_s - since_s for since_s in self._since_s.values()), default=0.0)
        self._warned.intersection_update(self._since_s)
        if longest_s >= WARN_S and not self._warned:
            self._warned.update(self._since_s)
            _LOGGER.warning(
                "The queue at %s: a write has been waiting for %.0f s for the lock, which is held by %s. LMDB's lock "
                "has no timeout: all writes continue when the holder releases it or ends.", self._path, longest_s,
                holder(self._path))


# No weak references: an interrupt that comes while one is being removed would be lost.
_WATCHES: Dict[int, WriteLockWatchdog] = {}


class _Thread(threading.Thread):
    """Checks all queues."""

    def __init__(self) -> None:
        super().__init__(name="persipubsub-lock-watch", daemon=True)
        self._ending = threading.Lock()
        # pylint: disable-next=consider-using-with  # released by whoever ends this thread
        self._ending.acquire()

    def run(self) -> None:
        """Check until the thread has to end."""
        # pylint: disable-next=consider-using-with  # see above
        while THREADS.get(_THREAD) is self and not self._ending.acquire(timeout=LOOK_S):
            for watch in list(_WATCHES.values()):
                watch.look()

    def end(self) -> None:
        """End the thread. Calling this more than once is harmless."""
        with contextlib.suppress(RuntimeError):
            self._ending.release()
        self.join(_END_S_MAX)


#: The thread of this process, if any: there is none before the first write and after a fork.
THREADS: Dict[int, _Thread] = {}


def start() -> None:
    """Start the thread unless it runs. Without a free thread, or while Python ends, nothing is watched."""
    thread = _Thread()
    if THREADS.setdefault(_THREAD, thread) is thread:
        try:
            thread.start()
        except RuntimeError as error:
            THREADS.pop(_THREAD, None)  # the next write tries again
            _LOGGER.debug("The write locks of this process's queues are not watched: %s.", error)


def end() -> None:
    """End the thread, so that a process with no others has one thread when it forks."""
    thread = THREADS.pop(_THREAD, None)
    if thread is not None and thread.is_alive():
        thread.end()


def holder(path: pathlib.Path) -> str:
    """Describe the holder of the write lock of a queue that this process has open, as far as it is known."""
    thread = _holding_thread(path / files.LOCK_FILE)
    if thread is None:
        return "an unknown process"
    if not thread:
        return "nobody any longer"
    try:
        lines = pathlib.Path(f"/proc/{thread}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        fields: Dict[str, str] = dict(_field(line) for line in lines)
        process, name, state = fields["Tgid"], fields["Name"], fields["State"]
    except (OSError, KeyError):
        return f"thread {thread}, which runs in another pid namespace or has ended"
    this = ", which is this one" if int(process) == os.getpid() else ""
    return f"process {process} ({name}, state {state}){this}"


def _field(line: str) -> Tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _holding_thread(file: pathlib.Path) -> Optional[int]:
    """Return the thread that holds the lock, 0 if there is none, or None where it is unknown.

    It is read from this process's memory, since opening and closing ``lock.mdb`` would drop LMDB's locks. Reading
    through /proc/self/mem turns a mapping that has just been removed into an error instead of a crash.
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
