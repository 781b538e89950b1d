"""Full speed for a long time, with the high-water mark reached all the time: nothing may grow.

One process sends, one receives what it can, and one looks at the queue. A subscriber never receives, so it is full.
Each measures itself. After a quarter of the time, everything has to be as it is to the end. Every message that is
received, and every one that is left, has to be the one that was sent, to the last byte.
"""

import ctypes
import itertools
import json
import logging
import os
import pathlib
import re
import signal
import statistics
import tempfile
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence

import persipubsub
from persipubsub import Durability, HighWaterMark
from tests.children import start_child, status_of
from tests.faults.every_point import in_child
from tests.faults.figures import Figures
from tests.faults.journal import message

MARK_MESSAGES = 5000
MESSAGE_BYTES = 100
SENDER = "soak"
SAMPLES = 40
OPERATIONS_MAX = 1_000_000  # of a sample
#: What may be more at the end than after a quarter: noise, not growth. In the long form a byte a message is above it,
#: or a hundred bytes an opening.
MEMORY_GROWTH_BYTES_MAX = 1_000_000
#: glibc's M_MMAP_THRESHOLD, and what it is at the beginning.
_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES = -3, 128 * 1024
FILE_GROWTH_MAX = 1.1
LATENCY_GROWTH_MAX = 2.0
#: The short form is too short to distinguish a machine that is busy for some seconds from a queue that becomes slow, or
#: one reader that was slow for a moment, which the file never forgets, from many.
LENIENT_BELOW_S = 60
LENIENCY = 3


class WrongMessage(Exception):
    """Raised where a message is not the one that was sent."""


class Sample(NamedTuple):
    """What a process measured of itself since the sample before."""

    operations: int
    memory_bytes: int
    descriptors: int
    file_bytes: int
    median_us: float
    worst_us: float


