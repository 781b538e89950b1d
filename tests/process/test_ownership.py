"""Who owns the files of a queue, who may read them meanwhile, and the errors where they belong to somebody else."""

import os
import pathlib
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from typing import Callable, Dict, Iterator, List, Set, Tuple

import pytest

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy, compaction, errors, migration, os_errors, recovery
from persipubsub.lmdb_engine.process import files, session
from persipubsub.lmdb_engine.records import database
from tests.children import unmeasured

#: The user and the group of a queue, and another user who is a member of the group.
OWNER, GROUP, MEMBER = 54321, 54322, 54323
REPOSITORY = pathlib.Path(persipubsub.__file__).parents[1]

needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None,
                                reason="acts as other users: needs root and setpriv")


def as_user(user: int, group: int, code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a program as another user, who can read the code, but writes only where the modes allow it."""
    command = [
        "setpriv", "--reuid",
        str(user), "--regid",
        str(group), "--clear-groups", "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
        sys.executable, "-c", code, *map(str, arguments)
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=unmeasured(), check=False)


USE = """
import logging, sys, persipubsub
from persipubsub import Durability
logging.basicConfig(format="warned: %(message)s")
with persipubsub.new_environment(sys.argv[1]) as environment:
    environment.new_control(["a"])
    environment.new_publisher().send(b"x")
    environment.new_subscriber("a").pop()
"""


@pytest.fixture(name="place")
def place_fixture() -> Iterator[pathlib.Path]:
    """Return a directory that every user may enter and write, as tmp_path may not."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-ownership-") as name:
        path = pathlib.Path(name)
        path.chmod(0o777)
        yield path


def owned_queue(path: pathlib.Path, mode: int = 0o600, durability: Durability = Durability.POWER_LOSS) -> None:
    """Make a queue of the owner and the group."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], mode=mode, durability=durability)
    for file in (path, *path.iterdir()):
        os.chown(file, OWNER, GROUP)


def owners_of(path: pathlib.Path) -> Set[Tuple[int, int]]:
    """Return the owners of a directory and of what lies in it."""
    return {(status.st_uid, status.st_gid) for status in map(os.lstat, (path, *path.iterdir()))}


def relaxed(path: pathlib.Path) -> None:
    """Send without waiting for the disk, so that the unclean marker is made, as is whatever else is missing."""
    for name in (files.WAKEUP_FILE, files.USE_FILE, files.LOCK_FILE, files.UNCLEAN_FILE):
        (path / name).unlink(missing_ok=True)
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(b"x")
        environment.new_subscriber("a").pop()
        assert {entry.name for entry in path.iterdir()} == set(files.FILES)
        assert owners_of(path) == {(OWNER, GROUP)}


def backed_up(path: pathlib.Path) -> None:
    """Put a backup in place of the queue."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control().backup(path.with_name("backup"))
    shutil.rmtree(path)
    path.with_name("backup").rename(path)


ROOTS_WORK: Dict[str, Callable[[pathlib.Path], object]] = {
    "compact": compaction.compact,
    "recover": recovery.recover,
    "use": relaxed,
    "backup": backed_up,
}


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o660])
@pytest.mark.parametrize("work", ROOTS_WORK)
def test_work_of_root_locks_nobody_out(work: str, mode: int, place: pathlib.Path) -> None:
    """What root does to a queue leaves its owner, its group and its mode, and its owner goes on."""
    path = place / "queue"
    owned_queue(path, mode, Durability.PROCESS_CRASH)
    ROOTS_WORK[work](path)
    assert owners_of(path) == {(OWNER, GROUP)}
    assert {stat.S_IMODE(entry.lstat().st_mode) for entry in path.iterdir()} == {mode}
    assert stat.S_IMODE(path.lstat().st_mode) == files.directory_mode(mode)
    for user in (OWNER, MEMBER) if mode == 0o660 else (OWNER, ):
        used = as_user(user, GROUP, USE, path)
        assert not used.returncode and not used.stderr, used.stderr


@needs_root
def test_work_of_a_member_keeps_the_group(place: pathlib.Path) -> None:
    """A member of the group whose own group is another one makes files for the group of the queue."""
    path = place / "queue"
    owned_queue(path, 0o660)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([GROUP])
            os.setresgid(MEMBER, MEMBER, MEMBER)
            os.setresuid(MEMBER, MEMBER, MEMBER)
            compaction.compact(path)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (path / files.DATA_FILE).stat().st_uid == MEMBER
    assert {group for _, group in owners_of(path)} == {GROUP}
    used = as_user(OWNER, GROUP, USE, path)
    assert not used.returncode and not used.stderr, used.stderr


