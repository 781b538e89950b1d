"""Interrupts and errors while a queue is opened or closed: this process and others can use it afterwards."""

# pylint: disable=protected-access  # no public method shows what opening and closing leave behind

import contextlib
import gc
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Callable, Dict, Iterator, List, Type

import click
import lmdb
import pytest

import persipubsub
from persipubsub import Durability, Environment, errors, metrics
from persipubsub.cli import main
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import files, opening_check
from tests.children import status_of
from tests.concurrency import (MANY, STORMS_S, WAIT_S, Point, Task, drained, interrupt, interrupted_at_random, process,
                               serve_uses, told, wait_until)
from tests.process.forking import fork

pytestmark = pytest.mark.slow  # starts many processes, or waits

#: The quick form tests each 29th point.
STEPS = [29, pytest.param(1, marks=pytest.mark.long)]

#: How commands end that were interrupted or met an error.
ENDS_OF_COMMANDS = (click.ClickException, click.exceptions.Abort, click.exceptions.Exit)


@pytest.fixture(name="path")
def path_fixture() -> Iterator[pathlib.Path]:
    """Set up a queue that nobody has open, with the subscribers "a" and "all" and the workers "shared".

    It lies in memory where there is a place for that: each closing of a queue that was written to waits for the disk.
    """
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        path = pathlib.Path(directory) / "queue"
        with persipubsub.new_environment(path) as environment:
            control = environment.new_control(["a", "all"], durability=Durability.PROCESS_CRASH, high_watermark=MANY)
            control.add_subscriber("shared", shared=True)
        yield path
        with persipubsub.new_environment(path) as environment:
            assert environment.new_control().check() == ()


@pytest.fixture(name="other")
def other_fixture(path: pathlib.Path) -> Iterator[Connection]:
    """Have another process that uses the queue on request."""
    with process(serve_uses, path) as connection:
        yield connection
        connection.send(None)


def use_environment(path: pathlib.Path) -> None:
    """Open and close a queue with everything that an Environment makes."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"]).status()
        environment.new_publisher().send(b"x")
        environment.new_subscriber("a").pop()


def use_shared(path: pathlib.Path) -> None:
    """Open a queue twice, the second time as a worker."""
    with persipubsub.new_environment(path) as first, persipubsub.new_environment(path) as second:
        first.new_publisher()
        second.new_subscriber("shared")


def use_async(path: pathlib.Path) -> None:
    """Open a queue for tasks."""
    with persipubsub.new_environment(path) as environment:
        environment.new_async_publisher()
        environment.new_async_subscriber("a")


def use_command_line(path: pathlib.Path) -> None:
    """Look at a queue from the command line."""
    main.main(["status", str(path), "--json"], standalone_mode=False)


def use_collector(path: pathlib.Path) -> None:
    """Have the metrics of a queue collected."""
    assert list(metrics.QueueCollector([path]).collect())


USES: Dict[str, Callable[[pathlib.Path], None]] = {
    "environment": use_environment,
    "shared": use_shared,
    "async": use_async,
    "command line": use_command_line,
    "collector": use_collector,
}


def require_usable(path: pathlib.Path, other: Connection, payload: bytes) -> None:
    """Make sure that this process and another one can open the queue, send and receive."""
    other.send(payload)
    assert told(other)
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(payload)
        assert drained(environment.new_subscriber("all"))[-1:] == [payload]


def require_closed(path: pathlib.Path) -> None:
    """Make sure that nothing of the queue is open in this process, nor its lock held."""
    if open_queues._OPEN:
        gc.collect()  # an interrupt may have come before a ``with`` block could close what it had opened
    assert not open_queues._OPEN
    alone = opening_check.try_exclusive(path)
    assert alone is not None
    alone.close()


def raising(kind: Type[BaseException]) -> Callable[[], None]:
    """Return a function that raises an error."""

    def action() -> None:
        raise kind("raised by a test")

    return action


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("use", USES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a finalizer raises
def test_error_anywhere_in_opening_and_closing(use: str, kind: Type[BaseException], step: int, path: pathlib.Path,
                                               other: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever opening or closing is interrupted, all can use the queue, even during the error."""
    points = 0
    for number in itertools.count(0, step):
        point = Point(number, raising(kind))
        try:
            point.run(lambda: USES[use](path))
        except (kind, errors.PersipubsubError, *ENDS_OF_COMMANDS):
            require_usable(path, other, b"%d" % number)
        require_closed(path)
        capsys.readouterr()
        points += 1
        if not point.reached:
            break
    assert points > 100 / step
    require_usable(path, other, b"end")


