"""Forks: children use what they inherit, the parent notices nothing, and nothing can deadlock."""

# pylint: disable=protected-access  # no public method shows whether a transaction is open

import os
import pathlib
import threading
import time
from typing import Any

import lmdb
import pytest

import persipubsub
from persipubsub import Durability, errors
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records import database
from tests.children import status_of
from tests.concurrency import (WAIT_S, MakeEnvironment, Opened, Task, by_sender, hold_write_lock, numbered, process,
                               told, wait_until)
from tests.process.forking import FORK_ERROR, Busy, fork, use, use_without_hope

pytestmark = pytest.mark.slow  # starts many processes, or waits

# Forks of all kinds

#: A fork is held up for at most 100 ms. The fork itself and a busy machine add; what would hold it up has no end.
FORK_S_MAX = 5


@pytest.mark.usefixtures("patient_forks")
@pytest.mark.parametrize("forks", [100, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("durability", Durability)
def test_a_hundred_forks_while_threads_use_the_queue(opened: Opened, durability: Durability, forks: int) -> None:
    """Children use inherited and fresh objects while threads of the parent write, read and wait; nothing is lost."""
    opened.environment.new_control(durability=durability)
    with Busy(opened) as busy:
        for number in range(forks):
            assert status_of(fork(lambda: use(opened, f"child {number}"))) == 0  # pylint: disable=cell-var-from-loop
        expected = busy.sent()
    expected.update({f"child {number}": numbered(f"child {number}", 2) for number in range(forks)})
    assert by_sender(opened.sent()) == expected
    assert opened.control.check() == ()


def test_children_at_the_same_time(opened: Opened) -> None:
    """Many children, and children of children, use the queue at the same time as their parent."""
    children = []

    def use_and_fork(number: int) -> None:
        use(opened, f"child {number}")
        assert status_of(fork(lambda: use(opened, f"grandchild {number}"))) == 0

    for number in range(10):
        children.append(fork(lambda: use_and_fork(number)))  # pylint: disable=cell-var-from-loop
        use(opened, f"parent {number}")
    assert [status_of(child) for child in children] == [0] * 10
    assert by_sender(opened.sent()) == {
        name: numbered(name, 2)
        for number in range(10)
        for name in (f"child {number}", f"grandchild {number}", f"parent {number}")
    }


@pytest.mark.usefixtures("patient_forks")
def test_a_fork_in_a_thread(opened: Opened) -> None:
    """A thread forks while others use the queue: its child uses it as well."""
    with Busy(opened) as busy:
        for number in range(10):
            name = f"child {number}"
            # pylint: disable-next=cell-var-from-loop  # run before the next turn
            assert Task(lambda: status_of(fork(lambda: use(opened, name)))).result() == 0
        expected = busy.sent()
    expected.update({f"child {number}": numbered(f"child {number}", 2) for number in range(10)})
    assert by_sender(opened.sent()) == expected


def test_threads_fork_at_the_same_time(opened: Opened) -> None:
    """Several threads fork at the same time, again and again, while others use the queue."""

    def fork_often(thread: int) -> None:
        for number in range(5):
            name = f"child {thread}.{number}"
            # pylint: disable-next=cell-var-from-loop  # run before the next turn
            assert status_of(fork(lambda: use(opened, name))) in (0, FORK_ERROR)

    with Busy(opened) as busy:
        tasks = [Task(lambda thread=thread: fork_often(thread)) for thread in range(4)]  # type: ignore[misc]
        for task in tasks:
            task.result()
        expected = busy.sent()
    found = by_sender(opened.sent())
    assert {name: payloads for name, payloads in found.items() if not name.startswith("child")} == expected
    Task(lambda: use(opened, "afterwards")).result()


# Forks at a bad moment


def test_a_fork_while_another_process_writes(opened: Opened) -> None:
    """A fork is not held up by another process that writes: the child gets ForkError, the parent goes on."""
    took_s = []
    with process(hold_write_lock, opened.environment.path) as holder:
        assert told(holder) == "held"
        waiting = Task(opened.send(b"waiting:0"))
        wait_until(opened.is_used)
        for _ in range(3):
            start_s = time.monotonic()
            child = fork(lambda: use_without_hope(opened))
            took_s.append(time.monotonic() - start_s)
            assert status_of(child) == 0
        # The children of such a child have no hope either.
        assert status_of(fork(lambda: os._exit(status_of(fork(lambda: use_without_hope(opened)))))) == 0
        assert opened.subscriber.front() is None
        assert not waiting.done()
        holder.send("go")
    waiting.result()
    # The shortest, since all the machine can do is to add.
    assert min(took_s) < FORK_S_MAX
    assert status_of(fork(lambda: use(opened, "child"))) == 0
    assert by_sender(opened.sent()) == {"waiting": numbered("waiting", 1), "child": numbered("child", 2)}


def test_several_queues_hold_up_a_fork_together(opened: Opened, new_environment: MakeEnvironment) -> None:
    """The bound for a fork covers all queues together; unused ones work in the child."""
    busy = [opened.environment] + [new_environment("a", name=f"busy {number}") for number in range(3)]
    free = new_environment("a", name="free").new_publisher()
    took_s = []

    def use() -> None:
        free.send(b"x")
        for publisher in publishers:
            with pytest.raises(errors.ForkError):
                publisher.send(b"x")

    publishers = [environment.new_publisher() for environment in busy]
    with process(hold_write_lock, *(environment.path for environment in busy)) as holder:
        assert told(holder) == "held"
        tasks = [
            Task(lambda publisher=publisher: publisher.send(b"x"))  # type: ignore[misc]
            for publisher in publishers
        ]
        for environment in busy:
            held = open_queues.acquire(environment.path)
            wait_until(lambda: bool(held._session._gate.inside))  # pylint: disable=cell-var-from-loop
            open_queues.release(held)
        for _ in range(3):
            start_s = time.monotonic()
            child = fork(use)
            took_s.append(time.monotonic() - start_s)
            assert status_of(child) == 0
        holder.send("go")
    assert [task.result() for task in tasks] == [1] * len(busy)
    assert min(took_s) < FORK_S_MAX


def test_threads_that_fork_while_another_process_writes(opened: Opened) -> None:
    """Threads that fork at the same time, while another process writes, leave no lock behind."""

    def fork_often() -> None:
        for _ in range(4):
            assert status_of(fork(lambda: use_without_hope(opened))) == 0

    # So that a fork takes some time.
    ballast = [bytearray(2**20) for _ in range(200)]
    with process(hold_write_lock, opened.environment.path) as holder:
        assert told(holder) == "held"
        waiting = Task(opened.send(b"waiting"))
        wait_until(opened.is_used)
        tasks = [Task(fork_often) for _ in range(4)]
        for task in tasks:
            task.result()
        holder.send("go")
    del ballast
    waiting.result()
    Task(lambda: use(opened, "afterwards")).result()
    assert status_of(fork(lambda: use(opened, "child"))) == 0


def test_a_fork_while_a_thread_opens_the_queue(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork while a thread waits in opening the queue: the child gets ForkError however it opens it."""
    path = opened.environment.path
    opened.environment.close()
    open_queues.release(opened.handle)
    environment = persipubsub.new_environment(path)
    inside, go = threading.Event(), threading.Event()
    open_lmdb = lmdb.Environment

    def slow_open(*arguments: Any, **options: Any) -> "lmdb.Environment":
        raw = open_lmdb(*arguments, **options)
        inside.set()
        assert go.wait(WAIT_S)
        return raw

    monkeypatch.setattr(lmdb, "Environment", slow_open)
    opening = Task(environment.new_publisher)
    assert inside.wait(WAIT_S)
    start_s = time.monotonic()
    child = fork(lambda: [other.new_publisher() for other in (environment, persipubsub.new_environment(path))])
    took_s = time.monotonic() - start_s
    assert not opening.done()
    go.set()
    assert status_of(child) == FORK_ERROR
    assert took_s < FORK_S_MAX
    assert opening.result().send(b"sent") == 1
    environment.close()
    with persipubsub.new_environment(path) as again:
        assert again.new_publisher().send(b"again") == 2


@pytest.mark.usefixtures("time_limit")
def test_a_fork_while_a_thread_sets_up_the_queue(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked while a thread sets up a queue, and goes on, keeps nobody out of it."""
    inside, go = threading.Event(), threading.Event()
    create = database.create

    def slow_create(*arguments: Any) -> None:
        inside.set()
        assert go.wait(WAIT_S)
        create(*arguments)

    monkeypatch.setattr(database, "create", slow_create)
    end = os.pipe()
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        setting_up = Task(lambda: environment.new_control(["a"]))
        assert inside.wait(WAIT_S)
        child = fork(lambda: os.read(end[0], 1))
        go.set()
        setting_up.result()
        assert Task(lambda: environment.new_publisher().send(b"x")).result() == 1
    os.write(end[1], b"x")
    assert status_of(child) == 0
    for fd in end:
        os.close(fd)
