"""Who may be in a transaction when: many at once, or one who changes what they stand on."""

import contextlib
import threading
from typing import Iterator


class Gate:
    """Lets transactions in and out; whoever closes it waits until the last one is out, and keeps new ones waiting.

    Resizing LMDB's map or reopening the environment while a transaction is open breaks the transactions of others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Count a transaction in; waits while the gate is closed."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Count a transaction out."""
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Keep the gate closed, with nobody inside. The caller must not be inside."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
        try:
            with self._changed:
                while self._inside:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
