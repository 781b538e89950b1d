"""Many threads and processes at once: nothing is lost, doubled or reordered, and nobody stops the others."""

# pylint: disable=protected-access  # no public method shows what an operation leaves behind

import contextlib
import itertools
import os
import pathlib
import signal
import threading
from multiprocessing.connection import Connection
from typing import Deque, Dict, List, Tuple

import lmdb
import pytest

import persipubsub
from persipubsub import Durability, HighWaterMark, clock, errors
from persipubsub.engine.commands import Outcome
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import group_commit
from persipubsub.lmdb_engine.records.database import Database
from persipubsub.lmdb_engine.records.lifecycle import OpenDatabase
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending
from tests.concurrency import CONTEXT, MANY, WAIT_S, Opened, Task, by_sender, numbered, process, told, wait_until


@pytest.fixture(name="transactions")
def transactions_fixture(monkeypatch: pytest.MonkeyPatch) -> List[Transaction]:
    """List the write transactions that have begun."""
    begun: List[Transaction] = []
    begin = Transaction.begin

    def noting_begin(self: Transaction, opened: OpenDatabase, write: bool) -> None:
        if write:
            begun.append(self)
        begin(self, opened, write)

    monkeypatch.setattr(Transaction, "begin", noting_begin)
    return begun


# Many at once


def test_sixteen_threads_send_and_sixteen_receive(opened: Opened) -> None:
    """Each of 16 subscribers gets each message of 16 threads once, in the order of the ids and of each thread."""
    threads, each = 16, 100
    names = [f"subscriber {number}" for number in range(threads)]
    opened.environment.new_control(names)

    def receive(acknowledge_every: int, name: str) -> List[bytes]:
        messages = opened.environment.new_subscriber(name).messages(WAIT_S, acknowledge_every)
        received = list(itertools.islice(messages, threads * each))
        messages.close()  # type: ignore[attr-defined]  # a generator: its end acknowledges what was received
        return received

    receivers = [Task(lambda args=args: receive(*args)) for args in enumerate(names, 1)]  # type: ignore[misc]
    senders = [
        Task(lambda number=number: [
            (opened.publisher.send(payload), payload)  # type: ignore[misc]
            for payload in numbered(number, each)
        ]) for number in range(threads)
    ]
    sent = dict(pair for sender in senders for pair in sender.result())
    assert len(sent) == threads * each
    in_order = [sent[message_id] for message_id in sorted(sent)]
    assert by_sender(in_order) == {str(number): numbered(number, each) for number in range(threads)}
    for receiver in receivers:
        assert receiver.result() == in_order
    assert opened.drain() == in_order


