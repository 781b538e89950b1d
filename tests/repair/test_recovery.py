"""Test that what can be read of a damaged queue is saved, and that compacting loses nothing."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
from typing import Callable, Dict, List, Set

import pytest

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy, compaction, errors, recovery
from persipubsub.lmdb_engine import engine, open_queues
from persipubsub.lmdb_engine.process import files, opening_check
from persipubsub.lmdb_engine.records import page_file
from persipubsub.lmdb_engine.records.page_file import PageFile
from tests.damages import end_readers
from tests.repair.pages import destroy, destroy_trees

MakeEnvironment = Callable[..., persipubsub.Environment]
MESSAGES = [b"%d" % number * 50 for number in range(2000)]
LONG = bytes(range(256)) * 1000
CONFIGURATION = {
    "high_watermark": HighWaterMark(5000, 30_000, 10**9),
    "strategy": Strategy.prune_last,
    "durability": Durability.PROCESS_CRASH
}


@pytest.fixture(name="path")
def path_fixture(new_environment: MakeEnvironment) -> pathlib.Path:
    """Make a queue with 2,000 messages and a long one; "a" has acknowledged 1,000 of them and "b" 500."""
    with new_environment("a", "b", **CONFIGURATION) as environment:
        publisher = environment.new_publisher()
        publisher.send_many(MESSAGES)
        publisher.send(LONG)
        for identifier, taken in (("a", 1000), ("b", 500)):
            with environment.new_subscriber(identifier).receive_many(taken) as messages:
                assert len(messages) == taken
    return environment.path


def pending(path: pathlib.Path) -> Dict[str, List[bytes]]:
    """Return what each subscriber is still to get, and acknowledge it."""
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()
        return {
            identifier: list(environment.new_subscriber(identifier).messages(timeout=0))
            for identifier in environment.new_control().status().subscribers
        }


ALL = {"a": [*MESSAGES[1000:], LONG], "b": [*MESSAGES[500:], LONG]}


def test_recover_saves_all_of_a_sound_queue(path: pathlib.Path) -> None:
    """Nothing that can be read is lost: messages, cursors, configuration, ids."""
    with persipubsub.new_environment(path) as environment:
        before = environment.new_control().status()
    report = recovery.recover(path)
    assert (report.messages, report.messages_lost, report.problems) == (1501, 0, ())
    assert (report.subscribers, report.configuration) == (("a", "b"), True)
    assert report.damaged_file.exists() and report.damaged_file.parent == path
    with persipubsub.new_environment(path) as environment:
        after = environment.new_control().status()
        assert (after.high_watermark, after.strategy, after.durability) == tuple(CONFIGURATION.values())
        assert (after.next_id, after.floor, after.messages) == (before.next_id, before.floor, before.messages)
        assert environment.new_publisher().send(b"next") == before.next_id
    assert pending(path) == {name: [*messages, b"next"] for name, messages in ALL.items()}


def test_recover_keeps_gaps_of_ids(new_environment: MakeEnvironment) -> None:
    """Ids that ``prune_last`` left out stay out, and the others keep theirs."""
    mark = HighWaterMark(max_messages=10)
    with new_environment("a", high_watermark=mark, strategy=Strategy.prune_last) as environment:
        for number in range(25):
            environment.new_publisher().send(b"%d" % number)
        before = environment.new_control().status()
    recovery.recover(environment.path)
    with persipubsub.new_environment(environment.path) as environment:
        after = environment.new_control().status()
    assert (after.next_id, after.messages, after.subscribers["a"].pending) == (before.next_id, before.messages,
                                                                               before.messages)


def test_recover_without_trees(path: pathlib.Path) -> None:
    """Messages and subscribers are found where both meta pages and the root of all trees are lost."""
    destroy_trees(path)
    report = recovery.recover(path)
    assert (report.messages, report.subscribers, report.configuration) == (1501, ("a", "b"), True)
    assert report.problems
    assert pending(path) == ALL


@pytest.mark.slow
def test_recover_saves_what_is_on_good_pages(path: pathlib.Path) -> None:
    """Of a file with random pages overwritten every message that arrives is right and in order."""
    content = (path / files.DATA_FILE).read_bytes()
    for seed in range(20):
        (path / files.DATA_FILE).write_bytes(content)
        destroy(path, random.Random(seed).sample(range(len(content) // 4096), 8))
        report = recovery.recover(path)
        for identifier, messages in pending(path).items():
            # An older cursor may be all that is left of a subscriber: then messages come again.
            expected = iter([*MESSAGES, LONG])
            # LMDB has no checksums: zeros in the middle of a long message look like its own.
            found = [LONG if len(message) == len(LONG) else message for message in messages]
            assert [message[:20] for message in found if message not in expected] == [], (seed, identifier)
        assert report.messages > 500, seed


def test_recover_makes_a_stand_in_for_lost_subscribers(path: pathlib.Path) -> None:
    """Where no subscriber can be read, the messages wait for one named "recovered"."""
    content = (path / files.DATA_FILE).read_bytes()
    with PageFile(path / files.DATA_FILE) as opened:
        pages = [
            number for number in range(2, opened.pages())
            if b"a" + bytes(3) + b"\1" in content[number * 4096:(number + 1) * 4096]
        ]
    destroy(path, pages)
    report = recovery.recover(path)
    assert not report.subscribers
    assert set(pending(path)) == {"recovered"}


def test_recover_twice_keeps_both_files(path: pathlib.Path) -> None:
    """Each recovery keeps the file that it found under a name of its own."""
    content = (path / files.DATA_FILE).read_bytes()
    names = {recovery.recover(path).damaged_file, recovery.recover(path).damaged_file}
    assert len(names) == 2
    assert content in [name.read_bytes() for name in names]


@pytest.mark.parametrize("work, left", [(recovery.recover, {"damaged-1.mdb"}), (compaction.compact, set())])
def test_nothing_else_is_left(work: Callable[[pathlib.Path], object], left: Set[str], path: pathlib.Path) -> None:
    """Beside the queue lies nothing afterwards but the damaged file, which recover keeps."""
    before = set(os.listdir(path))
    work(path)
    assert set(os.listdir(path)) - before == left


@pytest.mark.parametrize("work", [recovery.recover, compaction.compact])
def test_refused_while_in_use(work: Callable[[pathlib.Path], object], path: pathlib.Path) -> None:
    """Neither recover nor compact touches a queue that somebody has open."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        before = (path / files.DATA_FILE).read_bytes()
        with pytest.raises(errors.InUseError, match=str(path)):
            work(path)
        assert (path / files.DATA_FILE).read_bytes() == before


