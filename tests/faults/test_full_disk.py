"""Full disks, real ones: small file systems in memory and on loop devices.

Everything runs in a process of its own, since what must not happen is that the system kills it (SIGBUS).
"""

import asyncio
import concurrent.futures
import errno
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, Publisher, Subscriber, clock, compaction, errors, recovery
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.rules import invariants, status
from persipubsub.testing import Clock
from tests.concurrency import CONTEXT, WAIT_S
from tests.faults.shared_operations import LEASE_S, WORKERS, Failed, fail, held, look

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems: needs root on Linux"),
]

DISK_BYTES = 16 * 1024**2
PAGE_BYTES = 4096
#: More than a fresh queue takes: see test_creating.
FRESH_PAGES_MAX = 48
PAYLOAD = bytes(100_000)

Run = Callable[..., None]


def mount_tmpfs(disk: pathlib.Path) -> None:
    """Mount a small file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", disk], check=True)


def mount_ext4(disk: pathlib.Path) -> None:
    """Mount a small file system of ext4 on a loop device, without blocks that only root may use."""
    image = disk.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)


@pytest.fixture(name="disk", params=[mount_tmpfs, mount_ext4])
def disk_fixture(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Mount a small file system."""
    if request.param is mount_ext4 and shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    path = tmp_path / "disk"
    path.mkdir()
    request.param(path)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(name="run")
def run_fixture(disk: pathlib.Path) -> Iterator[Run]:
    """Run a function in a process of its own, which ends before the file system is unmounted."""
    del disk
    with concurrent.futures.ProcessPoolExecutor(1, CONTEXT) as executor:
        yield lambda function, *arguments: executor.submit(function, *arguments).result(WAIT_S)


class Filler:
    """A file that fills a disk."""

    def __init__(self, disk: pathlib.Path) -> None:
        self._file = disk / "filler"

    def fill(self, left_bytes: int) -> None:
        """Leave at most this much room."""
        with self._file.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE_BYTES))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(0, self._file.stat().st_size // PAGE_BYTES * PAGE_BYTES - left_bytes))

    def remove(self) -> None:
        """Make room."""
        self._file.unlink()


def create_with_little_room(disk: pathlib.Path) -> None:
    """Create queues with more and more room, and again, once there is room, where one failed."""
    filler = Filler(disk)
    created = []
    for pages in range(FRESH_PAGES_MAX):
        path = disk / f"queue{pages}"
        filler.fill(pages * PAGE_BYTES)
        with persipubsub.new_environment(path) as environment:
            try:
                environment.new_control(["a"])
                environment.new_publisher().send(b"x")
                created.append(True)
            except errors.DiskFullError as error:
                assert str(path) in str(error) and "Make room" in str(error)
                created.append(False)
                assert not (path / "data.mdb.new").exists()
                filler.remove()
                environment.new_control(["a"])
                environment.new_publisher().send(b"x")
            assert environment.new_subscriber("a").front() == b"x"
            assert environment.new_control().check() == ()
        shutil.rmtree(path)
    assert created[-1] and not created[0]


@pytest.mark.slow
def test_creating(disk: pathlib.Path, run: Run) -> None:
    """At whatever step the room runs out, creating a queue is an error, and works in the same process with room.
    """
    run(create_with_little_room, disk)


def open_with_no_room(disk: pathlib.Path) -> None:
    """Open a queue whose other files are not there, as after a backup."""
    path = disk / "queue"
    with persipubsub.new_environment(disk / "original") as original:
        control = original.new_control(["a"])
        original.new_publisher().send(b"x")
        control.backup(path)
    filler = Filler(disk)
    filler.fill(0)
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.DiskFullError, match=str(path)):
            environment.new_publisher()
        filler.remove()
        assert environment.new_publisher().send(b"y") == 2


def test_opening(disk: pathlib.Path, run: Run) -> None:
    """A queue that finds no room for its other files when it is opened says so, and is opened once there is room."""
    run(open_with_no_room, disk)


def send_until_full(environment: Environment) -> None:
    """Send to a full disk: pages of earlier transactions may be free for a while."""
    publisher = environment.new_publisher()
    while True:
        publisher.send(PAYLOAD)


def send_many_until_full(environment: Environment) -> None:
    """Send more than there is room for at one time."""
    environment.new_publisher().send_many([PAYLOAD] * 100)


def change_until_full(environment: Environment) -> None:
    """Add more subscribers than there is room for."""
    environment.new_control([f"{number:0100}" for number in range(5_000)])


def seen(control: Control) -> Tuple[object, ...]:
    """Return what the queue looks like, but for its size and for how time passes."""
    found = control.status()
    return found.messages, found.next_id, sorted(found.subscribers)


