"""Power cuts during the traffic of several processes, and what a queue is after the next boot.

What was acknowledged under ``POWER_LOSS`` is there: messages, changes of the control, queues just created. Under
``PROCESS_CRASH`` messages may be lost, but what is broken is refused, and what is as it was earlier comes with a
warning.
"""

import ctypes
import functools
import itertools
import logging
import os
import pathlib
import random
import signal
import tempfile
import time
from typing import Any, Callable, Dict, List, Set

import persipubsub
from persipubsub import Durability, HighWaterMark, clock, errors, recovery
from tests.children import start_child
from tests.faults.every_point import in_child
from tests.faults.figures import Figures
from tests.faults.journal import WITHOUT_HEADERS, events, is_broken
from tests.faults.loop_device import LoopDevice
from tests.faults.oracle import Oracle
from tests.faults.recorder import Recorder, allowed_values

#: a and b acknowledge, "all" does not.
SUBSCRIBERS = ("a", "b", "all")
REFUSED = "refused"
#: Marks that nothing reaches.
HWM_MESSAGES_MIN = 10**6
WRITE_BACK = 2  # SYNC_FILE_RANGE_WRITE
TRAFFIC_S = (0.3, 2.5)

Worker = Callable[[pathlib.Path, Recorder, random.Random], None]


def publish(path: pathlib.Path, recorder: Recorder, chance: random.Random) -> None:
    """Send single messages and batches, short and long."""
    publisher = persipubsub.new_environment(path / "queue").new_publisher()
    while True:
        count = chance.choice([1, 1, 1, 1, 10, 50])
        recorder.send(publisher,
                      recorder.messages(*(chance.choice([30, 300, 3000, 3000, 100_000]) for _ in range(count))))


def take(path: pathlib.Path, recorder: Recorder, chance: random.Random) -> None:
    """Receive and acknowledge as a or as b."""
    identifier = chance.choice(["a", "b"])
    subscriber = persipubsub.new_environment(path / "queue").new_subscriber(identifier)
    while True:
        recorder.take(subscriber, chance.choice([1, 10, 100]), 1)


def change(path: pathlib.Path, recorder: Recorder, chance: random.Random) -> None:
    """Add and remove subscribers, and set the mark."""
    control = persipubsub.new_environment(path / "queue").new_control()
    for number in itertools.count():
        added = f"c{number}"
        recorder.change(added, "there", functools.partial(control.add_subscriber, added))
        mark = HWM_MESSAGES_MIN + number
        recorder.change("hwm", mark, functools.partial(control.set_hwm, HighWaterMark(max_messages=mark)))
        if chance.random() < 0.5:
            recorder.change(added, "gone", functools.partial(control.remove_subscriber, added))


def create(path: pathlib.Path, recorder: Recorder, chance: random.Random) -> None:
    """Create queues, in directories of any depth."""
    for number in itertools.count():
        name = "/".join(["deeper"] * chance.randrange(3) + [f"created{number}"])
        with persipubsub.new_environment(path / name) as environment:
            recorder.change(name, "there", functools.partial(environment.new_control, SUBSCRIBERS))


def write_back(path: pathlib.Path, _recorder: Recorder, chance: random.Random) -> None:
    """Do what the kernel does when it runs short of memory: write parts of the file, in any order."""
    fd = os.open(path / "queue" / "data.mdb", os.O_RDONLY)
    kernel = ctypes.CDLL(None)
    while True:
        offset = chance.randrange(max(4096, os.fstat(fd).st_size))
        kernel.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(1 << 16), ctypes.c_uint(WRITE_BACK))
        time.sleep(0.001)


WORKERS: List[Worker] = [publish, publish, publish, take, change, create]


