"""The processes of the demo, seen from inside: a publisher or a subscriber, and its link to the parent."""

import dataclasses
import enum
import pathlib
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Callable, Iterable, Iterator, List, Optional

from persipubsub import clock, environment, errors
from persipubsub.cli import warnings_shown
from persipubsub.cli.demo_lines import Share, Stream, Tally, decode, encode

BATCH_MESSAGES_MAX = 5000
BATCH_BYTES_MAX = 8 * 1024**2
#: Publishers wait while the queue holds more: a file of many GB needs no more room on the disk than this, or thrice it.
BACKLOG_BYTES_MAX = 512 * 1024**2
REPORT_INTERVAL_S = 0.1
#: How long a worker waits for the queue before it looks whether the parent wants something.
WAIT_S_MAX = 0.1


class Order(enum.Enum):
    """What the parent may tell a worker."""

    #: All publishers have ended: take what is left.
    FINISH = "finish"
    #: End at once.
    STOP = "stop"


@dataclasses.dataclass
class Report:
    """What a worker tells its parent, now and then and at the end."""

    #: From the first message to the last one.
    seconds: float = 0
    #: Of a publisher its own, of a subscriber one for each publisher.
    tallies: List[Tally] = dataclasses.field(default_factory=list)
    #: Why it cannot go on.
    error: str = ""

    @property
    def messages(self) -> int:
        """Give the number of messages sent or received."""
        return sum(tally.messages for tally in self.tallies)


class Link:
    """A worker's link to its parent: reports go up, orders come down. Pipes, since a kill leaves no lock behind."""

    def __init__(self, reports: "Connection[Report, Report]", orders: "Connection[Order, Order]", debug: bool) -> None:
        self._reports = reports
        self._orders = orders
        self._debug = debug
        self._order: Optional[Order] = None
        self._reported_at = 0.0

    def order(self, wait_s: float = 0) -> Optional[Order]:
        """Give the latest order, waiting for one if asked to. A parent that is gone has ordered to stop."""
        try:
            while self._order != Order.STOP and self._orders.poll(wait_s):
                self._order = self._orders.recv()
        except (EOFError, OSError):
            self._order = Order.STOP
        return self._order

    def report(self, report: Report, last: bool = False) -> None:
        """Tell the parent, unless it has just been told."""
        now = clock.monotonic_s()
        if last or now - self._reported_at >= REPORT_INTERVAL_S:
            self._reported_at = now
            try:
                self._reports.send(report)
            except BrokenPipeError:
                self._order = Order.STOP

    def run(self, work: "Callable[[Link, Report], None]") -> None:
        """Do the work of a worker, and report its end."""
        report = Report()
        try:
            with warnings_shown.on_stderr():
                work(self, report)
        except (errors.PersipubsubError, OSError) as error:
            report.error = traceback.format_exc() if self._debug else str(error)
        self.report(report, last=True)
        if report.error:
            sys.exit(1)


def publish(link: Link, report: Report, queue: pathlib.Path, number: int, share: Share) -> None:
    """Send the lines of a share."""
    tally = Tally()
    report.tallies = [tally]
    with open(share.source.path, "rb") as file, environment.new_environment(queue) as env:
        publisher, control = env.new_publisher(), env.new_control()
        start_s = clock.monotonic_s()
        messages = (encode(number, index, line) for index, line in enumerate(share.lines(file)))
        for batch in _batches(messages):
            while control.status().size_bytes > BACKLOG_BYTES_MAX and link.order(WAIT_S_MAX) != Order.STOP:
                pass
            if link.order() == Order.STOP:
                return
            publisher.send_many(batch)
            tally.messages += len(batch)
            tally.end = tally.messages
            report.seconds = clock.monotonic_s() - start_s
            link.report(report)


def _batches(messages: Iterable[bytes]) -> Iterator[List[bytes]]:
    batch: List[bytes] = []
    size_bytes = 0
    for message in messages:
        batch.append(message)
        size_bytes += len(message)
        if len(batch) == BATCH_MESSAGES_MAX or size_bytes >= BATCH_BYTES_MAX:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def subscribe(link: Link, report: Report, queue: pathlib.Path, identifier: str, publishers: int) -> None:
    """Receive everything, until the publishers have ended and nothing is left."""
    streams = [Stream() for _ in range(publishers)]
    report.tallies = [stream.tally for stream in streams]
    with environment.new_environment(queue) as env:
        subscriber = env.new_subscriber(identifier)
        start_s: Optional[float] = None
        while True:
            # Asked before the look: what was sent before the order is there to be seen.
            order = link.order()
            if order == Order.STOP:
                return
            with subscriber.receive_many(BATCH_MESSAGES_MAX,
                                         0 if order == Order.FINISH else WAIT_S_MAX,
                                         max_bytes=BATCH_BYTES_MAX) as messages:
                if start_s is None and messages:
                    start_s = clock.monotonic_s()
                for message in messages:
                    publisher, number, intact = decode(message)
                    streams[publisher].add(number, intact)
            if start_s is not None and messages:
                report.seconds = clock.monotonic_s() - start_s
            elif order == Order.FINISH:
                return
            link.report(report)
