"""The processes of the demo, seen from the parent: started, watched and stopped."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import pathlib
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Callable, Iterable, Iterator, List, Optional, Sequence, Union

from persipubsub import clock
from persipubsub.cli.demo_lines import Share, Tally
from persipubsub.cli.demo_workers import Link, Order, Report, publish, subscribe

#: A worker that was told to stop, or has closed its link, and still lives after this is killed.
STOP_S_MAX = 5.0
#: How often the deadline for it is looked at.
LOOK_INTERVAL_S = 0.5
#: What ends the demo from outside: Ctrl-C, kill, the end of the terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Not forked: a spawned process is like one of a user's own.
_SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process and what it last told."""

    def __init__(self, name: str, work: Callable[[Link, Report], None], tallies: int, debug: bool) -> None:
        """Start the process.

        :param tallies: how many its reports have
        """
        self.name = name
        self.report = Report(tallies=[Tally() for _ in range(tallies)])
        self.running = True
        self._killed = False
        reports: "Connection[Report, Report]"
        orders: "Connection[Order, Order]"
        self.reports, reports = _SPAWN.Pipe(duplex=False)
        orders, self._orders = _SPAWN.Pipe(duplex=False)
        self._process: SpawnProcess = _SPAWN.Process(target=Link(reports, orders, debug).run,
                                                     args=(work, ),
                                                     daemon=True)
        self._process.start()
        # So that the death of either side is the end of file for the other.
        reports.close()
        orders.close()

    def order(self, order: Order) -> None:
        """Tell the process what to do."""
        if self.running:
            try:
                self._orders.send(order)
            except BrokenPipeError:
                pass  # it is ending, which its reports will tell

    def kill(self) -> None:
        """End the process, which did not do it when told."""
        self._killed = True
        self._process.kill()

    def hear(self) -> None:
        """Take a report, or the news that there will be no more."""
        try:
            report = self.reports.recv()
        except (EOFError, OSError):
            self.running = False
            self._process.join(STOP_S_MAX)
            if self._process.is_alive():
                self.kill()
                self._process.join()
            self.reports.close()
            self._orders.close()
            return
        if report.tallies:
            self.report = report
        else:
            self.report.error = report.error

    def failure(self) -> Optional[str]:
        """Say how the process died, if it did not end well."""
        status = self._process.exitcode
        if self.running or status == 0:
            return None
        who = f"{self.name} (process {self._process.pid})"
        if self._killed:
            return f"{who} did not stop within {STOP_S_MAX:g} s and was killed"
        if status is not None and status < 0:
            return f"{who} was killed by {_signal_name(-status)}"
        return f"{who} ended with exit status {status}{': ' if self.report.error else ''}{self.report.error}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def _signals(numbers: Iterable[int],
             handler: "Union[Callable[[int, Optional[FrameType]], None], signal.Handlers]") -> Iterator[None]:
    """Handle signals, but for those that whoever started us wants to be ignored (nohup)."""
    previous = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in previous if previous[number] != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, previous[number])


class Crew:
    """All workers. Leaving its ``with`` block ends those that still run."""

    def __init__(self, queue: pathlib.Path, shares: Sequence[Share], identifiers: Iterable[str], debug: bool) -> None:
        """Start the workers.

        :param queue: the directory of the queue, which has the subscribers
        :param shares: one for each publisher
        :param identifiers: one for each subscriber
        :param debug: whether a worker gives the traceback of an error
        """
        self.publishers: List[Worker] = []
        self.subscribers: List[Worker] = []
        self.failures: List[str] = []
        #: The number of the signal that stopped them.
        self.stopped_by: Optional[int] = None
        self._stop_at_s: Optional[float] = None
        try:
            # A process that ignores SIGINT starts processes that do: Ctrl-C goes to all, and the parent decides.
            # Were it ignored only once a worker runs, Ctrl-C would show the tracebacks of their imports.
            with _signals([signal.SIGINT], signal.SIG_IGN):
                for identifier in identifiers:
                    work = functools.partial(subscribe, queue=queue, identifier=identifier, publishers=len(shares))
                    self.subscribers.append(Worker(identifier, work, len(shares), debug))
                for number, share in enumerate(shares):
                    publishing = functools.partial(publish, queue=queue, number=number, share=share)
                    self.publishers.append(Worker(f"publisher-{number + 1}", publishing, 1, debug))
        except BaseException:
            self.__exit__()
            raise

    def _running(self) -> List[Worker]:
        return [worker for worker in (*self.publishers, *self.subscribers) if worker.running]

    def run(self, changed: Callable[[], None] = lambda: None) -> None:
        """Wait until all have ended: by themselves, because one has died, or because a signal says so.

        :param changed: called after each report
        """
        with _signals(STOP_SIGNALS, self._on_signal):
            running = self._running()
            while running:
                heard = multiprocessing.connection.wait([worker.reports for worker in running], LOOK_INTERVAL_S)
                for worker in running:
                    if worker.reports in heard:
                        self._hear(worker)
                    elif self._stop_at_s is not None and clock.monotonic_s() > self._stop_at_s:
                        worker.kill()
                changed()
                running = self._running()

    def _hear(self, worker: Worker) -> None:
        worker.hear()
        if worker.running:
            return
        failure = worker.failure()
        if failure is not None:
            self.failures.append(failure)
            self.stop()
        elif worker in self.publishers and not any(publisher.running for publisher in self.publishers):
            for subscriber in self.subscribers:
                subscriber.order(Order.FINISH)

    def _on_signal(self, number: int, _frame: Optional[FrameType]) -> None:
        # An exception, as Ctrl-C makes one, could leave half a report in a pipe.
        if self.stopped_by is None:
            self.stopped_by = number
            self.failures.append(f"stopped by {_signal_name(number)}")
        self.stop()

    def stop(self) -> None:
        """Tell those that still run to stop."""
        if self._stop_at_s is None:
            self._stop_at_s = clock.monotonic_s() + STOP_S_MAX
            for worker in self._running():
                worker.order(Order.STOP)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self.run()
