"""The slots of readers that died during a read are freed before the file grows or no slot is left."""

# pylint: disable=protected-access  # no public method shows the known size of the file

import contextlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator, List

import lmdb
import pytest

import persipubsub
from persipubsub import Durability, Environment, errors
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import session
from persipubsub.lmdb_engine.records import database, reader_table
from persipubsub.lmdb_engine.records.transaction import Transaction

MakeEnvironment = Callable[..., Environment]

WAIT_S = 60  # for what happens soon unless something is broken
READERS = 50
CYCLES = 10_000
#: What a send of one message, or its acknowledgement, writes at most.
COMMIT_BYTES_MAX = 12 * 4096

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["persipubsub", "pytest"])


def told(connection: Connection) -> Any:
    """Return what another process says."""
    assert connection.poll(WAIT_S)
    return connection.recv()


class Process:
    """Another process, and a connection to it."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=function, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def told(self) -> Any:
        """Return what it says."""
        return told(self.connection)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join(WAIT_S)
        self.connection.close()


Start = Callable[..., Process]


@pytest.fixture(name="start")
def start_fixture() -> Iterator[Start]:
    """Return a function that starts processes, which end with the test at the latest."""
    with contextlib.ExitStack() as stack:

        def start(function: Callable[..., None], *arguments: object) -> Process:
            process = Process(function, *arguments)
            stack.callback(process.kill)
            return process

        yield start


# Main functions of processes


def fork_readers(connection: Connection, path: pathlib.Path, count: int) -> None:
    """Have children open the queue and stay in the middle of a read; kill them on request."""
    inside = os.pipe()

    def operation(_txn: Transaction) -> None:
        os.write(inside[1], b"x")
        signal.pause()

    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            try:
                signal.alarm(2 * WAIT_S)
                open_queues.acquire(path).read(operation)
            except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    os.close(inside[1])
    with open(inside[0], "rb") as inside_file:
        connection.send(len(inside_file.read(count)))
    told(connection)
    for child in children:
        os.kill(child, signal.SIGKILL)
    connection.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def fill_the_table(connection: Connection, path: pathlib.Path) -> None:
    """Occupy all free slots for readers, and keep them until asked to free them."""
    raw = lmdb.Environment(os.fspath(path), create=False, max_readers=database.MAX_READERS, max_dbs=32)
    txns: List["lmdb.Transaction[bytes]"] = []
    with contextlib.suppress(lmdb.ReadersFullError):
        while True:
            txns.append(raw.begin())
    connection.send(len(txns))
    told(connection)
    txns.clear()
    raw.close()
    connection.send("closed")
    told(connection)


def keep_open(connection: Connection, path: pathlib.Path) -> None:
    """Have the queue open, so that no later process is the first, and begins the table anew."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        connection.send("open")
        told(connection)


def count_stale_readers(connection: Connection, path: pathlib.Path) -> None:
    """Return how many slots belong to processes that died."""
    with lmdb.Environment(os.fspath(path), create=False, max_readers=database.MAX_READERS, max_dbs=32) as raw:
        connection.send(raw.reader_check())


def file_bytes(environment: Environment) -> int:
    """Return the size of a queue's data file."""
    return os.stat(environment.path / "data.mdb").st_size


def run_cycles(environment: Environment, count: int) -> None:
    """Send and acknowledge messages, one at a time."""
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    for number in range(count):
        publisher.send(b"%d" % number)
        subscriber.pop()


# Readers that die


