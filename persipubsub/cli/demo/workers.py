"""The processes of the demo, seen from inside: publishers send lines of a file, subscribers check what they receive."""

import collections
import contextlib
import dataclasses
import io
import itertools
import pathlib
import struct
import sys
import traceback
import zlib
from multiprocessing.connection import Connection
from typing import Any, Callable, Counter, Iterator, NamedTuple, Optional, Set, Tuple

from persipubsub import clock, environment, errors
from persipubsub.cli import warnings_shown

#: A longer line is sent in pieces: with the size of a batch, this limits the memory that a worker needs.
PIECE_BYTES_MAX = 64 * 1024
BATCH_MESSAGES_MAX = 1000
#: Publishers wait while the queue holds more, so that a large file does not fill the disk.
BACKLOG_BYTES_MAX = 512 * 1024**2
#: How long a worker waits for the queue before it reports again.
WAIT_S_MAX = 0.1
#: At most this many missing numbers are remembered. A later one that arrives late counts as a duplicate.
GAPS_MAX = 10_000

_TEXT = pathlib.Path(__file__).with_name("text.txt")
_TEXT_REPEATS = 600
# Publisher, running number, CRC-32 of the line.
_HEADER = struct.Struct(">IQI")


def read(file: Optional[pathlib.Path]) -> Iterator[bytes]:
    """Read the lines of a file, long ones in pieces; without a file, those of the package's text, many times."""
    with open(file, "rb") if file else io.BytesIO(_TEXT.read_bytes() * _TEXT_REPEATS) as lines:
        while line := lines.readline(PIECE_BYTES_MAX):
            yield line


class Plan(NamedTuple):
    """What a demo does."""

    queue: str
    file: Optional[pathlib.Path]
    #: The number of lines when they were counted. What was added since then is not read.
    lines: int
    publishers: int
    subscribers: Tuple[str, ...]
    #: Whether to report the traceback of an error.
    debug: bool

    def messages(self, publisher: int) -> Iterator[bytes]:
        """Make messages of the lines of one publisher: with two publishers, of every second line."""
        lines = itertools.islice(read(self.file), publisher, self.lines, self.publishers)
        return (encode(publisher, number, line) for number, line in enumerate(lines))


def encode(publisher: int, number: int, line: bytes) -> bytes:
    """Make a message of a line."""
    return _HEADER.pack(publisher, number, zlib.crc32(line)) + line


def decode(message: bytes) -> Tuple[int, int, bool]:
    """Return the publisher and the number of a message, and whether its line is as it was sent."""
    publisher, number, checksum = _HEADER.unpack_from(message)
    return publisher, number, zlib.crc32(memoryview(message)[_HEADER.size:]) == checksum


@dataclasses.dataclass
class Report:
    """What a worker reports to its parent after each batch and at the end, in constant size."""

    #: How many messages were sent or received.
    messages: int = 0
    #: For each publisher, one more than the highest running number that was received.
    ends: Counter[int] = dataclasses.field(default_factory=collections.Counter)
    duplicated: int = 0
    out_of_order: int = 0
    altered: int = 0
    #: Why the worker cannot go on.
    error: str = ""
    _gaps: Set[Tuple[int, int]] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def add(self, publisher: int, number: int, intact: bool) -> None:
        """Count a message that was received."""
        self.messages += 1
        self.altered += not intact
        end = self.ends[publisher]
        if number >= end:
            gap = range(end, min(number, end + GAPS_MAX - len(self._gaps)))
            self._gaps.update((publisher, missing) for missing in gap)
            self.ends[publisher] = number + 1
        elif (publisher, number) in self._gaps:
            self._gaps.remove((publisher, number))
            self.out_of_order += 1
        else:
            self.duplicated += 1


def run(work: Callable[[Report], Iterator[None]], parent: "Connection[Any, Any]", debug: bool) -> None:
    """Do the work of a worker, and report it through a pipe: a process that is killed leaves no lock in one.

    :param work: yields whenever it is time to report
    """
    report = Report()
    try:
        with warnings_shown.on_stderr():
            for _ in work(report):
                parent.send(report)
    except (errors.PersipubsubError, OSError) as error:
        report.error = traceback.format_exc() if debug else str(error)
    with contextlib.suppress(OSError):  # the parent has died
        parent.send(report)
    sys.exit(1 if report.error else 0)


def publish(report: Report, plan: Plan, number: int) -> Iterator[None]:
    """Send the messages of one publisher."""
    with environment.new_environment(plan.queue) as env:
        publisher, control = env.new_publisher(), env.new_control()
        messages = plan.messages(number)
        while batch := list(itertools.islice(messages, BATCH_MESSAGES_MAX)):
            while control.status().size_bytes > BACKLOG_BYTES_MAX:
                clock.sleep(WAIT_S_MAX)
                yield
            publisher.send_many(batch)
            report.messages += len(batch)
            yield


def subscribe(report: Report, plan: Plan, identifier: str, ended: "Connection[Any, Any]") -> Iterator[None]:
    """Receive everything, until the publishers have ended, as the end of a pipe shows, and nothing is left."""
    with environment.new_environment(plan.queue) as env:
        subscriber = env.new_subscriber(identifier)
        while True:
            # Checked before the queue: what was sent before the publishers ended is then there.
            last = ended.poll()
            with subscriber.receive_many(BATCH_MESSAGES_MAX, 0 if last else WAIT_S_MAX) as messages:
                for message in messages:
                    report.add(*decode(message))
            if last and not messages:
                return
            yield
