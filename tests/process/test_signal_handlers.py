"""Signal handlers that use the queue or fork, whatever they have interrupted."""

# pylint: disable=protected-access  # no public method shows what an operation leaves behind

import collections
import contextlib
import itertools
import os
import random
import signal
import threading
import time
import types
from typing import Callable, Dict, List, Optional

import pytest

import persipubsub
from persipubsub import Durability, errors
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.lifecycle import OpenDatabase
from persipubsub.lmdb_engine.records.transaction import Transaction
from tests.children import status_of
from tests.concurrency import (HELD_UP_S_MAX, STORMS_FORKS, STORMS_S, WAIT_S, Accounts, Opened, Sender, Task,
                               alarm_handler, by_sender, everywhere, holds_foreign_lock, numbered, wait_until)
from tests.process.forking import FORK_ERROR, Busy, ForkingAccounts, fork, use, use_without_hope

pytestmark = pytest.mark.slow  # starts many processes, or waits


def test_a_handler_during_a_send(opened: Opened) -> None:
    """A signal handler that sends while it has interrupted a transaction of its thread gets ReentryError."""
    outcomes: List[object] = []

    def handler(*_signal: object) -> None:
        try:
            opened.publisher.send(b"from the handler")
        except errors.ReentryError as error:
            outcomes.append(str(error))
        outcomes.append(opened.subscriber.front())

    opened.publisher.send(b"before")
    with alarm_handler(handler):
        opened.handle.change(lambda txn: signal.raise_signal(signal.SIGALRM))
    assert len(outcomes) == 2 and "Set a flag" in str(outcomes[0]) and outcomes[1] == b"before"
    assert opened.drain() == [b"before"]


def test_a_handler_in_a_read_that_another_thread_waits_for(opened: Opened) -> None:
    """A handler that would have to wait for what it interrupted gets ReentryError; all go on."""
    tasks: List[Task[int]] = []
    refused: List[str] = []

    def handler(*_signal: object) -> None:
        for use_it in (opened.subscriber.front, opened.send(b"from the handler")):
            with pytest.raises(errors.ReentryError) as caught:
                use_it()
            refused.append(str(caught.value))

    def operation(_txn: Transaction) -> None:
        opened.environment.new_control(durability=Durability.POWER_LOSS)
        tasks.append(Task(opened.send(b"sent by who reopens")))
        wait_until(lambda: bool(opened.handle._session._gate.closers))
        signal.raise_signal(signal.SIGALRM)

    with alarm_handler(handler):
        opened.handle.read(operation)
    assert tasks[0].result() == 1
    assert len(refused) == 2
    assert opened.drain() == [b"sent by who reopens"]


