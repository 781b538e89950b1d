"""Requests to stop: signals, and the death of the supervisor."""

import contextlib
import math
import os
import signal
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import FrameType, TracebackType
from typing import Any, Dict, List, Optional, Type

from persipubsub import clock

#: By systemd, a container runtime or kill; by Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """Requests to stop, for which the main thread waits. The handlers of signals only note them.

    The first request asks for a warm stop, and the second one for an abort.

    A process that has a supervisor ignores Ctrl-C, which a terminal sends to all processes. It counts SIGTERM once,
    since systemd sends it to all processes and the supervisor passes it on. The end of its link to the supervisor is a
    request, too.

    :param link: to the supervisor, if there is one
    """

    def __init__(self, link: "Optional[Connection[Any, Any]]" = None) -> None:
        #: Numbers of signals; SIGHUP stands for the end of the link.
        self.received: List[int] = []
        self._link = link
        self._has_supervisor = link is not None
        self._before: Dict[int, Any] = {}
        self._wakeup_before = -1
        # A signal writes a byte: it may be another thread that the system interrupts with it.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def __enter__(self) -> "StopRequests":
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    def _note(self, number: int, _frame: Optional[FrameType]) -> None:
        if not self._has_supervisor or (number == signal.SIGTERM and number not in self.received):
            self.received.append(number)

    @property
    def count(self) -> int:
        """Return the number of requests."""
        return len(self.received)

    def wake(self) -> None:
        """Wake the main thread. Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # it has been woken, and has not read it yet
            os.write(self._writer, b"\0")

    def wait(self, until_s: float, *others: int) -> None:
        """Wait for a request, or until the main thread is woken or one of some other descriptors is ready.

        :param until_s: when to return in any case, on the clock of :func:`persipubsub.clock.monotonic_s`
        """
        timeout_s = None if until_s == math.inf else max(0, until_s - clock.monotonic_s())
        waiting: List[Any] = [self._reader, *others]
        if self._link is not None:
            waiting.append(self._link)
        ready = connection.wait(waiting, timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        if self._link in ready:
            self._link = None
            self.received.append(signal.SIGHUP)
