"""The processes of the demo, seen from the parent: started, watched and stopped."""

import contextlib
import functools
import multiprocessing
import signal
from multiprocessing import connection, resource_tracker
from typing import Any, Callable, Dict, Iterator, List, Sequence

from persipubsub.cli.demo import workers
from persipubsub.cli.demo.workers import Plan, Report

#: The longest time until a signal is noticed.
POLL_INTERVAL_S = 0.1

# Not forked: a spawned process is like one of a user's own.
_SPAWN = multiprocessing.get_context("spawn")


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number if it has no name."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


@contextlib.contextmanager
def noted_signals() -> Iterator[List[int]]:
    """Yield a list that collects the signals to stop, so that they interrupt nothing in the block.

    A signal that was ignored before, as by nohup, stays ignored.
    """
    noted: List[int] = []
    stopping = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]  # Ctrl-C, kill, the end of the terminal
    heeded = [number for number in stopping if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, lambda received, _frame: noted.append(received)) for number in heeded}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Worker:
    """One process and its last report."""

    def __init__(self, name: str, work: Callable[[Report], Iterator[None]], debug: bool) -> None:
        """Start the process."""
        self.name = name
        self.report = Report()
        self.link, link = _SPAWN.Pipe(duplex=False)
        self.process = _SPAWN.Process(target=workers.run, args=(work, link, debug))
        self.process.start()
        # So that the death of either side is the end of file for the other.
        link.close()

    def hear(self) -> bool:
        """Receive the next report; return False if the process has ended."""
        try:
            self.report = self.link.recv()
            return True
        except (EOFError, OSError):
            self.process.join()
            return False

    def failure(self) -> str:
        """Return how the process died; empty if it ended well."""
        status = self.process.exitcode or 0
        death = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        reason = f": {self.report.error}" if self.report.error else ""
        return f"{self.name} (process {self.process.pid}) {death}{reason}" if status else ""


class Crew:
    """All workers."""

    def __init__(self) -> None:
        self.publishers: List[Worker] = []
        self.subscribers: List[Worker] = []
        #: How the first worker died; empty if all ended well.
        self.failure = ""

    @property
    def received(self) -> int:
        """Return how many messages all subscribers have received together."""
        return sum(one.report.messages for one in self.subscribers)

    def run(self, plan: Plan, noted: Sequence[int], changed: Callable[[], object]) -> None:
        """Start the workers, and call ``changed`` until they end. Kill them once one dies or a signal is noted."""
        # Closed once the publishers have ended, or by the death of this process: subscribers then need not wait.
        ended, publishing = _SPAWN.Pipe(duplex=False)
        try:
            self._start(plan, ended)
            running: Dict[Any, Worker] = {worker.link: worker for worker in self.publishers + self.subscribers}
            while running:
                for link in connection.wait(running, POLL_INTERVAL_S):
                    if not running[link].hear():
                        worker = running.pop(link)
                        self.failure = self.failure or worker.failure()
                if noted or self.failure:
                    self._kill()
                if not any(publisher in running.values() for publisher in self.publishers):
                    publishing.close()
                changed()
        finally:
            self._kill()

    def _start(self, plan: Plan, ended: Any) -> None:
        # Ctrl-C reaches all processes, and only this one decides: workers inherit that SIGINT is blocked. Python's
        # resource tracker would unblock it here if it started together with the first worker.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for name in plan.subscribers:
                receiving = functools.partial(workers.subscribe, plan=plan, identifier=name, ended=ended)
                self.subscribers.append(Worker(name, receiving, plan.debug))
            for number in range(plan.publishers):
                sending = functools.partial(workers.publish, plan=plan, number=number)
                self.publishers.append(Worker(f"publisher-{number + 1}", sending, plan.debug))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _kill(self) -> None:
        """Kill the workers, whatever they are doing: the queue survives it."""
        for worker in self.publishers + self.subscribers:
            worker.process.kill()
        for worker in self.publishers + self.subscribers:
            worker.process.join()
