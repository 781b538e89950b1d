"""One writer for all threads of this process."""

import threading
from typing import Callable, TypeVar

from persipubsub import queue
from persipubsub.storage import Storage
from persipubsub.transaction import Transaction
from persipubsub.wakeup import Wakeup

T = TypeVar("T")


class Writer:
    """Runs the write operations of all threads of a process, and wakes those who wait for what they published."""

    def __init__(self, storage: Storage, wakeup: Wakeup) -> None:
        self._storage = storage
        self._wakeup = wakeup
        self._turn = threading.Lock()

    def run(self, operation: Callable[[Transaction], T], durable: bool = False) -> T:
        """Run an operation in a write transaction of its own or of a group, all of it or nothing.

        :param operation: what to do; it may be run more than once
        :param durable: bring it to the disk, whatever the durability of the queue
        """
        published = 0

        def begun(txn: Transaction) -> T:
            nonlocal published
            queue.begin(txn)
            result = operation(txn)
            published = txn.id() if txn.published else 0
            return result

        with self._turn:
            result = self._storage.write(begun, durable)
        if published:
            self._wakeup.notify(published)
        return result
