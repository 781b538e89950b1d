"""Two processes that receive as one plain subscriber notice each other; where they cannot, nothing fails."""

import contextlib
import fcntl
import functools
import logging
import os
import pathlib
import resource
import signal
from multiprocessing.connection import Connection
from typing import Callable, Dict, Iterator, List

import pytest

import persipubsub
from persipubsub import Environment, compaction
from persipubsub.lmdb_engine.process import files, reader_locks
from persipubsub.lmdb_engine.process.reader_locks import ReaderLocks
from tests.children import start_child, status_of
from tests.concurrency import CONTEXT, WAIT_S, process, told

MakeEnvironment = Callable[..., Environment]
#: Nobody.
OTHER_USER = 65534


@pytest.fixture(name="path")
def path_fixture(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a directory with the file that processes lock."""
    (tmp_path / files.USE_FILE).touch()
    return tmp_path


@pytest.fixture(name="locks")
def locks_fixture(path: pathlib.Path) -> Iterator[ReaderLocks]:
    """Return the locks of this process."""
    with contextlib.closing(ReaderLocks(path)) as locks:
        yield locks


def serve(connection: Connection, path: pathlib.Path) -> None:
    """Announce, renounce and close when told to, until told None: the main function of a process."""
    locks = ReaderLocks(path)
    while (request := told(connection)) is not None:
        method, *numbers = request
        connection.send(getattr(locks, method)(*numbers))


def ask(other: Connection, method: str, *numbers: int) -> object:
    """Have the other process call a method of its locks; return the result."""
    other.send((method, *numbers))
    return told(other)


def test_the_second_process_is_told_once(path: pathlib.Path, locks: ReaderLocks) -> None:
    """The second process that receives as a subscriber is told so with its first endpoint only; others are not."""
    with process(serve, path) as other:
        assert not locks.announce(1)
        assert ask(other, "announce", 1) and not ask(other, "announce", 1)
        assert not ask(other, "announce", 2)
        assert not locks.announce(1)
        assert locks.announce(2)
        other.send(None)


def test_a_process_that_no_longer_receives(path: pathlib.Path, locks: ReaderLocks) -> None:
    """A process counts until its last endpoint of the subscriber is closed."""
    with process(serve, path) as other:
        for _ in range(2):
            ask(other, "announce", 1)
        ask(other, "renounce", 1)
        assert locks.announce(1)
        locks.renounce(1)
        ask(other, "renounce", 1)
        assert not locks.announce(1)
        assert ask(other, "announce", 1)
        locks.close()
        ask(other, "renounce", 1)
        assert not ask(other, "announce", 1)
        other.send(None)


def test_a_process_that_was_told_counts_too(path: pathlib.Path, locks: ReaderLocks) -> None:
    """A process that was told of another one counts when that one has closed its endpoints."""
    with process(serve, path) as other:
        assert not ask(other, "announce", 1)
        assert locks.announce(1)
        ask(other, "renounce", 1)
        assert ask(other, "announce", 1)
        other.send(None)


def test_a_process_that_was_killed(path: pathlib.Path, locks: ReaderLocks) -> None:
    """A process that is killed counts no longer."""
    ours, theirs = CONTEXT.Pipe()
    other = CONTEXT.Process(target=serve, args=(theirs, path), daemon=True)
    other.start()
    assert not ask(ours, "announce", 1)
    assert locks.announce(1)
    locks.renounce(1)
    other.kill()
    other.join(WAIT_S)
    assert other.exitcode == -signal.SIGKILL
    assert not locks.announce(1)


def test_what_was_never_announced(locks: ReaderLocks) -> None:
    """To renounce what was never announced, or to close twice, is harmless."""
    locks.renounce(1)
    assert not locks.announce(1)
    for _ in range(2):
        locks.close()
    locks.renounce(1)
    assert not locks.announce(1)


def test_a_forked_child_leaves_the_locks_of_its_parent(path: pathlib.Path, locks: ReaderLocks) -> None:
    """A child that closes what it inherits releases nothing; it is a process of its own."""
    assert not locks.announce(1)

    def child() -> int:
        locks.close()
        return 7 if locks.announce(1) and not locks.announce(2) else 1

    assert status_of(start_child(child)) == 7
    with process(serve, path) as other:
        assert ask(other, "announce", 1)  # of the parent
        assert not ask(other, "announce", 2)  # the child has ended
        other.send(None)


def test_the_lock_on_the_whole_file_is_another_one(path: pathlib.Path, locks: ReaderLocks) -> None:
    """These locks and those that protect a queue from recovery do not affect each other."""
    with open(path / files.USE_FILE, "r+b") as file:
        assert not locks.announce(1)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks.renounce(1)
        assert not locks.announce(1)
        with process(serve, path) as other:
            assert ask(other, "announce", 1)
            other.send(None)


# Where there can be no lock


def lock_as_other_user(path: pathlib.Path) -> int:
    """Announce as a user who may read the file, and not write it."""
    (path / files.USE_FILE).chmod(0o444)
    path.chmod(0o755)
    os.chdir(path)  # another user cannot enter its parents
    if os.geteuid() == 0:
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
    assert not os.access(files.USE_FILE, os.W_OK)
    return _announced(ReaderLocks(pathlib.Path()))


def lock_without_descriptors(path: pathlib.Path) -> int:
    """Announce where no descriptor is free, and again where one is."""
    locks = ReaderLocks(path)
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    status = _announced(locks)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert not locks.announce(3)
    return status or 1 - status_of(start_child(lambda: int(ReaderLocks(path).announce(3))))


def _announced(locks: ReaderLocks) -> int:
    """Return 0 if all is as where nobody else receives."""
    found = [locks.announce(1), locks.announce(1), locks.announce(2)]
    locks.renounce(1)
    locks.close()
    return int(any(found))


OBSTACLES: Dict[str, Callable[[pathlib.Path], object]] = {
    "missing": lambda file: None,
    "a directory": pathlib.Path.mkdir,
    "a link": lambda file: file.symlink_to(os.devnull),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_file_that_cannot_be_locked(obstacle: str, path: pathlib.Path, locks: ReaderLocks) -> None:
    """Where the file is missing or something else, nobody is noticed, and nothing fails."""
    (path / files.USE_FILE).unlink()
    OBSTACLES[obstacle](path / files.USE_FILE)
    assert _announced(locks) == 0


@pytest.mark.parametrize("lock", [lock_as_other_user, lock_without_descriptors])
def test_a_process_that_cannot_lock(lock: Callable[[pathlib.Path], int], path: pathlib.Path) -> None:
    """Where a process may not write the file, or has no descriptor left, nobody is noticed, and nothing fails."""
    assert status_of(start_child(functools.partial(lock, path))) == 0


def test_a_platform_without_such_locks(path: pathlib.Path, locks: ReaderLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no locks of open files, nobody is noticed, and no file is opened."""
    monkeypatch.setattr(reader_locks, "_SET", None)
    with process(serve, path) as other:
        ask(other, "announce", 1)
        before = os.listdir("/proc/self/fd")
        assert _announced(locks) == 0
        assert os.listdir("/proc/self/fd") == before
        other.send(None)


# Of a queue


def open_and_report(connection: Connection, path: pathlib.Path) -> None:
    """Report the warnings of opening a subscriber: the main function of a process."""
    texts: List[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]  # this one only
    logging.getLogger("persipubsub").addHandler(handler)
    with persipubsub.new_environment(path) as environment:
        for _ in range(2):
            environment.new_subscriber("a")
        connection.send(texts)


def test_a_warning_names_the_remedy(new_environment: MakeEnvironment) -> None:
    """A second process that opens a plain subscriber is warned once, with the name and what to do."""
    environment = new_environment("a")
    subscriber = environment.new_subscriber("a")
    with process(open_and_report, environment.path) as other:
        text, = told(other)
        assert "subscriber 'a'" in text and str(environment.path) in text and "shared=True" in text
    subscriber.close()
    with process(open_and_report, environment.path) as other:
        assert told(other) == []
    environment.close()
    compaction.compact(environment.path)  # nothing of it is left that would lock the queue
