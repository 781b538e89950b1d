"""A process that holds the write lock for long is named in the log, and all goes on when it releases it."""

import os
import pathlib
import signal
import threading
from multiprocessing.connection import Connection
from typing import Callable, List

import pytest

from persipubsub import Environment
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import write_lock_watchdog
from tests.children import status_of
from tests.concurrency import Task, drained, hold_write_lock, process, told, wait_until
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]


@pytest.fixture(name="impatient", autouse=True)
def impatient_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the holder of the lock logged soon."""
    monkeypatch.setattr(write_lock_watchdog, "WARN_S", 0.2)
    monkeypatch.setattr(write_lock_watchdog, "LOOK_S", 0.02)
    write_lock_watchdog.end()  # it would look seldom


def hold_and_tell(connection: Connection, path: pathlib.Path) -> None:
    """Send the id of this process and hold the write lock: the main function of a process."""
    connection.send(os.getpid())
    hold_write_lock(connection, path)


def warnings(caplog: pytest.LogCaptureFixture) -> List[str]:
    """Return what was logged about the lock."""
    return [record.getMessage() for record in caplog.records if record.name == "persipubsub.lock_watch"]


def test_a_stopped_holder(new_environment: MakeEnvironment, caplog: pytest.LogCaptureFixture) -> None:
    """A wait for a stopped process logs its id and state once, and goes on when the process does."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    with process(hold_and_tell, environment.path) as holder:
        pid = told(holder)
        assert told(holder) == "held"
        os.kill(pid, signal.SIGSTOP)
        try:
            sending = [Task(lambda: publisher.send(b"waited")) for _ in range(3)]
            wait_until(lambda: bool(warnings(caplog)))
            wait_until(lambda: "T (stopped)" in write_lock_watchdog.holder(environment.path))
            looks: List[int] = []

            def look() -> List[object]:
                looks.append(1)
                return []

            watch = write_lock_watchdog.WriteLockWatchdog(environment.path, look)
            wait_until(lambda: len(looks) > 1)  # so was at this one, after it was logged
            watch.close()
            (warning, ) = warnings(caplog)
            for part in (str(environment.path), f"process {pid} (", "has no timeout"):
                assert part in warning
            assert not any(task.done() for task in sending)
        finally:
            os.kill(pid, signal.SIGCONT)
        holder.send("give it back")
        for task in sending:
            task.result()
    assert drained(environment.new_subscriber("a")) == [b"waited"] * 3
    wait_until(lambda: write_lock_watchdog.holder(environment.path) == "nobody any longer")


def test_each_long_wait_is_logged(new_environment: MakeEnvironment, caplog: pytest.LogCaptureFixture) -> None:
    """Each long wait is logged, not only the first one."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    for count in (1, 2):
        with process(hold_write_lock, environment.path) as holder:
            assert told(holder) == "held"
            sending = Task(lambda: publisher.send(b"waited"))
            wait_until(lambda: len(warnings(caplog)) == count)  # pylint: disable=cell-var-from-loop  # waits within it
            holder.send("give it back")
            sending.result()


def test_short_waits_are_not_logged(new_environment: MakeEnvironment, caplog: pytest.LogCaptureFixture,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that is shorter than the limit is not logged."""
    monkeypatch.setattr(write_lock_watchdog, "WARN_S", 60)
    environment = new_environment("a")
    publisher = environment.new_publisher()
    with process(hold_write_lock, environment.path) as holder:
        assert told(holder) == "held"
        sending = Task(lambda: publisher.send(b"waited"))
        wait_until(lambda: bool(environment.new_control().status() and write_lock_watchdog.THREADS))
        holder.send("give it back")
        sending.result()
    assert not warnings(caplog)


def test_this_process_is_named(new_environment: MakeEnvironment) -> None:
    """If a thread of this process holds the lock, the log says so; a closed queue logs nothing."""
    environment = new_environment("a")
    found: List[str] = []
    held = open_queues.acquire(environment.path)
    held.change(lambda _: found.append(write_lock_watchdog.holder(environment.path)))
    open_queues.release(held)
    assert f"process {os.getpid()} (" in found[0] and "which is this one" in found[0]
    assert "unknown process" in write_lock_watchdog.holder(environment.path / "nowhere")
    link = environment.path.with_name("link")
    link.symlink_to(environment.path.parent)
    assert write_lock_watchdog.holder(link / environment.path.name) == "nobody any longer"


def test_the_thread_ends_before_a_fork(new_environment: MakeEnvironment) -> None:
    """A process with one thread of its own forks with one; parent and child are watched from their next write."""
    environment = new_environment("a")
    publisher = environment.new_publisher()

    def names() -> List[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "persipubsub-lock-watch"]

    publisher.send(b"before")
    assert len(names()) == 1

    def live() -> None:
        assert not names()
        publisher.send(b"child")
        assert len(names()) == 1

    child = fork(live)
    assert not names()
    publisher.send(b"parent")
    assert len(names()) == 1
    assert status_of(child) == 0
    assert sorted(drained(environment.new_subscriber("a"))) == [b"before", b"child", b"parent"]