@needs_root
def test_opening_the_queue_of_a_stranger_warns(place: pathlib.Path) -> None:
    """Opening another user's queue that is open to all warns; root's, a common group's or one's own not."""
    path = place / "queue"
    owned_queue(path, 0o666)
    used = as_user(MEMBER, MEMBER, USE, path)
    assert not used.returncode and f"user with id {OWNER}" in used.stderr and str(path) in used.stderr
    assert used.stderr.count("warned") == 1
    assert not as_user(MEMBER, GROUP, USE, path).stderr
    assert not as_user(OWNER, MEMBER, USE, path).stderr
    for file in (path, *path.iterdir()):
        os.chown(file, 0, 0)
    assert not as_user(MEMBER, MEMBER, USE, path).stderr


@needs_root
def test_no_other_group_gets_what_the_mode_is_for(place: pathlib.Path) -> None:
    """Where an owner outside the group compacts a queue or backs it up, the owner's own group gets no rights."""
    path, other_group = place / "queue", 54329
    owned_queue(path, 0o660)
    done = as_user(
        OWNER, other_group, """
import pathlib, sys, persipubsub
from persipubsub import compaction
path = pathlib.Path(sys.argv[1])
with persipubsub.new_environment(path) as environment:
    environment.new_control().backup(path.with_name("copy"))
compaction.compact(path)
""", path)
    assert not done.returncode, done.stderr
    for made in (path / files.DATA_FILE, place / "copy", place / "copy" / files.DATA_FILE):
        assert made.stat().st_gid == other_group and not made.stat().st_mode & 0o077


@needs_root
def test_modes_change_all_or_none(place: pathlib.Path) -> None:
    """Where a user may not set the mode of one file of a queue, all modes are as before."""
    path = place / "queue"
    owned_queue(path, 0o666)
    os.chown(path / files.USE_FILE, MEMBER, -1)
    before = {entry: entry.stat().st_mode for entry in (path, *path.iterdir())}
    done = as_user(
        OWNER, GROUP, "import pathlib, sys; from persipubsub.lmdb_engine.process import files; "
        "files.set_modes(pathlib.Path(sys.argv[1]), 0o600)", path)
    assert "PathError" in done.stderr
    assert before == {entry: entry.stat().st_mode for entry in (path, *path.iterdir())}


def test_a_directory_keeps_handing_on_its_group(tmp_path: pathlib.Path) -> None:
    """Setting the mode of a queue leaves the setgid bit of its directory."""
    path = tmp_path / "parent" / "queue"
    path.parent.mkdir()
    path.parent.chmod(0o2770)  # what is made in it inherits the bit
    for mode in (None, 0o660):
        with persipubsub.new_environment(path) as environment:
            environment.new_control(["a"], mode=mode)
        assert path.stat().st_mode & stat.S_ISGID