def send_and_receive(connection: Connection, path: pathlib.Path, name: str, threads: int, each: int,
                     total: int) -> None:
    """Send from several threads and receive from another one: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber(name)
        connection.send("ready")
        told(connection)
        receiver = Task(lambda: list(itertools.islice(subscriber.messages(WAIT_S), total)))
        senders = [
            Task(lambda number=number: [
                publisher.send(payload)  # type: ignore[misc]
                for payload in numbered(f"{name}/{number}", each)
            ]) for number in range(threads)
        ]
        ids = {f"{name}/{number}": sender.result() for number, sender in enumerate(senders)}
        connection.send((ids, receiver.result()))


@pytest.mark.slow
def test_eight_processes_of_eight_threads(opened: Opened) -> None:
    """Each of 8 processes gets each message of 8 threads of 8 processes once, in the order of the ids."""
    processes, threads, each = 8, 8, 20
    total = processes * threads * each
    names = [f"process {number}" for number in range(processes)]
    opened.environment.new_control(names)
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(process(send_and_receive, opened.environment.path, name, threads, each, total))
            for name in names
        ]
        for connection in connections:
            assert told(connection) == "ready"
        for connection in connections:
            connection.send("go")
        results: List[Tuple[Dict[str, List[int]], List[bytes]]] = [told(connection) for connection in connections]
    sent = {
        message_id: payload
        for ids, _ in results
        for sender, sender_ids in ids.items()
        for message_id, payload in zip(sender_ids, numbered(sender, each))
    }
    assert len(sent) == total
    in_order = [sent[message_id] for message_id in sorted(sent)]
    assert all(payloads == numbered(sender, each) for sender, payloads in by_sender(in_order).items())
    assert all(received == in_order for _, received in results)
    assert opened.drain() == in_order


# Group commit


def test_limits_are_those_documented() -> None:
    """The documented limits of a commit on messages, bytes and waiting are those of the code."""
    assert (group_commit.GROUP_MESSAGES_MAX, group_commit.GROUP_BYTES_MAX) == (10_000, 64 * 1024**2)
    assert 0 < group_commit.GATHER_LOOK_S < group_commit.GATHER_S_MAX < 0.001 < group_commit.WAIT_S_MAX <= 1


def test_operations_of_waiting_threads_share_one_commit(opened: Opened, transactions: List[Transaction]) -> None:
    """What 16 threads want to write while another one writes is one transaction."""
    opened.publisher.send(b"before")
    del transactions[:]
    with opened.writing():
        senders = [Task(opened.send(b"%d" % number)) for number in range(14)]
        wait_until(lambda: opened.queued() == 14)
        taker, adder = Task(opened.subscriber.pop), Task(lambda: opened.control.add_subscriber("c"))
        wait_until(lambda: opened.queued() == 16)
        assert len(transactions) == 1
    ids = [sender.result() for sender in senders]
    taker.result()
    adder.result()
    assert len(transactions) == 2
    assert sorted(ids) == list(range(2, 16))
    stored = opened.drain()
    assert [stored[message_id - 2] for message_id in ids] == [b"%d" % number for number in range(14)]
    assert opened.control.status().subscribers["c"].next_id == 16


def test_a_durable_leader_waits_for_its_peers(opened: Opened, monkeypatch: pytest.MonkeyPatch,
                                              transactions: List[Transaction]) -> None:
    """Where commits wait for the disk, a leader waits a moment for the threads of the last commit."""
    opened.environment.new_control(durability=Durability.POWER_LOSS)
    with opened.writing():
        company = [Task(opened.send(b"x")), Task(opened.send(b"x"))]
        wait_until(lambda: opened.queued() == 2)
    assert sorted(task.result() for task in company) == [1, 2]
    monkeypatch.setattr(group_commit, "GATHER_S_MAX", WAIT_S)
    gathering, sleep = threading.Event(), clock.sleep

    def noting_sleep(seconds: float) -> None:
        if seconds == group_commit.GATHER_LOOK_S:
            gathering.set()
        sleep(seconds)

    monkeypatch.setattr(clock, "sleep", noting_sleep)
    del transactions[:]
    leader = Task(opened.send(b"x"))
    assert gathering.wait(WAIT_S)
    follower = Task(opened.send(b"x"))
    assert (leader.result(), follower.result()) == (3, 4)
    assert len(transactions) == 1


def test_a_relaxed_leader_waits_for_nobody(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commits do not wait for the disk, a leader waits for no other thread."""
    with opened.writing():
        company = [Task(opened.send(b"x")), Task(opened.send(b"x"))]
        wait_until(lambda: opened.queued() == 2)
    assert sorted(task.result() for task in company) == [1, 2]
    monkeypatch.setattr(group_commit, "GATHER_S_MAX", 2 * WAIT_S)
    assert Task(opened.send(b"x")).result() == 3


def test_a_durable_change_makes_its_group_durable(opened: Opened, monkeypatch: pytest.MonkeyPatch,
                                                  transactions: List[Transaction]) -> None:
    """Where a control change shares a commit with relaxed sends, the commit reaches the disk before it returns."""
    synced = []
    sync = Database.sync

    def noting_sync(self: Database) -> None:
        synced.append(len(transactions))
        sync(self)

    monkeypatch.setattr(Database, "sync", noting_sync)
    with opened.writing():
        tasks = [Task(opened.send(b"x")), Task(opened.send(b"y"))]
        wait_until(lambda: opened.queued() == 2)
        changed = Task(lambda: opened.control.set_hwm(MANY))
        wait_until(lambda: opened.queued() == 3)
    changed.result()
    assert [task.result() for task in tasks] == [1, 2]
    assert synced == [1, 2]