def test_a_handler_that_cannot_commit_for_others(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a handler cannot commit for other threads, since it interrupted a read, they do it themselves."""
    reading = threading.get_ident()
    followers: List[Task[int]] = []
    begin, commit = Transaction.begin, Transaction.commit

    def begin_with_followers(self: Transaction, database_: OpenDatabase, write: bool) -> None:
        begin(self, database_, write)
        if write and threading.get_ident() == reading:
            followers.extend(Task(opened.send(b"follower")) for _ in range(2))
            wait_until(lambda: opened.queued() == 2)

    def commit_unless_full(self: Transaction) -> None:
        if threading.get_ident() == reading:
            raise database.MapFullError("it would have to grow, and the read that the handler has interrupted to end")
        commit(self)

    def handler(*_signal: object) -> None:
        with pytest.raises(errors.ReentryError):
            opened.publisher.send(b"from the handler")

    with alarm_handler(handler), monkeypatch.context() as patch:
        patch.setattr(Transaction, "begin", begin_with_followers)
        patch.setattr(Transaction, "commit", commit_unless_full)
        opened.handle.read(lambda txn: signal.raise_signal(signal.SIGALRM))
    assert sorted(follower.result() for follower in followers) == [1, 2]
    assert opened.drain() == [b"follower"] * 2


def test_a_handler_during_a_wait(opened: Opened) -> None:
    """A signal handler may send while its thread waits for the commit of another one."""
    sent: List[int] = []
    main = threading.main_thread().ident
    assert main is not None

    def handler(*_signal: object) -> None:
        sent.append(opened.publisher.send(b"from the handler"))

    def release() -> None:
        wait_until(lambda: opened.queued() == 1)
        signal.pthread_kill(main, signal.SIGALRM)
        wait_until(lambda: opened.queued() == 2)
        go.set()

    go = threading.Event()
    inside = threading.Event()

    def operation(_txn: Transaction) -> None:
        inside.set()
        assert go.wait(WAIT_S)

    with alarm_handler(handler):
        writing = Task(lambda: opened.handle.change(operation))
        assert inside.wait(WAIT_S)
        releasing = Task(release)
        sent.append(opened.publisher.send(b"sent"))
        releasing.result()
        writing.result()
    assert sorted(sent) == [1, 2]
    assert sorted(opened.drain()) == [b"from the handler", b"sent"]


def reopen_and_send(opened: Opened, send: Callable[[], object]) -> Callable[[], None]:
    """Return a function that reopens the queue each time it sends."""
    durabilities = itertools.cycle(Durability)

    def operation() -> None:
        opened.environment.new_control(durability=next(durabilities))
        send()

    return operation


@pytest.mark.parametrize("kind", ["send", "receive", "reopen"])
def test_a_handler_that_sends_anywhere(opened: Opened, kind: str) -> None:
    """Wherever a signal handler sends, it sends or gets ReentryError; what it interrupted goes on."""
    accounts = Accounts(opened)
    refused: List[errors.ReentryError] = []

    def handler() -> None:
        try:
            accounts.send()
        except errors.ReentryError as error:
            refused.append(error)

    operations: Dict[str, Callable[[], object]] = {
        "send": accounts.send,
        "receive": opened.environment.new_subscriber("b").front,
        "reopen": reopen_and_send(opened, accounts.send),
    }
    assert everywhere(operations[kind], handler) > 20
    opened.assert_quiet()
    assert len(accounts.unknown) - len(accounts.sent) == len(refused)
    assert collections.Counter(opened.drain()) == collections.Counter(accounts.sent)


@pytest.mark.parametrize("kind", ["send", "receive", "reopen"])
def test_a_handler_that_looks_anywhere(opened: Opened, kind: str) -> None:
    """Wherever a signal handler looks for messages, it finds them or gets ReentryError; what it interrupted goes on."""
    opened.publisher.send(b"first")
    found: List[Optional[bytes]] = []

    def handler() -> None:
        with contextlib.suppress(errors.ReentryError):
            found.append(opened.subscriber.front())

    operations: Dict[str, Callable[[], object]] = {
        "send": opened.send(b"later"),
        "receive": opened.environment.new_subscriber("b").front,
        "reopen": reopen_and_send(opened, opened.send(b"later")),
    }
    points = everywhere(operations[kind], handler)
    opened.assert_quiet()
    assert points > 20 and set(found) == {b"first"}
    assert set(opened.drain()[1:]) <= {b"later"}


@pytest.mark.parametrize("storm_s", STORMS_S)
def test_storm_of_handlers_that_send(opened: Opened, storm_s: float) -> None:
    """A handler that sends, whatever it interrupts and while others send, never hangs; what it sent is there once."""
    stop = threading.Event()
    senders = [Sender(opened.publisher, str(number), stop) for number in range(2)]
    accounts, handled = Accounts(opened), Accounts(opened)
    handled._numbers = itertools.count(10**9)
    chance = random.Random(2)
    refused = 0

    def handler(_signal: int, frame: Optional[types.FrameType]) -> None:
        nonlocal refused
        try:
            if not holds_foreign_lock(frame):
                handled.send()
        except errors.ReentryError:
            refused += 1
        # Only now, so that handlers do not interrupt each other without end.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002))

    deadline = time.monotonic() + storm_s
    with alarm_handler(handler):
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while time.monotonic() < deadline:
            accounts.send()
    stop.set()
    sent = [sender.result() for sender in senders]
    opened.assert_quiet()
    assert handled.sent and refused == len(handled.unknown) - len(handled.sent)
    assert max(sender.longest_s for sender in senders) < HELD_UP_S_MAX
    found = by_sender(opened.drain())
    assert collections.Counter(found.pop("")) == collections.Counter(accounts.sent | handled.sent)
    assert found == {str(number): payloads for number, payloads in enumerate(sent) if payloads}


def test_a_fork_from_a_handler_during_a_write(opened: Opened) -> None:
    """A signal handler that forks while it has interrupted a transaction: the child gets ForkError, both end."""
    children: List[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: children.append(fork(lambda: use_without_hope(opened))))
    try:
        opened.handle.change(lambda txn: signal.raise_signal(signal.SIGALRM))
        opened.handle.read(lambda txn: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [status_of(child) for child in children] == [0, 0]
    use(opened, "parent")
    assert by_sender(opened.sent()) == {"parent": numbered("parent", 2)}


@pytest.mark.parametrize("kind", ["send", "receive", "reopen", "open", "fork"])
def test_a_handler_that_forks_anywhere(opened: Opened, kind: str) -> None:
    """Wherever a signal handler forks, also in a fork, nothing hangs; what it interrupted happens exactly once."""
    accounts = ForkingAccounts(opened)
    durabilities = itertools.cycle(Durability)

    def reopen() -> None:
        opened.environment.new_control(durability=next(durabilities))
        accounts.send()

    def open_and_close() -> None:
        with persipubsub.new_environment(opened.environment.path) as environment:
            environment.new_subscriber("a").front()

    operations: Dict[str, Callable[[], object]] = {
        "send": accounts.send,
        "receive": opened.subscriber.front,
        "reopen": reopen,
        "open": open_and_close,
        "fork": lambda: status_of(fork(lambda: None)),
    }
    assert everywhere(operations[kind], accounts.fork_and_send) > 10
    assert collections.Counter(opened.sent()) == collections.Counter(accounts.sent)
    Task(lambda: use(opened, "afterwards")).result()


@pytest.mark.parametrize("kind", ["send", "look"])
def test_a_handler_that_uses_the_queue_anywhere_in_a_fork(opened: Opened, kind: str) -> None:
    """A signal handler can use the queue during a fork, or gets ReentryError; nothing hangs."""
    accounts = Accounts(opened)

    def handler() -> None:
        with contextlib.suppress(errors.ReentryError):
            if kind == "send":
                accounts.send()
            else:
                opened.subscriber.front()

    def fork_and_use() -> None:
        in_parent = os.getpid()
        status = status_of(fork(opened.subscriber.front))
        assert os.getpid() == in_parent and status in (0, FORK_ERROR)

    assert everywhere(fork_and_use, handler) > 10
    sent = collections.Counter(opened.sent())
    assert all(sent[payload] >= 1 for payload in accounts.sent)
    Task(lambda: use(opened, "afterwards")).result()


@pytest.mark.parametrize("storm_forks", STORMS_FORKS)
def test_storm_of_handlers_that_fork(opened: Opened, storm_forks: int) -> None:
    """Forks from a signal handler at random moments of sends, while threads use the queue, lose and double nothing."""
    chance = random.Random(4)
    accounts = ForkingAccounts(opened)
    forks = 0

    def handler(_signal: int, frame: Optional[types.FrameType]) -> None:
        nonlocal forks
        if not holds_foreign_lock(frame):
            forks += 1
            accounts.fork_and_send()
        # Only now, so that handlers do not interrupt each other without end.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.005))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Busy(opened) as busy:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            while forks < storm_forks:
                accounts.send()
            signal.setitimer(signal.ITIMER_REAL, 0)
            expected = busy.sent()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found = by_sender(opened.sent())
    assert collections.Counter(found.pop("") + found.pop("child", [])) == collections.Counter(accounts.sent)
    assert found == expected


def test_a_fork_in_an_operation(opened: Opened) -> None:
    """A fork from within a transaction of the same thread does not deadlock; the transaction is whole."""
    children: List[int] = []

    def operation(_txn: Transaction) -> None:
        children.append(fork(lambda: use_without_hope(opened)))

    opened.handle.change(operation)
    opened.handle.read(operation)
    assert [status_of(child) for child in children] == [0, 0]
    use(opened, "parent")
