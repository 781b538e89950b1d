"""Everything at once, with processes that are killed at random: whatever was acknowledged is there at the end.

``PERSIPUBSUB_STRESS_S`` says for how many seconds; 60 is a good number before a release.
"""

import collections
import itertools
import multiprocessing
import multiprocessing.process
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Callable, Dict, Iterator, List, NoReturn, Optional, Sequence, Set, Tuple

import pytest

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, Publisher, Strategy, errors

MakeEnvironment = Callable[..., Environment]

STRESS_S = float(os.environ.get("PERSIPUBSUB_STRESS_S", "10"))
WAIT_S = 60  # for what happens soon unless something is broken
PROCESSES = 4
#: The subscribers that are there from beginning to end: nobody takes from the first before the end.
UNTOUCHED, SHARED = "untouched", "shared"

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["persipubsub", "pytest"])


class Log:
    """What a process has done, in a file of which nothing is lost when the process is killed."""

    def __init__(self, path: pathlib.Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, payloads: Sequence[bytes]) -> None:
        """Add lines, in one step."""
        os.write(self._fd, b"".join(b"%s %s\n" % (what.encode(), payload) for payload in payloads))


def noted(directory: pathlib.Path) -> Dict[str, List[bytes]]:
    """Give what all logs of a directory say: what was done to which messages."""
    found: Dict[str, List[bytes]] = collections.defaultdict(list)
    for path in directory.iterdir():
        for line in path.read_bytes().splitlines():
            what, _, payload = line.partition(b" ")
            found[what.decode()].append(payload)
    return found


class Worker:
    """What one process does, from several threads, until it is told to stop or killed."""

    def __init__(self, path: pathlib.Path, log: Log, name: str) -> None:
        self._log = log
        self._environment = persipubsub.new_environment(path)
        self._control = self._environment.new_control()
        self._publisher = self._environment.new_publisher()
        self._stopping = threading.Event()
        self._failures: List[BaseException] = []
        actions = [self._send, self._send, self._take, self._come_and_go, self._change, self._look, self._fork]
        self._threads = [
            threading.Thread(target=self._run, args=(action, f"{name}.{number}"), daemon=True)
            for number, action in enumerate(actions)
        ]

    def run(self, until_s: float) -> None:
        """Do everything, each in a thread of its own."""
        for thread in self._threads:
            thread.start()
        self._stopping.wait(max(0, until_s - time.monotonic()))
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), thread
        self._environment.close()
        if self._failures:
            raise self._failures[0]

    def _run(self, action: Callable[[random.Random, Iterator[bytes]], object], name: str) -> None:
        chance = random.Random(name)
        payloads = (f"{name}:{number}".encode() for number in itertools.count())
        try:
            while not self._stopping.is_set():
                action(chance, payloads)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by run()
            self._failures.append(error)
            self._stopping.set()

    def _send(self, chance: random.Random, payloads: Iterator[bytes]) -> None:
        self._send_through(self._publisher, [next(payloads) for _ in range(chance.choice([1, 1, 1, 20]))])

    def _send_through(self, publisher: Publisher, batch: Sequence[bytes]) -> None:
        self._log.note("sending", batch)
        if len(batch) == 1:
            publisher.send(batch[0])
        else:
            publisher.send_many(batch)
        self._log.note("sent", batch)

    def _take(self, chance: random.Random, _payloads: Iterator[bytes]) -> None:
        count, timeout = chance.choice([1, 10, 1000]), chance.choice([0, 0.1])
        with self._environment.new_subscriber(SHARED).receive_many(max_messages=count, timeout=timeout) as msgs:
            self._log.note("received", msgs)

    def _come_and_go(self, chance: random.Random, payloads: Iterator[bytes]) -> None:
        name = next(payloads).decode()
        self._control.add_subscriber(name)
        waiting = threading.Thread(target=self._wait_as, args=(name, ), daemon=True)
        waiting.start()
        self._stopping.wait(chance.uniform(0, 0.05))
        self._control.remove_subscriber(name)
        waiting.join(WAIT_S)
        assert not waiting.is_alive()

    def _wait_as(self, name: str) -> None:
        try:
            for _ in self._environment.new_subscriber(name).messages(timeout=None):
                pass
        except errors.UnknownSubscriberError:
            pass
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by run()
            self._failures.append(error)

    def _change(self, chance: random.Random, _payloads: Iterator[bytes]) -> None:
        # Marks that nothing reaches: what goes because of a mark is the subject of other tests.
        self._control.set_hwm(HighWaterMark(chance.choice([10**6, 10**7]), chance.choice([10**9, 10**10])))
        self._control.set_strategy(chance.choice(list(Strategy)))
        if chance.random() < 0.1:
            self._environment.new_control(durability=chance.choice(list(Durability)))
        self._stopping.wait(chance.uniform(0, 0.05))

    def _look(self, chance: random.Random, _payloads: Iterator[bytes]) -> None:
        with persipubsub.new_environment(self._environment.path) as environment:
            status = environment.new_control().status()
            assert status.floor <= status.next_id and {UNTOUCHED, SHARED} <= status.subscribers.keys()
            environment.new_subscriber(UNTOUCHED).front()
        self._stopping.wait(chance.uniform(0, 0.02))

    def _fork(self, chance: random.Random, payloads: Iterator[bytes]) -> None:
        batches = [[next(payloads)], [next(payloads), next(payloads)]]
        child = os.fork()
        if not child:
            self._live_as_a_child(batches)
        self._log.note("forked", [b"%d" % child])
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        self._stopping.wait(chance.uniform(0, 0.1))

    def _live_as_a_child(self, batches: Sequence[Sequence[bytes]]) -> NoReturn:
        status = 1
        try:
            signal.alarm(WAIT_S)
            for batch in batches:
                self._send_through(self._publisher, batch)
            status = 0
        except errors.ForkError:
            status = 0  # another process wrote for too long
        except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def work(path: pathlib.Path, log: pathlib.Path, name: str, until_s: float, _alive: Connection) -> None:
    """Do everything at once: the main function of a process, which holds the connection while it or a child lives."""
    # Not measured: where a fork comes while another thread holds a lock of coverage's, the child waits for it for ever.
    sys.settrace(None)
    threading.settrace(None)
    Worker(path, Log(log), name).run(until_s)