def test_compact_shrinks_and_keeps_everything(path: pathlib.Path) -> None:
    """The file of a queue shrinks once messages were acknowledged, and pending ones stay."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send_many([bytes(10_000)] * 1000)
        environment.new_control().prune_all_messages_for("a")
        environment.new_control().prune_all_messages_for("b")
        environment.new_publisher().send(b"kept")
    before, after = compaction.compact(path)
    assert after < before / 10
    assert (path / files.DATA_FILE).stat().st_size == after
    assert pending(path) == {"a": [b"kept"], "b": [b"kept"]}


def swap_leaves(path: pathlib.Path) -> None:
    """Make a page of messages a copy of another one, but with its own number: LMDB copies it without an error."""
    with PageFile(path / files.DATA_FILE) as opened:
        data_db = opened.find(opened.newest_meta().main_root, b"data_db")
        assert data_db is not None
        root = page_file.decode_root(opened.value(*data_db))
        first, second, *_ = opened.leaves(root, set(), [])
    with open(path / files.DATA_FILE, "r+b") as file:
        file.seek(first[0] * 4096)
        file.write(first[1][:8] + second[1][8:])


@pytest.mark.damages_queues
@pytest.mark.parametrize("damage", [swap_leaves, end_readers])
def test_a_damaged_queue_is_not_compacted(damage: Callable[[pathlib.Path], None], path: pathlib.Path) -> None:
    """A damaged file of any size stays as it is for ``recover``: no copy replaces it, and nothing crashes."""
    damage(path)
    before = (path / files.DATA_FILE).read_bytes()
    assert len(before) > opening_check.VERIFIED_BYTES_MAX
    result = run("compact", path)
    assert (result.returncode, (path / files.DATA_FILE).read_bytes() == before) == (1, True), result.stdout
    assert f"persipubsub recover {path}" in result.stderr


def test_compacted_queue_has_the_same_mode(new_environment: MakeEnvironment) -> None:
    """A compacted file has the readers of the old one."""
    with new_environment("a", mode=0o660) as environment:
        pass
    compaction.compact(environment.path)
    recovery.recover(environment.path)
    assert (environment.path / files.DATA_FILE).stat().st_mode & 0o777 == 0o660


def test_opening_that_waited_gets_the_new_file(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for the end of a compact opens the new file, known by its own inode."""
    alone = opening_check.try_exclusive(path)
    assert alone is not None
    waits, try_share = threading.Event(), files.UseLock.try_share

    def noting_try(self: files.UseLock) -> bool:
        waits.set()
        return try_share(self)

    monkeypatch.setattr(files.UseLock, "try_share", noting_try)
    opened: List[engine.LmdbEngine] = []
    thread = threading.Thread(target=lambda: opened.append(open_queues.acquire(path)))
    thread.start()
    assert waits.wait(60)
    with files.new_data_file(path, 0o600) as new_file:
        shutil.copyfile(path / files.DATA_FILE, new_file.path)
    alone.close()
    thread.join(60)
    assert list(open_queues._OPEN) == [files.queue_key(path)]  # pylint: disable=protected-access  # there is no other way
    open_queues.release(opened[0])


