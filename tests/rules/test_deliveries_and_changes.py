"""Clearing, pruning, overflow, expiry, compacting and copying with messages in flight and dead letters."""

import contextlib
import pathlib
import random
from typing import Any, Callable, Dict, Iterator, List

import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Strategy, clock, compaction, errors, migration
from persipubsub.lmdb_engine.process import files
from persipubsub.subscriber import Receipt
from tests.golden.make import records

MakeEnvironment = Callable[..., Environment]
NAMES = ("shared", "limited")
TIMEOUT_S = 1000


class Failed(Exception):
    """Raised in the blocks of receives."""


class Busy:
    """A queue with messages in flight, requeued ones and dead letters of a shared and a plain subscriber, by chance."""

    def __init__(self, environment: Environment, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_us = clock.boottime_us()
        monkeypatch.setattr(clock, "boottime_us", lambda: self.now_us)
        self.environment = environment
        self.rng = random.Random(seed)
        self.control: Control = environment.new_control()
        self.publisher = environment.new_publisher()
        self.held: List["Receipt[List[bytes]]"] = []
        self.control.add_subscriber("shared", shared=True, lease_s=10, max_deliveries=2, retry_delay_s=1)
        self.control.add_subscriber("limited", max_deliveries=2)
        steps = (self.send, self.send, self.fail, self.fail, self.fail, self.hold, self.take, self.requeue, self.wait)
        for step in (self.send, *self.rng.choices(steps, k=60), self.send, self.hold):
            step()
        self.publisher.send_later(bytes(70_000), delay_s=10**6)
        assert self.control.check() == ()

    def send(self) -> None:
        """Send some, sometimes a long one."""
        sizes = [self.rng.choice((0, 10, 1000, 70_000)) for _ in range(self.rng.randint(1, 4))]
        self.publisher.send_many([self.rng.randbytes(size) for size in sizes])

    def fail(self) -> None:
        """Receive in a block that raises."""
        with contextlib.suppress(Failed), self.environment.new_subscriber(self.rng.choice(NAMES)).receive_many(
                2, timeout=0):
            raise Failed("no")

    def hold(self) -> None:
        """Receive in a block that goes on."""
        receipt = self.environment.new_subscriber("shared").receive_many(self.rng.randint(1, 3), timeout=0)
        receipt.__enter__()  # pylint: disable=unnecessary-dunder-call  # the block ends later
        self.held.append(receipt)

    def take(self) -> None:
        """Receive and acknowledge."""
        with self.environment.new_subscriber(self.rng.choice(NAMES)).receive(timeout=0):
            pass

    def requeue(self) -> None:
        """Hand some dead letters out again."""
        name = self.rng.choice(NAMES)
        ids = [letter.id for letter in self.control.dead_letters(name)]
        self.control.requeue_dead_letters(name, [one for one in ids if self.rng.randrange(3) == 0])

    def wait(self, seconds: float = 4) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)

    def dead(self) -> Dict[str, List[Any]]:
        """List the dead letters that there are."""
        return {
            name: list(self.control.dead_letters(name))
            for name in NAMES if name in self.control.status().subscribers
        }

    def end_blocks(self) -> None:
        """End all blocks, also of workers that hold nothing any more."""
        for receipt in self.held:
            with contextlib.suppress(errors.LeaseLostError):
                receipt.__exit__(None, None, None)
        self.held = []

    def drain(self) -> List[bytes]:
        """Let all leases and delays end, and acknowledge all that comes."""
        self.wait(100)
        return [
            payload for name in self.control.status().subscribers
            for payload in self.environment.new_subscriber(name).messages(timeout=0)
        ]


