"""Test that a queue that did not reach the disk is handled, and that damage is never served."""

import contextlib
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
from typing import Callable, List, Optional

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Durability, clock, errors
from persipubsub.lmdb_engine.process import files, opening_check
from persipubsub.lmdb_engine.records import layouts, page_file
from persipubsub.lmdb_engine.records.page_file import PageFile
from tests.damages import Raw, change_subscriber

MakeEnvironment = Callable[..., persipubsub.Environment]
#: Sends one message and dies without closing.
KILLED = """
import os, signal, sys
import persipubsub
publisher = persipubsub.new_environment(sys.argv[1]).new_publisher()
publisher.send(b"2")
os.kill(os.getpid(), signal.SIGKILL)
"""

#: Sends one message and closes.
CLOSED = """
import sys
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as environment:
    environment.new_publisher().send(b"2")
"""


def other_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart the machine, as far as this process can see."""
    monkeypatch.setattr(clock, "boot_id", lambda: bytes(15) + b"\1")


def leave_unclean(new_environment: MakeEnvironment) -> pathlib.Path:
    """Make a relaxed queue with two messages for the subscriber a, and the unclean marker of a killed process."""
    with new_environment("a", durability=Durability.PROCESS_CRASH) as environment:
        environment.new_publisher().send(b"1")
    killed = subprocess.run([sys.executable, "-c", KILLED, environment.path], check=False)
    assert killed.returncode == -signal.SIGKILL
    return environment.path


def break_page(path: pathlib.Path) -> None:
    """Overwrite a page that is in use: the root of the main database."""
    with PageFile(path / files.DATA_FILE) as opened:
        meta = opened.newest_meta()
    with open(path / files.DATA_FILE, "r+b") as file:
        file.seek(meta.main_root * meta.page_bytes)
        file.write(bytes(meta.page_bytes))


def received(path: pathlib.Path) -> List[bytes]:
    """Receive and acknowledge all that is pending for the subscriber a."""
    with persipubsub.new_environment(path) as environment:
        return list(environment.new_subscriber("a").messages(timeout=0))


def test_unclean_marker_is_there_while_commits_may_not_be_on_the_disk(new_environment: MakeEnvironment) -> None:
    """The first relaxed commit writes the marker, the last close removes it."""
    with new_environment("a", durability=Durability.PROCESS_CRASH) as environment:
        mark = environment.path / files.UNCLEAN_FILE
        environment.new_publisher().send(b"1")
        assert mark.read_bytes() == clock.boot_id()
    assert not mark.exists()


def test_durable_queue_has_no_unclean_marker(new_environment: MakeEnvironment) -> None:
    """A queue whose commits are on the disk has no unclean marker."""
    with new_environment("a") as environment:
        environment.new_publisher().send(b"1")
        assert not (environment.path / files.UNCLEAN_FILE).exists()


def test_switch_to_process_crash_writes_the_unclean_marker(new_environment: MakeEnvironment) -> None:
    """The first relaxed commit writes the marker; after a switch back it may be removed."""
    with new_environment("a") as environment:
        publisher = environment.new_publisher()
        publisher.send(b"1")
        environment.new_control(durability=Durability.PROCESS_CRASH)
        publisher.send(b"2")
        assert (environment.path / files.UNCLEAN_FILE).exists()
        environment.new_control(durability=Durability.POWER_LOSS)
        publisher.send(b"3")
    assert not (environment.path / files.UNCLEAN_FILE).exists()


def test_unclean_marker_stays_while_another_process_has_the_queue_open(new_environment: MakeEnvironment) -> None:
    """Only the last process that closes removes the unclean marker."""
    with new_environment("a", durability=Durability.PROCESS_CRASH) as environment:
        environment.new_publisher().send(b"1")
        subprocess.run([sys.executable, "-c", CLOSED, environment.path], check=True)
        assert (environment.path / files.UNCLEAN_FILE).exists()
    assert not (environment.path / files.UNCLEAN_FILE).exists()


def test_forked_child_marks_for_itself(new_environment: MakeEnvironment) -> None:
    """A child that uses an inherited queue writes the unclean marker, even if its parent has removed its own."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    publisher = environment.new_publisher()
    publisher.send(b"1")
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(writing)
            os.read(reading, 1)  # until the parent has closed
            publisher.send(b"2")
            status = 0 if (environment.path / files.UNCLEAN_FILE).exists() else 2
        finally:
            os._exit(status)  # pylint: disable=protected-access  # not through the end of pytest
    environment.close()
    assert not (environment.path / files.UNCLEAN_FILE).exists()
    os.close(writing)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_kill_within_a_boot_needs_no_verification(new_environment: MakeEnvironment,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """After kill -9 the queue opens in the same boot unread; the last close removes the marker."""
    path = leave_unclean(new_environment)
    assert (path / files.UNCLEAN_FILE).exists()
    monkeypatch.setattr(opening_check, "require_sound", None)
    assert received(path) == [b"1", b"2"]
    assert not (path / files.UNCLEAN_FILE).exists()


def test_sound_queue_of_another_boot_opens(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:
    """A queue with the unclean marker of another boot is verified, and served if sound, with one warning."""
    path = leave_unclean(new_environment)
    other_boot(monkeypatch)
    for _ in range(2):
        with persipubsub.new_environment(path) as environment:
            assert environment.new_subscriber("a").front() == b"1"
    assert [record.args for record in caplog.records if "may be missing" in record.message] == [(path, )]
    assert received(path) == [b"1", b"2"]


@pytest.mark.damages_queues
def test_damaged_queue_of_another_boot_is_refused(new_environment: MakeEnvironment,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that was damaged by a loss of power is refused every time, with the remedy, and not touched."""
    path = leave_unclean(new_environment)
    break_page(path)
    other_boot(monkeypatch)
    before = (path / files.DATA_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(errors.DamagedError, match=f"persipubsub recover {path}"):
            persipubsub.new_environment(path).new_publisher()
        with pytest.raises(errors.DamagedError):
            persipubsub.new_environment(path).new_control()
    assert (path / files.DATA_FILE).read_bytes() == before
    assert (path / files.UNCLEAN_FILE).exists()


@pytest.mark.damages_queues
def test_queue_of_another_boot_that_looks_like_none_is_damaged(new_environment: MakeEnvironment,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """With the unclean marker, a file without a queue's databases is damaged, not foreign."""
    path = leave_unclean(new_environment)
    with lmdb.Environment(os.fspath(path), create=False, max_readers=1024, max_dbs=32) as raw:
        with raw.begin(write=True) as txn:
            txn.drop(raw.open_db(b"queue_db", txn=txn, create=False))
    with pytest.raises(errors.FormatError):
        persipubsub.new_environment(path).new_publisher()
    other_boot(monkeypatch)
    with pytest.raises(errors.DamagedError, match=f"persipubsub recover {path}"):
        persipubsub.new_environment(path).new_publisher()


@pytest.mark.damages_queues
def test_truncated_queue_is_refused(new_environment: MakeEnvironment) -> None:
    """A file that lacks used pages is refused, with or without the unclean marker."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([bytes(1000)] * 100)
    data_file = environment.path / files.DATA_FILE
    for pages in (70, 20, 3, 1):
        if pages * 4096 < data_file.stat().st_size:
            os.truncate(data_file, pages * 4096)
            with pytest.raises((errors.DamagedError, errors.FormatError)):
                persipubsub.new_environment(environment.path).new_publisher()


@pytest.mark.damages_queues
def test_a_large_value_that_is_cut_off_is_refused(new_environment: MakeEnvironment) -> None:
    """A file that ends within the pages of a long message is refused: whoever read it from memory would crash."""
    with new_environment("a") as environment:
        for _ in range(30):  # so that there are free pages for all that is small
            environment.new_publisher().send(b"")
        environment.new_publisher().send(b"\1" * 65_000)
    data_file = environment.path / files.DATA_FILE
    content = data_file.read_bytes()
    last_page = content.rindex(b"\1" * 1000) // 4096
    for size_bytes in (last_page * 4096 + 3, last_page * 4096, (last_page - 2) * 4096 + 1000):
        assert content[size_bytes] == 1
        data_file.write_bytes(content[:size_bytes])
        # In a process of its own, which would end.
        result = subprocess.run([sys.executable, "-m", "persipubsub", "receive", environment.path, "a"],
                                capture_output=True,
                                timeout=60,
                                check=False)
        assert (result.returncode, result.stdout) == (1, b""), result
        assert b"is damaged" in result.stderr


@pytest.mark.damages_queues
@pytest.mark.parametrize("name", files.FILES)
def test_links_are_refused(name: str, new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """No file of a queue may be a link, and what it leads to is not touched."""
    with new_environment("a", durability=Durability.PROCESS_CRASH) as environment:
        environment.new_publisher().send(b"1")
    target = tmp_path / "target"
    if (environment.path / name).exists():
        (environment.path / name).rename(target)
    else:
        target.write_bytes(b"precious")
    before = target.read_bytes()
    (environment.path / name).symlink_to(target)
    for make in ("new_publisher", "new_control"):
        with pytest.raises(errors.PathError, match="link"):
            getattr(persipubsub.new_environment(environment.path), make)()
    assert target.read_bytes() == before


@pytest.mark.parametrize("mode, of_files, of_directory", [(None, 0o600, 0o700), (0o660, 0o660, 0o770),
                                                          (0o640, 0o640, 0o750)])
def test_modes(mode: Optional[int], of_files: int, of_directory: int, new_environment: MakeEnvironment) -> None:
    """Nobody else may read or enter, unless the mode says so; it holds for every file."""
    with new_environment("a", durability=Durability.PROCESS_CRASH, mode=mode) as environment:
        environment.new_publisher().send(b"1")
        found = {name: (environment.path / name).stat().st_mode & 0o777 for name in files.FILES}
        assert found == dict.fromkeys(files.FILES, of_files)
        assert environment.path.stat().st_mode & 0o777 == of_directory


@pytest.mark.slow
@pytest.mark.damages_queues
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_sectors_that_the_disk_has_lost(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """Recovery goes on where pages cannot be read, and saves what is on the others."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([b"%d" % number + bytes(1000) for number in range(200)])
    saved, unread = [], 0
    for step in (11, 13, 17):
        path = tmp_path / str(step)
        shutil.copytree(environment.path, path)
        # From the 20th read on: the pages before it, with which LMDB begins, are no messages.
        injection = f"inject=pread64:error=EIO:when=20+{step}"
        result = subprocess.run([
            "strace", "-f", "-qq", "-o", os.devnull, "-P", path / files.DATA_FILE, "-e", injection, sys.executable,
            "-m", "persipubsub", "recover", path
        ],
                                capture_output=True,
                                text=True,
                                timeout=60,
                                check=False)
        assert result.returncode == 0, result
        unread += result.stderr.count("cannot be read (Input/output error)")
        saved.append(len(received(path)))
    assert unread > 10 and 150 < min(saved) <= max(saved) < 200, saved


@pytest.mark.damages_queues
def test_a_damage_that_a_deletion_meets(new_environment: MakeEnvironment) -> None:
    """A broken record behind an acknowledged message is an error of ours, and the queue stays as it was."""
    with new_environment("a") as environment:
        # The first one is large, so that it is deleted as soon as it is acknowledged.
        environment.new_publisher().send_many([bytes(5000)] + [bytes(1000)] * 2000)
    with PageFile(environment.path / files.DATA_FILE) as opened:
        meta = opened.newest_meta()
        found = opened.find(meta.main_root, b"data_db")
        assert found is not None
        number, page = next(opened.leaves(page_file.decode_root(opened.value(*found)), set(), []))
        second = opened.nodes(page)[1]
    with open(environment.path / files.DATA_FILE, "r+b") as file:
        file.seek(number * meta.page_bytes + second.start - len(second.key) - page_file.NODE_BYTES)
        file.write(struct.pack("=I", 2**30))  # the size of its value
    with persipubsub.new_environment(environment.path) as again:
        with pytest.raises(errors.DamagedError, match="damaged"):
            again.new_subscriber("a").pop()
        assert again.new_subscriber("a").front() == bytes(5000)


def contradict_log(raw: Raw) -> None:
    """Make the first run count more messages before it than there were in all."""
    run = layouts.decode_run(*raw.all("meta_db")[0])
    raw.put("meta_db", *layouts.encode_run(run._replace(messages_before=2**40)))
    raw.put("meta_db", *layouts.encode_run(run._replace(first_id=5)))


def contradict_place(raw: Raw) -> None:
    """Make workers hold more deleted messages than they hold in all."""
    for message_id in (1, 2):
        raw.delete("data_db", layouts.pack_id(message_id))
    change_subscriber(raw, b"workers", in_flight=1)


@pytest.mark.damages_queues
@pytest.mark.parametrize("damage, change", [
    (contradict_log, lambda control: control.prune_all_messages_for("workers")),
    (contradict_log, lambda control: control.rewind("workers", "earliest")),
    (contradict_log, Control.status),
    (contradict_place, lambda control: control.prune_all_messages_for("workers")),
    (contradict_place, Control.status),
])
def test_counts_below_zero_are_damage(damage: Callable[[Raw], None], change: Callable[[Control], object],
                                      new_environment: MakeEnvironment) -> None:
    """Where records contradict each other, no call returns a negative count, and nothing is changed."""
    with new_environment() as environment:
        environment.new_control().add_subscriber("workers", shared=True)
        environment.new_publisher().send_many([b"x"] * 5)
        with pytest.raises(ZeroDivisionError), environment.new_subscriber("workers").receive_many(3):
            raise ZeroDivisionError
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        damage(raw)
        before = raw.all("subscriber_db"), raw.all("data_db")
    with persipubsub.new_environment(environment.path) as environment:
        control = environment.new_control()
        with pytest.raises(errors.DamagedError, match=f"to -[0-9]+ messages.*persipubsub recover {environment.path}"):
            change(control)
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        assert (raw.all("subscriber_db"), raw.all("data_db")) == before


@pytest.mark.damages_queues
def test_history_of_a_damaged_queue_with_an_endless_id(new_environment: MakeEnvironment) -> None:
    """A message with an id beyond all limits is read like the others, without an error of Python's."""
    with new_environment("a") as environment:
        environment.new_publisher().send(b"x")
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        raw.put("data_db", layouts.pack_id(2**64 - 2), b"y")
    with persipubsub.new_environment(environment.path) as environment:
        assert [message.payload for message in environment.new_control().history()] == [b"x", b"y"]
