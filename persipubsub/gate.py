"""Who may be in a transaction when: many at once, or one who changes what they stand on.

Invariants, which hold also where a ``KeyboardInterrupt`` strikes between any two lines:

- A transaction is inside from before it begins until after it has ended: it enters as a key of a dict and leaves by
  being popped, each one uninterruptible step; leaving twice is leaving once.
- After the gate was closed, nobody is inside who was not before: who enters marks itself first and looks second.
"""

import contextlib
import math
import threading
import time
from typing import Dict, Hashable, Iterator

from persipubsub import errors

#: How often who closes the gate looks whether the last one is out.
LOOK_S = 0.0001
#: Who waits before the gate looks again after this time, whatever happens.
WAIT_S_MAX = 1.0


class Gate:
    """Lets transactions in and out; whoever closes it waits until the last one is out, and keeps new ones waiting.

    Resizing LMDB's map, reopening the environment or forking while a transaction is open breaks it.
    """

    def __init__(self) -> None:
        self.inside: Dict[Hashable, int] = {}  # what is inside, and its thread
        self._is_open = True
        self._opened = threading.Event()
        self._closing = threading.RLock()

    def enter(self, token: Hashable) -> None:
        """Let a transaction in; waits while the gate is closed."""
        while True:
            self.inside[token] = threading.get_ident()
            if self._is_open:
                return
            self.inside.pop(token)
            self._opened.wait(WAIT_S_MAX)

    def leave(self, token: Hashable) -> None:
        """Let a transaction out; one that is not inside may leave as well."""
        self.inside.pop(token, None)

    def close(self, timeout_s: float = math.inf) -> bool:
        """Close the gate and wait until nobody is inside.

        :return: False, and the gate is not closed, if that did not come about in time; nor does it if the calling
            thread itself is inside
        """
        deadline = time.monotonic() + timeout_s
        # pylint: disable-next=consider-using-with  # released by open(), also in another function
        if not self._closing.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            return False
        self._opened.clear()
        self._is_open = False
        while self.inside:
            if time.monotonic() >= deadline or threading.get_ident() in list(self.inside.values()):
                self.open()
                return False
            time.sleep(LOOK_S)
        return True

    def open(self) -> None:
        """Open the gate that this thread has closed."""
        self._is_open = True
        self._opened.set()
        self._closing.release()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Keep the gate closed, with nobody inside.

        :raise ReentryError: the calling thread is inside
        """
        if not self.close():
            raise errors.ReentryError(
                "A signal handler or a finalizer uses the queue while it has interrupted a use of "
                "its own thread. Use the queue from the thread's normal course.")
        try:
            yield
        finally:
            self.open()