def use_full(disk: pathlib.Path, durability: Durability, use: Callable[[Environment], None]) -> None:
    """Use a queue on a full disk, then make room."""
    filler = Filler(disk)
    with persipubsub.new_environment(disk / "queue") as environment:
        control = environment.new_control(["a"], durability=durability)
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        publisher.send(b"first")
        filler.fill(3 * PAGE_BYTES)  # so that some writes are cut short
        if use is send_until_full:
            with pytest.raises(errors.DiskFullError):
                use(environment)
        before = seen(control)
        for _ in range(3):
            with pytest.raises(errors.DiskFullError) as raised:
                use(environment)
            assert str(environment.path) in str(raised.value) and "Make room" in str(raised.value)
            assert seen(control) == before and control.check() == ()
        filler.remove()
        expected: List[bytes] = [b"first"] + [PAYLOAD] * (control.status().messages - 1)
        assert publisher.send(b"last") == control.status().next_id - 1
        control.add_subscriber("b")
        assert list(subscriber.messages(timeout=0)) == [*expected, b"last"]
        assert control.check() == ()


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("use", [send_until_full, send_many_until_full, change_until_full])
def test_using(use: Callable[[Environment], None], durability: Durability, disk: pathlib.Path, run: Run) -> None:
    """Where a change finds no room, it is an error and changes nothing; with room the same process continues."""
    run(use_full, disk, durability, use)


COPYING: Dict[str, Callable[[pathlib.Path], object]] = {
    "compact": compaction.compact,
    "recover": recovery.recover,
    "backup": lambda path: persipubsub.new_environment(path).new_control().backup(path.with_name("copy")),
}


def copy_with_little_room(disk: pathlib.Path, name: str) -> None:
    """Write the queue anew where there is no room, or some, for it; then where there is."""
    path = disk / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send_many([os.urandom(len(PAYLOAD)) for _ in range(50)])
    if name == "backup":
        path.with_name("copy").mkdir()
    filler = Filler(disk)
    before = sorted(disk.rglob("*"))
    for left_bytes in (0, PAGE_BYTES, 10 * PAGE_BYTES + 1, 30 * len(PAYLOAD)):
        filler.fill(left_bytes)
        with pytest.raises(errors.DiskFullError, match="Make room"):
            COPYING[name](path)
        filler.remove()
        assert sorted(disk.rglob("*")) == before
    COPYING[name](path)
    for directory in (path, path.with_name("copy") if name == "backup" else path):
        with persipubsub.new_environment(directory) as environment:
            assert environment.new_control().status().messages == 50
            assert environment.new_control().check() == ()


@pytest.mark.parametrize("name", COPYING)
def test_writing_it_anew(name: str, disk: pathlib.Path, run: Run) -> None:
    """Compacting, recovering or backing up without room leaves nothing behind, and works once there is room."""
    run(copy_with_little_room, disk, name)


def first_relaxed_send_without_room(disk: pathlib.Path) -> None:
    """Send without waiting for the disk where there is no room for the unclean marker."""
    path = disk / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], durability=Durability.PROCESS_CRASH)
    (path / "unclean").unlink(missing_ok=True)
    filler = Filler(disk)
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        filler.fill(0)
        with pytest.raises(errors.DiskFullError, match=str(path)):
            publisher.send(b"x")
        filler.remove()
        assert publisher.send(b"x") == 1


def test_the_mark_of_relaxed_commits(disk: pathlib.Path, run: Run) -> None:
    """Where the unclean marker finds no room, the send says so and stores nothing."""
    run(first_relaxed_send_without_room, disk)


async def wait_in_a_task(environment: Environment) -> None:
    """Wait for a message in a task of asyncio."""
    async with environment.new_async_subscriber("idle").receive(WAIT_S):
        pass


def wait(environment: Environment) -> None:
    """Wait for a message."""
    with environment.new_subscriber("idle").receive(WAIT_S):
        pass


#: What appends delayed messages that are due, as each write does, and each look.
APPENDING: Dict[str, Callable[[Environment], object]] = {
    "send": lambda environment: environment.new_publisher().send(b"x"),
    "send_later": lambda environment: environment.new_publisher().send_later(b"x", delay_s=1000),
    "wait": wait,
    "wait in a task": lambda environment: asyncio.run(wait_in_a_task(environment)),
    "front": lambda environment: environment.new_subscriber("a").front(),
    "pop": lambda environment: environment.new_subscriber("a").pop(),
}