@pytest.fixture(name="busy", params=range(4))
def busy_fixture(request: pytest.FixtureRequest, new_environment: MakeEnvironment,
                 monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    """Make a busy queue."""
    with new_environment(durability=Durability.PROCESS_CRASH, high_watermark=HighWaterMark(TIMEOUT_S)) as environment:
        yield Busy(environment, request.param, monkeypatch)


def overflow(busy: Busy, strategy: Strategy, mark: HighWaterMark) -> None:
    """Overflow the queue again and again."""
    busy.control.set_strategy(strategy)
    busy.control.set_hwm(mark)
    for _ in range(5):
        busy.send()


def expire(busy: Busy) -> None:
    """Let all messages expire that are there now."""
    busy.wait(TIMEOUT_S + 1)
    busy.send()


def clear_messages(busy: Busy) -> None:
    """Empty the log."""
    busy.control.clear_messages()
    status = busy.control.status()
    assert (status.messages, status.delayed) == (0, 0)


#: By name: what is done, while workers hold messages.
CHANGES: Dict[str, Callable[[Busy], object]] = {
    "clear_messages": clear_messages,
    "prune_dangling_messages": lambda busy: busy.control.prune_dangling_messages(),
    "expire": expire,
    "overflow, first": lambda busy: overflow(busy, Strategy.prune_first, HighWaterMark(TIMEOUT_S, 6)),
    "overflow, last": lambda busy: overflow(busy, Strategy.prune_last, HighWaterMark(TIMEOUT_S, 6)),
    "overflow of bytes, first":
    lambda busy: overflow(busy, Strategy.prune_first, HighWaterMark(TIMEOUT_S, 10**6, 200_000)),
    "overflow of bytes, last":
    lambda busy: overflow(busy, Strategy.prune_last, HighWaterMark(TIMEOUT_S, 10**6, 200_000)),
}


@pytest.mark.parametrize("retention_s", [0, 500])
@pytest.mark.parametrize("change", CHANGES)
def test_dead_letters_outlive_changes_of_the_log(change: str, retention_s: float, busy: Busy) -> None:
    """Dead letters outlive deletions from the log; the queue stays sound, and empties in the end."""
    busy.control.set_retention(retention_s)
    dead = busy.dead()
    assert any(dead.values())
    CHANGES[change](busy)
    assert busy.control.check() == ()
    subscribers = busy.control.status().subscribers
    assert all(subscribers[name].in_flight <= subscribers[name].pending for name in NAMES)
    assert busy.dead() == dead
    busy.end_blocks()
    assert busy.control.check() == ()
    for name in NAMES:
        assert busy.control.requeue_dead_letters(name) == len(dead[name])
    got = busy.drain()
    assert all(letter.payload in got for letters in dead.values() for letter in letters)
    status = busy.control.status()
    assert busy.control.check() == ()
    assert status.messages == status.retained
    for name in NAMES:
        one = status.subscribers[name]
        assert (one.pending, one.in_flight, one.dead_letters) == (0, 0, 0)


def test_pruning_all_leaves_dead_letters_only(busy: Busy) -> None:
    """``prune_all_messages_for`` skips the log, messages in flight and requeued ones; workers get an error."""
    dead, pending = busy.dead(), busy.control.status().subscribers
    for name in NAMES:
        assert busy.control.prune_all_messages_for(name) == pending[name].pending
        assert busy.control.check() == ()
    status = busy.control.status()
    assert [(status.subscribers[name].pending, status.subscribers[name].in_flight) for name in NAMES] == [(0, 0)] * 2
    assert (status.messages, busy.dead()) == (0, dead)
    with pytest.raises(errors.LeaseLostError):
        busy.held.pop().__exit__(None, None, None)
    busy.end_blocks()
    assert not busy.drain()


def test_clearing_subscribers_leaves_nothing(busy: Busy) -> None:
    """``clear_all_subscribers`` deletes all delivery records, and open blocks end without an error."""
    busy.control.clear_all_subscribers()
    busy.end_blocks()
    assert busy.control.check() == ()
    busy.environment.close()
    found = records(busy.environment.path)
    assert not any(found[name] for name in found if name not in ("queue_db", "meta_db"))


def test_copies_have_the_same_records(busy: Busy, tmp_path: pathlib.Path) -> None:
    """A backup made in use, and a compact queue, have record by record what the queue has."""
    busy.control.backup(tmp_path / "copy")
    busy.environment.close()
    before = records(busy.environment.path)
    assert all(before[name] for name in ("index_db", "due_db", "letter_db", "dead_letter_db", "delayed_db"))
    assert records(tmp_path / "copy") == before
    compaction.compact(busy.environment.path)
    assert records(busy.environment.path) == before


def test_only_older_queues_are_migrated(busy: Busy, tmp_path: pathlib.Path) -> None:
    """A queue of this version, which may have dead letters, is neither migrated nor touched."""
    path = busy.environment.path
    busy.environment.close()
    before = (path / files.DATA_FILE).read_bytes()
    with pytest.raises(errors.FormatError, match="nothing to migrate"):
        migration.migrate(path, tmp_path / "new")
    assert (path / files.DATA_FILE).read_bytes() == before
    assert not (tmp_path / "new").exists()
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()
