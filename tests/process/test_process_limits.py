"""What the system limits: address space, and telling processes of different pid namespaces apart."""

import concurrent.futures
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from typing import Callable, Iterator, List

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, errors
from persipubsub.lmdb_engine.records import database
from tests.concurrency import CONTEXT, WAIT_S

MakeEnvironment = Callable[..., Environment]
Run = Callable[..., None]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")

#: What a process may still allocate, besides the map that it has.
SPARE_BYTES = 64 * 1024**2


@pytest.fixture(name="run")
def run_fixture() -> Iterator[Run]:
    """Run a function in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, CONTEXT) as executor:
        yield lambda function, *arguments: executor.submit(function, *arguments).result(WAIT_S)


def limit_address_space(more_bytes: int) -> None:
    """Do as ``ulimit -v`` does, with the current use and a bounded rest."""
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, resource.RLIM_INFINITY))


def lift_limit() -> None:
    """Allow all address space again."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def open_without_address_space(path: pathlib.Path) -> None:
    """Open a queue whose map does not fit."""
    limit_address_space(SPARE_BYTES)
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.StorageError) as raised:
            environment.new_publisher()
        for told in (str(path), "address space", "40 GiB", "ulimit -v"):
            assert told in str(raised.value)
        lift_limit()
        assert environment.new_publisher().send(b"more") == 2


def test_no_address_space_to_open(new_environment: MakeEnvironment, run: Run) -> None:
    """A queue that finds no address space names the limit and the remedy, and opens in the same process after it."""
    with new_environment("a") as environment:
        environment.new_publisher().send(b"there")
    run(open_without_address_space, environment.path)


def grow_without_address_space(path: pathlib.Path) -> None:
    """Send more than the map holds where a larger one does not fit."""
    database.MAP_BYTES_MIN = SPARE_BYTES  # this process is for this test alone
    with persipubsub.new_environment(path) as environment:
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        publisher.send(b"first")
        limit_address_space(SPARE_BYTES // 4)
        payloads = [bytes(10**6)] * 80
        for _ in range(2):
            with pytest.raises(errors.StorageError, match="ulimit -v"):
                publisher.send_many(payloads)
            assert subscriber.front() == b"first" and environment.new_control().status().messages == 1
        assert publisher.send(b"second") == 2
        lift_limit()
        assert publisher.send_many(payloads) == range(3, 83)
        assert environment.new_control().check() == ()


def test_no_address_space_to_grow(new_environment: MakeEnvironment, run: Run) -> None:
    """A map that cannot grow refuses what does not fit, and nothing else; it grows once it can."""
    small = HighWaterMark(hwm_db_size=SPARE_BYTES // 2)
    with new_environment("a", high_watermark=small) as environment:
        path = environment.path
    run(grow_without_address_space, path)


#: Sends, prints what came of it, and keeps the queue open until its input ends.
PROGRAM = """
import os, sys
import persipubsub
try:
    with persipubsub.new_environment(sys.argv[1]) as environment:
        print(os.getpid(), environment.new_publisher().send(b"x"), flush=True)
        sys.stdin.read()
except persipubsub.errors.StorageError as error:
    print(error, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes pid namespaces: needs root")
def test_the_same_pid_in_two_pid_namespaces(new_environment: MakeEnvironment) -> None:
    """The second process of one pid is refused with the reason and the remedy; the first goes on, and then the second.
    """
    with new_environment("a") as environment:
        path = environment.path
    command: List[str] = [
        "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", PROGRAM,
        str(path)
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline().split() == ["1", "1"]
        second = subprocess.run(command, input="", stdout=subprocess.PIPE, text=True, check=True, timeout=WAIT_S).stdout
        for told in (str(path), "(1)", "pid namespace", "--pid=host", "shareProcessNamespace"):
            assert told in second
        first.communicate("", timeout=WAIT_S)
        assert first.returncode == 0
    again = subprocess.run(command, input="", stdout=subprocess.PIPE, text=True, check=True, timeout=WAIT_S).stdout
    assert again.split() == ["1", "2"]
