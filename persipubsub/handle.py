"""One process's access to one queue, shared by all its Environments."""

import pathlib
import threading
from typing import Callable, Dict, Sequence, Tuple, TypeVar

from persipubsub import files, queue
from persipubsub.queue import Found, Sent, Subscription
from persipubsub.storage import Storage
from persipubsub.transaction import Transaction
from persipubsub.wakeup import PollingWatch, Wakeup
from persipubsub.writer import Writer

T = TypeVar("T")


class Handle:
    """The LMDB engine of a queue: see :class:`persipubsub.engine.Engine`. Made by :func:`acquire`."""

    def __init__(self, path: pathlib.Path, key: Tuple[int, int]) -> None:
        self.path = path
        self.key = key
        self.users = 0
        mode = files.data_file_mode(path)
        self._use_lock = files.UseLock(path, mode)
        try:
            self._use_lock.share()
            files.allocate_lock_file(path, mode)
            self._storage = Storage(path)
        except BaseException:
            self._use_lock.close()
            raise
        self._wakeup = Wakeup()
        self._writer = Writer(self._storage, self._wakeup)

    def close(self) -> None:
        """Close the database and give the lock back."""
        self._storage.close()
        self._use_lock.close()

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

    def put(self, payloads: Sequence[bytes]) -> Sent:
        """Append messages, all or none."""
        return self._writer.run(lambda txn: queue.put(txn, payloads))

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

    def watch(self, longest_sleep_s: float) -> PollingWatch:
        """Prepare to wait."""
        return self._wakeup.watch(longest_sleep_s)


_HANDLES: Dict[Tuple[int, int], Handle] = {}
_HANDLES_LOCK = threading.RLock()


def acquire(path: pathlib.Path) -> Handle:
    """Open the queue at a path, or share it with those who have it open in this process; to be released.

    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file, or its permissions forbid it
    :raise FormatError: the files are not a queue of this version
    """
    with _HANDLES_LOCK:
        # By device and inode: LMDB must not be opened twice, and one queue may have many paths.
        key = files.queue_key(path)
        if key not in _HANDLES:
            _HANDLES[key] = Handle(path, key)
        handle = _HANDLES[key]
        handle.users += 1
        return handle


def release(handle: Handle) -> None:
    """Give back what acquire gave; the last one closes."""
    with _HANDLES_LOCK:
        handle.users -= 1
        if not handle.users:
            del _HANDLES[handle.key]
            handle.close()
