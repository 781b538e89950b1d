"""KeyboardInterrupt in one thread: no other one waits for ever, no transaction stays open, nothing is doubled."""

import collections
import contextlib
import itertools
import os
import random
import signal
import threading
from typing import Any, List, Sequence

import pytest

from persipubsub import Durability, HighWaterMark, errors
from persipubsub.lmdb_engine.process import group_commit
from persipubsub.lmdb_engine.records.lifecycle import OpenDatabase
from persipubsub.lmdb_engine.records.transaction import Transaction
from tests.children import status_of
from tests.concurrency import (HELD_UP_S_MAX, LOOK_S, STORMS_FORKS, STORMS_S, WAIT_S, Accounts, Opened, Sender, Task,
                               by_sender, drained, everywhere, interrupt, interrupted_at_random, interrupted_everywhere,
                               numbered, process, send_from_a_process, wait_until)
from tests.process.forking import FORK_ERROR, Busy, fork, use

# An interrupt may come before the block that the receipt is for.
pytestmark = pytest.mark.filterwarnings("ignore:.* was never entered:ResourceWarning")


def test_interrupt_anywhere_in_a_send(opened: Opened) -> None:
    """Wherever KeyboardInterrupt ends a send, no transaction stays open, and what was sent is there once."""
    accounts = Accounts(opened)
    interrupted_everywhere(accounts.send, lambda _: opened.assert_quiet())
    assert len(accounts.unknown) > 50
    accounts.check()


def test_interrupt_anywhere_in_a_receive(opened: Opened) -> None:
    """Wherever KeyboardInterrupt ends a receive, no transaction stays open; no message is skipped."""
    payloads = numbered("x", 1000)
    opened.publisher.send_many(payloads)
    received: List[bytes] = []

    def receive() -> None:
        with opened.subscriber.receive(timeout=0) as msg:
            assert msg is not None
            received.append(msg)

    interrupted_everywhere(receive, lambda _: opened.assert_quiet())
    assert [payload for payload, _ in itertools.groupby(received + opened.drain())] == payloads


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_interrupt_anywhere_in_a_commit_for_others(opened: Opened, monkeypatch: pytest.MonkeyPatch,
                                                   failing: bool) -> None:
    """Wherever KeyboardInterrupt ends a leader, its followers go on; each message is there once."""
    monkeypatch.setattr(group_commit, "WAIT_S_MAX", 0.05)
    opened.control.set_hwm(HighWaterMark(hwm_db_size=50_000_000))
    accounts = Accounts(opened)
    leading = threading.get_ident()
    followers: List[Task[int]] = []
    refused: List[Task[int]] = []
    begin = Transaction.begin

    def begin_with_followers(self: Transaction, database_: OpenDatabase, write: bool) -> None:
        begin(self, database_, write)
        if threading.get_ident() == leading and write and not followers:
            followers.append(Task(accounts.send))
            if failing:
                refused.append(Task(opened.send(bytes(50_000_001))))
            followers.append(Task(accounts.send))
            wait_until(lambda: opened.queued() == 2 + failing)

    def after(_returned: bool) -> None:
        for follower in followers:
            follower.result()
        for task in refused:
            with pytest.raises(errors.MessageTooLargeError):
                task.result()
        opened.assert_quiet()
        del followers[:], refused[:]

    monkeypatch.setattr(Transaction, "begin", begin_with_followers)
    interrupted_everywhere(accounts.send, after)
    accounts.check()


