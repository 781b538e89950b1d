"""What a transaction does about an obstacle that can be removed."""

import multiprocessing
import pathlib
from multiprocessing.connection import Connection
from typing import Callable

import pytest

import persipubsub
from persipubsub import HighWaterMark, database

MakeEnvironment = Callable[..., persipubsub.Environment]

SMALL_MAP_BYTES = 1024**2
PAYLOAD = bytes(50_000)


@pytest.fixture(name="small_map", autouse=True)
def small_map_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open queues with a map that is soon full."""
    monkeypatch.setattr(database, "MAP_BYTES_MIN", SMALL_MAP_BYTES)


def test_a_full_map_grows(new_environment: MakeEnvironment) -> None:
    """More is sent, and taken, than the map held at first: nobody notices."""
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


def _send_much(path: pathlib.Path, done: "Connection[int, int]") -> None:
    with persipubsub.new_environment(path) as environment:
        done.send(len(environment.new_publisher().send_many([PAYLOAD] * 200)))


def test_the_map_of_another_process_is_adopted(new_environment: MakeEnvironment) -> None:
    """What another process stored beyond our map is received, and we go on sending."""
    environment = new_environment("a", high_watermark=HighWaterMark(hwm_db_size=SMALL_MAP_BYTES // 2))
    environment.new_control(high_watermark=HighWaterMark(hwm_db_size=100 * SMALL_MAP_BYTES))
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_much, args=(environment.path, theirs))
    process.start()
    assert ours.recv() == 200
    process.join()
    with subscriber.receive_many(timeout=0) as messages:
        assert messages == [PAYLOAD] * 200
    assert publisher.send(b"more") == 201
    assert subscriber.front() == b"more"