def test_relaxed_tasks_do_not_wait_for_the_disk(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tasks write to a relaxed queue returns before it is on the disk."""
    synced: List[Database] = []
    monkeypatch.setattr(Database, "sync", synced.append)
    assert opened.handle._writer.run_all([(lambda txn: 1, ())]) == [Outcome(1, None)]
    assert not synced


@pytest.mark.parametrize("bound", ["GROUP_MESSAGES_MAX", "GROUP_BYTES_MAX"])
def test_a_commit_is_bounded(opened: Opened, transactions: List[Transaction], monkeypatch: pytest.MonkeyPatch,
                             bound: str) -> None:
    """A commit has a bounded number of messages and bytes; the rest is in the next one."""
    monkeypatch.setattr(group_commit, bound, 10)
    with opened.writing():
        tasks = [Task(lambda: opened.publisher.send_many([b"x"] * 5)) for _ in range(6)]
        wait_until(lambda: opened.queued() == 6)
    assert sorted(len(task.result()) for task in tasks) == [5] * 6
    assert len(transactions) == 1 + 3
    assert opened.drain() == [b"x"] * 30


def test_a_batch_over_the_bound_is_committed_alone(opened: Opened, transactions: List[Transaction],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that exceeds the bound of a commit by itself is sent all the same, alone."""
    monkeypatch.setattr(group_commit, "GROUP_MESSAGES_MAX", 10)
    with opened.writing():
        tasks = [Task(lambda: opened.publisher.send_many([b"x"] * 20)) for _ in range(3)]
        wait_until(lambda: opened.queued() == 3)
    assert sorted(task.result()[0] for task in tasks) == [1, 21, 41]
    assert len(transactions) == 1 + 3


@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_operation_that_fails_fails_alone(opened: Opened, place: int) -> None:
    """A message over the high-water mark is refused to its sender; the others of its commit are sent, once each."""
    opened.control.set_hwm(HighWaterMark(hwm_db_size=100_000))
    tasks = []
    with opened.writing():
        for number in range(7):
            tasks.append(Task(opened.send(b"x" * 200_000 if number == place else b"%d" % number)))
            wait_until(lambda: opened.queued() == len(tasks))
    with pytest.raises(errors.MessageTooLargeError):
        tasks.pop(place).result()
    assert sorted(task.result() for task in tasks) == list(range(1, 7))
    assert sorted(opened.drain()) == [b"%d" % number for number in range(7) if number != place]


@pytest.mark.parametrize("count, place", [(2, 0), (2, 1), (5, 0), (5, 2), (5, 4)])
def test_an_unforeseen_error_affects_its_operation_only(opened: Opened, count: int, place: int) -> None:
    """An operation with an unforeseen error is rolled back; the others run once each."""
    runs: List[Transaction] = []

    def operation(txn: Transaction) -> None:
        runs.append(txn)
        appending.put(txn, [b"never"], 5, 5)
        raise ZeroDivisionError

    broken, tasks = None, []
    with opened.writing():
        for number in range(count):
            if number == place:
                broken = Task(lambda: opened.handle.change(operation))
            else:
                tasks.append(Task(opened.send(b"x")))
            wait_until(lambda: opened.queued() == len(tasks) + (broken is not None))
    assert broken is not None
    with pytest.raises(ZeroDivisionError):
        broken.result()
    assert sorted(task.result() for task in tasks) == list(range(1, count))
    assert opened.drain() == [b"x"] * (count - 1)
    assert len(runs) == 2  # with the others, and alone


def test_an_operation_that_breaks_without_others_is_not_repeated(opened: Opened) -> None:
    """An operation that breaks in a transaction of its own is not run again."""
    runs: List[Transaction] = []

    def operation(txn: Transaction) -> None:
        runs.append(txn)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opened.handle.change(operation)
    assert len(runs) == 1


def test_a_commit_that_fails_fails_for_all(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LMDB fails to commit, everybody in the commit gets the error, and nothing is repeated."""
    commit, commits = Transaction.commit, itertools.count()

    def failing_commit(self: Transaction) -> None:
        if next(commits) == 1:
            raise lmdb.DiskError("the disk broke")
        commit(self)

    monkeypatch.setattr(Transaction, "commit", failing_commit)
    with opened.writing():
        tasks = [Task(opened.send(b"x")) for _ in range(3)]
        wait_until(lambda: opened.queued() == 3)
    for task in tasks:
        with pytest.raises(errors.StorageError, match="the disk broke"):
            task.result()
    assert opened.drain() == []
    assert opened.publisher.send(b"x") == 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_nobody_is_done_before_the_commit(opened: Opened, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    """A thread that looks at its send while it is committed waits on; if that fails, it knows, or its send runs again.

    :param interrupted: whether the thread that commits is interrupted, rather than that the disk fails
    """
    commit, commits = Transaction.commit, itertools.count()

    def failing_commit(self: Transaction) -> None:
        if next(commits) != 1:
            commit(self)
            return
        leader = opened.handle._writer._leaders[0]
        assert leader.led is not None
        followers = [one for one in leader.led.requests if one is not leader]
        assert len(followers) == 2
        for follower in followers:
            follower.wake()
        # Each has been woken, and waits again, or has ended.
        wait_until(lambda: all(follower.woken is not None and follower.woken.locked() for follower in followers))
        raise KeyboardInterrupt if interrupted else lmdb.DiskError("the disk broke")

    monkeypatch.setattr(Transaction, "commit", failing_commit)
    with opened.writing():
        tasks = [Task(opened.send(b"x")) for _ in range(3)]
        wait_until(lambda: opened.queued() == 3)
    results = [task.exception() for task in tasks]
    if interrupted:
        assert sorted(map(type, results), key=str) == [KeyboardInterrupt, type(None), type(None)]
    else:
        assert {type(result) for result in results} == {errors.StorageError}
    assert opened.drain() == [b"x"] * results.count(None)


@pytest.mark.parametrize("followers", [1, 2])
def test_a_follower_is_woken_by_its_leader(opened: Opened, monkeypatch: pytest.MonkeyPatch, followers: int) -> None:
    """A thread that waits for a leader goes on when the commit is there, without looking again by itself."""
    monkeypatch.setattr(group_commit, "WAIT_S_MAX", 2 * WAIT_S)
    with opened.writing():
        tasks = [Task(opened.send(b"x")) for _ in range(1 + followers)]
        wait_until(lambda: opened.queued() == 1 + followers)
    assert sorted(task.result() for task in tasks) == list(range(1, 2 + followers))


class Emptied(Deque[object]):
    """A queue from which somebody withdraws a request between a look at its length and the next step."""

    def __len__(self) -> int:
        return super().__len__() + 1


def test_a_thread_that_withdraws_its_request(opened: Opened) -> None:
    """An interrupted thread, which withdraws its request at any moment, does not harm the leader."""
    opened.handle._writer._queued = Emptied()  # type: ignore[assignment]  # of requests
    assert [opened.publisher.send(b"x") for _ in range(3)] == [1, 2, 3]
    assert opened.drain() == [b"x"] * 3


def test_several_operations_that_fail(opened: Opened) -> None:
    """Each of several operations that fail in one commit gets its own error."""
    opened.control.set_hwm(HighWaterMark(hwm_db_size=100_000))
    with opened.writing():
        too_large = [Task(opened.send(b"x" * 200_000)) for _ in range(2)]
        unknown = Task(lambda: opened.control.remove_subscriber("nobody"))
        good = Task(opened.send(b"good"))
        wait_until(lambda: opened.queued() == 4)
    for task in too_large:
        with pytest.raises(errors.MessageTooLargeError):
            task.result()
    with pytest.raises(errors.UnknownSubscriberError):
        unknown.result()
    assert good.result() == 1
    assert opened.drain() == [b"good"]


def test_a_failing_send_is_not_held_up_by_threads_that_look(opened: Opened) -> None:
    """A failing send releases LMDB's write lock at once, however many threads look."""
    opened.control.set_hwm(HighWaterMark(hwm_db_size=100_000))
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            opened.subscriber.front()

    lookers = [Task(look) for _ in range(3)]
    try:
        for _ in range(10):
            with pytest.raises(errors.MessageTooLargeError):
                Task(opened.send(b"x" * 200_000)).result()
    finally:
        stop.set()
    for looker in lookers:
        looker.result()


# Processes that die


def write_and_die(connection: Connection, path: pathlib.Path, by_itself: bool) -> None:
    """End in the middle of a write: the main function of a process."""

    def operation(_txn: Transaction) -> None:
        connection.send(os.getpid())
        if by_itself:
            os._exit(0)
        told(connection)

    opened = open_queues.acquire(path)
    publisher = persipubsub.new_environment(path).new_publisher()
    waiting = threading.Thread(target=publisher.send, args=(b"never", ), daemon=True)

    def operation_with_follower(txn: Transaction) -> None:
        waiting.start()
        wait_until(lambda: len(opened._writer._queued) == 1)
        operation(txn)

    publisher.send(b"sent")
    opened.change(operation_with_follower)


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_process_that_dies_during_a_write(opened: Opened, by_itself: bool) -> None:
    """A process that ends by os._exit or kill -9 during a write stops nobody and loses nothing it sent."""
    for _ in range(3):
        ours, theirs = CONTEXT.Pipe()
        dying = CONTEXT.Process(target=write_and_die, args=(theirs, opened.environment.path, by_itself), daemon=True)
        dying.start()
        pid = told(ours)
        waiting = [Task(opened.send(b"waiting")) for _ in range(3)]
        if not by_itself:
            os.kill(pid, signal.SIGKILL)
        for task in waiting:
            task.result()
        dying.join(WAIT_S)
        assert dying.exitcode == (0 if by_itself else -signal.SIGKILL)
        assert opened.control.check() == ()
    assert sorted(opened.drain()) == [b"sent"] * 3 + [b"waiting"] * 9
