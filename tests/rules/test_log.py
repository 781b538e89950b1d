"""The log: which sends share a record, and that no id is assigned twice."""

from typing import Callable, Dict, List

import pytest

from persipubsub import Control, Environment, HighWaterMark, Publisher, Strategy, Subscriber, clock
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records.layouts import Run
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX, RUNS_PER_TIMEOUT

MakeEnvironment = Callable[..., Environment]

TIMEOUT_S = 100
START_US = 10**12


class Opened:
    """A queue with a subscriber, whose time stands still until it is moved."""

    def __init__(self, make: MakeEnvironment, patch: pytest.MonkeyPatch, **configuration: object) -> None:
        self._now_us = START_US
        patch.setattr(clock, "boottime_us", lambda: self._now_us)
        self.environment = make("a", **configuration)
        self.control: Control = self.environment.new_control()
        self.publisher: Publisher = self.environment.new_publisher()
        self.subscriber: Subscriber = self.environment.new_subscriber("a")

    def pass_us(self, step_us: int) -> None:
        """Let time pass."""
        self._now_us += step_us

    def runs(self) -> List[Run]:
        """List the records of the log."""
        opened = open_queues.acquire(self.environment.path)
        try:
            return opened.read(lambda txn: list(txn.log().all()))
        finally:
            open_queues.release(opened)


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Set up a queue."""
    return Opened(new_environment, monkeypatch, high_watermark=HighWaterMark(TIMEOUT_S))


def test_sends_of_nearly_one_time_share_a_record(opened: Opened) -> None:
    """What is sent within a hundredth of a second, and is no larger, writes no record of its own."""
    opened.publisher.send(b"first")
    opened.pass_us(RUN_US_MAX)
    opened.publisher.send(b"later")
    opened.publisher.send_many([b"", b"small"])
    (run, ) = opened.runs()
    assert (run.first_id, run.largest_bytes) == (1, 5)
    assert opened.control.status().next_id == 5


@pytest.mark.parametrize("step_us, message", [(RUN_US_MAX + 1, b"later"), (0, b"larger")])
def test_a_later_or_larger_message_begins_a_run(step_us: int, message: bytes, opened: Opened) -> None:
    """What comes later, or is larger, has a record with its time and the totals before it."""
    opened.publisher.send_many([b"first", b"1"])
    opened.pass_us(step_us)
    opened.publisher.send(message)
    first, second = opened.runs()
    assert second.time_us - first.time_us == step_us
    assert (second.first_id, second.messages_before - first.messages_before) == (3, 2)
    assert second.largest_bytes == len(message)


@pytest.mark.parametrize("timeout_s, early_us", [(TIMEOUT_S, RUN_US_MAX), (0.1, 10**5 // RUNS_PER_TIMEOUT)])
def test_a_message_expires_hardly_early(timeout_s: float, early_us: int, opened: Opened) -> None:
    """A message expires early by at most a hundredth of a second and a thousandth of the timeout, and never late."""
    opened.control.set_hwm(HighWaterMark(timeout_s))
    timeout_us = round(timeout_s * 10**6)
    opened.publisher.send(b"first")
    opened.pass_us(early_us + 1)
    opened.publisher.send(b"own run")
    opened.pass_us(early_us)
    opened.publisher.send(b"joined")
    opened.pass_us(timeout_us - early_us)
    assert opened.subscriber.front() == b"own run"
    opened.pass_us(1)
    assert opened.subscriber.front() is None


def expire(opened: Opened) -> None:
    """Let all messages expire."""
    opened.pass_us(10**9)
    assert opened.control.prune_dangling_messages() == 5


def overflow(opened: Opened) -> None:
    """Have the next send exceed the mark, and prune the latest messages."""
    opened.control.set_strategy(Strategy.prune_last)
    opened.control.set_hwm(HighWaterMark(max_messages=2))


WAYS_TO_GO: Dict[str, Callable[[Opened], object]] = {
    "taken": lambda opened: list(opened.subscriber.messages(timeout=0, acknowledge_every=10)),
    "taken one by one": lambda opened: list(opened.subscriber.messages(timeout=0)),
    "cleared": lambda opened: opened.control.clear_messages(),
    "expired": expire,
    "awaited by nobody": lambda opened: opened.control.clear_all_subscribers(),
    "pruned": overflow,
}


@pytest.mark.parametrize("way", WAYS_TO_GO)
def test_no_id_is_assigned_twice(way: str, opened: Opened, new_environment: MakeEnvironment) -> None:
    """However the latest messages were deleted, the next id is behind theirs, also after a reopening."""
    ids = [opened.publisher.send(b"%d" % number) for number in range(5)]
    WAYS_TO_GO[way](opened)
    ids.append(opened.publisher.send(b"next"))
    opened.environment.close()
    with new_environment() as environment:
        ids += environment.new_publisher().send_many([b"last", b"of all"])
    assert ids == [1, 2, 3, 4, 5, 6, 7, 8]
