"""The processes of a worker program: started, replaced and stopped."""

import logging
import math
import multiprocessing
import pickle
import signal
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional

from persipubsub import clock, environment, errors
from persipubsub.worker import process
from persipubsub.worker.backoff import Backoff
from persipubsub.worker.handlers import Handler
from persipubsub.worker.plan import Plan
from persipubsub.worker.stop_requests import StopRequests

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

#: A process that has lived for this long was healthy: if it dies, its successor starts after the shortest pause.
HEALTHY_S = 60.0
#: Processes end themselves after the grace. The supervisor waits a little longer before it ends them.
MARGIN_S = 2.0
_LOGGER = logging.getLogger("persipubsub.worker")
# Not forked: the modules of handlers may have started threads.
_SPAWN = multiprocessing.get_context("spawn")


def supervise(plan: Plan, processes: int) -> int:
    """Run processes until this one is asked to stop, and return the exit status.

    :raise UnsupportedError: this process cannot start others
    :raise PersipubsubError: the handler cannot be used, or the queue cannot be received from
    """
    _check(plan, processes)
    members = [_Member(plan) for _ in range(processes)]
    with StopRequests() as requests:
        try:
            while not requests.count:
                for member in members:
                    member.start_if_due()
                _wait(members, requests, min(member.due_s for member in members))
                for member in members:
                    if member.reap():
                        member.replace()
            return _stop(members, plan, requests)
        finally:
            for member in members:
                member.kill()


def _check(plan: Plan, processes: int) -> None:
    """Find mistakes before any process starts."""
    Handler(plan.handler)
    with environment.new_environment(plan.location) as env:
        process.require_kind(env, plan, processes * plan.threads)
        env.new_subscriber(plan.subscriber, process.imported(plan).message_type)
    try:
        pickle.dumps(plan)
    except Exception as error:  # pylint: disable=broad-exception-caught  # a class raises what it likes
        raise errors.ArgumentTypeError(
            "For several processes, and for processes that are recycled, the handler and the message type must be "
            f"functions and classes of a module, but they cannot be pickled: {error}.") from error


def _wait(members: "List[_Member]", requests: StopRequests, until_s: float) -> None:
    """Wait for a request, the end of a process, or a time."""
    requests.wait(until_s, *(member.current.process.sentinel for member in members if member.current is not None))


def _stop(members: "List[_Member]", plan: Plan, requests: StopRequests) -> int:
    """Ask the processes to stop, wait for their ends, and return the exit status."""
    members = [member for member in members if member.current is not None]  # others wait to be replaced
    for member in members:
        member.terminate()
    _wait_for_ends(members, requests, plan.grace_s + MARGIN_S, requests_max=1)
    for member in members:
        member.abort()
    _wait_for_ends(members, requests, process.GIVING_BACK_S + MARGIN_S, requests_max=2)
    if all(member.ended_well for member in members):
        return 0
    return process.SIGNALLED + requests.received[-1] if requests.count > 1 else process.FAILED


def _wait_for_ends(members: "List[_Member]", requests: StopRequests, timeout_s: float, requests_max: int) -> None:
    """Wait until all processes have ended, but no longer than a time, nor after further requests."""
    until_s = clock.monotonic_s() + timeout_s
    while requests.count <= requests_max and clock.monotonic_s() < until_s:
        for member in members:
            member.reap()
        if all(member.current is None for member in members):
            return
        _wait(members, requests, until_s)


class _Running(NamedTuple):
    """A process, its link, and when it was started."""

    process: "SpawnProcess"
    link: "Connection[Any, Any]"
    started_s: float


class _Member:
    """One of the processes, and its successors."""

    def __init__(self, plan: Plan) -> None:
        #: The process, while there is one.
        self.current: Optional[_Running] = None
        #: When to start it, on the clock of monotonic_s; never while it runs.
        self.due_s = -math.inf
        self._plan = plan
        self._backoff = Backoff()
        self._status = 0

    def start_if_due(self) -> None:
        """Start the process when it is time.

        :raise UnsupportedError: this process cannot start others
        """
        now_s = clock.monotonic_s()
        if now_s < self.due_s:
            return
        theirs, ours = _SPAWN.Pipe(duplex=False)
        started = _SPAWN.Process(target=process.serve_supervised, args=(self._plan, theirs), name="persipubsub-worker")
        # Ctrl-C in a terminal reaches all processes, and only this one decides: those that it starts inherit that
        # SIGINT is blocked. Python's resource tracker would unblock it if it started together with the first one.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            started.start()
            self.current, self.due_s = _Running(started, ours, now_s), math.inf
        except OSError as error:  # no memory, or too many processes; others go on meanwhile
            ours.close()
            self._pause(f"cannot be started ({error})")
        except (AssertionError, RuntimeError) as error:  # multiprocessing refuses this process
            ours.close()
            raise errors.UnsupportedError(
                'Python does not let this process start others. Call run below if __name__ == "__main__":, and in a '
                "process that is not daemonic. One process without max_messages and max_seconds needs no others."
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()  # so that the death of either side is the end of file for the other

    def reap(self) -> bool:
        """Return whether the process has ended since the last call."""
        if self.current is None or self.current.process.exitcode is None:
            return False
        if clock.monotonic_s() - self.current.started_s >= HEALTHY_S:
            self._backoff.reset()
        self._status = self.current.process.exitcode
        self.current.link.close()
        self.current = None
        return True

    def replace(self) -> None:
        """Let a successor start, later each time if processes die one after the other."""
        if self._status == 0:  # it was recycled, or somebody stopped it
            self._backoff.reset()
            self.due_s = -math.inf
        else:
            self._pause(_end(self._status))

    def _pause(self, end: str) -> None:
        pause_s = self._backoff.next_s()
        self.due_s = clock.monotonic_s() + pause_s
        _LOGGER.error("A process that handles messages of the subscriber %r %s. Another one starts in %g s.",
                      self._plan.subscriber, end, pause_s)

    @property
    def ended_well(self) -> bool:
        """Return whether the process has ended with nothing to report. One that SIGTERM kills was still starting."""
        return self.current is None and self._status in (0, -signal.SIGTERM)

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self.current is not None:
            self.current.process.terminate()

    def abort(self) -> None:
        """Ask the process to end at once. For a process that was asked to stop, the end of its link means that."""
        if self.current is not None:
            self.current.link.close()

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self.current is not None:
            self.current.process.kill()
            self.current.process.join()


def _end(status: int) -> str:
    """Return how a process ended."""
    if status > 0:
        return f"ended with exit status {status}"
    return f"was killed by {next((known.name for known in signal.Signals if known == -status), f'signal {-status}')}"
