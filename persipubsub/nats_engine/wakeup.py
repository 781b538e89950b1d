"""Waits of threads for something that the loop learns: what was stored, what was given back, where there is room."""

import threading

from persipubsub.engine.values import NEVER_US
from persipubsub.nats_engine import loop_thread


class Signal:
    """Counts events, and wakes the threads that wait for one."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def wake(self) -> None:
        """Count an event, and wake all waiting threads. Only the loop calls this."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Wait for an event after those that were seen."""
        with self._changed:
            self._changed.wait_for(lambda: self.count != seen, timeout_s)

    def interrupt(self) -> None:
        """Wake all waiting threads. A signal handler may call this, so the loop does it."""
        loop_thread.post(self.wake)


class SignalWatch:
    """See :class:`persipubsub.engine.protocols.Watch`."""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._seen = signal.count

    def arm(self) -> None:
        """Note the events so far."""
        self._seen = self._signal.count

    def wait(self, timeout_s: float) -> None:
        """Return once there was an event since arm(), or after the timeout."""
        self._signal.wait(self._seen, timeout_s)

    def reserve(self, due_us: int) -> bool:
        """Return that looking costs no other process anything."""
        return due_us != NEVER_US

    def close(self) -> None:
        """Do nothing."""
