"""A gate between transactions and what must happen without any: reopening, resizing, forking.

Invariants, which hold even where a ``KeyboardInterrupt`` comes between any two lines:

- A transaction is inside from before it begins until after it has ended. It enters as a key of a dict and leaves by
  being popped. Each is one uninterruptible step, and leaving twice is harmless.
- Whoever has closed the gate is one entry of a dict, set by ``setdefault`` and removed by ``pop``. Opening twice is
  harmless.
- Nobody gets inside after the gate was closed: a transaction first enters, then checks whether the gate is closed.
- No lock is held while waiting, so a signal handler never waits for its own thread: it gets ReentryError. So does a
  handler that has interrupted a transaction whose end another thread awaits.

Here and wherever an interrupt must leave nothing behind, a ``finally`` calls the same function twice. Python delivers
an interrupt when a function begins, so one function for both calls could be interrupted before its first line.
"""

import math
import threading
from collections.abc import Hashable
from typing import Callable, Dict, Optional, TypeVar

from persipubsub import clock
from persipubsub.lmdb_engine.records.turns import LOOK_S, reentry_error

T = TypeVar("T")

_CLOSER = 0


class Closer:
    """A holder of closed gates."""

    def __init__(self, forks: bool = False) -> None:
        self.thread = threading.get_ident()
        self.forks = forks  # whether it closes them to fork, without changing anything


class Gate:
    """Lets transactions in and out. Closing it waits until the last one has left, and keeps new ones waiting.

    While a transaction is open, LMDB's map must not be resized, nor its environment reopened, nor the process forked.
    """

    def __init__(self) -> None:
        self.inside: Dict[Hashable, int] = {}  # each token inside, and its thread
        self.closers: Dict[int, Closer] = {}  # the one that has closed it, or nobody
        self._exclusive: Optional[Closer] = None  # the closer that, after closing the gate, saw nobody inside

    def enter(self, token: Hashable) -> None:
        """Let a transaction in. Wait while the gate is closed.

        :raise ReentryError: it is closed, and the calling thread has closed it or is inside already
        """
        self.inside[token] = threading.get_ident()
        if self.closers:
            self.wait(token)

    def wait(self, token: Hashable) -> None:
        """Let a transaction in that entered while the gate was closed. The session enters without a call of its own."""
        while self.closers:
            self.inside.pop(token)
            self.require_no_reentry()
            clock.sleep(LOOK_S)
            self.inside[token] = threading.get_ident()

    def require_no_reentry(self) -> None:
        """Make sure that the calling thread may wait for others.

        :raise ReentryError: they may be waiting for this thread, since it has closed the gate or is inside
        """
        closer, thread = self.closers.get(_CLOSER), threading.get_ident()
        if closer is not None and closer.thread == thread or thread in list(self.inside.values()):
            raise reentry_error()

    def leave(self, token: Hashable) -> None:
        """Let a transaction out. Calling it for one that is not inside is harmless."""
        self.inside.pop(token, None)

    def close(self, closer: Closer, timeout_s: float = math.inf) -> bool:
        """Close the gate and wait until nobody is inside. The caller must open it afterwards in any case.

        :return: whether all have left in time. It is False if the calling thread is inside or has closed the gate.
        """
        deadline = clock.monotonic_s() + timeout_s
        while True:
            holder = self.closers.setdefault(_CLOSER, closer)
            if holder is closer and not self.inside:
                self._exclusive = closer
                return True
            if holder is not closer and holder.thread == closer.thread or closer.thread in list(self.inside.values()):
                return False
            if clock.monotonic_s() >= deadline:
                return False
            clock.sleep(LOOK_S)

    def was_quiet(self) -> bool:
        """Return, in a forked child, whether nobody in its parent was inside or changed anything."""
        closer = self.closers.get(_CLOSER)
        if closer is None:
            return not self.inside
        # While the gate is closed, a transaction that tries to enter is inside for a moment.
        return closer.forks and (self._exclusive is closer or not self.inside)

    def open(self, closer: Closer) -> None:
        """Open the gate if this closer has closed it."""
        if self.closers.get(_CLOSER) is closer:
            self.closers.pop(_CLOSER)

    def exclusively(self, action: Callable[[], T]) -> T:
        """Run a function while the gate is closed and nobody is inside.

        This is not a generator-based context manager: an interrupt may end such a generator without its ``finally``.

        :raise ReentryError: the calling thread is inside or has closed the gate
        """
        closer = Closer()
        try:
            if not self.close(closer):
                raise reentry_error()
            return action()
        finally:
            # Twice: an interrupt may end the first call early.
            try:
                self.open(closer)
            finally:
                self.open(closer)
