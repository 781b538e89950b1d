"""What each operation costs in counts that are the same on every machine: commits, system calls, function calls.

Where a count here grows, the library became slower; where it shrinks, lower the number.
"""

import asyncio
import contextlib
import functools
import gc
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import lmdb
import pytest

from persipubsub import Durability, Envelope, Environment, Publisher, Subscriber, clock
from persipubsub.lmdb_engine import open_queues
from tests.children import unmeasured

MakeEnvironment = Callable[..., Environment]

MESSAGES = 100

#: The types whose methods are calls of LMDB.
LMDB = (lmdb.Environment, lmdb.Transaction, lmdb.Cursor)


class Opened:
    """A queue whose time stands still, so that all sends are of one run."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.publisher: Publisher = environment.new_publisher()
        self.subscriber: Subscriber = environment.new_subscriber("a")
        self.loop = asyncio.new_event_loop()
        self._handle = open_queues.acquire(environment.path)

    def commits(self) -> int:
        """Return the number of the newest transaction that LMDB has committed."""
        return self._handle.read(lambda txn: txn._txn.id())  # pylint: disable=protected-access  # nobody else needs it

    def close(self) -> None:
        """Return the queue, and close the event loop."""
        self.loop.close()
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


class Calls(NamedTuple):
    """How many calls an operation makes: of Python functions, and of LMDB."""

    python: float
    lmdb: float


#: The calls of each operation, as :func:`calls` counts them.
CALLS = {
    "send": Calls(23.2, 4),
    "send, durable": Calls(23.2, 4),
    "send with headers": Calls(38.2, 6),
    "send_many of 1,000": Calls(36, 5),
    "receive": Calls(55.6, 11.4),
    "receive_delivery": Calls(71.6, 13.4),
    "receive_delivery with headers": Calls(77.6, 15.5),
    "receive_many of 1,000": Calls(81, 2032),
    "front": Calls(17, 3),
    "one iteration of messages": Calls(54.6, 11.4),
    "receive, shared": Calls(114.4, 26.1),
    "send one, receive one": Calls(84.4, 16.6),
    "send, asyncio": Calls(48.2, 4),
    "receive, asyncio": Calls(81.8, 11.5),
}
#: A count may differ by this factor from the recorded one: small changes, and versions of Python, stay within it.
ROOM = 1.2

#: Small acknowledged messages are deleted 64 at a time, so what one of 64 operations does belongs to all of them.
ROUND = 64
ROUNDS = {"send_many of 1,000": 1, "receive_many of 1,000": 1}
BACKLOG = 5000
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

#: How often functions of these modules run depends on the version of Python and on the timing of threads.
UNCOUNTED = {"asyncio", "selectors", "threading", "_weakrefset"}


def send_durably(opened: Opened) -> Callable[[], object]:
    """Prepare to send with the durability that waits for the disk."""
    opened.environment.new_control(durability=Durability.POWER_LOSS)
    return functools.partial(opened.publisher.send, bytes(100))


def receive_delivery(opened: Opened) -> None:
    """Receive and acknowledge a message with what is known of it."""
    with opened.subscriber.receive_delivery(timeout=0):
        pass


def receive_delivery_with_headers(opened: Opened) -> Callable[[], object]:
    """Prepare to receive messages that all have headers."""
    opened.environment.new_control().clear_messages()
    opened.publisher.send_many([Envelope(bytes(100), HEADERS)] * BACKLOG)
    return functools.partial(receive_delivery, opened)


def receive_shared(opened: Opened) -> Callable[[], object]:
    """Prepare to claim and acknowledge a message as a worker."""
    opened.environment.new_control().add_subscriber("workers", start="earliest", shared=True)
    opened.subscriber = opened.environment.new_subscriber("workers")
    return opened.receive


def send_and_receive(opened: Opened) -> Callable[[], object]:
    """Prepare to send a message and receive it, on a queue that is empty before and after."""
    opened.environment.new_control().clear_messages()

    def send_one_receive_one() -> None:
        opened.publisher.send(bytes(100))
        opened.receive()

    return send_one_receive_one


def send_from_a_task(opened: Opened) -> Callable[[], object]:
    """Prepare to send a message and await it."""
    publisher = opened.environment.new_async_publisher()
    return lambda: opened.loop.run_until_complete(publisher.send(bytes(100)))


def receive_in_a_task(opened: Opened) -> Callable[[], object]:
    """Prepare to receive a message and await it."""
    subscriber = opened.environment.new_async_subscriber("a")

    async def receive() -> None:
        async with subscriber.receive():
            pass

    return lambda: opened.loop.run_until_complete(receive())


PREPARE: Dict[str, Callable[[Opened], Callable[[], object]]] = {
    "send": lambda opened: functools.partial(opened.publisher.send, bytes(100)),
    "send, durable": send_durably,
    "send with headers": lambda opened: functools.partial(opened.publisher.send, bytes(100), headers=HEADERS),
    "send_many of 1,000": lambda opened: functools.partial(opened.publisher.send_many, [bytes(100)] * 1000),
    "receive": lambda opened: opened.receive,
    "receive_delivery": lambda opened: functools.partial(receive_delivery, opened),
    "receive_delivery with headers": receive_delivery_with_headers,
    "receive_many of 1,000": lambda opened: opened.receive_many,
    "front": lambda opened: opened.subscriber.front,
    "one iteration of messages": lambda opened: functools.partial(next, opened.subscriber.messages(timeout=0)),
    "receive, shared": receive_shared,
    "send one, receive one": send_and_receive,
    "send, asyncio": send_from_a_task,
    "receive, asyncio": receive_in_a_task,
}


@contextlib.contextmanager
def profiled(count: Callable[[types.FrameType, str, Any], None]) -> Iterator[None]:
    """Profile this thread, and the threads that it starts."""
    before, before_of_threads = sys.getprofile(), threading.getprofile()
    # A collection would count as well: hypothesis, once another test has used it, is called at each.
    gc.disable()
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before_of_threads)
        gc.enable()


def calls(operation: Callable[[], object], times: int = ROUND) -> Calls:
    """Count the calls of an operation in the steady state: the mean of the third round, over all threads."""
    found: List[str] = []  # appending is atomic, while adding to a number is not

    def count(frame: types.FrameType, event: str, called: Any) -> None:
        if event == "call" and frame.f_globals["__name__"].partition(".")[0] not in UNCOUNTED:
            found.append("python")
        elif event == "c_call" and isinstance(getattr(called, "__self__", None), LMDB):
            found.append("lmdb")

    with profiled(count):
        for _ in range(3):
            found.clear()
            for _ in range(times):
                operation()
    return Calls(found.count("python") / times, found.count("lmdb") / times)


def complaints(operation: str, found: Calls) -> List[str]:
    """Return what to do about counts that differ too much from the recorded ones."""
    advice = []
    for kind, now, recorded in zip(("Python", "LMDB"), found, CALLS[operation]):
        counts = f"{operation!r} makes {now:.1f} {kind} calls, and {recorded} are recorded"
        if now > recorded * ROOM:
            advice.append(f"{counts}: it became slower. Remove the new calls. If they are worth their time, record the "
                          "higher number in CALLS, and say why in the commit message.")
        elif now < recorded / ROOM:
            advice.append(f"{counts}: it became faster. Record the lower number in CALLS, so that the gain is kept.")
    return advice


@pytest.mark.parametrize("operation", CALLS)
def test_calls(operation: str, opened: Opened) -> None:
    """The calls of each operation, of Python functions and of LMDB, are within a fifth of the recorded ones."""
    opened.publisher.send_many([bytes(100)] * BACKLOG)
    found = calls(PREPARE[operation](opened), ROUNDS.get(operation, ROUND))
    assert not complaints(operation, found)


@pytest.mark.parametrize("factor, advice", [(1.1, ""), (4 / 3, "became slower"), (0.9, ""), (3 / 4, "became faster")])
def test_a_third_is_noticed(factor: float, advice: str) -> None:
    """A third more or fewer calls is reported for each kind, and a tenth is not."""
    for operation, (python, lmdb_calls) in CALLS.items():
        found = complaints(operation, Calls(python * factor, lmdb_calls * factor))
        assert [advice in complaint for complaint in found] == ([True, True] if advice else [])


def test_a_send_costs_no_more_on_an_old_queue(opened: Opened) -> None:
    """However many messages were sent and deleted, a send below the high-water mark does not ask LMDB for the size."""
    for _ in range(8):
        opened.publisher.send_many([b""] * 10_000)
        with opened.subscriber.receive_many(max_messages=10_000, timeout=0):
            pass
    fill(opened)
    assert not complaints("send", calls(functools.partial(opened.publisher.send, bytes(100))))


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