@pytest.mark.slow
def test_dead_readers_do_not_make_the_file_grow(new_environment: MakeEnvironment, start: Start) -> None:
    """Fifty readers are killed: ten thousand messages later the file is as large as before."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    run_cycles(environment, 500)
    readers = start(fork_readers, environment.path, READERS)
    assert readers.told() == READERS
    readers.connection.send("die")
    assert readers.told() == [-signal.SIGKILL] * READERS
    before_bytes = file_bytes(environment)
    run_cycles(environment, CYCLES)
    grown_bytes = file_bytes(environment)
    # Until the slots are looked at.
    assert grown_bytes - before_bytes < (database.GROWTH_PAGES_MIN * 4096 +
                                         session.WRITES_BETWEEN_LOOKS * COMMIT_BYTES_MAX)
    run_cycles(environment, CYCLES // 2)
    assert file_bytes(environment) == grown_bytes
    assert start(count_stale_readers, environment.path).told() == 0


def test_dead_readers_are_cleared_at_open(new_environment: MakeEnvironment, start: Start) -> None:
    """Whoever opens a queue frees the slots of readers that died."""
    environment = new_environment("a")
    readers = start(fork_readers, environment.path, READERS)
    assert readers.told() == READERS
    readers.connection.send("die")
    assert readers.told() == [-signal.SIGKILL] * READERS
    assert start(keep_open, environment.path).told() == "open"
    assert start(count_stale_readers, environment.path).told() == 0


@pytest.mark.parametrize("grown_pages, looks", [(-1, False), (63, False), (64, True), (65, True), (1000, True)])
def test_dead_readers_are_looked_for_once_the_file_has_grown(grown_pages: int, looks: bool,
                                                             new_environment: MakeEnvironment) -> None:
    """Since looking takes long where there are many processes, it waits until the file has grown by 256 KiB."""
    environment = new_environment("a")
    run_cycles(environment, 1)
    opened = open_queues.acquire(environment.path)
    present = opened._session._database
    assert present is not None
    before = present._pages_at_check = present._pages() - grown_pages
    present.clear_stale_readers_if_grown()
    assert present._pages_at_check == (present._pages() if looks else before)
    open_queues.release(opened)


# A full table


def test_a_table_full_of_dead_readers_does_not_hinder_opening(new_environment: MakeEnvironment, start: Start) -> None:
    """A queue whose table is full of readers that died can be opened while others have it open."""
    environment = new_environment("a")
    environment.close()
    assert start(keep_open, environment.path).told() == "open"
    filling = start(fill_the_table, environment.path)
    assert filling.told() == database.MAX_READERS
    filling.kill()
    with persipubsub.new_environment(environment.path) as opened:
        run_cycles(opened, 3)


@pytest.mark.parametrize("lacking", ["functions", "ctypes"])
def test_where_lmdb_cannot_be_asked_a_table_full_of_dead_readers_is_an_error(new_environment: MakeEnvironment,
                                                                             start: Start,
                                                                             monkeypatch: pytest.MonkeyPatch,
                                                                             lacking: str) -> None:
    """With a py-lmdb that hides LMDB's functions, or without ctypes, all have to close the queue once."""
    environment = new_environment("a")
    environment.close()
    other = start(keep_open, environment.path)
    assert other.told() == "open"
    filling = start(fill_the_table, environment.path)
    assert filling.told() == database.MAX_READERS
    filling.kill()
    if lacking == "functions":
        monkeypatch.setattr(reader_table, "PREFIXES", ())
    else:
        monkeypatch.setitem(sys.modules, "ctypes", None)
    with persipubsub.new_environment(environment.path) as opened:
        with pytest.raises(errors.ReadersFullError, match="Use fewer processes"):
            opened.new_publisher()
        other.kill()
        run_cycles(opened, 3)


def test_a_table_full_of_dead_readers_does_not_hinder_reading(new_environment: MakeEnvironment, start: Start) -> None:
    """A read that finds the table full frees the slots of readers that died, and succeeds."""
    environment = new_environment("a")
    environment.new_publisher().send(b"sent")
    filling = start(fill_the_table, environment.path)
    assert filling.told() == database.MAX_READERS
    filling.kill()
    assert environment.new_subscriber("a").front() == b"sent"


def test_a_table_full_of_living_readers(new_environment: MakeEnvironment, start: Start) -> None:
    """One living reader too many gets ReadersFullError at opening; it can open once others have closed."""
    environment = new_environment("a")
    environment.close()
    filling = start(fill_the_table, environment.path)
    assert filling.told() == database.MAX_READERS
    with persipubsub.new_environment(environment.path) as opened:
        with pytest.raises(errors.ReadersFullError, match="1024 readers at one time"):
            opened.new_publisher()
        with pytest.raises(errors.ReadersFullError):
            opened.new_subscriber("a")
        filling.connection.send("close")
        assert filling.told() == "closed"
        run_cycles(opened, 3)
        assert opened.new_control().check() == ()


