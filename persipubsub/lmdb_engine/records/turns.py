"""Threads that do something one after the other, without a lock that an interrupt could leave taken."""

import threading
from collections.abc import Hashable
from typing import Dict, Generic, List, TypeVar

from persipubsub import clock, errors

K = TypeVar("K", bound=Hashable)

#: How often who waits at the gate looks again. It is closed seldom, and not for long.
LOOK_S = 0.0002
#: The same for whoever waits for a turn, which may take longer: a large queue may have to be verified.
LOOK_S_MAX = 0.01


class Turn:
    """One thread's turn at something that threads do one after the other."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Turns(Generic[K]):
    """Lets one thread at a time at each of several things, by their keys.

    As with the gate, no lock is held while a thread waits: each step is one operation of a dict. So an interrupt leaves
    nothing taken that :meth:`end` does not give back, and a signal handler gets an error where it would wait for its
    own thread.
    """

    def __init__(self) -> None:
        self._turns: Dict[K, Turn] = {}

    def begin(self, key: K, turn: Turn) -> None:
        """Wait for the turn at a key; to be ended in any case.

        :raise ReentryError: the calling thread has the turn already
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
        """Give the turn back; more than once, and before it began, is fine."""
        if self._turns.get(key) is turn:
            self._turns.pop(key)

    def has(self, key: K, turn: Turn) -> bool:
        """Tell whether it is the turn of somebody."""
        return self._turns.get(key) is turn

    def keys(self) -> List[K]:
        """List what threads are at."""
        return list(self._turns)

    def forget(self) -> List[K]:
        """List what threads were at, and end all turns: in a forked child, which has none of these threads."""
        keys = list(self._turns)
        self._turns.clear()
        return keys


def reentry_error() -> errors.ReentryError:
    """Say that a thread stands in its own way."""
    return errors.ReentryError(
        "A signal handler or a finalizer uses the queue while it has interrupted a use of its own "
        "thread. Have it set a flag, and use the queue from the thread's normal course.")
