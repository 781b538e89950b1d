"""Senders let processes that receive write first, and those wait for sends that have begun."""

import asyncio
import contextlib
import functools
import mmap
import os
import pathlib
import signal
from multiprocessing.connection import Connection
from typing import Callable, Iterator, List

import pytest

import persipubsub
from persipubsub import Durability, Environment
from persipubsub.lmdb_engine.process import right_of_way
from tests.children import start_child, status_of
from tests.concurrency import Task, hold_write_lock, process, told, wait_until

MakeEnvironment = Callable[..., Environment]

#: Where processes say that they write, or wait to write.
TAKING, SENDING = right_of_way.RECEIVING, right_of_way.SENDING
OTHER = TAKING.start + (os.getpid() + 1) % 64
OTHER_SENDER = SENDING.start + (os.getpid() + 1) % 64
OWN = TAKING.start + os.getpid() % 64


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue."""
    return new_environment("a", durability=Durability.PROCESS_CRASH)


@pytest.fixture(name="mapped")
def mapped_fixture(environment: Environment) -> Iterator[mmap.mmap]:
    """Map the file by which processes wake each other."""
    environment.new_publisher().send(b"sent")
    with open(environment.path / "wakeup", "r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as mapped:
        yield mapped


@pytest.fixture(name="looks")
def looks_fixture(monkeypatch: pytest.MonkeyPatch) -> List[Callable[[], object]]:
    """Return a list of what happens at the next looks of a sender that yields; nobody looks when it is empty."""
    looks: List[Callable[[], object]] = []

    def look() -> None:
        if looks:
            looks.pop(0)()

    monkeypatch.setattr(os, "sched_yield", look)
    monkeypatch.setattr(right_of_way, "RECEIVING_S_MAX", 60)
    monkeypatch.setattr(right_of_way, "SENDING_S_MAX", 60)
    return looks


@pytest.fixture(name="waits")
def waits_fixture(monkeypatch: pytest.MonkeyPatch) -> List[None]:
    """Return a list to which each look of a process that waits for another one adds."""
    waits: List[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: waits.append(None))
    return waits


def nothing() -> None:
    """Let a look pass."""


def test_a_sender_yields_to_a_waiting_receiver(environment: Environment, mapped: mmap.mmap,
                                               looks: List[Callable[[], object]]) -> None:
    """A send begins when the receiving process has the lock, and not before."""
    publisher, taker = environment.new_publisher(), environment.new_subscriber("a")
    mapped[OTHER] = 1
    looks += [nothing, lambda: taker.front() == b"sent" and mapped.__setitem__(OTHER, 0)]
    assert publisher.send(b"after") == 2
    assert not looks and mapped[OTHER] == 0
    assert list(taker.messages(timeout=0)) == [b"sent", b"after"]


def test_a_receiver_waits_for_a_send_that_has_begun(environment: Environment, mapped: mmap.mmap,
                                                    looks: List[Callable[[], object]]) -> None:
    """An acknowledgement begins when the sending process has written, and not before."""
    taker = environment.new_subscriber("a")
    mapped[OTHER_SENDER] = 1
    looks += [nothing, lambda: mapped.__setitem__(OTHER_SENDER, 0)]
    taker.pop()
    assert not looks and mapped[OWN] == 0


def test_a_dead_process_delays_one_write(environment: Environment, mapped: mmap.mmap, waits: List[None]) -> None:
    """A process that died while it wrote, or waited to write, delays one write of another one, and no later one."""
    publisher, taker = environment.new_publisher(), environment.new_subscriber("a")
    for byte, write in ((OTHER, lambda: publisher.send(b"more")), (OTHER_SENDER, taker.pop)):
        mapped[byte] = 7
        write()
        assert waits
        waits.clear()
        write()
        assert not waits
        mapped[byte] = 0


@pytest.mark.parametrize("kind, longest", [(TAKING, "RECEIVING_S_MAX"), (SENDING, "SENDING_S_MAX")])
def test_a_dead_process_delays_one_write_beside_a_living_one(kind: slice, longest: str, environment: Environment,
                                                             mapped: mmap.mmap,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead process delays one write, however often a living one is waited for afterwards."""
    publisher, taker = environment.new_publisher(), environment.new_subscriber("a")
    publisher.send_many([b"more"] * 10)
    write = taker.pop if kind == SENDING else functools.partial(publisher.send, b"sent")
    dead, living, waits = kind.start + (os.getpid() + 2) % 64, kind.start + (os.getpid() + 1) % 64, list[int]()

    def look() -> None:
        waits.append(mapped[living])
        mapped[living] = 0

    mapped[dead] = 7
    write()
    monkeypatch.setattr(os, "sched_yield", look)
    monkeypatch.setattr(right_of_way, longest, 5)
    for turn in (1, 2, 3):
        write()
        mapped[living] = turn
        write()
    assert waits == [1, 2, 3]


def test_a_receiver_that_waits_anew_goes_first_again(environment: Environment, mapped: mmap.mmap,
                                                     waits: List[None]) -> None:
    """A sender that waited in vain for a receiver waits for its next write, even if it saw no pause between them."""
    publisher = environment.new_publisher()
    for turn in (1, 2, 3):
        waits.clear()
        mapped[OTHER] = turn
        publisher.send(b"sent")
        assert waits


def take(environment: Environment) -> None:
    """Receive and acknowledge a message."""
    environment.new_subscriber("a").pop()


def take_as_a_task(environment: Environment) -> None:
    """Receive and acknowledge a message in a coroutine."""

    async def main() -> None:
        async with environment.new_async_subscriber("a").receive(timeout=0) as message:
            assert message == b"sent"

    asyncio.run(main())


