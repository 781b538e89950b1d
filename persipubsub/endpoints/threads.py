"""Threads that work for event loops."""

import queue
import threading
from typing import Callable, Generic, Iterable, List, Optional, TypeVar

from persipubsub import errors

T = TypeVar("T")

#: How long a thread waits for more work before it ends.
IDLE_S = 0.2


def started(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread and return it.

    :raise StorageError: the machine has no thread left, or Python is ending
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise errors.StorageError(
            f"asyncio needs a thread beside the event loop to use the queue, and none can be started ({error}). "
            "Raise the limit of processes and threads (ulimit -u, TasksMax of systemd, pids of a container), and use "
            "the queue before Python ends. Nothing was changed.") from error
    return thread


class BatchThread(Generic[T]):
    """A thread that handles items in batches: all items that arrived since the last one."""

    def __init__(self, name: str, handle: Callable[[List[T]], None]) -> None:
        """Prepare the thread; it starts with its first item.

        :param name: of the thread
        :param handle: called with the items; must not raise
        """
        self._name = name
        self._handle = handle
        self._items: "queue.SimpleQueue[T]" = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def submit(self, items: Iterable[T]) -> None:
        """Hand over items, which are handled in this order."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # Started before it has work: if the machine refuses, nothing has happened.
                self._thread = started(self._run, self._name)
            for item in items:
                self._items.put(item)

    def _run(self) -> None:
        while True:
            try:
                items = [self._items.get(timeout=IDLE_S)]
            except queue.Empty:
                with self._lock:
                    if self._items.empty():
                        self._thread = None
                        return
                continue
            while not self._items.empty():
                items.append(self._items.get())
            self._handle(items)
