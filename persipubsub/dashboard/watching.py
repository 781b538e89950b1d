"""A thread for each queue: it reads the status at intervals, and between two reads does what requests ask for.

A queue that answers slowly holds up nobody else. All that is done at a queue is done by its one thread.
"""

import concurrent.futures
import hashlib
import logging
import os
import queue
import re
import threading
import urllib.parse
from typing import Any, Callable, Iterable, List, Optional, Tuple

from persipubsub import clock, environment, errors
from persipubsub.dashboard import reading
from persipubsub.dashboard.history import History
from persipubsub.dashboard.sources import Source, source_of
from persipubsub.status import QueueStatus
from persipubsub.status_reader import LOOK_S_MAX

#: How many requests wait for one queue.
REQUESTS_MAX = 8
#: The longest interval between two reads of a queue that cannot be read, in seconds.
RETRY_S_MAX = 5.0
MASK = "***"
_LOGGER = logging.getLogger(__name__)


class BusyError(Exception):
    """Raised when too many requests wait for a queue."""


class Watcher:  # pylint: disable=too-many-instance-attributes  # what it reads, and what it has found
    """Reads one queue in a thread of its own."""

    def __init__(self, location: str, interval_s: float) -> None:
        """Prepare to read the queue at a path or a URL.

        :raise ArgumentError: it cannot be the location of a queue
        """
        #: The location without secrets, as it may be shown.
        found = os.fsencode(environment.new_environment(location).location)
        self.location = found.decode("utf-8", "backslashreplace")
        #: Names the queue in addresses of the page.
        self.id = hashlib.sha256(found).hexdigest()[:12]
        self.history = History()
        #: The last status, and when it was read; None before the first one.
        self.found: Optional[Tuple[float, QueueStatus]] = None
        #: Why the last read failed, with the name of the class of the error; None if it succeeded.
        self.error: Optional[Tuple[str, str]] = None
        #: Rises with every read.
        self.version = 0
        self._secrets = _secrets(location)
        self._source: Source = source_of(location)
        self._interval_s = interval_s
        self._requests: "queue.Queue[Optional[Callable[[], None]]]" = queue.Queue(REQUESTS_MAX)
        self._stopping = threading.Event()
        # A daemon: a read of a lost cluster must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=f"queue {self.id}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def submit(self,
               function: Callable[..., Any],
               *arguments: Any,
               timeout_s: int = LOOK_S_MAX) -> "concurrent.futures.Future[Any]":
        """Have the thread call a function with the control of the queue, and return the future result.

        :raise BusyError: too many requests wait
        """
        future: "concurrent.futures.Future[Any]" = concurrent.futures.Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._source.call(function, *arguments, timeout_s=timeout_s))
            except BaseException as error:  # pylint: disable=broad-exception-caught  # whoever waits gets it
                future.set_exception(error)

        try:
            self._requests.put_nowait(work)
        except queue.Full:
            raise BusyError from None
        return future

    def masked(self, text: str) -> str:
        """Return an error as one line without the secrets of the location."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return " ".join(text.split())

    def stop(self) -> None:
        """Have the thread end after what it does."""
        self._stopping.set()
        try:
            self._requests.put_nowait(None)
        except queue.Full:
            pass  # it does not wait, then

    def join(self, until_s: float) -> None:
        """Wait for the end of the thread, until a time of the monotonic clock."""
        self._thread.join(max(0.0, until_s - clock.monotonic_s()))

    def _run(self) -> None:
        due_s = clock.monotonic_s()
        failures = 0
        while not self._stopping.is_set():
            wait_s = due_s - clock.monotonic_s()
            if wait_s <= 0:
                failures = 0 if self._look() else failures + 1
                due_s = clock.monotonic_s() + min(self._interval_s * 2**min(failures, 10),
                                                  max(self._interval_s, RETRY_S_MAX))
                continue
            try:
                request = self._requests.get(timeout=wait_s)
            except queue.Empty:
                continue
            if request is not None:
                request()
                due_s = clock.monotonic_s()  # what it has changed shows at once
        self._source.close()

    def _look(self) -> bool:
        """Read the status; return whether it could be read."""
        try:
            status = self._source.call(reading.status)
            now_s = clock.wall_us() / 1e6
            # A queue that was made anew at the same place, or a clock that was set back, begins a new history.
            history = self.history if self.history.continues(now_s, status) else History()
            history.add(now_s, status)
            self.history = history
            self.found, self.error = (now_s, status), None
        except errors.PersipubsubError as error:
            self.error = (type(error).__name__, self.masked(str(error)))
        except Exception as error:  # pylint: disable=broad-exception-caught  # the thread must go on
            _LOGGER.exception("The queue at %s cannot be read.", self.location)
            self.error = (type(error).__name__, self.masked(str(error)))
        self.version += 1
        return self.error is None


def _secrets(location: str) -> List[str]:
    """Return what of a URL must never be shown, as it is written there and decoded; longest first."""
    match = re.match(r"[a-z]+://([^/@]*)@", location)
    if match is None:
        return []
    secret = match[1].partition(":")[2] or match[1]
    return sorted({one for one in (secret, urllib.parse.unquote(secret)) if one}, key=len, reverse=True)


def watchers_of(locations: Iterable[str], interval_s: float) -> List[Watcher]:
    """Return a watcher for each different queue.

    :raise ArgumentError: one of them cannot be the location of a queue
    """
    made = [Watcher(location, interval_s) for location in locations]
    return list({one.id: one for one in made}.values())
