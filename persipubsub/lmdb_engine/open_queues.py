"""The open queues of this process, each opened once for all its users, even across forks."""

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
    """A user of an open queue."""

    queue: "Optional[OpenQueue]" = None

    def __init__(self, named: bool = True) -> None:
        self.named = named  # whether it releases the queue itself; release() removes the others


class OpenQueue:
    """A queue that this process has open, and its users."""

    def __init__(self, path: pathlib.Path, key: Key) -> None:
        self.engine = LmdbEngine(path)
        self.key = key
        self.users: Dict[User, None] = {}


# The open queues of this process. A queue is here before anything of it is opened, until all of it is closed. So if an
# interrupt leaves it partly open, the next call that opens or closes it finds it and finishes.
_OPEN: Dict[Key, OpenQueue] = {}
# Threads take turns at opening and closing one queue. Different queues can be opened at the same time.
_TURNS: Turns[Key] = Turns()
# The queues that a thread of the parent was opening or closing when this process was forked.
_LOST_IN_FORK: Set[Key] = set()


class LmdbAccess:
    """The access of one Environment to a queue: see :class:`persipubsub.engine.protocols.Access`.

    It is created before anything is opened. So closing it is enough, wherever opening was interrupted, and closing it
    again finishes an interrupted close. It is closed when nothing refers to it any longer.
    """

    def __init__(self, path: pathlib.Path, allow_remote: bool = False) -> None:
        """Prepare to use the queue at a path, without accessing the disk.

        :param allow_remote: whether the queue may lie on a file system that other machines can use
        """
        self.location = path
        self._allow_remote = allow_remote
        self._user = User()
        weakref.finalize(self, _release, self._user).atexit = False  # at exit Environments close themselves

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it exists.

        :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
        """
        if not self._allow_remote:
            filesystem.require_local(self.location)
        if not files.is_queue(self.location):
            files.create(self.location, *settings.fresh(configuration), mode)

    def open(self) -> LmdbEngine:
        """Open the queue, or share it with its other users in this process. Raise the same errors as acquire."""
        return acquire(self.location, self._allow_remote, self._user)

    def close(self) -> None:
        """Close the queue if nobody else uses it. Closing more than once is harmless."""
        _release(self._user)

    def __enter__(self) -> LmdbEngine:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        # Twice: an interrupt may end the first call early.
        try:
            self.close()
        finally:
            self.close()


def acquire(path: pathlib.Path, allow_remote: bool = False, user: Optional[User] = None) -> LmdbEngine:
    """Open the queue at a path, or share it with its other users in this process. The caller must release it.

    :param allow_remote: whether the queue may lie on a file system that other machines can use
    :param user: the user that acquires it; acquiring it again for the same one changes nothing
    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
    :raise FormatError: the files are not a queue of this version
    :raise ForkError: this process was forked while another thread opened the queue
    :raise ReentryError: a signal handler or finalizer opens it while its own thread opens or closes the queue
    """
    user = user or User(named=False)
    while True:
        # By device and inode: LMDB must not be opened twice, and one queue may have many paths.
        key = files.queue_key(path)
        if key in _LOST_IN_FORK:
            raise errors.ForkError(
                f"This process was forked while another thread opened or closed the queue at {path}, "
                "so it cannot use the queue. Fork while no thread uses the queue, or start the "
                "process with multiprocessing's spawn or forkserver.")
        found = _acquire(path, key, allow_remote, user)
        if found is not None:
            return found


def _acquire(path: pathlib.Path, key: Key, allow_remote: bool, user: User) -> Optional[LmdbEngine]:
    """Open the queue with a key, or share it. Return None if another queue is at the path by now."""
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
            files.warn_of_foreign_owner(path)
            found = _OPEN[key] = OpenQueue(path, key)
        user.queue = found
        found.users[user] = None
        if not found.engine.is_open:
            found.engine.open()
            if files.queue_key(path) != key:
                return None  # another process compacted or recovered it meanwhile
        succeeded = True
        return found.engine
    finally:
        # Twice: an interrupt may end the first call early.
        try:
            _end_turn(key, turn, None if succeeded else user)
        finally:
            _end_turn(key, turn, None if succeeded else user)


def _end_turn(key: Key, turn: Turn, failed: Optional[User]) -> None:
    if failed is not None and failed.queue is not None:
        failed.queue.users.pop(failed, None)
    _TURNS.end(key, turn)
    # Even after success: a handler or finalizer that released the queue could not wait for this thread.
    found = _OPEN.get(key)
    if found is not None:
        _close_if_unused(found)


def release(engine: LmdbEngine) -> None:
    """Release what acquire returned without a user. The last release closes the queue."""
    found = next((queue for queue in list(_OPEN.values()) if queue.engine is engine), None)
    if found is not None:
        user = next((user for user in list(found.users) if not user.named), None)
        if user is not None:
            found.users.pop(user, None)
        _close_if_unused(found)


def _release(user: User) -> None:
    """Release the queue of a user. The last release closes it. Calling this more than once is harmless."""
    queue = user.queue
    if queue is not None:
        queue.users.pop(user, None)
        _close_if_unused(queue)


def _close_if_unused(queue: OpenQueue) -> None:
    """Close a queue unless somebody uses it or has closed it."""
    if queue.users or _OPEN.get(queue.key) is not queue:
        return
    queue.engine.report()  # before the turn: a log handler may use the queue
    turn = Turn()
    try:
        with contextlib.suppress(errors.ReentryError):  # this thread has the turn, and checks again when it ends it
            _TURNS.begin(queue.key, turn)
        if _TURNS.has(queue.key, turn) and not queue.users and _OPEN.get(queue.key) is queue:
            _close(queue)
    finally:
        # Twice: an interrupt may end the first call early.
        try:
            _TURNS.end(queue.key, turn)
        finally:
            _TURNS.end(queue.key, turn)


def _close(queue: OpenQueue) -> None:
    """Close a queue. The caller must have the turn."""
    try:
        queue.engine.close()
    finally:
        if queue.engine.is_closed:
            _OPEN.pop(queue.key, None)


#: The longest time that a fork waits for transactions, all queues together.
FORK_WAIT_S_MAX = 0.1


class _Fork:
    """A fork of this process."""

    def __init__(self) -> None:
        self._closer = Closer(forks=True)
        self.ends = 0  # how many of the hooks after the fork have run

    def begin(self) -> None:
        """Keep transactions out of all open queues, and wait a limited time for the active ones to end."""
        deadline = clock.monotonic_s() + FORK_WAIT_S_MAX
        while _TURNS.keys() and clock.monotonic_s() < deadline:
            clock.sleep(LOOK_S)
        for queue in list(_OPEN.values()):
            queue.engine.before_fork(self._closer, max(0, deadline - clock.monotonic_s()))
        # Now nobody can start it again, so a process without threads of its own forks with a single thread.
        write_lock_watchdog.end()

    def end_in_parent(self) -> None:
        """Let transactions in again."""
        for queue in list(_OPEN.values()):
            queue.engine.after_fork_in_parent(self._closer)


# By thread, each a stack, since a signal handler may fork while its thread forks.
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
    """Make every queue open again on first use, unless it was in use. Running this twice is harmless."""
    _FORKS.clear()
    write_lock_watchdog.end()  # the parent's
    _LOST_IN_FORK.update(_TURNS.forget())
    for queue in list(_OPEN.values()):
        queue.engine.after_fork_in_child()


# Twice after it: an interrupt may end the first call early, and Python then continues with the next.
AFTER_FORK_HOOKS = 2
os.register_at_fork(before=_before_fork)
for _ in range(AFTER_FORK_HOOKS):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
