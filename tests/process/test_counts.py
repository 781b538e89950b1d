"""What each operation costs in counts that are the same on every machine: commits, system calls, function calls.

Where a count here grows, the library became slower; where it shrinks, lower the number.
"""

import collections
import gc
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, Callable, Counter, Dict

import lmdb
import pytest

from persipubsub import Durability, Environment, Publisher, Subscriber, clock
from persipubsub.lmdb_engine import open_queues
from tests.children import unmeasured

MakeEnvironment = Callable[..., Environment]

MESSAGES = 100


class Opened:
    """A queue whose time stands still, so that all sends are of one run."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.publisher: Publisher = environment.new_publisher()
        self.subscriber: Subscriber = environment.new_subscriber("a")
        self._handle = open_queues.acquire(environment.path)

    def commits(self) -> int:
        """Return the number of the newest transaction that LMDB has committed."""
        return self._handle.read(lambda txn: txn._txn.id())  # pylint: disable=protected-access  # nobody else needs it

    def close(self) -> None:
        """Return the queue back."""
        open_queues.release(self._handle)

    def receive(self) -> None:
        """Receive and acknowledge a message."""
        with self.subscriber.receive(timeout=0):
            pass

    def receive_many(self) -> None:
        """Receive and acknowledge all messages."""
        with self.subscriber.receive_many(timeout=0):
            pass


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set up a queue."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)
    opened = Opened(new_environment("a", durability=Durability.PROCESS_CRASH))
    opened.publisher.send(bytes(100))
    opened.receive()
    yield opened
    opened.close()


def fill(opened: Opened) -> None:
    """Send a backlog."""
    opened.publisher.send_many([bytes(100)] * MESSAGES)


OPERATIONS: Dict[str, Callable[[Opened], object]] = {
    "send": lambda opened: opened.publisher.send(bytes(100)),
    "send_many": lambda opened: opened.publisher.send_many([bytes(100)] * MESSAGES),
    "receive of nothing": lambda opened: opened.receive(),
    "front": lambda opened: opened.subscriber.front(),
    "receive": lambda opened: opened.receive(),
    "receive_many": lambda opened: opened.receive_many(),
    "messages": lambda opened: list(opened.subscriber.messages(timeout=0)),
    "messages in tens": lambda opened: list(opened.subscriber.messages(timeout=0, acknowledge_every=10)),
}

COMMITS = {
    "send": 1,
    "send_many": 1,
    "receive of nothing": 0,
    "front": 0,
    "receive": 1,
    "receive_many": 1,
    "messages": MESSAGES,
    "messages in tens": MESSAGES // 10,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_commits(operation: str, opened: Opened) -> None:
    """An operation is one commit, and one that changes nothing is none."""
    if operation != "receive of nothing":
        fill(opened)
    before = opened.commits()
    OPERATIONS[operation](opened)
    assert opened.commits() - before == COMMITS[operation]


def calls(function: Callable[[], object]) -> Counter[str]:
    """Count the calls of Python functions, and those of LMDB."""
    counts: Counter[str] = collections.Counter()

    def count(_frame: object, event: str, called: Any) -> None:
        if event == "call":
            counts["python"] += 1
        elif event == "c_call" and type(getattr(called, "__self__", None)) in (lmdb.Transaction, lmdb.Cursor):
            counts["lmdb"] += 1

    before = sys.getprofile()
    # A collection would count as well: hypothesis, once another test has used it, is called at each.
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return counts


#: Calls at most: of Python functions, and of LMDB.
CALLS = {
    "send": {
        "python": 45,
        "lmdb": 14
    },
    "receive": {
        "python": 93,
        "lmdb": 39
    },
    "front": {
        "python": 35,
        "lmdb": 11
    },
}


@pytest.mark.parametrize("operation", CALLS)
def test_calls(operation: str, opened: Opened) -> None:
    """A send or a receive of one message makes at most this many calls of Python functions and of LMDB."""
    fill(opened)
    OPERATIONS[operation](opened)
    found = calls(lambda: OPERATIONS[operation](opened))
    assert {kind: max(0, found[kind] - most) for kind, most in CALLS[operation].items()} == {"python": 0, "lmdb": 0}


def test_a_send_costs_no_more_on_an_old_queue(opened: Opened) -> None:
    """However many messages have come and gone, a send below the mark need not ask LMDB how much it holds."""
    for _ in range(8):
        opened.publisher.send_many([b""] * 10_000)
        with opened.subscriber.receive_many(max_messages=10_000, timeout=0):
            pass
    fill(opened)
    OPERATIONS["send"](opened)
    found = calls(lambda: OPERATIONS["send"](opened))
    assert {kind: max(0, found[kind] - most) for kind, most in CALLS["send"].items()} == {"python": 0, "lmdb": 0}


WRITES = ("write", "pwrite64", "writev", "pwritev")
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range")

PROGRAM = """
import sys, persipubsub
environment = persipubsub.new_environment(sys.argv[1])
publisher, control = environment.new_publisher(), environment.new_control()
for _ in range(int(sys.argv[2])):
    {operation}
"""


def system_calls(path: pathlib.Path, times: int, report: pathlib.Path, operation: str) -> Dict[str, int]:
    """Do something several times in a process of its own, and count its system calls."""
    subprocess.run([
        "strace", "-f", "-c", "-o", report, "-e", f"trace={','.join(WRITES + SYNCS)}", sys.executable, "-c",
        PROGRAM.format(operation=operation), path,
        str(times)
    ],
                   check=True,
                   env=unmeasured())
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", report.read_text(), re.MULTILINE)
    return {name: int(count) for count, name in rows}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("durability, syncs", [(Durability.POWER_LOSS, 1), (Durability.PROCESS_CRASH, 0)])
def test_system_calls(durability: Durability, syncs: int, new_environment: MakeEnvironment,
                      tmp_path: pathlib.Path) -> None:
    """A durable send waits once for the disk, a relaxed one never, and either writes in five calls at most."""
    with new_environment("a", durability=durability) as environment:
        environment.new_publisher().send(bytes(100))
    idle, busy = (system_calls(environment.path, messages, tmp_path / "strace.txt", "publisher.send(bytes(100))")
                  for messages in (1, 1 + MESSAGES))
    assert sum(busy.get(name, 0) - idle.get(name, 0) for name in SYNCS) == syncs * MESSAGES
    assert sum(busy.get(name, 0) - idle.get(name, 0) for name in WRITES) <= 5 * MESSAGES


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("durability", Durability)
def test_system_calls_of_a_change(durability: Durability, new_environment: MakeEnvironment,
                                  tmp_path: pathlib.Path) -> None:
    """A control change waits for the disk under either durability."""
    with new_environment("a", durability=durability) as environment:
        environment.new_publisher()
    change = "control.add_subscriber(f'{sys.argv[2]} {_}')"
    idle, busy = (system_calls(environment.path, times, tmp_path / "strace.txt", change) for times in (1, 11))
    assert sum(busy.get(name, 0) - idle.get(name, 0) for name in SYNCS) == 10
