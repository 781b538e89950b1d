"""Test that whatever looks at many queues survives each broken one, and goes on with the others."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Iterator, List, Optional

import pytest

import persipubsub
from persipubsub import errors, status_reader
from persipubsub.lmdb_engine.process import files
from persipubsub.status_reader import StatusReader
from tests.api.test_metrics import TIMEOUT_S, scrape, serving
from tests.concurrency import hold_write_lock, process, told
from tests.damages import end_readers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.damages_queues,
]
#: Reads a queue in this process, as a program does.
READ_HERE = """
import pathlib, sys
from persipubsub import status_reader
status_reader.read_status(pathlib.Path(sys.argv[1]))
"""


@pytest.fixture(name="good")
def fixture_good(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a queue with a message."""
    return make(tmp_path / "good")


def make(path: pathlib.Path) -> pathlib.Path:
    """Make a queue with a message."""
    with persipubsub.new_environment(path) as env:
        env.new_control(["a"])
        env.new_publisher().send(b"x")
    return path


@pytest.fixture(name="crashing")
def fixture_crashing(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a queue that ends whoever reads its status, since it is too large to be verified at opening."""
    path = make(tmp_path / "crashing")
    with persipubsub.new_environment(path) as env:
        env.new_publisher().send(bytes(4 * 2**20))
    end_readers(path)
    ended = subprocess.run([sys.executable, "-c", READ_HERE, path], check=False, capture_output=True)
    assert -ended.returncode in status_reader.CRASHES
    return path


@pytest.fixture(name="one")
def fixture_one() -> Iterator[StatusReader]:
    """Look through a child."""
    one = StatusReader()
    yield one
    one.close()


def test_the_metrics_server_survives_a_crash(good: pathlib.Path, crashing: pathlib.Path) -> None:
    """A queue that ends its reader has ``persipubsub_up`` 0 at each scrape, and the others are served."""
    with serving(crashing, good) as (process, address):
        for _ in range(3):
            text = scrape(address)
            assert f'persipubsub_up{{path="{crashing}"}} 0.0' in text
            assert f'persipubsub_messages{{path="{good}"}} 1.0' in text
        process.terminate()
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, stderr.count("is damaged")) == (0, 1), stderr
    assert f"persipubsub recover {crashing}" in stderr


def test_top_survives_a_crash(good: pathlib.Path, crashing: pathlib.Path) -> None:
    """Beside a queue that ends its reader, which is shown as damaged, the others are drawn."""
    result = subprocess.run([sys.executable, "-m", "persipubsub", "top", crashing, good, crashing, "--interval", "0.1"],
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert "is damaged" in result.stdout and re.search(r"messages +1\b", result.stdout)


def test_a_crash_is_an_error_and_the_next_look_works(one: StatusReader, good: pathlib.Path,
                                                     crashing: pathlib.Path) -> None:
    """The error names the signal and the remedy, each time."""
    for _ in range(2):
        with pytest.raises(errors.DamagedError, match="ended a process by SIG.*persipubsub recover"):
            one.read_status(crashing)
        assert one.read_status(good).messages == 1


def test_a_look_does_not_wait_for_a_writer(one: StatusReader, good: pathlib.Path) -> None:
    """A look returns while a process holds the write lock; a message that is due by then counts as delayed."""
    with persipubsub.new_environment(good) as env:
        env.new_publisher().send_later(b"due soon", delay_s=0.05)
    time.sleep(0.1)
    with process(hold_write_lock, good) as holder:
        assert told(holder) == "held"
        found = one.read_status(good)
        assert (found.messages, found.delayed, found.subscribers["a"].pending) == (1, 1, 1)
        for verb in (["status"], ["top", "--interval", "0.1"], ["subscriber", "list"]):
            result = subprocess.run([sys.executable, "-m", "persipubsub", *verb, good],
                                    capture_output=True,
                                    timeout=TIMEOUT_S,
                                    check=False)
            assert (result.returncode, result.stderr) == (0, b"")
        holder.send("give it back")


def test_a_queue_that_does_not_answer_holds_nobody_up(one: StatusReader, good: pathlib.Path) -> None:
    """A queue held exclusively is an error after some seconds; the next look works."""
    other = make(good.parent / "other")
    kept = files.UseLock(other, 0o600)
    assert kept.try_exclusive()
    with pytest.raises(errors.StorageError, match=f"within {status_reader.LOOK_S_MAX} s"):
        one.read_status(other)
    assert one.read_status(good).messages == 1
    kept.close()
    assert one.read_status(other).messages == 1


def test_errors_and_warnings_come_from_the_child(one: StatusReader, good: pathlib.Path,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    """What is raised there is raised here, and what is logged there is logged here."""
    with pytest.raises(errors.NotInitializedError, match="There is no queue"):
        one.read_status(good / "nosuch")
    (good / files.UNCLEAN_FILE).write_bytes(bytes(16))
    assert one.read_status(good).messages == 1
    assert [record.name for record in caplog.records] == ["persipubsub.admission"]
    assert str(good) in caplog.text


def test_a_child_that_somebody_ends_is_started_again(one: StatusReader, good: pathlib.Path) -> None:
    """What ends the child between two looks, or its caller's fork, costs no look."""
    others = set(children())
    for _ in range(2):
        assert one.read_status(good).messages == 1
        child, = set(children()) - others
        os.kill(child, signal.SIGKILL)
        while child in children():
            time.sleep(0.01)
    forked = os.fork()
    if not forked:
        os._exit(one.read_status(good).messages)  # pylint: disable=protected-access  # not through pytest's end
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 1


def children(pid: Optional[int] = None) -> List[int]:
    """List the children of a process that run, or of this one."""
    found: List[int] = []
    for task in pathlib.Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return [child for child in found if state(child) != "Z"]


def state(pid: int) -> str:
    """Return the state of a process, as /proc does; Z if it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_the_child_ends_with_its_caller(good: pathlib.Path) -> None:
    """Where the server is killed, nothing of it goes on."""
    with serving(good) as (process, address):
        scrape(address)
        child, = children(process.pid)
        process.kill()
        deadline_s = time.monotonic() + TIMEOUT_S
        while state(child) != "Z":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
