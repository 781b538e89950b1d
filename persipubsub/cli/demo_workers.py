"""The processes of the demo, seen from inside: a publisher or a subscriber.

They report to the parent through pipes, since a killed process leaves no lock in one.
"""

import contextlib
import dataclasses
import pathlib
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterable, Iterator, List

from persipubsub import clock, environment, errors
from persipubsub.cli import warnings_shown
from persipubsub.cli.demo_lines import Source, Tally, decode, encode

BATCH_MESSAGES_MAX = 5000
BATCH_BYTES_MAX = 8 * 1024**2
#: Publishers wait while the queue holds more: a file of many GB needs at most thrice this room on the disk.
BACKLOG_BYTES_MAX = 512 * 1024**2
REPORT_INTERVAL_S = 0.1
#: How long a worker waits for the queue before it reports again.
WAIT_S_MAX = 0.1


@dataclasses.dataclass
class Report:
    """What a worker reports to its parent, now and then and at the end."""

    #: Of a publisher its own, of a subscriber one for each publisher.
    tallies: List[Tally]
    #: From the first message to the last one.
    seconds: float = 0
    #: Why it cannot go on.
    error: str = ""

    @property
    def messages(self) -> int:
        """Return the number of messages sent or received."""
        return sum(tally.messages for tally in self.tallies)


#: Does a part of the work each time: :func:`publish` or :func:`subscribe`.
Work = Callable[[Report], Iterator[None]]


def run(work: Work, parent: "Connection[Any, Any]", report: Report, debug: bool) -> None:
    """Do the work of a worker, and report it.

    :param debug: whether to report the traceback of an error
    """
    reported_at_s = 0.0
    try:
        with warnings_shown.on_stderr():
            for _ in work(report):
                if clock.monotonic_s() - reported_at_s >= REPORT_INTERVAL_S:
                    reported_at_s = clock.monotonic_s()
                    parent.send(report)
    except (errors.PersipubsubError, OSError) as error:
        report.error = traceback.format_exc() if debug else str(error)
    with contextlib.suppress(OSError):  # the parent has died
        parent.send(report)
    sys.exit(1 if report.error else 0)


def publish(report: Report, queue: pathlib.Path, number: int, of: int, source: Source) -> Iterator[None]:
    """Send the share of one publisher of several."""
    with open(source.path, "rb") as file, environment.new_environment(queue) as env:
        publisher, control = env.new_publisher(), env.new_control()
        start_s = clock.monotonic_s()
        for batch in _batches(encode(number, index, line) for index, line in enumerate(source.share(file, number, of))):
            while control.status().size_bytes > BACKLOG_BYTES_MAX:
                clock.sleep(WAIT_S_MAX)
                yield
            publisher.send_many(batch)
            report.tallies[0].messages += len(batch)
            report.seconds = clock.monotonic_s() - start_s
            yield


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


def subscribe(report: Report, queue: pathlib.Path, identifier: str, ended: "Connection[Any, Any]") -> Iterator[None]:
    """Receive everything, until the publishers have ended and nothing is left.

    :param ended: a pipe that ends when the publishers have ended
    """
    with environment.new_environment(queue) as env:
        subscriber = env.new_subscriber(identifier)
        start_s = 0.0
        while True:
            # Before the look at the queue: what was sent before the publishers ended is there.
            last = ended.poll()
            with subscriber.receive_many(BATCH_MESSAGES_MAX, 0 if last else WAIT_S_MAX,
                                         max_bytes=BATCH_BYTES_MAX) as messages:
                start_s = start_s or clock.monotonic_s()
                for message in messages:
                    publisher, number, intact = decode(message)
                    report.tallies[publisher].add(number, intact)
            if messages:
                report.seconds = clock.monotonic_s() - start_s
            elif last:
                return
            yield
