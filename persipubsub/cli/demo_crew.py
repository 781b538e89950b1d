"""The processes of the demo, seen from the parent: started, watched and stopped."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import pathlib
import signal
from types import FrameType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Union

from persipubsub.cli.demo_lines import Source, Tally
from persipubsub.cli.demo_workers import Report, Work, publish, run, subscribe

#: What ends the demo from outside: Ctrl-C, kill, the end of the terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Not forked: a spawned process is like one of a user's own.
_SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process and its last report."""

    def __init__(self, name: str, work: Work, tallies: int, debug: bool) -> None:
        """Start the process."""
        self.name = name
        self.report = Report([Tally() for _ in range(tallies)])
        self.link, link = _SPAWN.Pipe(duplex=False)
        self.process = _SPAWN.Process(target=run, args=(work, link, self.report, debug), daemon=True)
        self.process.start()
        # So that the death of either side is the end of file for the other.
        link.close()

    def hear(self) -> bool:
        """Take the next report; return whether there was one, and not the end of the process."""
        try:
            self.report = self.link.recv()
        except (EOFError, OSError):
            self.process.join()
            return False
        return True

    def failure(self) -> str:
        """Return how the process died; empty if it ended well."""
        status = self.process.exitcode or 0
        death = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        reason = f": {self.report.error}" if self.report.error else ""
        return f"{self.name} (process {self.process.pid}) {death}{reason}" if status else ""


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


@contextlib.contextmanager
def _signals(numbers: Iterable[int], handler: Union[Callable[[int, Optional[FrameType]], None],
                                                    signal.Handlers]) -> Iterator[None]:
    """Handle signals, except those that whoever started the demo wants to be ignored (nohup)."""
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
    """All workers."""

    def __init__(self, queue: pathlib.Path, source: Source, publishers: int, identifiers: List[str],
                 debug: bool) -> None:
        """Start the workers: the publishers, and one for each subscriber of the queue."""
        self.publishers: List[Worker] = []
        self.subscribers: List[Worker] = []
        self.failures: List[str] = []
        #: The number of the signal that stopped them.
        self.stopped_by: Optional[int] = None
        # The end of this pipe, also by the death of this process, is how subscribers learn that publishers have ended.
        ended, self._publishing = _SPAWN.Pipe(duplex=False)
        # A process that ignores SIGINT starts processes that do: Ctrl-C goes to all, and the parent decides.
        # Were it ignored only once a worker runs, Ctrl-C would show the tracebacks of their imports.
        with _signals([signal.SIGINT], signal.SIG_IGN):
            for identifier in identifiers:
                receiving = functools.partial(subscribe, queue=queue, identifier=identifier, ended=ended)
                self.subscribers.append(Worker(identifier, receiving, publishers, debug))
            for number in range(publishers):
                sending = functools.partial(publish, queue=queue, number=number, of=publishers, source=source)
                self.publishers.append(Worker(f"publisher-{number + 1}", sending, 1, debug))
        self._workers = self.publishers + self.subscribers

    def run(self, changed: Callable[[], None]) -> None:
        """Wait until all have ended: by themselves, because one has died, or because a signal says so.

        :param changed: called after each report
        """
        running: Dict[Any, Worker] = {worker.link: worker for worker in self._workers}
        try:
            with _signals(STOP_SIGNALS, self._on_signal):
                while running:
                    for link in multiprocessing.connection.wait(running):
                        if not running[link].hear():
                            self._ended(running.pop(link))
                    if not any(publisher in running.values() for publisher in self.publishers):
                        self._publishing.close()
                    changed()
        finally:
            self._kill()
            for worker in self._workers:
                worker.process.join()

    def _ended(self, worker: Worker) -> None:
        failure = worker.failure()
        if failure and not self.failures:
            self.failures.append(failure)
            self._kill()

    def _on_signal(self, number: int, _frame: Optional[FrameType]) -> None:
        # An exception, as Ctrl-C makes one, could leave half a report in a pipe.
        if self.stopped_by is None:
            self.stopped_by = number
            self.failures.append(f"stopped by {_signal_name(number)}")
        self._kill()

    def _kill(self) -> None:
        """End the workers, wherever they are: a queue bears it."""
        for worker in self._workers:
            worker.process.kill()
