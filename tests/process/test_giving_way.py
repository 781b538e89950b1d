"""Senders let processes that receive write first, and those wait for sends that have begun."""

import asyncio
import mmap
import os
from typing import Callable, Iterator, List

import pytest

from persipubsub import Durability, Environment
from persipubsub.lmdb_engine.process import right_of_way
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