class Warnings(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.texts.append(record.getMessage())


class Round:
    """One power cut."""

    def __init__(self, durability: Durability, seed: int, directory: pathlib.Path) -> None:
        self._durability = durability
        self._seed = seed
        self._directory = directory
        self._journals = directory / "journals"
        self._journals.mkdir()

    def run(self, figures: Figures) -> None:
        """Cut the power during traffic, and judge what is there after the next boot."""
        with LoopDevice(self._directory) as device:
            assert in_child(lambda: self._set_up(device.path)).status == 0
            workers = WORKERS + ([write_back] if self._durability is Durability.PROCESS_CRASH else [])
            pids = [
                self._start(worker, f"{worker.__name__}{number}", device.path) for number, worker in enumerate(workers)
            ]
            try:
                time.sleep(random.Random(self._seed).uniform(*TRAFFIC_S))
                device.cut()
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            device.unmount()
            device.mount()
            ended = in_child(lambda: self._look(device.path))
            if ended.status != 0:
                figures.failures.append(f"round {self._seed}: opening the queue ended with {ended.status}")
            else:
                self._judge(ended.value, figures)
            device.unmount()
        figures.faults += 1
        figures.rounds += 1

    def _set_up(self, path: pathlib.Path) -> None:
        with persipubsub.new_environment(path / "queue") as environment:
            environment.new_control(SUBSCRIBERS,
                                    durability=self._durability,
                                    high_watermark=HighWaterMark(max_messages=HWM_MESSAGES_MIN))

    def _start(self, worker: Worker, name: str, path: pathlib.Path) -> int:

        def work() -> int:
            try:
                worker(path, Recorder(self._journals, name), random.Random(f"{self._seed} {name}"))
            except (errors.PersipubsubError, OSError):
                pass  # the power is gone
            except BaseException:
                (self._directory / "broken").touch()
                raise
            return 0

        return start_child(work)

    def _look(self, path: pathlib.Path) -> Any:
        """Open everything in the next boot, and return what is wrong besides lost messages."""
        clock.boot_id = lambda: bytes(16)  # type: ignore[assignment]  # the machine was not really started again
        warnings = Warnings()
        logging.getLogger(persipubsub.__name__).addHandler(warnings)
        failures = [] if not (self._directory / "broken").exists() else ["a process broke: see above"]
        allowed = allowed_values(events(self._journals))
        settings = {kind: values for kind, values in allowed.items() if "created" not in kind}
        for name in allowed.keys() - settings.keys():
            failures.extend(_wrong_creation(path / name, allowed[name]))
        try:
            failures.extend(self._drain(path / "queue", settings))
        except errors.DamagedError as error:
            assert "persipubsub recover" in str(error)
            recovery.recover(path / "queue")
            # What a change was is lost with the page that held it; what is there has to be sound.
            failures.extend(self._drain(path / "queue", {}))
            return {"outcome": REFUSED, "failures": failures}
        warned = any("may be missing" in warning for warning in warnings.texts)
        return {"outcome": "opened", "failures": failures, "warned": warned}

    def _drain(self, path: pathlib.Path, settings: Dict[str, Set[str]]) -> List[str]:
        with persipubsub.new_environment(path) as environment:
            control = environment.new_control()
            wrong = [str(violation) for violation in control.check()]
            wrong.extend(_wrong_settings(control, settings))
            recorder = Recorder(self._journals, "left")
            for subscriber in SUBSCRIBERS:
                if subscriber in control.status().subscribers:
                    recorder.drain(environment.new_subscriber(subscriber))
        return wrong

    def _judge(self, found: Any, figures: Figures) -> None:
        failures = list(found["failures"])
        asked = Oracle(events(self._journals))
        figures.messages += len(asked.ids)
        durable = self._durability is Durability.POWER_LOSS
        changed = 0
        for subscriber in SUBSCRIBERS:
            verdict = asked.verdict(subscriber)
            figures.add(verdict)
            changed += len(verdict.lost | verdict.duplicated)
            invented = verdict.invented
            if found["outcome"] == REFUSED and not durable:
                # A page of a long message may be as it was before. Nobody can tell: LMDB has no checksums.
                altered = set(filter(is_broken, invented))
                bare = {name for name in altered if name.startswith(WITHOUT_HEADERS)}
                for what, names in (("that have other bytes", altered - bare), ("without their headers", bare)):
                    if names:
                        figures.notes[f"messages {what}, recovered"] += len(names)
                invented -= altered
            if durable or invented or verdict.misplaced:
                failures.extend(f"{subscriber}: {fault}" for fault in verdict.faults())
        if found["outcome"] == REFUSED:
            figures.notes["refused and recovered, " + ("with losses" if changed else "without a loss")] += 1
            if durable:
                failures.append("a durable queue is damaged")
        else:
            if changed and not found["warned"]:
                failures.append("messages are missing, and nobody was told")
            figures.notes["opened, sound, " + ("as it was earlier, with a warning" if changed else "all there")] += 1
        figures.failures.extend(f"round {self._seed}: {failure}" for failure in failures)


def _wrong_creation(path: pathlib.Path, allowed: Set[str]) -> List[str]:
    """Return what is wrong with a queue that was just created."""
    try:
        with persipubsub.new_environment(path) as environment:
            environment.new_publisher()
            wrong = [str(violation) for violation in environment.new_control().check()]
            if allowed == {"there"}:
                for subscriber in SUBSCRIBERS:
                    environment.new_subscriber(subscriber)
    except errors.NotInitializedError:
        wrong = ["is gone"] if allowed == {"there"} else []
    except errors.PersipubsubError as error:
        wrong = [repr(error)]
    return [f"{path.name}: {line}" for line in wrong]


def _wrong_settings(control: persipubsub.Control, allowed: Dict[str, Set[str]]) -> List[str]:
    """Return which changes of the control are missing."""
    status = control.status()
    wrong = []
    for kind, values in allowed.items():
        if kind == "hwm":
            found = str(status.high_watermark.max_messages)
            values = {value or str(HWM_MESSAGES_MIN) for value in values}
        else:
            found = "there" if kind in status.subscribers else "gone"
            values = {value or "gone" for value in values}
        if found not in values:
            wrong.append(f"{kind} is {found} instead of {sorted(values)}")
    return wrong


def campaign(rounds: int) -> List[Figures]:
    """Cut the power several times, for each durability."""
    found = []
    for durability in Durability:
        figures = Figures(f"power cuts, {durability.name}")
        for seed in range(rounds):
            with tempfile.TemporaryDirectory(prefix="persipubsub-power-") as directory:
                Round(durability, seed, pathlib.Path(directory)).run(figures)
        found.append(figures)
    return found