@pytest.mark.parametrize("storm_s", STORMS_S)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a finalizer raises
def test_storm_of_interrupts_of_opening_and_closing(path: pathlib.Path, other: Connection, storm_s: float,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """Signals at random moments of opening and closing leave the queue to everyone, and close it in the end."""

    def running(use: Callable[[pathlib.Path], None]) -> Callable[[], None]:

        def run() -> None:
            with contextlib.suppress(*ENDS_OF_COMMANDS):
                use(path)
            capsys.readouterr()

        return run

    for round_ in range(5):
        assert interrupted_at_random([running(use) for use in USES.values()], storm_s / 5, seed=round_) > 5
        require_usable(path, other, b"%d" % round_)
        require_closed(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a hook raises
def test_interrupt_anywhere_in_a_fork_of_an_open_queue(path: pathlib.Path, other: Connection) -> None:
    """Wherever KeyboardInterrupt comes in a fork, parent and child can close and open the queue."""
    for number in itertools.count():
        with persipubsub.new_environment(path) as environment:
            environment.new_publisher().send(b"before")
            point = Point(number, interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                # pylint: disable-next=cell-var-from-loop  # it runs at once
                assert status_of(point.run(lambda: fork(lambda: close_and_use(environment)))) == 0
        require_usable(path, other, b"%d" % number)
        require_closed(path)
        if not point.reached:
            break


def close_and_use(environment: Environment) -> None:
    """Close what was inherited, and use the queue afresh."""
    environment.close()
    with persipubsub.new_environment(environment.path) as fresh:
        fresh.new_publisher().send(b"from a child")


def test_closing_again(path: pathlib.Path, other: Connection) -> None:
    """An Environment whose closing was interrupted is closed by closing it again, wherever that was."""
    for number in itertools.count():
        environment = persipubsub.new_environment(path)
        environment.new_publisher().send(b"x")
        point = Point(number, interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            point.run(environment.close)
        environment.close()
        require_closed(path)
        if number % 10 == 0:
            require_usable(path, other, b"%d" % number)
        if not point.reached:
            break


def test_a_handler_that_closes_during_a_send(path: pathlib.Path) -> None:
    """A signal handler that closes the Environment of an interrupted send gets ReentryError; later it can."""
    for number in itertools.count():
        environment = persipubsub.new_environment(path)
        publisher = environment.new_publisher()

        def close() -> None:
            with contextlib.suppress(errors.ReentryError):
                environment.close()  # pylint: disable=cell-var-from-loop  # it runs at once

        point = Point(number, close)
        with contextlib.suppress(errors.ClosedError):
            point.run(lambda: publisher.send(b"x"))  # pylint: disable=cell-var-from-loop  # it runs at once
        environment.close()
        require_closed(path)
        if not point.reached:
            break


def test_threads_open_and_close_at_one_time(path: pathlib.Path) -> None:
    """Threads that open, use and close one queue at the same time never get one that another closed."""

    def run() -> int:
        for _ in range(30):
            with persipubsub.new_environment(path) as environment:
                environment.new_publisher().send(b"x")
        return 30

    assert sum(task.result() for task in [Task(run) for _ in range(6)]) == 180
    require_closed(path)
    with persipubsub.new_environment(path) as environment:
        assert len(drained(environment.new_subscriber("all"))) == 180


# Waiting for others


def hold_as_writer(connection: Connection, path: pathlib.Path) -> None:
    """Send the id of this process once it is in a write transaction, and stay there: its main function."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(lmdb.Environment(os.fspath(path), create=False, max_readers=1024, max_dbs=32))
        stack.enter_context(raw.begin(write=True))
        connection.send(os.getpid())
        told(connection)


@pytest.fixture(name="stopped")
def stopped_fixture(path: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Stop another process while it is in a write transaction of the queue, which holds one message.

    The function has the process go on.
    """
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(b"there")
    with process(hold_as_writer, path) as writer:
        pid = told(writer)
        os.kill(pid, signal.SIGSTOP)
        ended: List[bool] = []

        def go_on() -> None:
            if not ended:
                ended.append(True)
                os.kill(pid, signal.SIGCONT)
                writer.send("go")

        yield go_on
        go_on()


def command(*arguments: object) -> str:
    """Run a command, and return what it writes."""
    words = [sys.executable, "-m", "persipubsub", *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=WAIT_S).stdout


def require_unused() -> None:
    """Make sure that this process has no queue open but those of fixtures."""
    assert all(opened.users for opened in open_queues._OPEN.values())


def test_looking_past_a_stopped_writer(path: pathlib.Path, stopped: Callable[[], None],
                                       new_environment: Callable[..., Environment]) -> None:
    """A writer that is stopped in a transaction keeps nobody from opening, looking and closing."""
    del stopped
    healthy = new_environment("a").path

    def look() -> List[object]:
        with persipubsub.new_environment(path) as environment:
            found: List[object] = [environment.new_subscriber("a").front()]
            found.append(environment.new_control(create=False).status().messages)
        up = next(iter(metrics.QueueCollector([path, healthy]).collect()))
        return found + [sample.value for sample in up.samples]

    assert Task(look).result() == [b"there", 1, 1, 1]
    require_unused()
    assert "there" in command("receive", path, "a", "--peek")
    assert '"messages": 1' in command("status", path, "--json")


def test_a_wait_for_a_stopped_writer(path: pathlib.Path, stopped: Callable[[], None],
                                     new_environment: Callable[..., Environment]) -> None:
    """While a thread waits for a stopped writer, others use healthy queues, and look at that one."""
    healthy = new_environment("a").path
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        sending = Task(lambda: publisher.send(b"sent"))

        def use() -> object:
            use_environment_of(healthy)
            return environment.new_subscriber("a").front()

        opened = open_queues._OPEN[files.queue_key(path)].engine
        wait_until(lambda: bool(opened._session._waiting()))
        assert Task(use).result() == b"there"
        assert not sending.done()
        stopped()
        assert sending.result() == 2
        assert drained(environment.new_subscriber("a")) == [b"there", b"sent"]


def use_environment_of(path: pathlib.Path) -> None:
    """Open, use and close a healthy queue."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(b"x")
        environment.new_subscriber("a").pop()


def test_a_wait_for_the_exclusive_holder(path: pathlib.Path, new_environment: Callable[..., Environment],
                                         monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that waits for the exclusive lock says so after a while, and blocks no other queue."""
    monkeypatch.setattr(opening_check, "WARN_S", 0.05)
    healthy = new_environment("a").path
    alone = opening_check.try_exclusive(path)
    assert alone is not None
    opening = Task(lambda: use_environment_of(path))
    wait_until(lambda: "another process holds it exclusively" in caplog.text)
    Task(lambda: use_environment_of(healthy)).result()
    assert not opening.done()
    alone.close()
    opening.result()


def mark_of_another_boot(path: pathlib.Path) -> None:
    """Write the unclean marker of a boot that ended before the commits were on the disk."""
    (path / files.UNCLEAN_FILE).write_bytes(bytes(16))


def hold_open(connection: Connection, path: pathlib.Path) -> None:
    """Have the queue open, as its main function."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        connection.send("open")
        told(connection)


def test_an_unclean_marker_of_another_boot_on_an_open_queue(path: pathlib.Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening such a queue while somebody has it open fails after a bounded time."""
    monkeypatch.setattr(opening_check, "VERIFY_WAIT_S_MAX", 0.2)
    with process(hold_open, path) as holder:
        assert told(holder) == "open"
        mark_of_another_boot(path)
        with pytest.raises(errors.InUseError, match="unclean marker of another boot .* Close the queue there"):
            Task(lambda: use_environment_of(path)).result()
        require_unused()
        holder.send("close")
    # Its closing has removed the marker that it knew of: write it once more.
    mark_of_another_boot(path)
    use_environment_of(path)
    assert not (path / files.UNCLEAN_FILE).exists()


def test_the_lock_after_verifying(path: pathlib.Path, other: Connection) -> None:
    """A process that has verified a queue lets others open it at once."""
    mark_of_another_boot(path)
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        other.send(b"x")
        assert told(other)


@pytest.mark.damages_queues
def test_looking_after_the_files_were_deleted(tmp_path: pathlib.Path) -> None:
    """A Control whose queue was deleted raises an error instead of showing what was there."""
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        control = environment.new_control(["a"])
        shutil.rmtree(tmp_path / "queue")
        for look in (control.status, control.check):
            with pytest.raises(errors.ReplacedError):
                look()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("every", [1, 10])
def test_closing_in_a_loop(shared: bool, every: int, path: pathlib.Path) -> None:
    """Closing acknowledges what a loop over messages() has finished, once; the loop then gets ClosedError."""
    name = "shared" if shared else "a"
    environment = persipubsub.new_environment(path)
    environment.new_publisher().send_many([b"%d" % number for number in range(5)])
    seen = []
    with pytest.raises(errors.ClosedError):
        for message in environment.new_subscriber(name).messages(timeout=0, acknowledge_every=every):
            seen.append(message)
            if message == b"2":
                environment.close()
    assert seen[:3] == [b"0", b"1", b"2"]
    with persipubsub.new_environment(path) as again:
        assert again.new_control().status().subscribers[name].pending == 3


LEFT_LOOP = """
import sys, persipubsub
environment = persipubsub.new_environment(sys.argv[1])
loop = environment.new_subscriber(sys.argv[2]).messages(timeout=0, acknowledge_every=10)
for message in loop:
    if message == b"2":
        break
"""


@pytest.mark.parametrize("name", ["a", "shared"])
def test_a_loop_that_is_left_when_the_interpreter_ends(name: str, path: pathlib.Path) -> None:
    """A program that ends in a loop over messages() has acknowledged finished ones, silently."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send_many([b"%d" % number for number in range(5)])
    ended = subprocess.run([sys.executable, "-c", LEFT_LOOP, str(path), name],
                           check=True,
                           capture_output=True,
                           text=True,
                           timeout=WAIT_S)
    assert ended.stdout + ended.stderr == ""
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().status().subscribers[name].pending == 3
