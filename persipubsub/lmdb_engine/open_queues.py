"""The queues that this process has open, each once for all its users, also across forks."""

import contextlib
import os
import pathlib
import threading
import weakref
from typing import Dict, List, Optional, Set, Tuple

from persipubsub import clock, errors
from persipubsub.engine.values import Configuration
from persipubsub.lmdb_engine.engine import LmdbEngine
from persipubsub.lmdb_engine.process import files, filesystem, write_lock_watchdog
from persipubsub.lmdb_engine.process.gate import Closer
from persipubsub.lmdb_engine.records.turns import LOOK_S, Turn, Turns
from persipubsub.lmdb_engine.rules import settings

Key = Tuple[int, int]


class User:
    """Somebody who uses a queue."""

    queue: "Optional[OpenQueue]" = None

    def __init__(self, named: bool = True) -> None:
        self.named = named  # whether it is released by itself, and not as one of those of an engine


class OpenQueue:
    """A queue that this process has open, and who uses it."""

    def __init__(self, path: pathlib.Path, key: Key) -> None:
        self.engine = LmdbEngine(path)
        self.key = key
        self.users: Dict[User, None] = {}


# The open queues of this process. One is here before anything of it is opened, until all of it is closed: so what an
# interrupt leaves half open or half closed is found and finished by whoever opens or closes the queue next.
_OPEN: Dict[Key, OpenQueue] = {}
# Threads open and close one queue one after the other, and different queues at the same time.
_TURNS: Turns[Key] = Turns()
# The queues that a thread of the parent was opening or closing when this process was forked.
_LOST: Set[Key] = set()


