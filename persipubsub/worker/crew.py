"""What threads and tasks that handle messages share."""

import itertools
import logging
import threading
from typing import Callable, List, Set

from persipubsub import errors
from persipubsub.environment import Environment
from persipubsub.worker import starting
from persipubsub.worker.backoff import Backoff
from persipubsub.worker.handlers import Handler
from persipubsub.worker.leases import Job, Leases
from persipubsub.worker.plan import Plan

_LOGGER = logging.getLogger("persipubsub.worker")


class Crew:  # pylint: disable=too-many-instance-attributes  # the state of a process
    """The threads or tasks of one process, which handle its messages.

    :param wake: called in any thread when one has ended
    """

    def __init__(self, env: Environment, plan: Plan, handler: Handler, wake: Callable[[], None]) -> None:
        self.handler = handler
        #: The threads that have not ended.
        self.running: Set[threading.Thread] = set()
        self.leases = Leases(env.new_control(create=False), plan.subscriber)
        self.stopping = threading.Event()
        self._env = env
        self._plan = plan
        self._wake = wake
        self._threads: List[threading.Thread] = []
        self._failures: List[BaseException] = []
        self._handled = itertools.count(1)  # a count that threads share needs no lock

    def start(self, target: Callable[..., None], *arguments: object) -> None:
        """Start a thread. If the machine has none left, stop.

        It does not keep the process from ending, so that an abort always ends it.
        """
        thread = threading.Thread(target=self._run, args=(target, *arguments), name="persipubsub-worker", daemon=True)
        self.running.add(thread)
        try:
            starting.start(thread)
        except errors.StorageError as error:
            self.running.discard(thread)
            self.fail(error)
        else:
            self._threads.append(thread)

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        try:
            target(*arguments)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by join
            self.fail(error)
        finally:
            self.running.discard(threading.current_thread())
            self._wake()

    def stop(self) -> None:
        """Receive no more; messages that are being handled are finished. Any thread may call this."""
        self.stopping.set()
        self._env.stop()

    def fail(self, error: BaseException) -> None:
        """Stop because of an error that the process cannot handle."""
        self._failures.append(error)
        self.stop()

    def join(self) -> None:
        """Wait for the end of all threads, and raise the error that stopped them, if any."""
        for thread in self._threads:
            thread.join()
        self.leases.close()
        if self._failures:
            raise self._failures[0]

    def give_back(self) -> None:
        """Give back what is being handled, before the process ends in spite of it."""
        for job in list(self.leases.jobs):
            job.give_back()

    # One message

    def handler_failed(self, job: Job, error: BaseException) -> None:
        """Log an exception of the handler."""
        job.failure = error
        _LOGGER.error("The handler %s failed on %s.", self.handler.name, job, exc_info=error, extra=job.log_fields())

    def pause_s(self, job: Job, error: Exception, backoff: Backoff) -> float:
        """Return how long to pause after an error of a job.

        The queue delays messages of a shared subscriber. Another subscriber receives the same message at once.

        :raise Exception: the error, if the process cannot go on
        """
        if isinstance(error, errors.LeaseLostError) and error is not job.failure:
            job.lost(error)
            return 0
        if error is not job.failure:
            if not isinstance(error, (errors.DecodeError, errors.StorageError)):
                raise error
            # A message that cannot be decoded has not arrived, but its error knows which it is.
            fields = {**job.log_fields(), "message_id": getattr(error, "message_id", None)}
            _LOGGER.error("The subscriber %r goes on after an error: %s", self._plan.subscriber, error, extra=fields)
        is_delayed = self.leases.is_shared and not isinstance(error, errors.StorageError)
        return 0 if is_delayed else backoff.next_s()

    def count(self, job: Job) -> None:
        """Count a message, and stop if the process has handled as many as it should."""
        maximum = self._plan.max_messages
        if maximum is not None and job.delivery is not None and next(self._handled) >= maximum:
            self.stop()