@pytest.mark.parametrize("taker", [take, take_as_a_task])
def test_a_receiver_says_so_until_it_has_the_lock(taker: Callable[[Environment], None], environment: Environment,
                                                  mapped: mmap.mmap) -> None:
    """A process that waits for the lock to receive says so until it has acknowledged the message."""
    with process(hold_write_lock, environment.path) as holder:
        assert told(holder) == "held"
        taking = Task(lambda: taker(environment))
        wait_until(lambda: mapped[OWN] != 0)
        holder.send("release")
        taking.result()
    assert mapped[TAKING] == bytes(64)


# Processes


def byte_of(kind: slice, pid: int) -> int:
    """Return the position of the byte of a process."""
    start: int = kind.start
    return start + pid % right_of_way.SLOTS


def start_with_another_byte(function: Callable[[], object]) -> int:
    """Run a function in a forked child, of which the byte is another one than that of this process; return its id."""

    def run() -> int:
        if os.getpid() % right_of_way.SLOTS == os.getppid() % right_of_way.SLOTS:
            return 7
        function()
        return 0

    child = start_child(run)
    # At most once: the next child has another number.
    return child if child % right_of_way.SLOTS != os.getpid() % right_of_way.SLOTS else start_child(run)


@pytest.mark.parametrize("kind", [TAKING, SENDING])
def test_a_forked_child_has_its_own_byte(kind: slice, environment: Environment, mapped: mmap.mmap) -> None:
    """A child that writes through what it inherits sets its own byte, and not that of its parent."""
    publisher, taker = environment.new_publisher(), environment.new_subscriber("a")
    assert taker.front() == b"sent"
    with process(hold_write_lock, environment.path) as holder:
        assert told(holder) == "held"
        child = start_with_another_byte(taker.pop if kind == TAKING else functools.partial(publisher.send, b"more"))
        wait_until(lambda: mapped[byte_of(kind, child)] != 0)
        assert mapped[byte_of(kind, os.getpid())] == 0
        holder.send("release")
        assert status_of(child) == 0
    assert mapped[kind] == bytes(right_of_way.SLOTS)


@pytest.mark.parametrize("kind", [TAKING, SENDING])
def test_a_killed_process_delays_one_write(kind: slice, environment: Environment, mapped: mmap.mmap,
                                           waits: List[None]) -> None:
    """A process that is killed while it waits for the lock leaves its byte, which delays one write and no later one."""
    publisher, taker = environment.new_publisher(), environment.new_subscriber("a")
    publisher.send_many([b"more"] * 3)
    with process(hold_write_lock, environment.path) as holder:
        assert told(holder) == "held"
        child = start_with_another_byte(taker.pop if kind == TAKING else functools.partial(publisher.send, b"killed"))
        wait_until(lambda: mapped[byte_of(kind, child)] != 0)
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        holder.send("release")
    assert mapped[byte_of(kind, child)] != 0
    write = taker.pop if kind == SENDING else functools.partial(publisher.send, b"after")
    write()
    assert waits
    waits.clear()
    for _ in range(2):
        write()
    assert not waits


#: How many acknowledgements are counted, and how many sends there may be for each. Without the right of way, there are
#: 9 to 70 where each process has a processor: a waiting one gets LMDB's lock once in two milliseconds. Where the
#: processes share one, there are at most two in any case.
ACKNOWLEDGEMENTS = 3000
SENDS_MIN, SENDS_MAX = 0.02, 5.0
#: The words by which the processes count.
SENT, ENOUGH = 0, 1


@contextlib.contextmanager
def counts(path: pathlib.Path) -> "Iterator[memoryview[int]]":
    """Map the words by which processes count."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as words, memoryview(words) as view:
        with view.cast("B") as numbers, numbers.cast("Q") as found:
            yield found


def send_and_count(connection: Connection, queue: pathlib.Path, path: pathlib.Path) -> None:
    """Send without a pause until there are enough: the main function of a process."""
    with persipubsub.new_environment(queue) as environment, counts(path) as words:
        publisher = environment.new_publisher()
        connection.send("ready")
        while not words[ENOUGH]:
            publisher.send(bytes(100))
            words[SENT] += 1


def acknowledge_and_count(connection: Connection, queue: pathlib.Path, path: pathlib.Path) -> None:
    """Acknowledge messages, and report how many were sent meanwhile: the main function of a process."""
    with persipubsub.new_environment(queue) as environment, counts(path) as words:
        subscriber = environment.new_subscriber("a")
        subscriber.pop()
        before = words[SENT]
        for _ in range(ACKNOWLEDGEMENTS):
            with subscriber.receive(timeout=0) as message:
                assert message is not None
        connection.send(words[SENT] - before)
        words[ENOUGH] = 1


@pytest.mark.slow
def test_two_processes_share_the_queue(environment: Environment, tmp_path: pathlib.Path) -> None:
    """While one process sends and another one receives, each as fast as it can, neither keeps the other one out."""
    (tmp_path / "counts").write_bytes(bytes(mmap.PAGESIZE))
    environment.new_publisher().send_many([bytes(100)] * 2 * ACKNOWLEDGEMENTS)
    with process(send_and_count, environment.path, tmp_path / "counts") as sender:
        assert told(sender) == "ready"
        with process(acknowledge_and_count, environment.path, tmp_path / "counts") as receiver:
            sends = told(receiver) / ACKNOWLEDGEMENTS
    assert SENDS_MIN < sends < SENDS_MAX
