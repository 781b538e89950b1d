"""What a transaction does about an obstacle that can be removed."""

# pylint: disable=protected-access  # no public method shows how large LMDB's map is

import multiprocessing
import os
import pathlib
from multiprocessing.connection import Connection
from typing import Callable

import lmdb
import pytest

import persipubsub
from persipubsub import HighWaterMark
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records import database

MakeEnvironment = Callable[..., persipubsub.Environment]

SMALL_MAP_BYTES = 1024**2
PAYLOAD = bytes(50_000)
MAP_BYTES_MIN = database.MAP_BYTES_MIN  # as it is outside the tests here


def test_limits_are_those_documented() -> None:
    """The limits of a queue's file have the documented values."""
    assert MAP_BYTES_MIN == 40 * 1024**3 and database.MAX_READERS == 1024
    assert database.GROWTH_PAGES_MIN * 4096 == 256 * 1024


@pytest.fixture(name="small_map", autouse=True)
def small_map_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open queues with a map that is soon full."""
    monkeypatch.setattr(database, "MAP_BYTES_MIN", SMALL_MAP_BYTES)


def test_a_full_map_grows(new_environment: MakeEnvironment) -> None:
    """More can be sent, and received, than the map held at first."""
    environment = new_environment("a", high_watermark=HighWaterMark(hwm_db_size=SMALL_MAP_BYTES // 2))
    environment.new_control(high_watermark=HighWaterMark(hwm_db_size=100 * SMALL_MAP_BYTES))
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    assert [publisher.send(PAYLOAD) for _ in range(100)] == list(range(1, 101))
    publisher.send_many([PAYLOAD] * 100)
    with subscriber.receive_many(timeout=0) as messages:
        assert messages == [PAYLOAD] * 200


def test_a_map_fits_a_large_mark(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue whose mark is larger than the map is opened with a map that holds it: it need not grow."""
    with new_environment("a", high_watermark=HighWaterMark(hwm_db_size=50 * SMALL_MAP_BYTES)) as environment:
        path = environment.path
    monkeypatch.setattr(database.Database, "grow", lambda _: pytest.fail("the map had to grow"))
    with persipubsub.new_environment(path) as again:
        again.new_publisher().send_many([PAYLOAD] * 500)


def map_bytes(path: pathlib.Path) -> int:
    """Return the size of the map of an open queue."""
    held = open_queues.acquire(path)
    try:
        opened = held._session._database
        assert opened is not None
        return int(opened.environment.info()["map_size"])
    finally:
        open_queues.release(held)


@pytest.mark.parametrize("hwm_db_size, map_size", [
    (SMALL_MAP_BYTES // 4, SMALL_MAP_BYTES),
    (SMALL_MAP_BYTES * 3 // 4, SMALL_MAP_BYTES),
    (SMALL_MAP_BYTES * 9 // 10, SMALL_MAP_BYTES * 9 // 8),
    (SMALL_MAP_BYTES * 4, SMALL_MAP_BYTES * 5),
])
def test_the_map_is_a_quarter_larger_than_the_mark(hwm_db_size: int, map_size: int,
                                                   new_environment: MakeEnvironment) -> None:
    """A queue is opened with a map of 1.25 times its mark, and never with a smaller one than all queues have."""
    with new_environment("a", high_watermark=HighWaterMark(hwm_db_size=hwm_db_size)) as environment:
        path = environment.path
    with persipubsub.new_environment(path) as again:
        again.new_publisher()
        assert map_bytes(path) == pytest.approx(map_size, abs=4096)


def test_a_full_map_is_doubled(new_environment: MakeEnvironment) -> None:
    """A map that is full grows to twice its size, and no further than needed."""
    environment = new_environment("a", high_watermark=HighWaterMark(hwm_db_size=SMALL_MAP_BYTES // 2))
    environment.new_control(high_watermark=HighWaterMark(hwm_db_size=100 * SMALL_MAP_BYTES))
    assert map_bytes(environment.path) == SMALL_MAP_BYTES
    environment.new_publisher().send_many([PAYLOAD] * 30)
    assert map_bytes(environment.path) == 2 * SMALL_MAP_BYTES


def test_the_lock_file_is_as_large_as_lmdb_makes_it(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """The lock file that is allocated beforehand has the size that LMDB chooses: no page of it is missing."""
    environment = new_environment("a")
    bare = str(tmp_path / "bare")
    with lmdb.Environment(bare, subdir=False, max_readers=database.MAX_READERS):
        size_bytes = os.stat(bare + "-lock").st_size
    assert (environment.path / files.LOCK_FILE).stat().st_size == database.LOCK_FILE_BYTES == size_bytes


def _send_much(path: pathlib.Path, done: "Connection[int, int]") -> None:
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send_many([PAYLOAD] * 200)
        done.send(map_bytes(path))


def test_the_map_of_another_process_is_adopted(new_environment: MakeEnvironment) -> None:
    """What another process stored beyond our map is received, and our sends continue."""
    environment = new_environment("a", high_watermark=HighWaterMark(hwm_db_size=SMALL_MAP_BYTES // 2))
    environment.new_control(high_watermark=HighWaterMark(hwm_db_size=100 * SMALL_MAP_BYTES))
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_much, args=(environment.path, theirs))
    process.start()
    theirs_bytes = ours.recv()
    process.join()
    assert map_bytes(environment.path) < theirs_bytes
    with subscriber.receive_many(timeout=0) as messages:
        assert messages == [PAYLOAD] * 200
    assert map_bytes(environment.path) == theirs_bytes
    assert publisher.send(b"more") == 201
    assert subscriber.front() == b"more"


# Copies


def test_a_backup_leaves_free_pages_out(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """The copy of a queue whose messages were acknowledged is small, and the queue's own file is as large as ever."""
    environment = new_environment("a")
    environment.new_publisher().send_many([PAYLOAD] * 100)
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        assert len(messages) == 100
    environment.new_control().backup(tmp_path / "copy")
    assert (environment.path / files.DATA_FILE).stat().st_size > 100 * len(PAYLOAD)
    assert (tmp_path / "copy" / files.DATA_FILE).stat().st_size < 5 * len(PAYLOAD)
