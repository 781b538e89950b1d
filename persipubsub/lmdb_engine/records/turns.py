"""Turns of threads that must act one at a time, without a lock that an interrupt could leave locked."""

import threading
from collections.abc import Hashable
from typing import Dict, Generic, List, TypeVar

from persipubsub import clock, errors

K = TypeVar("K", bound=Hashable)

#: Interval at which a thread that waits at the gate looks again. The gate is closed seldom and briefly.
LOOK_S = 0.0002
#: The longest such interval of a thread that waits for a turn. It may be long: a large queue may be verified.
LOOK_S_MAX = 0.01


class Turn:
    """One thread's turn at something that one thread at a time may do."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Turns(Generic[K]):
    """Admit one thread at a time for each key.

    As with the gate, no lock is held while a thread waits: each step is one operation of a dict. So after an interrupt
    :meth:`end` releases all that is held. A signal handler that would wait for its own thread gets an error.
    """

    def __init__(self) -> None:
        self._turns: Dict[K, Turn] = {}

    def begin(self, key: K, turn: Turn) -> None:
        """Wait for the turn at a key. The caller must call :meth:`end` in any case.

        :raise ReentryError: the calling thread already has the turn
        """
        delay_s = LOOK_S
        while True:
            held = self._turns.setdefault(key, turn)
            if held is turn:
                return
            if held.thread == turn.thread:
                raise reentry_error()
            clock.sleep(delay_s)
            delay_s = min(2 * delay_s, LOOK_S_MAX)

    def end(self, key: K, turn: Turn) -> None:
        """End the turn. It may be called more than once, and before the turn began."""
        if self._turns.get(key) is turn:
            self._turns.pop(key)

    def has(self, key: K, turn: Turn) -> bool:
        """Return whether it is this turn at a key."""
        return self._turns.get(key) is turn

    def keys(self) -> List[K]:
        """List the keys at which threads have their turn."""
        return list(self._turns)

    def forget(self) -> List[K]:
        """End all turns and list their keys: for a forked child, which has none of these threads."""
        keys = list(self._turns)
        self._turns.clear()
        return keys


def reentry_error() -> errors.ReentryError:
    """Return the error for a thread that would wait for itself."""
    return errors.ReentryError(
        "A signal handler or a finalizer uses the queue while it interrupts its own thread's use of the queue. "
        "Set a flag in the handler, and use the queue from the thread's normal code.")
