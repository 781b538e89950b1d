"""What a forked child has of its own, and what it does to its parent."""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from persipubsub import errors
from persipubsub.engine import limits
from persipubsub.lmdb_engine.process import futex
from tests.children import status_of
from tests.concurrency import WAIT_S, MakeEnvironment, Opened
from tests.process.forking import FORK_ERROR, fork, use


def test_an_inherited_subscriber_waits_in_the_child(opened: Opened) -> None:
    """A child waits with an inherited subscriber and is woken by its parent, and the other way round."""
    asleep_read, asleep_write = os.pipe()

    def wait_in_the_child() -> None:
        limits.SLEEP_S_MAX = 10 * WAIT_S
        wait = futex.wait

        def telling_wait(address: int, expected: int, timeout_s: float) -> None:
            os.write(asleep_write, b"x")
            wait(address, expected, timeout_s)

        futex.wait = telling_wait
        with opened.subscriber.receive(timeout=WAIT_S) as msg:
            assert msg == b"from the parent"
        opened.publisher.send(b"from the child")

    child = fork(wait_in_the_child)
    assert os.read(asleep_read, 1) == b"x"
    opened.publisher.send(b"from the parent")
    subscriber = opened.environment.new_subscriber("all")
    for expected in (b"from the parent", b"from the child"):
        with subscriber.receive(timeout=WAIT_S) as msg:
            assert msg == expected
    assert status_of(child) == 0
    os.close(asleep_read)
    os.close(asleep_write)


def is_locked(path: pathlib.Path) -> bool:
    """Return whether anybody has the queue open."""
    with open(path / "use.lock", "rb") as use_lock:
        try:
            fcntl.flock(use_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.usefixtures("time_limit")
def test_the_child_has_its_own_lock(new_environment: MakeEnvironment) -> None:
    """The child holds ``use.lock`` for itself: also when its parent has closed the queue, until it ends itself."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    used, end = os.pipe(), os.pipe()

    def use_until_the_end() -> None:
        publisher.send(b"x")
        os.write(used[1], b"x")
        os.read(end[0], 1)
        os._exit(0)  # without closing anything

    child = fork(use_until_the_end)
    assert os.read(used[0], 1) == b"x"
    environment.close()
    assert is_locked(environment.path)
    os.write(end[1], b"x")
    assert status_of(child) == 0
    assert not is_locked(environment.path)
    for fd in used + end:
        os.close(fd)


@pytest.mark.parametrize("used", [False, True])
def test_a_child_that_closes_what_it_inherited(opened: Opened, used: bool) -> None:
    """A child that closes its objects, used or not, or ends, closes nothing of its parent."""

    def close() -> None:
        if used:
            use(opened, "child")
        opened.environment.close()
        with pytest.raises(errors.ClosedError):
            opened.publisher.send(b"x")

    for _ in range(3):
        with contextlib.suppress(errors.EmptyError):
            opened.subscriber.pop()  # so that there is a reader's slot to lose
        assert status_of(fork(close)) == 0
        assert is_locked(opened.environment.path)
        use(opened, "parent")
        assert opened.control.check() == ()


EXITS = """
import os, sys, threading, warnings
import persipubsub
from persipubsub.lmdb_engine import open_queues
from persipubsub import errors

warnings.simplefilter("ignore", DeprecationWarning)  # of CPython 3.12 and later: it forks on purpose while threads run
environment = persipubsub.new_environment(sys.argv[1])
publisher, subscriber = environment.new_publisher(), environment.new_subscriber("b")  # "a" is open elsewhere
inside, go = threading.Event(), threading.Event()
operation = {"write": open_queues.acquire(environment.path).change, "read": open_queues.acquire(environment.path).read}
if sys.argv[2] in operation:
    run = operation[sys.argv[2]]
    thread = threading.Thread(target=run, args=(lambda txn: (inside.set(), go.wait()), ))
    thread.start()
    inside.wait()
child = os.fork()
if not child:
    try:
        publisher.send(b"from the child")
    except errors.ForkError:
        sys.exit(7)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
publisher.send(b"from the parent")
"""


@pytest.mark.parametrize("kind, status", [("quiet", 3), ("read", FORK_ERROR), ("write", FORK_ERROR)])
def test_a_child_that_ends_like_a_program(opened: Opened, kind: str, status: int) -> None:
    """A child that runs to the end of the interpreter, which finalizes everything, ends, and disturbs nobody."""
    found = subprocess.run([sys.executable, "-c", EXITS, opened.environment.path, kind],
                           env={
                               **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)
                           },
                           timeout=WAIT_S,
                           check=True,
                           capture_output=True,
                           text=True)
    assert (found.stdout, found.stderr) == (f"{status}\n", "")
    assert opened.sent() == [b"from the child"] * (kind == "quiet") + [b"from the parent"]
