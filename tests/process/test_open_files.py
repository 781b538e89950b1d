"""What happens when somebody deletes or replaces the files of a queue that is open."""

import contextlib
import functools
import itertools
import os
import pathlib
import shutil
from typing import Callable, List, Set

import pytest

import persipubsub
from persipubsub import Durability, Environment, errors
from persipubsub.compaction import compact
from persipubsub.lmdb_engine.process import files, session, unclean_marker
from tests.children import status_of
from tests.concurrency import CONTEXT, Point, Task, drained, told
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.damages_queues,
]


def delete(path: pathlib.Path) -> None:
    """Delete the data file."""
    (path / files.DATA_FILE).unlink()


def delete_all(path: pathlib.Path) -> None:
    """Delete the directory."""
    shutil.rmtree(path)


def replace(path: pathlib.Path) -> None:
    """Put a copy in place of the data file."""
    copy = path / "copy"
    shutil.copyfile(path / files.DATA_FILE, copy)
    copy.replace(path / files.DATA_FILE)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("damage, what", [(delete, "deleted"), (delete_all, "deleted"), (replace, "replaced")])
def test_the_first_send_after_it(damage: Callable[[pathlib.Path], None], what: str, durability: Durability,
                                 new_environment: MakeEnvironment) -> None:
    """A data file that was deleted or replaced is noticed by the first send; the error says what to do."""
    environment = new_environment("a", durability=durability)
    publisher = environment.new_publisher()
    publisher.send(b"before")
    damage(environment.path)
    for _ in range(2):
        with pytest.raises(errors.ReplacedError) as raised:
            publisher.send(b"after")
        for part in (str(environment.path), files.DATA_FILE, what, "Nothing was changed", "open it again"):
            assert part in str(raised.value)
    if what == "replaced":  # by the state before
        environment.close()
        with persipubsub.new_environment(environment.path) as again:
            assert drained(again.new_subscriber("a")) == [b"before"]


@pytest.mark.parametrize("name", [files.LOCK_FILE, files.USE_FILE])
@pytest.mark.parametrize("damage", ["deleted", "replaced"])
def test_the_files_beside_it(name: str, damage: str, new_environment: MakeEnvironment) -> None:
    """A lock file that was deleted or replaced, with which two could write at once, is noticed after some sends."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    (environment.path / name).rename(environment.path / "aside")
    if damage == "replaced":
        shutil.copyfile(environment.path / "aside", environment.path / name)
    with pytest.raises(errors.ReplacedError, match=f"{damage} while it was open: {name}"):
        for _ in range(session.WRITES_BETWEEN_LOOKS + 1):
            publisher.send(b"x")


def test_a_directory_that_was_moved(new_environment: MakeEnvironment) -> None:
    """A moved queue is noticed after some sends, none of which is lost; moved back it continues."""
    environment = new_environment("a")
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    path, elsewhere = environment.path, environment.path.with_name("elsewhere")
    path.rename(elsewhere)
    sent: List[bytes] = []
    with pytest.raises(errors.ReplacedError, match="deleted"):
        while len(sent) <= session.WRITES_BETWEEN_LOOKS:
            publisher.send(b"%d" % len(sent))
            sent.append(b"%d" % len(sent))
    with pytest.raises(errors.ReplacedError):
        publisher.send(b"not sent")
    elsewhere.rename(path)
    publisher.send(b"last")
    assert drained(subscriber) == [*sent, b"last"]
    assert environment.new_control().check() == ()


@pytest.mark.parametrize("damage", [delete, delete_all, replace])
def test_a_waiting_subscriber_gets_the_error(damage: Callable[[pathlib.Path], None],
                                             new_environment: MakeEnvironment) -> None:
    """A wait without end for messages of a queue that was deleted or replaced raises the error, too."""
    environment = new_environment("a")
    messages = environment.new_subscriber("a").messages(timeout=None)
    waiting = Task(lambda: next(messages))
    damage(environment.path)
    with pytest.raises(errors.ReplacedError):
        waiting.result()


def opened_below(path: pathlib.Path) -> Set[str]:
    """Name the files of a queue that this process has open, also where they were deleted."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return {link.removesuffix(" (deleted)").rpartition("/")[2] for link in found if link.startswith(f"{path}/")}


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("damage", [delete, delete_all])
def test_it_is_closed_meanwhile(damage: Callable[[pathlib.Path], None], durability: Durability,
                                new_environment: MakeEnvironment) -> None:
    """A queue that is deleted at any point of its closing is closed without an error; then it is set up anew."""
    for number in itertools.count():
        environment = new_environment("a", durability=durability)
        environment.new_publisher().send(b"x")  # under PROCESS_CRASH the unclean marker is there now
        path = environment.path
        point = Point(number, functools.partial(damage, path))
        point.run(environment.close)
        assert opened_below(path) <= {files.WAKEUP_FILE}  # a waiting subscriber may still read that
        if not point.reached:
            assert number > 20
            return


