"""The costs of the library and of a queue: time to import and to open, memory, and disk space."""

import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Iterator, List, Tuple

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.results import OURS, Drain, Duration, Setting
from benchmarks.scale import Scale

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_python(*arguments: str, **environ: str) -> str:
    """Run a fresh interpreter to its end, and return what it prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, *arguments],
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          env={
                              **os.environ, "PYTHONPATH": path,
                              **environ
                          }).stdout


def imports(scale: Scale, directory: pathlib.Path) -> Iterator[Duration]:
    """The time of a Python that does nothing, of one that imports what we need, and of one that imports us."""
    with measure.fresh_directory(directory) as cache:

        def seconds(code: str) -> float:
            start_s = time.perf_counter()
            # What is installed has its bytecode; a checkout may not be writable.
            run_python("-c", code, PYTHONPYCACHEPREFIX=str(cache), PYTHONDONTWRITEBYTECODE="")
            return time.perf_counter() - start_s

        seconds("import persipubsub")
        timed = [("bare Python", Setting(), lambda: seconds("pass")),
                 ("lmdb and icontract", Setting(), lambda: seconds("import lmdb, icontract")),
                 (OURS, Setting(), lambda: seconds("import persipubsub"))]
        yield from measure.durations("import", timed, 3 * scale.rounds)


def opening(scale: Scale, directory: pathlib.Path) -> Iterator[Duration]:
    """The time until a subscriber is there and has looked at its first message."""
    message = floors.payload(Setting(payload_bytes=100))
    with measure.fresh_directory(directory) as fresh:
        timed = []
        for count in (1, scale.million):
            raw, queue = fresh / f"raw-{count}", fresh / f"queue-{count}"
            raw.mkdir()
            setting = Setting("relaxed", 100, backlog_messages=count)
            with floors.open_raw(raw, durable=False) as environment:
                floors.fill_raw(environment, itertools.count(1), message, count)
            with queues.opened(queue, setting) as our_environment:
                queues.fill(our_environment.new_publisher(), [message], count)
            timed.append((floors.RAW_LMDB, setting, lambda path=raw: _open_raw(path)))
            timed.append((OURS, setting, lambda path=queue: _open_ours(path)))
        yield from measure.durations("opening", timed, 3 * scale.rounds)


def _open_raw(directory: pathlib.Path) -> float:
    start_s = time.perf_counter()
    with floors.open_raw(directory, durable=False) as environment, environment.begin() as txn:
        txn.cursor().first()
        return time.perf_counter() - start_s


def _open_ours(directory: pathlib.Path) -> float:
    start_s = time.perf_counter()
    with persipubsub.new_environment(directory) as environment:
        environment.new_subscriber(queues.names(1)[0]).front()
        return time.perf_counter() - start_s


def drains(scale: Scale, directory: pathlib.Path) -> Iterator[Drain]:
    """The time and the memory to receive a backlog of a million in batches."""
    setting = Setting("relaxed", 100, 1000, backlog_messages=scale.million)
    message = floors.payload(setting)
    found: List[Tuple[str, Setting, List[List[float]]]] = [
        (floors.RAW_LMDB, Setting("relaxed", 100, 1000, backlog_messages=scale.million, detail="raw"), []),
        (OURS, Setting("relaxed", 100, 1000, backlog_messages=scale.million, detail="receive_many"), []),
        (OURS, Setting("relaxed", 100, 1000, backlog_messages=scale.million, detail="messages"), []),
    ]
    for _ in range(scale.few_rounds):
        for name, one, figures in found:
            with measure.fresh_directory(directory) as fresh:
                if name == OURS:
                    with queues.opened(fresh, one) as our_environment:
                        queues.fill(our_environment.new_publisher(), [message], scale.million)
                else:
                    with floors.open_raw(fresh, durable=False) as environment:
                        floors.fill_raw(environment, itertools.count(1), message, scale.million)
                figures.append([
                    float(word) for word in run_python("-m", "benchmarks.drain", one.detail or "", str(fresh)).split()
                ])
    for name, one, figures in found:
        yield Drain("drain", name, one, measure.significant(statistics.median(pair[0] for pair in figures)),
                    measure.significant(max(pair[1] for pair in figures) / 1024))