def stored(environment: Environment) -> Tuple[object, ...]:
    """Return what the queue looks like, by a look that appends nothing."""
    held = open_queues.acquire(environment.path)
    try:
        assert not held.read(invariants.check)
        found = held.read(lambda txn: status.read(txn, environment.path, 0))
    finally:
        open_queues.release(held)
    places = [(identifier, place.next_id) for identifier, place in sorted(found.subscribers.items())]
    return found.messages, found.next_id, found.delayed, found.pruned, places


def append_due_without_room(disk: pathlib.Path, durability: Durability) -> None:
    """Let more messages become due than there is room for, use the queue in all ways, then make room."""
    moved = Clock()
    clock.boottime_us, clock.wall_us = moved.boottime_us, moved.wall_us  # in this process only
    due = [b"%02d" % number + PAYLOAD for number in range(50)]
    with persipubsub.new_environment(disk / "queue") as environment:
        control = environment.new_control(["a", "idle"], durability=durability)
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        publisher.send(b"first")
        environment.new_subscriber("idle").pop()
        for payload in due:
            publisher.send_later(payload, delay_s=100)
        filler = Filler(disk)
        filler.fill(3 * PAGE_BYTES)
        before = stored(environment)
        with pytest.raises(errors.DiskFullError), subscriber.receive(timeout=0) as message:
            assert message == b"first"
            moved.forward(100)
        for name, use in APPENDING.items():
            with pytest.raises(errors.DiskFullError, match="Make room") as raised:
                use(environment)
            assert str(environment.path) in str(raised.value), name
            assert stored(environment) == before, name
        assert control.status().delayed == len(due)  # it writes nothing
        filler.remove()
        assert list(environment.new_subscriber("idle").messages(timeout=0)) == due
        assert list(subscriber.messages(timeout=0)) == [b"first", *due]
        assert control.status().delayed == 0 and control.check() == ()


@pytest.mark.parametrize("durability", Durability)
def test_delayed_messages_that_are_due(durability: Durability, disk: pathlib.Path, run: Run) -> None:
    """Without room to append a due message, every use that appends is an error; with room it comes."""
    run(append_due_without_room, disk, durability)


SHARED_MESSAGES = 5_000


def exhaust(publisher: Publisher) -> None:
    """Use up the pages that earlier transactions have left free."""
    with pytest.raises(errors.DiskFullError):
        while True:
            publisher.send(b"filling")


def claim(worker: Subscriber[bytes]) -> Callable[[], object]:
    """Be handed messages out."""
    return lambda: held(worker, SHARED_MESSAGES)


def acknowledge(worker: Subscriber[bytes]) -> Callable[[], object]:
    """Acknowledge what was handed out."""
    receipt = held(worker, SHARED_MESSAGES)
    return lambda: receipt.__exit__(None, None, None)


def add_dead_letter(worker: Subscriber[bytes]) -> Callable[[], object]:
    """Make dead letters of what was handed out."""
    receipt = held(worker, SHARED_MESSAGES)
    return lambda: fail(receipt, Failed())


def share_full(disk: pathlib.Path, durability: Durability, prepare: Callable[[Subscriber[bytes]],
                                                                             Callable[[], object]]) -> None:
    """Work on messages of a shared subscriber on a full disk, then make room."""
    path, filler = disk / "queue", Filler(disk)
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control(durability=durability)
        control.add_subscriber(WORKERS, shared=True, lease_s=LEASE_S, max_deliveries=2)
        publisher, worker = environment.new_publisher(), environment.new_subscriber(WORKERS)
        publisher.send_many([bytes(300)] * SHARED_MESSAGES)
        action = prepare(worker)
        if prepare is add_dead_letter:  # only now: a message that is handed out once comes alone
            control.add_subscriber(WORKERS, max_deliveries=1)
        filler.fill(PAGE_BYTES)
        exhaust(publisher)
        before = look(path)
        for _ in range(3):
            with pytest.raises(errors.DiskFullError, match="Make room") as raised:
                action()
            assert str(path) in str(raised.value)
            assert look(path) == before and control.check() == ()
        filler.remove()
        action()
        found = control.status().subscribers[WORKERS]
        assert (found.in_flight, found.taken, found.dead_letters) in (  # what is right for each
            (SHARED_MESSAGES, 0, 0), (0, SHARED_MESSAGES, 0), (0, 0, SHARED_MESSAGES))
        assert look(path) != before and control.check() == ()
        publisher.send(b"last")
        assert list(worker.messages(timeout=0))[-1] == b"last"


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("prepare", [claim, acknowledge, add_dead_letter])
def test_sharing(prepare: Callable[[Subscriber[bytes]], Callable[[], object]], durability: Durability,
                 disk: pathlib.Path, run: Run) -> None:
    """Without room a worker gets an error from a claim, an acknowledgement or a failure; the messages stay."""
    run(share_full, disk, durability, prepare)
