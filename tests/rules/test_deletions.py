"""Test that acknowledged messages are deleted together, and count as deleted until then."""

import contextlib
import pathlib
from typing import Callable, List

import pytest

import persipubsub
from persipubsub import Environment
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.layouts import pack_id, unpack_id
from persipubsub.lmdb_engine.rules import cursors, invariants, message_log
from tests.damages import Raw

MakeEnvironment = Callable[..., Environment]
TOGETHER = cursors.DELETED_TOGETHER


def stored(path: pathlib.Path) -> List[int]:
    """Return the ids of the messages in the file."""
    raw = Raw(path)
    with contextlib.closing(raw.environment):
        return [unpack_id(key) for key, _ in raw.all("data_db")]


def acknowledge(environment: Environment, count: int) -> None:
    """Receive and acknowledge messages one by one."""
    for _ in range(count):
        environment.new_subscriber("a").pop()


@pytest.mark.parametrize("acknowledged, left_from", [(1, 1), (TOGETHER - 2, 1), (TOGETHER - 1, TOGETHER),
                                                     (TOGETHER, TOGETHER), (2 * TOGETHER - 1, 2 * TOGETHER)])
def test_acknowledged_messages_are_deleted_together(acknowledged: int, left_from: int,
                                                    new_environment: MakeEnvironment) -> None:
    """The file keeps acknowledged messages until the low-water mark passes a multiple of 64, and then none of them."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([b"x"] * (3 * TOGETHER))
        acknowledge(environment, acknowledged)
    assert stored(environment.path) == list(range(left_from, 3 * TOGETHER + 1))


@pytest.mark.parametrize("size_bytes, left", [(cursors.SMALL_BYTES_MAX, [1, 2]), (cursors.SMALL_BYTES_MAX + 1, [2])])
def test_large_messages_are_deleted_at_once(size_bytes: int, left: List[int], new_environment: MakeEnvironment) -> None:
    """Only messages of at most 4,096 bytes wait for others."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([bytes(size_bytes), b"x"])
        acknowledge(environment, 1)
    assert stored(environment.path) == left


def test_messages_that_wait_for_others_count_as_deleted(new_environment: MakeEnvironment) -> None:
    """Neither status, nor history, nor a look, nor a new subscriber shows acknowledged messages."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([b"1", b"2", b"3"])
        acknowledge(environment, 2)
        with persipubsub.new_environment(environment.path) as again:
            control = again.new_control(create=False)
            status = control.status()
            assert (status.messages, status.retained, status.subscribers["a"].pending) == (1, 0, 1)
            assert [message.payload for message in control.history()] == [b"3"]
            assert control.peek("a", 10) == [b"3"]
            control.add_subscriber("b", start="earliest")
            assert list(again.new_subscriber("b").messages(timeout=0)) == [b"3"]


def test_messages_that_wait_for_others_do_not_expire(new_environment: MakeEnvironment) -> None:
    """Acknowledged messages are counted neither as expired, nor as cleared, nor as dangling."""
    with new_environment("a", "b") as environment:
        control = environment.new_control()
        environment.new_publisher().send_many([b"1", b"2", b"3"])
        for name in ("a", "b"):
            environment.new_subscriber(name).pop()
        control.remove_subscriber("b")
        assert control.prune_dangling_messages() == 0
        environment.new_subscriber("a").pop()
        assert control.clear_messages() == 1
        assert control.status().pruned == persipubsub.status.PrunedStatus(0, 0, 0)


def test_a_change_through_a_control_deletes_them(new_environment: MakeEnvironment) -> None:
    """After any change through a Control, the file has no acknowledged messages."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([b"1", b"2", b"3"])
        acknowledge(environment, 2)
        environment.new_control().add_subscriber("b")
    assert stored(environment.path) == [3]


@pytest.mark.damages_queues
def test_check_finds_messages_that_should_be_deleted(new_environment: MakeEnvironment) -> None:
    """A message below the last multiple of 64 below the low-water mark is a violation."""
    with new_environment("a") as environment:
        environment.new_publisher().send_many([b"x"] * (2 * TOGETHER))
        acknowledge(environment, TOGETHER + 6)
    for message_id, found in [(TOGETHER, set()), (TOGETHER - 1, {"I2"})]:
        raw = Raw(environment.path)
        with contextlib.closing(raw.environment):
            raw.put("data_db", pack_id(message_id), b"x")
        violations = database.inspect(environment.path, invariants.check)
        assert {violation.invariant for violation in violations} - {"I3"} == found


def test_the_size_is_zero_only_without_messages(new_environment: MakeEnvironment,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A small message has a size though it shares its page with many that wait to be deleted, and count as large."""
    monkeypatch.setattr(message_log, "DELETIONS_MAX", 1)
    environment = new_environment("a", "b")
    environment.new_publisher().send_many([bytes(60_000), *[b""] * 40])
    control = environment.new_control()
    control.clear_messages()
    assert control.status().size_bytes == 0
    environment.new_publisher().send(b"x")
    status = control.status()
    assert status.messages == 1 and 0 < status.size_bytes <= 4096
