"""Extend the leases of messages while they are handled."""

import contextlib
import logging
import threading
from typing import Any, Callable, Dict, Optional, Set

from persipubsub import errors, tracing
from persipubsub.control import Control
from persipubsub.message import Delivery
from persipubsub.worker import starting

#: A lease is extended each time this part of it has passed.
EXTENDED_AFTER = 1 / 3
_LOGGER = logging.getLogger("persipubsub.worker")


class Job:
    """A message that a thread or task receives and handles.

    :param subscriber: its name
    :param extend: extends its lease; called in another thread
    :param give_back: gives it back, so that it does not count as delivered; called in another thread
    """

    __slots__ = ("subscriber", "extend", "give_back", "delivery", "failure", "is_lost", "trace_id")

    def __init__(self, subscriber: str, extend: Callable[[], object], give_back: Callable[[], object]) -> None:
        self.subscriber = subscriber
        self.extend = extend
        self.give_back = give_back
        #: None until it has arrived.
        self.delivery: Optional[Delivery[Any]] = None
        #: What the handler raised.
        self.failure: Optional[BaseException] = None
        #: Whether it was logged that another worker holds the message.
        self.is_lost = False
        #: Of the trace that its handler is in; None if there is none.
        self.trace_id: Optional[str] = None

    def __str__(self) -> str:
        if self.delivery is None:
            return f"message of the subscriber {self.subscriber!r}"
        trace = "" if self.trace_id is None else f", trace {self.trace_id}"
        return (f"message {self.delivery.id} of the subscriber {self.subscriber!r} "
                f"(delivery {self.delivery.delivery_count}{trace})")

    def log_fields(self) -> Dict[str, object]:
        """Return the fields of a log record about the message."""
        delivery = self.delivery
        return {
            "subscriber": self.subscriber,
            "message_id": None if delivery is None else delivery.id,
            "delivery_count": None if delivery is None else delivery.delivery_count,
            "trace_id": self.trace_id
        }

    def lost(self, error: errors.LeaseLostError) -> None:
        """Log that another worker holds the message, unless that was logged before."""
        if not self.is_lost:
            self.is_lost = True
            _LOGGER.warning("The lease was lost, so %s may be handled twice: %s", self, error, extra=self.log_fields())


class Leases:
    """A thread that extends the leases of all jobs of a process. It sleeps while there are none.

    :param identifier: of the subscriber; one that is not shared has no leases, and needs no thread
    :raise StorageError: the machine has no thread left
    """

    def __init__(self, control: Control, identifier: str) -> None:
        self.jobs: Set[Job] = set()
        self._control = control
        self._identifier = identifier
        self._busy = threading.Event()
        self._closed = threading.Event()
        self._lease_s = self._current_lease_s()
        self._thread = threading.Thread(target=self._run, name="persipubsub-leases", daemon=True)
        if self._lease_s is not None:
            starting.start(self._thread)

    @property
    def is_shared(self) -> bool:
        """Return whether the subscriber is shared."""
        return self._lease_s is not None

    def add(self, job: Job) -> None:
        """Extend the lease of a job from now on. Its thread or task calls this."""
        job.trace_id = tracing.current_trace_id()
        self.jobs.add(job)
        if not self._busy.is_set():
            self._busy.set()

    def discard(self, job: Job) -> None:
        """Extend the lease of a job no longer."""
        self.jobs.discard(job)

    def close(self) -> None:
        """End the thread; more than once is fine."""
        self._closed.set()
        self._busy.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._busy.clear()
            if not self.jobs and not self._closed.is_set():
                self._busy.wait()
            elif not self._closed.wait(self._interval_s()):
                for job in list(self.jobs):
                    self._extend(job)

    def _interval_s(self) -> float:
        """Return the time between two extensions, by the lease that the subscriber has now."""
        with contextlib.suppress(errors.PersipubsubError):
            self._lease_s = self._current_lease_s() or self._lease_s
        return (self._lease_s or 0) * EXTENDED_AFTER

    def _current_lease_s(self) -> Optional[float]:
        status = self._control.status().subscribers.get(self._identifier)
        return None if status is None or status.policy is None else status.policy.lease_s

    @staticmethod
    def _extend(job: Job) -> None:
        if job.is_lost:
            return
        try:
            job.extend()
        except errors.LeaseLostError as error:
            job.lost(error)
        except errors.PersipubsubError as error:
            _LOGGER.warning("The leases of this process cannot be extended; it will be tried again: %s", error)