def start(path: pathlib.Path, logs: pathlib.Path, name: str, until_s: float,
          alive: Connection) -> multiprocessing.process.BaseProcess:
    """Start a process."""
    process = CONTEXT.Process(target=work, args=(path, logs / name, name, until_s, alive), daemon=True)
    process.start()
    return process


def kill_at_random(path: pathlib.Path, logs: pathlib.Path, duration_s: float) -> Tuple[int, List[Optional[int]]]:
    """Have processes work, and kill one now and then; give how many, and how the others ended."""
    chance = random.Random(0)
    until_s = time.monotonic() + duration_s
    names = (f"process {number}" for number in itertools.count())
    end, alive = CONTEXT.Pipe(duplex=False)
    running = [start(path, logs, next(names), until_s, alive) for _ in range(PROCESSES)]
    killed = 0
    while time.monotonic() < until_s:
        victim = running.pop(0)
        victim.join(chance.uniform(0.3, 1))  # not at once: it has to do something before
        if victim.exitcode is None and time.monotonic() < until_s:
            victim.kill()
            victim.join(WAIT_S)
            killed += 1
            running.append(start(path, logs, next(names), until_s, alive))
        else:
            running.append(victim)
    for process in running:
        process.join(2 * WAIT_S)
    # Children of those that were killed may still be sending.
    alive.close()
    assert end.poll(2 * WAIT_S)
    end.close()
    return killed, [process.exitcode for process in running]


def by_sender(payloads: Sequence[bytes]) -> Dict[bytes, List[int]]:
    """Give the numbers that each sender gave to its messages, in the order given."""
    found: Dict[bytes, List[int]] = collections.defaultdict(list)
    for payload in payloads:
        sender, _, number = payload.rpartition(b":")
        found[sender].append(int(number))
    return found


@pytest.mark.slow
def test_everything_at_once(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """Processes and threads do all at once and are killed: what send acknowledged is there, once and in order."""
    environment = new_environment(UNTOUCHED,
                                  SHARED,
                                  high_watermark=HighWaterMark(10**7, 10**9),
                                  durability=Durability.PROCESS_CRASH)
    logs = tmp_path / "logs"
    logs.mkdir()
    killed, statuses = kill_at_random(environment.path, logs, STRESS_S)
    assert statuses == [0] * PROCESSES
    assert killed
    assert environment.new_control().check() == ()
    done = noted(logs)
    sending, sent = set(done["sending"]), set(done["sent"])
    assert sent and done["received"] and done["forked"]
    stored = list(environment.new_subscriber(UNTOUCHED).messages(timeout=0, acknowledge_every=1000))
    assert sent <= set(stored) <= sending
    assert len(set(stored)) == len(stored)
    assert all(numbers == sorted(numbers) for numbers in by_sender(stored).values())
    # A message is noted while it is in somebody's hands, so only what was noted may be gone.
    received: Set[bytes] = set(done["received"])
    received.update(environment.new_subscriber(SHARED).messages(timeout=0, acknowledge_every=1000))
    assert received == set(stored)
    assert environment.new_control().check() == ()
    print(f"\n{STRESS_S:g} s: {len(sent)} messages acknowledged, {len(sending)} begun, {len(stored)} stored; "
          f"{killed} processes killed, {len(done['forked'])} forks")
