"""Who may be in a transaction when: many at once, or one who changes what they stand on.

Invariants, which hold also where a ``KeyboardInterrupt`` strikes between any two lines:

- A transaction is inside from before it begins until after it has ended: it enters as a key of a dict and leaves by
  being popped, each one uninterruptible step; leaving twice is leaving once.
- Who has closed the gate is one entry of a dict, set by ``setdefault`` and removed by ``pop``; opening twice is opening
  once.
- After the gate was closed, nobody is inside who was not before: who enters marks itself first and looks second.
- No lock is held while waiting, so a signal handler never waits for what only its own thread could give: it gets
  ReentryError. That holds also where it has interrupted a transaction for whose end somebody else keeps it waiting.
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
    """Somebody who closes gates."""

    def __init__(self, forks: bool = False) -> None:
        self.thread = threading.get_ident()
        self.forks = forks  # whether to fork, and not to change anything


class Gate:
    """Lets transactions in and out; whoever closes it waits until the last one is out, and keeps new ones waiting.

    Resizing LMDB's map, reopening the environment or forking while a transaction is open breaks it.
    """

    def __init__(self) -> None:
        self.inside: Dict[Hashable, int] = {}  # what is inside, and its thread
        self._closers: Dict[int, Closer] = {}
        self._alone: Optional[Closer] = None  # who, once the gate was closed, has seen that nobody was inside

    def enter(self, token: Hashable) -> None:
        """Let a transaction in; waits while the gate is closed.

        :raise ReentryError: it is closed, and the calling thread has closed it or is inside already
        """
        while True:
            self.inside[token] = threading.get_ident()
            if not self._closers:
                return
            self.inside.pop(token)
            self.require_no_reentry()
            clock.sleep(LOOK_S)

    def require_no_reentry(self) -> None:
        """Make sure that the calling thread may wait for others.

        :raise ReentryError: they may be waiting for it, since it has closed the gate itself or is inside
        """
        closer, thread = self._closers.get(_CLOSER), threading.get_ident()
        if closer is not None and closer.thread == thread or thread in list(self.inside.values()):
            raise reentry_error()

    def leave(self, token: Hashable) -> None:
        """Let a transaction out; one that is not inside may leave as well."""
        self.inside.pop(token, None)

    def close(self, closer: Closer, timeout_s: float = math.inf) -> bool:
        """Close the gate and wait until nobody is inside; to be opened afterwards in any case.

        :return: whether that came about in time; it does not if the calling thread is inside or has closed the gate
        """
        deadline = clock.monotonic_s() + timeout_s
        while True:
            holder = self._closers.setdefault(_CLOSER, closer)
            if holder is closer and not self.inside:
                self._alone = closer
                return True
            if holder is not closer and holder.thread == closer.thread or closer.thread in list(self.inside.values()):
                return False
            if clock.monotonic_s() >= deadline:
                return False
            clock.sleep(LOOK_S)

    def was_quiet(self) -> bool:
        """Tell in a forked child whether, in its parent, nobody was inside and nobody changed anything."""
        closer = self._closers.get(_CLOSER)
        if closer is None:
            return not self.inside
        # Behind a closed gate, who tries to enter is inside for a moment.
        return closer.forks and (self._alone is closer or not self.inside)

    def open(self, closer: Closer) -> None:
        """Open the gate, if it is this one who has closed it."""
        if self._closers.get(_CLOSER) is closer:
            self._closers.pop(_CLOSER)

    def alone(self, action: Callable[[], T]) -> T:
        """Run a function while the gate is closed and nobody is inside.

        No context manager made of a generator: an interrupt may end such a generator without its ``finally``.

        :raise ReentryError: the calling thread is inside or has closed the gate
        """
        closer = Closer()
        try:
            if not self.close(closer):
                raise reentry_error()
            return action()
        finally:
            # Twice, for an interrupt may come in the first.
            try:
                self.open(closer)
            finally:
                self.open(closer)