def give_tables_back() -> None:
    """Have this process return every large table to the system when it is done with it.

    Python interns each part of each path, and builds its table of interned strings anew whenever it is full of
    unused ones: 0.4 to 1.4 MB each time. After the first one glibc would take the next ones from its heap, where they
    leave holes. Once the threshold is set, it stays.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def memory_bytes() -> int:
    """Return the anonymous memory of this process: pages of mapped files do not count."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def sample(path: pathlib.Path, latencies_ns: Sequence[int]) -> Sample:
    """Measure this process and the file."""
    ordered = sorted(latencies_ns) or [0]
    return Sample(len(latencies_ns), memory_bytes(), len(os.listdir("/proc/self/fd")),
                  (path / "data.mdb").stat().st_size, ordered[len(ordered) // 2] / 1000, ordered[-1] / 1000)


def send(path: pathlib.Path) -> Callable[[], object]:
    """Send one message after the other."""
    publisher, numbers = persipubsub.new_environment(path).new_publisher(), itertools.count(1)
    return lambda: publisher.send(message(SENDER, next(numbers), MESSAGE_BYTES))


def take(path: pathlib.Path) -> Callable[[], object]:
    """Receive one message after the other; they come whole and in order, though the mark may drop some."""
    subscriber, last = persipubsub.new_environment(path).new_subscriber("fast"), 0

    def action() -> None:
        nonlocal last
        with subscriber.receive(timeout=1) as msg:
            if msg is None:
                return
            number = int(msg.split(b":")[1]) if msg.count(b":") > 1 else 0
            if number <= last or msg != message(SENDER, number, MESSAGE_BYTES):
                raise WrongMessage(f"after message {last} came {msg!r}")
            last = number

    return action


def look(path: pathlib.Path) -> Callable[[], object]:
    """Open the queue, look at it and close it."""

    def action() -> None:
        with persipubsub.new_environment(path) as environment:
            environment.new_control().status()
            environment.new_subscriber("slow").front()
        time.sleep(0.005)  # beside the others, not instead of them

    return action


ROLES = (send, take, look)


def measured(action: Callable[[], object], path: pathlib.Path, duration_s: float) -> Iterator[Sample]:
    """Do something again and again, and measure it and this process now and then."""
    latencies_ns = [0] * OPERATIONS_MAX  # has its size from the beginning
    for _ in range(SAMPLES):
        count = 0
        begun_ns = time.monotonic_ns()
        until_ns = begun_ns + int(duration_s / SAMPLES * 1e9)
        while begun_ns < until_ns and count < OPERATIONS_MAX:
            action()
            ended_ns = time.monotonic_ns()
            latencies_ns[count] = ended_ns - begun_ns
            begun_ns = ended_ns
            count += 1
        yield sample(path, latencies_ns[:count])


def growth(figures: Figures, name: str, samples: Sequence[Sample], lenient: bool) -> None:
    """Compare the end with the state after a quarter, and write the figures down."""
    quarter = len(samples) // 4
    limits: Dict[str, Callable[[float], float]] = {
        "memory_bytes": lambda before: before + MEMORY_GROWTH_BYTES_MAX,
        "descriptors": lambda before: before,
        "file_bytes": lambda before: before * FILE_GROWTH_MAX * (LENIENCY if lenient else 1),
        "median_us": lambda before: before * LATENCY_GROWTH_MAX * (LENIENCY if lenient else 1),
    }
    for field, limit in limits.items():
        before, after = (statistics.median(getattr(one, field) for one in part)
                         for part in (samples[quarter:2 * quarter], samples[-quarter:]))
        figures.notes[f"{name}: {field} {before:.0f} early, {after:.0f} late"] += 1
        if after > limit(before):
            figures.failures.append(f"{name}: {field} grows from {before:.0f} to {after:.0f}")
    figures.notes[f"{name}: {sum(one.operations for one in samples)} operations, "
                  f"the longest {max(one.worst_us for one in samples) / 1000:.1f} ms"] += 1


def _set_up(path: pathlib.Path) -> None:
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["slow", "fast"],
                                HighWaterMark(max_messages=MARK_MESSAGES),
                                durability=Durability.PROCESS_CRASH)


def check(path: pathlib.Path) -> List[str]:
    """Return what is wrong with the queue and with what is left in it."""
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control()
        wrong = [str(violation) for violation in control.check()]
        # There is one sender, so the ids are its numbers.
        wrong += [
            f"message {one.id} is {one.payload!r}" for one in control.history()
            if one.payload != message(SENDER, one.id, MESSAGE_BYTES)
        ]
        if control.status().next_id < 2 * MARK_MESSAGES:
            wrong.append("the mark was never reached")
        return wrong


def _start(role: Callable[[pathlib.Path], Callable[[], object]], path: pathlib.Path, duration_s: float) -> int:
    """Start a child that plays a role and writes its samples beside the queue; return its id."""

    def run() -> int:
        logging.disable()
        give_tables_back()
        samples = list(measured(role(path), path, duration_s))
        path.with_name(role.__name__).write_text(json.dumps(samples), encoding="ascii")
        return 0

    return start_child(run)


def _run(path: pathlib.Path, duration_s: float, figures: Figures) -> None:
    children = {role.__name__: _start(role, path, duration_s) for role in ROLES}
    try:
        for name, pid in list(children.items()):
            status = status_of(pid)
            del children[name]
            if status:
                figures.failures.append(f"{name} ended with {status}")
                return
            samples = [Sample(*row) for row in json.loads(path.with_name(name).read_text(encoding="ascii"))]
            growth(figures, name, samples, lenient=duration_s < LENIENT_BELOW_S)
            if name == send.__name__:
                figures.messages = sum(one.operations for one in samples)
    finally:
        for pid in children.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def campaign(duration_s: int) -> List[Figures]:
    """Run all roles for a number of seconds."""
    figures = Figures("soak", rounds=1)
    with tempfile.TemporaryDirectory(prefix="persipubsub-soak-") as name:
        path = pathlib.Path(name) / "queue"
        assert in_child(lambda: _set_up(path)).status == 0
        _run(path, duration_s, figures)
        checked = in_child(lambda: check(path))
        figures.failures.extend(checked.value if checked.status == 0 else [f"checking ended with {checked.status}"])
    return [figures]
