"""One name is one reader: a second process that receives as a plain subscriber is warned, and nobody else."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator, List

import pytest

import persipubsub
from persipubsub import Durability, Environment
from persipubsub.lmdb_engine.process.reader_locks import ReaderLocks
from tests.children import status_of
from tests.concurrency import CONTEXT, WAIT_S, Task, process, told
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]


class Warnings(logging.Handler):
    """Collects the warnings of the library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.texts.append(record.getMessage())

    def take(self) -> List[str]:
        """Return the texts so far, and forget them."""
        texts, self.texts = self.texts, []
        return texts


@pytest.fixture(name="warned")
def warned_fixture() -> Iterator[Warnings]:
    """Collect the warnings of this process."""
    handler, logger = Warnings(), logging.getLogger("persipubsub")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment, time_limit: None) -> Environment:
    """Set up a queue with the plain subscribers "a", "b" and "limited", and the shared one "workers"."""
    del time_limit
    environment = new_environment("a", "b", durability=Durability.PROCESS_CRASH)
    control = environment.new_control()
    control.add_subscriber("limited", max_deliveries=3)
    control.add_subscriber("workers", shared=True)
    return environment


def read(connection: Connection, path: pathlib.Path, *identifiers: str) -> None:
    """Open subscribers, say which warnings there were, and keep them open: the main function of a process."""
    handler = Warnings()
    logging.getLogger("persipubsub").addHandler(handler)
    with persipubsub.new_environment(path) as environment:
        opened = [environment.new_subscriber(identifier) for identifier in identifiers]
        connection.send(handler.texts)
        told(connection)
        for subscriber in opened:
            subscriber.close()
        connection.send("closed")
        told(connection)


@contextlib.contextmanager
def reader(environment: Environment, *identifiers: str) -> Iterator[Connection]:
    """Run a process that has subscribers open, which was not warned."""
    with process(read, environment.path, *identifiers) as other:
        assert told(other) == []
        yield other
        other.send(None)
        assert told(other) == "closed"
        other.send(None)


def warnings_elsewhere(environment: Environment, *identifiers: str) -> List[str]:
    """Open subscribers in another process, and close them; return the warnings there."""
    with process(read, environment.path, *identifiers) as other:
        found: List[str] = told(other)
        other.send(None)
        assert told(other) == "closed"
        other.send(None)
    return found


def open_as_a_task(environment: Environment, identifier: str) -> None:
    """Open a subscriber for tasks."""

    async def main() -> None:
        environment.new_async_subscriber(identifier)

    asyncio.run(main())


@pytest.mark.parametrize("opens", [Environment.new_subscriber, open_as_a_task])
@pytest.mark.parametrize("identifier", ["a", "limited"])
def test_the_second_process_is_warned_once(identifier: str, opens: Callable[[Environment, str], Any],
                                           environment: Environment, warned: Warnings) -> None:
    """The second process that opens a plain subscriber gets one warning, with the remedy, however often it does."""
    with reader(environment, identifier):
        opens(environment, identifier)
        text, = warned.take()
        assert repr(identifier) in text and str(environment.path) in text and "shared=True" in text
        opens(environment, identifier)
        with persipubsub.new_environment(environment.path) as another:
            another.new_subscriber(identifier)
        assert warned.take() == []


def test_who_is_not_warned(environment: Environment, warned: Warnings) -> None:
    """Nobody is warned as another subscriber, as a worker, as a publisher, or in the process that came first."""
    with reader(environment, "a", "workers"):
        environment.new_subscriber("b")
        environment.new_subscriber("limited")
        environment.new_subscriber("workers")
        environment.new_publisher()
        environment.new_control().status()
        with persipubsub.new_environment(environment.path) as another:
            another.new_subscriber("b")
            another.new_async_subscriber("limited")
    assert warned.take() == []


@pytest.mark.parametrize("ends", ["subscriber", "environment", "killed"])
def test_after_the_first_one_has_ended(ends: str, environment: Environment, warned: Warnings) -> None:
    """Nobody is warned of a process that has closed its subscriber or its Environment, or was killed."""
    ours, theirs = CONTEXT.Pipe()
    other = CONTEXT.Process(target=read, args=(theirs, environment.path, "a"), daemon=True)
    other.start()
    assert told(ours) == []
    if ends == "killed":
        other.kill()
    else:
        ours.send(None)
        assert told(ours) == "closed"
        if ends == "environment":
            ours.send(None)
    if ends != "subscriber":
        other.join(WAIT_S)
        assert not other.is_alive()
    environment.new_subscriber("a")
    assert warned.take() == []
    if ends == "subscriber":
        ours.send(None)
        other.join(WAIT_S)