def test_one_reader_too_many_in_a_process(new_environment: MakeEnvironment, start: Start) -> None:
    """A read that finds the table full of living readers gets ReadersFullError; writes go on, and later reads."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    publisher.send(b"sent")
    filling = start(fill_the_table, environment.path)
    assert filling.told() == database.MAX_READERS
    with pytest.raises(errors.ReadersFullError, match="Use fewer processes"):
        environment.new_subscriber("a")
    opened = open_queues.acquire(environment.path)
    present = opened._session._database
    assert present is not None and not present.gave_up()
    open_queues.release(opened)
    publisher.send(b"sent as well")
    filling.connection.send("close")
    assert filling.told() == "closed"
    assert environment.new_subscriber("a").front() == b"sent"


# Numbers that come again

#: Runs a program as process 1, as a container does.
AS_FIRST_PROCESS = [
    "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", """
import pathlib, sys
import persipubsub
from persipubsub.lmdb_engine import open_queues

try:
    opened = open_queues.acquire(pathlib.Path(sys.argv[1]))
except persipubsub.errors.StorageError:
    print("refused")
else:
    opened.read(lambda _: (print("reads", flush=True), sys.argv[2] == "stay" and sys.stdin.read()))
    print("read", flush=True)
    sys.stdin.read()
"""
]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes pid namespaces: needs root")
def test_a_number_that_comes_again(new_environment: MakeEnvironment) -> None:
    """A process that opens frees what one of its number left when it died, and nothing of one that lives elsewhere."""
    environment = new_environment("a")
    opened = open_queues.acquire(environment.path)

    def lag_commits() -> int:
        present = opened._session._database
        assert present is not None
        run_cycles(environment, 1)
        return present.oldest_reader().lag_commits

    def started(what: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*AS_FIRST_PROCESS, environment.path, what],
                                stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE,
                                text=True)

    with started("stay") as reading:
        assert reading.stdout is not None and reading.stdout.readline() == "reads\n"
        assert lag_commits() == 2
        assert started("leave").communicate("", timeout=WAIT_S)[0] == "refused\n"
        assert lag_commits() == 4
        reading.kill()
        assert reading.stdout.read() == ""  # once the process in the namespace has died
    with started("leave") as again:
        assert again.stdout is not None and [again.stdout.readline() for _ in range(2)] == ["reads\n", "read\n"]
        assert lag_commits() == 0
        again.communicate("", timeout=WAIT_S)
    open_queues.release(opened)


def test_a_stopped_reader_is_logged(new_environment: MakeEnvironment, start: Start, caplog: pytest.LogCaptureFixture,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file grows because a living process does not end its read, a warning names it, once a minute."""
    monkeypatch.setattr(database, "LAG_COMMITS_MIN", 100)
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    run_cycles(environment, 500)
    assert not caplog.records
    readers = start(fork_readers, environment.path, 1)
    assert readers.told() == 1
    run_cycles(environment, CYCLES // 2)
    (warning, ) = [record.getMessage() for record in caplog.records]
    for part in (str(environment.path), "grows", "reading for", "SIGSTOP"):
        assert part in warning
    opened = open_queues.acquire(environment.path)
    present = opened._session._database
    assert present is not None
    reader = present.oldest_reader()
    assert f"process {reader.process} " in warning and reader.lag_commits >= CYCLES
    assert environment.new_control().status().reader_lag == reader.lag_commits
    shown = subprocess.run([sys.executable, "-m", "persipubsub", "status", environment.path],
                           check=True,
                           capture_output=True,
                           text=True)
    assert f"file grows  a process has been reading for {reader.lag_commits:,} commits" in shown.stdout
    open_queues.release(opened)
    readers.connection.send("die")
    readers.told()
