"""One process's access to one queue, shared by all its Environments."""

import os
import pathlib
import threading
import time
from typing import Callable, Dict, List, Tuple, TypeVar

from persipubsub import files, queue
from persipubsub.engine import Watch
from persipubsub.queue import Batch, Found, Sent, Subscription
from persipubsub.storage import Storage
from persipubsub.transaction import Transaction
from persipubsub.wakeup import Wakeup
from persipubsub.writer import Writer

T = TypeVar("T")


class Handle:
    """The LMDB engine of a queue: see :class:`persipubsub.engine.Engine`. Made by :func:`acquire`."""

    def __init__(self, path: pathlib.Path, key: Tuple[int, int]) -> None:
        self.path = path
        self.key = key
        self.users = 0
        self._storage = Storage(path)
        self._wakeup = Wakeup(path, files.data_file_mode(path))
        self._writer = Writer(self._storage, self._wakeup)

    def close(self) -> None:
        """Close the database."""
        self._storage.close()

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation of :mod:`persipubsub.queue` in a read transaction."""
        return self._storage.read(operation)

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction and bring it to the disk under either durability."""
        return self._writer.run(operation, durable=True)

    def copy(self, path: str) -> None:
        """Write a compact, consistent copy into a directory."""
        self._storage.copy(path)

    # What endpoints call

    def put(self, batch: Batch) -> Sent:
        """Append messages, all or none."""
        return self._writer.run(lambda txn: queue.put(txn, batch), False, len(batch.payloads), batch.size_bytes)

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber."""
        return self._storage.read(lambda txn: queue.subscribe(txn, identifier))

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them."""
        return self._unexpired(lambda txn: queue.look(txn, subscription, max_messages, max_bytes))

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""
        return self._unexpired(lambda txn: queue.look_at_top(txn, subscription))

    def _unexpired(self, look: Callable[[Transaction], Found]) -> Found:
        while True:
            found = self._storage.read(look)
            if not found.expired:
                return found
            # So that nobody has to walk over them again.
            self._writer.run(queue.expire)

    def take(self, subscription: Subscription, last_id: int) -> None:
        """Take all messages of a subscriber up to an id."""
        self._writer.run(lambda txn: queue.take(txn, subscription, last_id))

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait."""
        return self._wakeup.watch(longest_sleep_s)

    # Forks

    def before_fork(self, timeout_s: float) -> bool:
        """Keep transactions out; tell whether none is going on."""
        return self._storage.before_fork(timeout_s)

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self._storage.after_fork_in_parent()

    def after_fork_in_child(self, quiet: bool) -> None:
        """Let go of what belongs to the parent, and of what its other threads were doing."""
        self._storage.after_fork_in_child(quiet)
        self._writer = Writer(self._storage, self._wakeup)


#: Held while a queue is opened or closed, and while this process forks.
LOCK = threading.RLock()
#: A fork is not held up for longer, all queues together.
FORK_WAIT_S_MAX = 0.1

_HANDLES: Dict[Tuple[int, int], Handle] = {}


def acquire(path: pathlib.Path) -> Handle:
    """Open the queue at a path, or share it with those who have it open in this process; to be released.

    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file, or its permissions forbid it
    :raise FormatError: the files are not a queue of this version
    """
    with LOCK:
        # By device and inode: LMDB must not be opened twice, and one queue may have many paths.
        key = files.queue_key(path)
        if key not in _HANDLES:
            _HANDLES[key] = Handle(path, key)
        handle = _HANDLES[key]
        handle.users += 1
        return handle


def release(handle: Handle) -> None:
    """Give back what acquire gave; the last one closes."""
    with LOCK:
        handle.users -= 1
        if not handle.users:
            del _HANDLES[handle.key]
            handle.close()


class _Fork:
    """A fork of this process: each open queue, and whether no transaction on it is going on."""

    def __init__(self) -> None:
        deadline = time.monotonic() + FORK_WAIT_S_MAX
        # pylint: disable-next=consider-using-with  # released when the fork has ended
        self.locked = LOCK.acquire(timeout=FORK_WAIT_S_MAX)
        self.handles = [(handle, self.locked and handle.before_fork(max(0, deadline - time.monotonic())))
                        for handle in list(_HANDLES.values())]

    def end_in_parent(self) -> None:
        """Let all go on as before."""
        for handle, quiet in self.handles:
            if quiet:
                handle.after_fork_in_parent()
        if self.locked:
            LOCK.release()

    def end_in_child(self) -> None:
        """Have every queue opened again on first use, as far as the child may close what it inherits."""
        global LOCK  # pylint: disable=global-statement  # a thread that the child lacks may hold the old one
        LOCK = threading.RLock()
        for handle, quiet in self.handles:
            handle.after_fork_in_child(quiet)


# A stack, since a signal handler may fork in the midst of a fork.
_FORKS: List[_Fork] = []
os.register_at_fork(before=lambda: _FORKS.append(_Fork()),
                    after_in_parent=lambda: _FORKS.pop().end_in_parent(),
                    after_in_child=lambda: _FORKS.pop().end_in_child())