def test_as_long_as_one_of_several_is_open(environment: Environment) -> None:
    """A process is a reader until it has closed all its objects of a subscriber."""
    opened: List[Any] = [
        environment.new_subscriber("a"),
        environment.new_subscriber("a"),
        environment.new_async_subscriber("a")
    ]
    for subscriber in opened:
        assert len(warnings_elsewhere(environment, "a")) == 1
        subscriber.close()
        subscriber.close()
    assert warnings_elsewhere(environment, "a") == []


def test_a_reader_that_was_warned_hides_nobody(environment: Environment) -> None:
    """The warned process may close its subscriber: the first one still is a reader."""
    with reader(environment, "a"):
        for _ in range(2):
            assert len(warnings_elsewhere(environment, "a")) == 1


def test_a_subscriber_that_was_added_again(environment: Environment, warned: Warnings) -> None:
    """A subscriber that was removed and added again is another one, of which nobody is a reader yet."""
    with reader(environment, "a"):
        environment.new_control().remove_subscriber("a")
        environment.new_control().add_subscriber("a")
        environment.new_subscriber("a")
        assert warned.take() == []


def test_after_a_subscriber_has_become_shared(environment: Environment, warned: Warnings) -> None:
    """Once a subscriber is shared, whoever opens it is not warned of those that opened it before."""
    with reader(environment, "a"):
        environment.new_control().add_subscriber("a", shared=True)
        environment.new_subscriber("a")
    assert warned.take() == []


@pytest.mark.usefixtures("patient_forks")
def test_a_fork_leaves_the_parent_a_reader(environment: Environment) -> None:
    """After a child has ended, in whichever way, its parent still is a reader, until it closes its subscriber."""
    subscriber = environment.new_subscriber("a")
    assert status_of(fork(lambda: None)) == 0
    assert status_of(fork(subscriber.close)) == 0
    assert status_of(fork(environment.close)) == 0
    assert status_of(fork(lambda: os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
    assert len(warnings_elsewhere(environment, "a")) == 1
    subscriber.close()
    assert warnings_elsewhere(environment, "a") == []


@pytest.mark.usefixtures("patient_forks")
def test_a_child_that_outlives_its_parent(environment: Environment, tmp_path: pathlib.Path) -> None:
    """A forked child that does nothing is no reader, though its parent, which was one, is killed."""
    left = tmp_path / "left"
    program = f"""
import os, signal, sys, time
import persipubsub
environment = persipubsub.new_environment({str(environment.path)!r})
subscriber = environment.new_subscriber("a")
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
open({str(left)!r}, "w").write(str(os.getpid()))
time.sleep({WAIT_S})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    try:
        assert warnings_elsewhere(environment, "a") == []
    finally:
        while not left.exists() or not left.read_text(encoding="ascii"):
            pass
        os.kill(int(left.read_text(encoding="ascii")), signal.SIGKILL)


@pytest.mark.usefixtures("patient_forks")
def test_a_child_that_opens_what_its_parent_reads(environment: Environment, warned: Warnings) -> None:
    """A forked child that opens a subscriber that its parent has open is a second process; what it inherits is not."""
    subscriber = environment.new_subscriber("a")

    def child() -> None:
        assert subscriber.front() is None
        assert warned.take() == []
        environment.new_subscriber("a")
        assert len(warned.take()) == 1
        environment.new_subscriber("b")
        assert warned.take() == []

    assert status_of(fork(child)) == 0


def test_a_pickled_subscriber_is_a_second_reader(environment: Environment) -> None:
    """A spawned process that gets a plain subscriber as an argument is warned, since both receive as that one."""
    subscriber = environment.new_subscriber("a")
    ours, theirs = CONTEXT.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=say_warnings,
                                                         args=(theirs, environment.path, subscriber))
    other.start()
    other.join(WAIT_S)
    assert other.exitcode == 0 and len(told(ours)) == 1


def say_warnings(connection: Connection, path: pathlib.Path, _subscriber: object) -> None:
    """Say how many warnings one more reader gets: the main function of a process, which is one by its argument."""
    handler = Warnings()
    logging.getLogger("persipubsub").addHandler(handler)
    with persipubsub.new_environment(path) as environment:
        environment.new_subscriber("a")
        connection.send(handler.texts + ["was warned when the argument was unpickled"] * (not handler.texts))


def test_threads_that_open_at_the_same_time(environment: Environment) -> None:
    """Threads that open and close a subscriber at the same time are one reader, as long as one of them has it open."""
    locks = ReaderLocks(environment.path)
    barrier, interval_s = threading.Barrier(4), sys.getswitchinterval()

    def use() -> None:
        others = ReaderLocks(environment.path)
        barrier.wait(WAIT_S)
        for _ in range(10_000):
            assert not locks.announce(1)
            assert others.announce(1)
            others.renounce(1)
            locks.renounce(1)
        others.close()

    sys.setswitchinterval(1e-6)
    try:
        for task in [Task(use) for _ in range(4)]:
            task.result()
    finally:
        sys.setswitchinterval(interval_s)
    last = ReaderLocks(environment.path)
    assert not last.announce(1)
    last.close()
    locks.close()