def test_it_is_set_up_anew_in_the_same_process(new_environment: MakeEnvironment) -> None:
    """A process sets its deleted queue up anew and continues, undisturbed by a late close of the old one."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    late = persipubsub.new_environment(environment.path)
    late.new_publisher().send(b"old")
    environment.close()
    delete_all(environment.path)
    with persipubsub.new_environment(environment.path) as again:
        again.new_control(["a"], durability=Durability.PROCESS_CRASH)
        again.new_publisher().send(b"new")
        assert files.UNCLEAN_FILE in os.listdir(environment.path)
        with pytest.raises(errors.ReplacedError):
            late.new_publisher().send(b"lost")
        late.close()
        assert files.UNCLEAN_FILE in os.listdir(environment.path)  # the unclean marker of those who have it open
        assert drained(again.new_subscriber("a")) == [b"new"]
        assert again.new_control().check() == ()


def test_it_is_not_set_up_while_a_process_has_it_open(new_environment: MakeEnvironment) -> None:
    """Setting up a deleted queue that a process still has open says where to close it."""
    environment = new_environment("a")
    delete(environment.path)
    with persipubsub.new_environment(environment.path) as again:
        with pytest.raises(errors.InUseError, match="Close it there"):
            again.new_control(["a"])
        environment.close()
        again.new_control(["a"])
        assert again.new_control().check() == ()


def test_an_inherited_queue_that_was_compacted(new_environment: MakeEnvironment) -> None:
    """A child whose queue was compacted before its first use gets an error, opens it again, and misses nothing."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    publisher.send(b"parent")
    parent, child = CONTEXT.Pipe()

    def live() -> None:
        assert told(child) == "compacted"
        with pytest.raises(errors.ReplacedError):
            publisher.send(b"not sent")
        environment.close()
        with persipubsub.new_environment(environment.path) as again:
            again.new_publisher().send(b"child")

    pid = fork(live)
    environment.close()
    before = os.stat(environment.path / files.DATA_FILE).st_ino
    compact(environment.path)
    assert os.stat(environment.path / files.DATA_FILE).st_ino != before
    parent.send("compacted")
    assert status_of(pid) == 0
    with persipubsub.new_environment(environment.path) as again:
        assert drained(again.new_subscriber("a")) == [b"parent", b"child"]


@pytest.mark.parametrize("left", [True, False])
def test_a_queue_deleted_while_it_is_closed_is_closed(left: bool, tmp_path: pathlib.Path) -> None:
    """Closing a queue while it is being deleted raises no error."""
    unclean_marker.write(tmp_path, 0o600)
    if left:
        (tmp_path / files.DATA_FILE).touch()
    unclean_marker.remove(tmp_path)
    assert (tmp_path / files.UNCLEAN_FILE).exists() == (not left)
