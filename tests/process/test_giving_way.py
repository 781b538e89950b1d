"""Senders yield LMDB's lock, which is not fair by itself, to processes that receive."""

import asyncio
import mmap
import os
from typing import Callable, Iterator, List

import pytest

from persipubsub import Durability, Environment, clock
from persipubsub.lmdb_engine.process import wakeup
from tests.concurrency import Task, hold_write_lock, process, told, wait_until

MakeEnvironment = Callable[..., Environment]

#: Where processes say that they wait to receive.
TAKING = slice(64, 128)
OTHER = TAKING.start + (os.getpid() + 1) % 64
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
    sleep = clock.sleep

    def look(seconds: float) -> None:
        if looks:
            looks.pop(0)()
        sleep(seconds)

    monkeypatch.setattr(clock, "sleep", look)
    monkeypatch.setattr(wakeup, "GIVE_WAY_S_MAX", 60)
    return looks


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


def test_a_dead_receiver_delays_one_send(environment: Environment, mapped: mmap.mmap,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died while it waited for the lock delays one send, and no later one."""
    publisher = environment.new_publisher()
    waits: List[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    mapped[OTHER] = 1
    publisher.send(b"1")
    assert waits
    waits.clear()
    publisher.send_many([b"2", b"3"])
    assert not waits


def test_senders_yield_again_to_a_receiver_that_waits_again(environment: Environment, mapped: mmap.mmap,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that was passed over and then had the lock has precedence again."""
    publisher = environment.new_publisher()
    waits: List[float] = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    for taking in (1, 0, 1):
        waits.clear()
        mapped[OTHER] = taking
        publisher.send(b"sent")
        assert bool(waits) == bool(taking)


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
        wait_until(lambda: mapped[OWN] == 1)
        holder.send("release")
        taking.result()
    assert mapped[TAKING] == bytes(64)