class LmdbAccess:
    """What one Environment holds of a queue: see :class:`persipubsub.engine.protocols.Access`.

    It is made before anything is opened. So closing it is enough, wherever opening was interrupted; it may be closed
    again where closing was, and is closed when nobody refers to it any more.
    """

    def __init__(self, path: pathlib.Path, allow_remote: bool = False) -> None:
        """Prepare to use the queue at a path; no disk is touched.

        :param allow_remote: whether it may lie on a file system that other machines can use
        """
        self.location = path
        self._allow_remote = allow_remote
        self._user = User()
        weakref.finalize(self, _release, self._user).atexit = False  # then Environments close themselves

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it is.

        :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
        """
        if not self._allow_remote:
            filesystem.require_local(self.location)
        if not files.is_queue(self.location):
            files.create(self.location, *settings.fresh(configuration), mode)

    def open(self) -> LmdbEngine:
        """Open the queue, or share it with others who have it open in this process. Errors are those of acquire."""
        return acquire(self.location, self._allow_remote, self._user)

    def close(self) -> None:
        """Close the queue if nobody else uses it; more than once is fine."""
        _release(self._user)

    def __enter__(self) -> LmdbEngine:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        # Twice, for an interrupt may come in the first.
        try:
            self.close()
        finally:
            self.close()


def acquire(path: pathlib.Path, allow_remote: bool = False, user: Optional[User] = None) -> LmdbEngine:
    """Open the queue at a path, or share it with those who have it open in this process; to be released.

    :param allow_remote: whether it may lie on a file system that other machines can use
    :param user: whose it is; to acquire it again for the same one changes nothing
    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
    :raise FormatError: the files are not a queue of this version
    :raise ForkError: this process was forked while another thread opened the queue
    :raise ReentryError: a signal handler or finalizer opens it while its own thread opens or closes it
    """
    user = user or User(named=False)
    while True:
        # By device and inode: LMDB must not be opened twice, and one queue may have many paths.
        key = files.queue_key(path)
        if key in _LOST:
            raise errors.ForkError(
                f"This process was forked while another thread opened or closed the queue at {path}, "
                "so it cannot use the queue. Fork while no thread uses the queue, or start the "
                "process with multiprocessing's spawn or forkserver.")
        found = _acquire(path, key, allow_remote, user)
        if found is not None:
            return found


def _acquire(path: pathlib.Path, key: Key, allow_remote: bool, user: User) -> Optional[LmdbEngine]:
    """Open the queue with a key, or share it; None where another queue is at the path meanwhile."""
    turn, succeeded = Turn(), False
    try:
        _TURNS.begin(key, turn)
        found = _OPEN.get(key)
        if found is not None and found.engine.is_closing:
            _close(found)
            found = None
        if found is None:
            if not allow_remote:
                filesystem.require_local(path)
            files.warn_of_stranger(path)
            found = _OPEN[key] = OpenQueue(path, key)
        user.queue = found
        found.users[user] = None
        if not found.engine.is_open:
            found.engine.open()
            if files.queue_key(path) != key:
                return None  # it was compacted or recovered while we waited for that
        succeeded = True
        return found.engine
    finally:
        # Twice, for an interrupt may come in the first.
        try:
            _end_turn(key, turn, None if succeeded else user)
        finally:
            _end_turn(key, turn, None if succeeded else user)


def _end_turn(key: Key, turn: Turn, failed: Optional[User]) -> None:
    if failed is not None and failed.queue is not None:
        failed.queue.users.pop(failed, None)
    _TURNS.end(key, turn)
    # Also where this has succeeded: a handler or finalizer that released the queue could not wait for this thread.
    found = _OPEN.get(key)
    if found is not None:
        _close_if_unused(found)


def release(engine: LmdbEngine) -> None:
    """Give back what acquire returned without a user; the last one closes."""
    found = next((queue for queue in list(_OPEN.values()) if queue.engine is engine), None)
    if found is not None:
        user = next((user for user in list(found.users) if not user.named), None)
        if user is not None:
            found.users.pop(user, None)
        _close_if_unused(found)


def _release(user: User) -> None:
    """Give back what acquire returned for somebody; the last one closes. More than once is fine."""
    queue = user.queue
    if queue is not None:
        queue.users.pop(user, None)
        _close_if_unused(queue)


def _close_if_unused(queue: OpenQueue) -> None:
    """Close a queue unless somebody uses it, or has closed it."""
    if queue.users or _OPEN.get(queue.key) is not queue:
        return
    queue.engine.report()  # before the turn: a handler of the log may use the queue
    turn = Turn()
    try:
        with contextlib.suppress(errors.ReentryError):  # then this thread looks again when it ends its turn
            _TURNS.begin(queue.key, turn)
        if _TURNS.has(queue.key, turn) and not queue.users and _OPEN.get(queue.key) is queue:
            _close(queue)
    finally:
        # Twice, for an interrupt may come in the first.
        try:
            _TURNS.end(queue.key, turn)
        finally:
            _TURNS.end(queue.key, turn)


def _close(queue: OpenQueue) -> None:
    """Close a queue. The caller must have the turn at it."""
    try:
        queue.engine.close()
    finally:
        if queue.engine.is_closed:
            _OPEN.pop(queue.key, None)


#: A fork is not held up for longer, all queues together.
FORK_WAIT_S_MAX = 0.1


class _Fork:
    """A fork of this process."""

    def __init__(self) -> None:
        self._closer = Closer(forks=True)
        self.ends = 0  # how often it was told to end

    def begin(self) -> None:
        """Keep transactions out of all open queues, as far as they end in time."""
        deadline = clock.monotonic_s() + FORK_WAIT_S_MAX
        while _TURNS.keys() and clock.monotonic_s() < deadline:
            clock.sleep(LOOK_S)
        for queue in list(_OPEN.values()):
            queue.engine.before_fork(self._closer, max(0, deadline - clock.monotonic_s()))
        # Once nobody can start it again: a process with one thread has one when it forks.
        write_lock_watchdog.end()

    def end_in_parent(self) -> None:
        """Let all go on as before."""
        for queue in list(_OPEN.values()):
            queue.engine.after_fork_in_parent(self._closer)


# By thread, each a stack, since a signal handler may fork in the midst of a fork.
_FORKS: Dict[int, List[_Fork]] = {}


def _before_fork() -> None:
    fork = _Fork()
    _FORKS.setdefault(threading.get_ident(), []).append(fork)
    fork.begin()


def _after_fork_in_parent() -> None:
    forks = _FORKS.get(threading.get_ident(), [])
    if forks:
        forks[-1].end_in_parent()
        forks[-1].ends += 1
        if forks[-1].ends == AFTER_FORK_HOOKS:
            forks.pop()


def _after_fork_in_child() -> None:
    """Have every queue opened again on first use, as far as the child may close what it inherits. Twice is once."""
    _FORKS.clear()
    write_lock_watchdog.end()  # of the parent
    _LOST.update(_TURNS.forget())
    for queue in list(_OPEN.values()):
        queue.engine.after_fork_in_child()


# After it twice, for an interrupt may strike in the first, and Python goes on after it with the next.
AFTER_FORK_HOOKS = 2
os.register_at_fork(before=_before_fork)
for _ in range(AFTER_FORK_HOOKS):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