WORK = """
import os, signal, sys
from persipubsub.lmdb_engine.process import files
from persipubsub import compaction, recovery
at = int(sys.argv[3])
def step(name, original):
    def counted(*args, **kwargs):
        global at
        at -= 1
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(os, name, counted)
for name in ("fsync", "unlink", "rename", "chmod", "link", "open"):
    step(name, getattr(os, name))
getattr({"compact": compaction, "recover": recovery}[sys.argv[1]], sys.argv[1])(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("work", ["compact", "recover"])
def test_killed_at_any_step(work: str, path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Whatever system call is the last before kill -9, the queue is there, with all that is pending."""
    content = (path / files.DATA_FILE).read_bytes()
    copy = tmp_path / "copy"
    for step in range(1, 100):
        copy.mkdir(mode=0o700)
        (copy / files.DATA_FILE).write_bytes(content)
        ended = subprocess.run([sys.executable, "-c", WORK, work, copy, str(step)], check=False)
        assert pending(copy) == ALL, step
        for entry in copy.iterdir():
            entry.unlink()
        copy.rmdir()
        if not ended.returncode:
            break
        assert ended.returncode == -signal.SIGKILL
    assert 5 < step < 99


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run([sys.executable, "-m", "persipubsub", *map(str, arguments)],
                          capture_output=True,
                          text=True,
                          timeout=60,
                          check=False)


NO_DAMAGE = "no damage found (message bytes have no checksums, so they are not verified)"


def test_command_check(path: pathlib.Path) -> None:
    """``check`` says that it found no damage, and what it cannot know, also while the queue is in use."""
    result = run("check", path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{path}: {NO_DAMAGE}\n", "")
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        result = run("check", path)
    assert (result.returncode, result.stdout) == (0, f"{path}: {NO_DAMAGE}\n")
    assert "in use" in result.stderr


def test_check_cannot_verify_bytes_of_messages(path: pathlib.Path) -> None:
    """``check`` does not notice that bytes within a message changed, and says so."""
    content = (path / files.DATA_FILE).read_bytes()
    (path / files.DATA_FILE).write_bytes(content.replace(MESSAGES[1500], bytes(len(MESSAGES[1500]))))
    result = run("check", path)
    assert (result.returncode, result.stdout) == (0, f"{path}: {NO_DAMAGE}\n")


@pytest.mark.damages_queues
def test_commands_on_a_damaged_queue(path: pathlib.Path) -> None:
    """``check`` prints the broken invariants and exits 1; after ``recover`` it exits 0."""
    with PageFile(path / files.DATA_FILE) as opened:
        destroy(path, [opened.newest_meta().main_root])
    result = run("check", path)
    assert result.returncode == 1
    assert result.stdout.startswith("I0 (")
    result = run("recover", path)
    assert result.returncode == 0
    assert "1,501 messages saved" in result.stdout and "damaged-1.mdb" in result.stdout
    assert run("check", path).returncode == 0


@pytest.mark.damages_queues
def test_recover_warns_that_more_may_be_lost(path: pathlib.Path) -> None:
    """Of a file of which next to nothing is left, ``recover`` says that more may be lost, and for whom."""
    os.truncate(path / files.DATA_FILE, 3 * 4096)
    result = run("recover", path)
    assert result.returncode == 0
    assert "0 messages saved" in result.stdout and "0 and perhaps more lost" in result.stdout
    assert "no subscriber could be read" in result.stderr


def test_command_compact(path: pathlib.Path) -> None:
    """``compact`` shows the sizes, and refuses in one line while the queue is open."""
    assert run("compact", path).returncode == 0
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        result = run("compact", path)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The queue at") and result.stderr.count("\n") == 1


def test_command_backup(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """``backup`` copies a queue while it is open, and refuses a directory that is not empty."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher()
        assert run("backup", path, tmp_path / "copy").returncode == 0
        result = run("backup", path, tmp_path / "copy")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert pending(tmp_path / "copy") == ALL


@pytest.mark.parametrize("verb", ["check", "recover", "compact", "backup"])
def test_help_and_missing_queue(verb: str, tmp_path: pathlib.Path) -> None:
    """Help begins with an example and documents the exit status; without a queue the error is one line."""
    text = run(verb, "--help").stdout
    assert text.startswith(f"Example: persipubsub {verb} ") and "exit status" in text
    result = run(verb, tmp_path / "none", *([tmp_path / "copy"] if verb == "backup" else []))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: There is no queue at") and result.stderr.count("\n") == 1
