"""Recovering and compacting keeps delayed messages, retained ones, and the deduplication ids."""

import contextlib
import pathlib
from typing import Callable

import pytest

import persipubsub
from persipubsub import Durability, Environment, clock, compaction, recovery
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records import layouts
from tests.damages import Raw
from tests.repair.pages import destroy_trees

MakeEnvironment = Callable[..., Environment]

#: Of several parts, and many, so that they fill pages of their own.
DELAYED = [bytes([number]) * (200_000 if number % 10 == 0 else 300) for number in range(30)]
#: As long as keys of sub-databases of ours, so that their pages could be mistaken for those.
IDS = [
    name for number in range(100) for name in (f"{number:08d}", f"{number:012d}", f"{number:016d}", f"{number:020d}")
]


@pytest.fixture(name="path")
def path_fixture(new_environment: MakeEnvironment) -> pathlib.Path:
    """Make a queue with delayed messages, 400 retained ones that were sent with ids, and one that "a" awaits."""
    with new_environment("a", durability=Durability.PROCESS_CRASH, retention_s=400) as environment:
        publisher = environment.new_publisher()
        for identifier in IDS:
            publisher.send(identifier.encode(), deduplication_id=identifier)
        for payload in DELAYED:
            publisher.send_later(payload, delay_s=10**6)
        environment.new_control().prune_all_messages_for("a")
        publisher.send(b"awaited")
    return environment.path


def assert_all_is_there(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fixture made is in the queue, and works."""
    with persipubsub.new_environment(path) as environment:
        control, publisher = environment.new_control(), environment.new_publisher()
        assert control.check() == ()
        status = control.status()
        assert (status.retention_s, status.retained, status.delayed) == (400, len(IDS), len(DELAYED))
        assert [publisher.send(b"again", deduplication_id=name) for name in IDS] == list(range(1, len(IDS) + 1))
        assert [one.payload for one in control.history()] == [*(name.encode() for name in IDS), b"awaited"]
        with environment.new_subscriber("a").receive_many(timeout=0) as messages:
            assert messages == [b"awaited"]
        boottime_us = clock.boottime_us()
        monkeypatch.setattr(clock, "boottime_us", lambda: boottime_us + 10**12 + 10**8)
        assert [one.payload for one in control.history()] == DELAYED
        assert control.check() == ()


def test_recover_a_sound_queue(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that can be read is lost."""
    report = recovery.recover(path)
    assert (report.messages, report.delayed, report.messages_lost, report.problems) == (len(IDS) + 1, 30, 0, ())
    assert_all_is_there(path, monkeypatch)


def test_recover_without_trees(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is found without trees, and no record is mistaken for one of another kind."""
    destroy_trees(path)
    report = recovery.recover(path)
    assert (report.messages, report.delayed, report.messages_lost) == (len(IDS) + 1, 30, 0)
    assert_all_is_there(path, monkeypatch)


@pytest.mark.damages_queues
def test_a_delayed_message_of_no_number(path: pathlib.Path) -> None:
    """A delayed message with a number that none can have is left out, and the others are there."""
    raw = Raw(path)
    with contextlib.closing(raw.environment):
        raw.put("delayed_db", layouts.DELAYED_KEY.pack(2**51, 2**64 - 1, 0), bytes(8))
    assert recovery.recover(path).delayed == len(DELAYED)
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()


@pytest.mark.damages_queues
def test_two_ids_of_one_message(path: pathlib.Path) -> None:
    """If two pages of different age have different deduplication ids of a message, one is kept."""
    raw = Raw(path)
    with contextlib.closing(raw.environment):
        raw.put("once_order_db", raw.all("once_order_db")[0][0], b"another")
    destroy_trees(path)
    recovery.recover(path)
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()


@pytest.mark.damages_queues
def test_a_delayed_message_that_lacks_a_part_is_reported(path: pathlib.Path) -> None:
    """A delayed message that cannot be saved is reported, and the others are there."""
    content = bytearray((path / files.DATA_FILE).read_bytes())
    # A page of the middle part of the message of bytes 10 gets the head of no page: LMDB has no checksums.
    where = content.find(bytes([10]) * 4000)
    head = where // 4096 * 4096
    content[head:head + 4096] = bytes(4096)
    (path / files.DATA_FILE).write_bytes(content)
    report = recovery.recover(path)
    assert report.delayed == 29
    assert any("delayed message 11 cannot be read" in problem for problem in report.problems), report.problems
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()
        assert environment.new_control().status().delayed == 29


def test_compact_keeps_all(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compact queue has the same."""
    compaction.compact(path)
    assert_all_is_there(path, monkeypatch)