def test_interrupt_anywhere_in_a_wait_for_another_threads_commit(opened: Opened,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever KeyboardInterrupt ends a wait for a leader, that one and others go on."""
    monkeypatch.setattr(group_commit, "WAIT_S_MAX", 0.05)
    accounts = Accounts(opened)
    ended = threading.Event()
    tasks: List[Task[Any]] = []

    def operation(_txn: Transaction) -> None:
        inside.set()
        wait_until(lambda: opened.queued() == 2 or ended.is_set())

    def send() -> None:
        accounts.send()

    def prepare() -> None:
        inside.clear()
        ended.clear()
        tasks[:] = [Task(lambda: opened.handle.change(operation))]
        assert inside.wait(WAIT_S)
        tasks.append(Task(accounts.send))
        wait_until(lambda: opened.queued() == 1)

    def after(_returned: bool) -> None:
        ended.set()
        for task in tasks:
            task.result()
        opened.assert_quiet()
        prepare()

    inside = threading.Event()
    prepare()
    interrupted_everywhere(send, after)
    ended.set()
    for task in tasks:
        task.result()
    accounts.check()


@pytest.mark.slow
@pytest.mark.parametrize("readers", [0, 2])
def test_interrupt_anywhere_in_a_change_of_durability(opened: Opened, readers: int) -> None:
    """Wherever KeyboardInterrupt comes while the queue is reopened, all threads go on."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_S):
            opened.subscriber.front()

    lookers = [Task(look) for _ in range(readers)]
    durabilities = itertools.cycle(Durability)
    accounts = Accounts(opened)

    def change_and_send() -> None:
        opened.environment.new_control(durability=next(durabilities))
        accounts.send()

    def after(_returned: bool) -> None:
        Task(opened.subscriber.front).result()
        opened.assert_quiet()

    try:
        interrupted_everywhere(change_and_send, after)
    finally:
        stop.set()
    for looker in lookers:
        looker.result()
    accounts.check()


@pytest.mark.slow
@pytest.mark.parametrize("storm_s", STORMS_S)
def test_storm_of_interrupts(opened: Opened, storm_s: float) -> None:
    """Thousands of KeyboardInterrupts in one thread neither stop the others nor lose or double what they send."""
    stop = threading.Event()
    senders = [Sender(opened.publisher, str(number), stop) for number in range(3)]
    subscriber = opened.environment.new_subscriber("b")
    accounts = Accounts(opened)
    received: List[bytes] = []

    def receive() -> None:
        with subscriber.receive_many(max_messages=50, timeout=1) as msgs:
            received.extend(msgs)

    assert interrupted_at_random([accounts.send, receive], storm_s) > 20
    stop.set()
    sent = [sender.result() for sender in senders]
    opened.assert_quiet()
    with process(send_from_a_process, opened.environment.path, b"end"):
        pass
    assert max(sender.longest_s for sender in senders) < HELD_UP_S_MAX

    stored = opened.drain()
    assert stored[-1] == b"end"
    received += drained(subscriber)
    assert _without_repetitions(received, stored) == stored
    found = by_sender(stored[:-1])
    own = collections.Counter(found.pop(""))
    assert accounts.sent <= own.keys() <= accounts.unknown
    assert all(count == 1 for count in own.values())
    assert found == {str(number): payloads for number, payloads in enumerate(sent) if payloads}


def _without_repetitions(received: Sequence[bytes], expected: Sequence[bytes]) -> List[bytes]:
    """Leave out what came again after an interrupt; each repetition begins at one that was not acknowledged."""
    places = {payload: place for place, payload in enumerate(expected)}
    result: List[bytes] = []
    for payload in received:
        if places[payload] == len(result):
            result.append(payload)
        else:
            assert places[payload] < len(result)
    return result


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a hook raises
def test_interrupt_anywhere_in_a_fork(opened: Opened) -> None:
    """Wherever KeyboardInterrupt comes in a fork, the parent's threads go on; the child works or gets ForkError."""

    def fork_and_use() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            assert status_of(fork(lambda: use(opened, "child"))) in (0, FORK_ERROR)
        Task(lambda: use(opened, "parent")).result()

    assert everywhere(fork_and_use, interrupt) > 10
    assert status_of(fork(lambda: use(opened, "last child"))) == 0
    opened.sent()


@pytest.mark.parametrize("storm_forks", STORMS_FORKS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a hook raises
def test_storm_of_interrupts_of_forks(opened: Opened, storm_forks: int) -> None:
    """KeyboardInterrupts at random moments of forks, while threads use the queue, stop none of them."""
    chance = random.Random(3)
    before = signal.signal(signal.SIGALRM, interrupt)
    children: List[int] = []
    ended, alive = os.pipe()
    try:
        with Busy(opened) as busy:
            for _ in range(storm_forks):
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.000001, 0.001))
                    try:
                        children.append(fork(lambda: use(opened, "child")))
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
            expected = busy.sent()
    finally:
        signal.signal(signal.SIGALRM, before)
    for child in children:
        assert status_of(child) in (0, FORK_ERROR)
    # An interrupt may have acknowledged a child away from us: the pipe ends when all have ended.
    os.close(alive)
    assert os.read(ended, 1) == b""
    os.close(ended)
    found = by_sender(opened.sent())
    found.pop("child", None)
    assert found == expected