def test_nothing_is_readable_meanwhile(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With umask 0, directories and data files in the making are never open to others, nor parents to write."""
    path = tmp_path / "above" / "parent" / "queue"
    seen: Set[int] = set()
    for name in ("create", "compact", "fill"):

        def look(file: pathlib.Path, *args: object, original: Callable[..., None] = getattr(database, name)) -> None:
            original(file, *args)
            new = file.with_name(files.NEW_DATA_FILE)
            seen.update({stat.S_IMODE(new.stat().st_mode), stat.S_IMODE(new.parent.stat().st_mode)})

        monkeypatch.setattr(database, name, look)
    made: List[int] = []

    def mkdir(directory: pathlib.Path, mode: int = 0o777) -> None:
        made.append(mode)
        os.mkdir(directory, mode)

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    before = os.umask(0)
    try:
        with persipubsub.new_environment(path) as environment:
            environment.new_control(["a"])
        compaction.compact(path)
        recovery.recover(path)
    finally:
        os.umask(before)
    assert seen == {0o600, 0o700}
    assert made == [0o755, 0o755, 0o700]
    assert stat.S_IMODE((tmp_path / "above").stat().st_mode) == 0o755


def test_what_is_left_of_a_compact_is_removed(tmp_path: pathlib.Path) -> None:
    """The next opening removes a copy whose making was cut off."""
    with persipubsub.new_environment(tmp_path) as environment:
        environment.new_control(["a"])
    (tmp_path / files.NEW_DATA_FILE).write_bytes(b"secret")
    with persipubsub.new_environment(tmp_path) as environment:
        environment.new_publisher()
        assert not (tmp_path / files.NEW_DATA_FILE).exists()


WAIT_FOR_ROOM = """
import logging, sys, threading, time, persipubsub
logging.basicConfig(format="%(message)s", stream=sys.stdout)
with persipubsub.new_environment(sys.argv[1]) as environment:
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    publisher.send(b"1")
    threading.Timer(0.3, subscriber.pop).start()
    print(publisher.send(b"2", timeout=60), subscriber.front())
"""


@needs_root
def test_a_wakeup_file_that_is_read_only(place: pathlib.Path) -> None:
    """A user who may not write the wake-up file waits for room by polling, and the log says why."""
    path = place / "queue"
    owned_queue(path)
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], HighWaterMark(max_messages=1), Strategy.refuse)
        environment.new_publisher()
    os.chown(path / files.WAKEUP_FILE, 0, 0)
    os.chmod(path / files.WAKEUP_FILE, 0o444)
    found = as_user(OWNER, GROUP, WAIT_FOR_ROOM, path)
    assert found.returncode == 0, found.stderr
    warning, received = found.stdout.splitlines()
    assert "There is no wake-up" in warning and "Permission denied" in warning and received == "2 b'2'"


@needs_root
def test_a_lack_of_permission_is_not_a_deletion(place: pathlib.Path) -> None:
    """A process that gives up its rights after opening gets a permission error, not one about deletion."""
    path = place / "queue"
    code = f"""
import os, sys, persipubsub
environment = persipubsub.new_environment(sys.argv[1])
environment.new_control(["a"])
publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
os.setresuid({OWNER}, {OWNER}, {OWNER})
for use in (subscriber.front, lambda: [publisher.send(b"x") for _ in range({session.WRITES_BETWEEN_LOOKS + 1})]):
    try:
        use()
    except persipubsub.errors.PathError as error:
        print(error)
environment.close()
"""
    found = subprocess.run([sys.executable, "-c", code, str(path)],
                           capture_output=True,
                           text=True,
                           env=unmeasured(),
                           check=False)
    assert not found.returncode and found.stdout.count("ermission") == 4, found
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()


SIDE_FILES = (files.LOCK_FILE, files.USE_FILE, files.WAKEUP_FILE, files.UNCLEAN_FILE, files.NEW_DATA_FILE)


def write_short(file: pathlib.Path) -> None:
    """Write a file that is shorter than any of a queue."""
    file.write_bytes(bytes(100))


DAMAGES: Dict[str, Callable[[pathlib.Path], None]] = {
    "directory": pathlib.Path.mkdir,
    "fifo": os.mkfifo,
    "short": write_short,
    "empty": pathlib.Path.touch,
    "symlink": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.damages_queues
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", (files.DATA_FILE, *SIDE_FILES))
@pytest.mark.parametrize("durability", Durability)
def test_every_file_in_every_shape(durability: Durability, name: str, damage: str, tmp_path: pathlib.Path) -> None:
    """Whatever replaces a file, using the queue works or raises an error of ours, and so do the verbs."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], durability=durability)
    (path / name).unlink(missing_ok=True)
    DAMAGES[damage](path / name)

    def use() -> None:
        with persipubsub.new_environment(path) as environment:
            environment.new_control(["a"])
            environment.new_publisher().send(b"x")
            subscriber = environment.new_subscriber("a")
            assert subscriber.front() == b"x"
            subscriber.pop()

    def migrate() -> None:
        migration.migrate(path, tmp_path / "new")

    for work in (migrate, use, lambda: compaction.compact(path), lambda: recovery.recover(path), use):
        try:
            work()
        except errors.PersipubsubError as error:
            assert str(path) in str(error)


def test_descriptors_of_a_queue(tmp_path: pathlib.Path) -> None:
    """A queue needs as many descriptors as is documented; where they run short, the error names the limit."""
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        environment.new_control(["a"])
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        before = len(os.listdir("/proc/self/fd"))
        environment.new_publisher()
        assert len(os.listdir("/proc/self/fd")) == before + os_errors.DESCRIPTORS_PER_QUEUE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0)]
    while fillers[-1] < max(map(int, os.listdir("/proc/self/fd"))) - 1:
        fillers.append(os.dup(0))  # no lower number is free
    free = fillers[-1] + 1
    told: List[str] = []
    try:
        for spare in range(2 * os_errors.DESCRIPTORS_PER_QUEUE):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
            with persipubsub.new_environment(tmp_path / "queue") as environment:
                try:
                    environment.new_publisher().send(b"x")
                except errors.StorageError as error:
                    told.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    assert told and all("too many files open" in text and "ulimit -n" in text for text in told), told


CLOSES = """
import os, sys, persipubsub
environment = persipubsub.new_environment(sys.argv[1])
environment.new_control(["a"])
publisher = environment.new_publisher()
publisher.send(b"x")
os.closerange(3, 100)
mine = [os.open(sys.argv[2], os.O_RDWR) for _ in range(20)]
try:
    publisher.send(b"y")
except persipubsub.errors.StorageError as error:
    print(error)
environment.close()
for fd in mine:
    os.fstat(fd)
"""


def test_descriptors_that_the_program_closed(tmp_path: pathlib.Path) -> None:
    """Whoever closes all descriptors of a process gets an error; files of the program are not written, nor closed."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"content")
    ended = subprocess.run([sys.executable, "-c", CLOSES,
                            str(tmp_path / "queue"), str(mine)],
                           capture_output=True,
                           text=True,
                           env=unmeasured(),
                           check=False)
    assert not ended.returncode and not ended.stderr, ended.stderr
    assert "has closed descriptors" in ended.stdout and mine.read_bytes() == b"content"
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        assert environment.new_control().check() == () and environment.new_subscriber("a").front() == b"x"
