"""Many threads and processes at once: nothing is lost, doubled or reordered, and nobody stops the others."""

# pylint: disable=protected-access  # what an operation leaves behind it, no public method tells
# pylint: disable=too-many-lines  # one short test for each thing that can happen

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import threading
import time
import types
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, Generic, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, TypeVar

import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Subscriber, errors, handle, writer
from persipubsub.database import Database
from persipubsub.handle import Handle
from persipubsub.transaction import Transaction

T = TypeVar("T")
MakeEnvironment = Callable[..., Environment]

WAIT_S = 30  # for what happens soon unless something is broken
LOOK_S = 0.0005
#: What a thread may have to wait when another one was interrupted: it looks again after a second. A busy machine adds.
HELD_UP_S_MAX = writer.WAIT_S_MAX + 1
STORM_S = 5
PACKAGE = os.path.dirname(persipubsub.__file__)
#: More than any test sends.
MANY = HighWaterMark(max_messages=2**40)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["persipubsub", "pytest"])


class Task(Generic[T]):
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._future: "concurrent.futures.Future[T]" = concurrent.futures.Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again by result()
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for the end; give or raise what came of it."""
        return self._future.result(WAIT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what happens soon unless something is broken."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)


@contextlib.contextmanager
def process(function: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in another process, with a connection to it. It has to end well."""
    ours, theirs = CONTEXT.Pipe()
    running = CONTEXT.Process(target=function, args=(theirs, *arguments), daemon=True)
    running.start()
    theirs.close()
    try:
        yield ours
        running.join(WAIT_S)
        assert running.exitcode == 0
    finally:
        running.kill()
        running.join()
        ours.close()


def told(connection: Connection) -> Any:
    """Give what another process tells."""
    assert connection.poll(WAIT_S)
    return connection.recv()


def send_from_a_process(_connection: Connection, path: pathlib.Path, payload: bytes) -> None:
    """Send a message: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(payload)


class Opened(NamedTuple):
    """A queue with the subscribers "a" and "b", and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber
    handle: Handle

    def send(self, payload: bytes) -> Callable[[], int]:
        """Give a function that sends a message."""
        return lambda: self.publisher.send(payload)

    def drain(self) -> List[bytes]:
        """Take everything that is there for "a"."""
        return drained(self.subscriber)

    def queued(self) -> int:
        """Tell how many operations wait for the one that is going on."""
        return len(self.handle._writer._queued)

    def assert_quiet(self) -> None:
        """Make sure that this thread has left nothing behind, and that whoever comes can write at once."""
        assert threading.get_ident() not in list(self.handle._storage._gate.inside.values())
        assert not self.handle._writer._leaders
        assert not self.handle._writer._queued
        Task(lambda: self.handle.change(lambda txn: None)).result()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep a write transaction of another thread open."""
        inside, go = threading.Event(), threading.Event()

        def operation(_txn: Transaction) -> None:
            inside.set()
            assert go.wait(WAIT_S)

        task = Task(lambda: self.handle.change(operation))
        assert inside.wait(WAIT_S)
        try:
            yield
        finally:
            go.set()
        task.result()


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test whose main thread hangs: no other thread can."""

    def give_up(*_signal: object) -> None:
        raise TimeoutError("the main thread hangs")

    before = signal.signal(signal.SIGUSR1, give_up)
    timer = threading.Timer(2 * WAIT_S, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment) -> Iterator[Opened]:
    """Set up a queue that does not wait for the disk."""
    environment = new_environment("a", "b", durability=Durability.PROCESS_CRASH, high_watermark=MANY)
    held = handle.acquire(environment.path)
    yield Opened(environment, environment.new_control(), environment.new_publisher(), environment.new_subscriber("a"),
                 held)
    handle.release(held)


@pytest.fixture(name="transactions")
def transactions_fixture(monkeypatch: pytest.MonkeyPatch) -> List[Transaction]:
    """List the write transactions that have begun."""
    begun: List[Transaction] = []
    begin = Database.begin

    def noting_begin(self: Database, txn: Transaction, write: bool) -> None:
        if write:
            begun.append(txn)
        begin(self, txn, write)

    monkeypatch.setattr(Database, "begin", noting_begin)
    return begun


def drained(subscriber: Subscriber) -> List[bytes]:
    """Take everything that is there for a subscriber."""
    return list(subscriber.messages(timeout=0, acknowledge_every=1000))


def numbered(sender: object, count: int) -> List[bytes]:
    """Give messages that tell who sends them and in which order."""
    return [f"{sender}:{number}".encode() for number in range(count)]


def by_sender(payloads: Sequence[bytes]) -> Dict[str, List[bytes]]:
    """Sort what :func:`numbered` gave by sender, in the order given."""
    found: Dict[str, List[bytes]] = collections.defaultdict(list)
    for payload in payloads:
        found[payload.decode().rpartition(":")[0]].append(payload)
    return found


# Many at once


def test_sixteen_threads_send_and_sixteen_receive(opened: Opened) -> None:
    """Each of 16 subscribers gets each message of 16 threads once, in the order of the ids and of each thread."""
    threads, each = 16, 100
    names = [f"subscriber {number}" for number in range(threads)]
    opened.environment.new_control(names)

    def receive(acknowledge_every: int, name: str) -> List[bytes]:
        messages = opened.environment.new_subscriber(name).messages(WAIT_S, acknowledge_every)
        received = list(itertools.islice(messages, threads * each))
        messages.close()  # type: ignore[attr-defined]  # a generator: its end takes what was received
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


def test_operations_of_waiting_threads_share_one_commit(opened: Opened, transactions: List[Transaction]) -> None:
    """What 16 threads want to write while another one writes is one transaction: sends, takes and control changes."""
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


def test_a_durable_change_makes_its_group_durable(opened: Opened, monkeypatch: pytest.MonkeyPatch,
                                                  transactions: List[Transaction]) -> None:
    """Where a control change shares a commit with relaxed sends, the commit goes to the disk before it returns."""
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


@pytest.mark.parametrize("bound", ["GROUP_MESSAGES_MAX", "GROUP_BYTES_MAX"])
def test_a_commit_takes_in_only_so_much(opened: Opened, transactions: List[Transaction],
                                        monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """A commit joins at most so many messages and bytes; what is over it goes into the next one."""
    monkeypatch.setattr(writer, bound, 10)
    with opened.writing():
        tasks = [Task(lambda: opened.publisher.send_many([b"x"] * 4)) for _ in range(6)]
        wait_until(lambda: opened.queued() == 6)
    assert sorted(len(task.result()) for task in tasks) == [4] * 6
    assert len(transactions) == 1 + 3
    assert opened.drain() == [b"x"] * 24


def test_more_than_a_commit_takes_in_goes_alone(opened: Opened, transactions: List[Transaction],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is alone over the bound of a commit is sent all the same, by itself."""
    monkeypatch.setattr(writer, "GROUP_MESSAGES_MAX", 10)
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
    """A send that fails gives LMDB's write lock back at once, however many threads look into the queue meanwhile."""
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


# Interrupts


class Point:
    """One of the points of an operation where Python looks for signals.

    These are the beginnings of functions and the returns from C; the steps of loops are left to the storms.
    """

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left = number
        self._action = action
        self.reached = False

    def run(self, function: Callable[[], T]) -> T:
        """Run an operation, with the action where it reaches the point."""
        sys.setprofile(self._profile)
        try:
            return function()
        finally:
            sys.setprofile(None)

    def _profile(self, frame: types.FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self._left < 0:
                sys.setprofile(None)
                self.reached = True
                self._action()


def interrupt(*_signal: object) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def interrupted_everywhere(operation: Callable[[], object], after: Callable[[bool], None]) -> None:
    """Interrupt an operation at each of its points in turn.

    :param after: called each time, with whether the operation returned
    """
    for number in itertools.count():
        point = Point(number, interrupt)
        try:
            point.run(operation)
            returned = True
        except KeyboardInterrupt:
            returned = False
        after(returned)
        if not point.reached:
            return


class Accounts:
    """Which messages must be stored, and which may be."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._numbers = itertools.count()
        self.sent: Set[bytes] = set()
        self.unknown: Set[bytes] = set()

    def send(self, publisher: Optional[Publisher] = None) -> int:
        """Send a message of its own, and note what became of it."""
        payload = b"%d" % next(self._numbers)
        self.unknown.add(payload)
        message_id = (publisher or self._opened.publisher).send(payload)
        self.sent.add(payload)
        return message_id

    def check(self) -> None:
        """Hold what is stored against what was noted."""
        stored = collections.Counter(self._opened.drain())
        assert stored.keys() >= self.sent
        assert stored.keys() <= self.unknown
        assert all(count == 1 for count in stored.values())


def test_interrupt_anywhere_in_a_send(opened: Opened) -> None:
    """Wherever KeyboardInterrupt strikes a send, no transaction stays open, and what was sent is there once."""
    accounts = Accounts(opened)
    interrupted_everywhere(accounts.send, lambda _: opened.assert_quiet())
    assert len(accounts.unknown) > 50
    accounts.check()


def test_interrupt_anywhere_in_a_receive(opened: Opened) -> None:
    """Wherever KeyboardInterrupt strikes a receive, no transaction stays open; no message is skipped."""
    payloads = numbered("x", 1000)
    opened.publisher.send_many(payloads)
    received: List[bytes] = []

    def receive() -> None:
        with opened.subscriber.receive(timeout=0) as msg:
            assert msg is not None
            received.append(msg)

    interrupted_everywhere(receive, lambda _: opened.assert_quiet())
    assert [payload for payload, _ in itertools.groupby(received + opened.drain())] == payloads


@pytest.mark.parametrize("failing", [False, True])
def test_interrupt_anywhere_in_a_commit_for_others(opened: Opened, monkeypatch: pytest.MonkeyPatch,
                                                   failing: bool) -> None:
    """Wherever KeyboardInterrupt strikes who commits for others, they go on, and each message is there once."""
    monkeypatch.setattr(writer, "WAIT_S_MAX", 0.05)
    opened.control.set_hwm(HighWaterMark(hwm_db_size=50_000_000))
    accounts = Accounts(opened)
    leading = threading.get_ident()
    followers: List[Task[int]] = []
    refused: List[Task[int]] = []
    begin = Database.begin

    def begin_with_followers(self: Database, txn: Transaction, write: bool) -> None:
        begin(self, txn, write)
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

    monkeypatch.setattr(Database, "begin", begin_with_followers)
    interrupted_everywhere(accounts.send, after)
    accounts.check()


def test_interrupt_anywhere_in_a_wait_for_another_ones_commit(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever KeyboardInterrupt strikes who waits for the commit of another thread, that one and others go on."""
    monkeypatch.setattr(writer, "WAIT_S_MAX", 0.05)
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


@pytest.mark.parametrize("readers", [0, 2])
def test_interrupt_anywhere_in_a_change_of_durability(opened: Opened, readers: int) -> None:
    """Wherever KeyboardInterrupt strikes while the queue is reopened, all threads go on."""
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


@contextlib.contextmanager
def alarm_handler(handler: Callable[..., None]) -> Iterator[None]:
    """Have a function called by each alarm; none is left over afterwards."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Sender(Task[List[bytes]]):
    """A thread that sends all the time, and how long it had to wait at most."""

    def __init__(self, publisher: Publisher, name: str, stop: threading.Event) -> None:
        self.longest_s = 0.0
        self._publisher = publisher
        self._name = name
        self._stop = stop
        super().__init__(self._send)

    def _send(self) -> List[bytes]:
        sent: List[bytes] = []
        while not self._stop.is_set():
            payload = f"{self._name}:{len(sent)}".encode()
            start = time.monotonic()
            self._publisher.send(payload)
            self.longest_s = max(self.longest_s, time.monotonic() - start)
            sent.append(payload)
        return sent


@pytest.mark.long
def test_storm_of_interrupts(opened: Opened) -> None:
    """Thousands of KeyboardInterrupts in one thread neither stop the others nor lose or double what they send."""
    stop = threading.Event()
    senders = [Sender(opened.publisher, str(number), stop) for number in range(3)]
    subscriber = opened.environment.new_subscriber("b")
    accounts = Accounts(opened)
    received: List[bytes] = []
    hits = 0

    def receive() -> None:
        with subscriber.receive_many(max_messages=50, timeout=1) as msgs:
            received.extend(msgs)

    chance = random.Random(1)
    deadline = time.monotonic() + STORM_S
    with alarm_handler(interrupt):
        while time.monotonic() < deadline:
            operation: Callable[[], object] = accounts.send if chance.random() < 0.5 else receive
            try:
                # Once, so that no second one strikes what cleans up after the first.
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.000001, 0.003))
                try:
                    operation()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
    stop.set()
    sent = [sender.result() for sender in senders]
    assert hits > 100
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
    """Leave out what came again after an interrupt; each repetition begins at a message that was not yet taken."""
    places = {payload: place for place, payload in enumerate(expected)}
    result: List[bytes] = []
    for payload in received:
        if places[payload] == len(result):
            result.append(payload)
        else:
            assert places[payload] < len(result)
    return result


# Signal handlers


@pytest.mark.long
def test_a_handler_in_the_midst_of_a_send(opened: Opened) -> None:
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
    assert len(outcomes) == 2 and "set a flag" in str(outcomes[0]) and outcomes[1] == b"before"
    assert opened.drain() == [b"before"]


@pytest.mark.long
def test_a_handler_in_the_midst_of_a_wait(opened: Opened) -> None:
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


def everywhere(operation: Callable[[], object], action: Callable[[], None]) -> int:
    """Do something at each point of an operation in turn; give the number of points."""
    for number in itertools.count():
        point = Point(number, action)
        point.run(operation)
        if not point.reached:
            return number
    raise AssertionError


def reopen_and_send(opened: Opened, send: Callable[[], object]) -> Callable[[], None]:
    """Give a function that reopens the queue each time it sends."""
    durabilities = itertools.cycle(Durability)

    def operation() -> None:
        opened.environment.new_control(durability=next(durabilities))
        send()

    return operation


@pytest.mark.parametrize("kind", ["send", "receive", "reopen"])
@pytest.mark.long
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
@pytest.mark.long
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


@pytest.mark.long
def test_storm_of_handlers_that_send(opened: Opened) -> None:
    """A handler that sends, whatever it interrupts and while others send, never hangs; what it sent is there once."""
    stop = threading.Event()
    senders = [Sender(opened.publisher, str(number), stop) for number in range(2)]
    accounts, handled = Accounts(opened), Accounts(opened)
    handled._numbers = itertools.count(10**9)
    chance = random.Random(2)
    refused = 0

    def handler(*_signal: object) -> None:
        nonlocal refused
        try:
            handled.send()
        except errors.ReentryError:
            refused += 1
        # Only now, so that handlers do not interrupt each other without end.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002))

    deadline = time.monotonic() + STORM_S / 3
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


# Processes that die


def write_and_die(connection: Connection, path: pathlib.Path, by_itself: bool) -> None:
    """End in the midst of a write: the main function of a process."""

    def operation(_txn: Transaction) -> None:
        connection.send(os.getpid())
        if by_itself:
            os._exit(0)
        told(connection)

    opened = handle.acquire(path)
    publisher = persipubsub.new_environment(path).new_publisher()
    waiting = threading.Thread(target=publisher.send, args=(b"never", ), daemon=True)

    def operation_with_follower(txn: Transaction) -> None:
        waiting.start()
        wait_until(lambda: len(opened._writer._queued) == 1)
        operation(txn)

    publisher.send(b"sent")
    opened.change(operation_with_follower)


@pytest.mark.parametrize("by_itself", [True, False])
@pytest.mark.long
def test_a_process_that_dies_in_the_midst_of_a_write(opened: Opened, by_itself: bool) -> None:
    """A process that ends by os._exit or kill -9 in the midst of a write stops nobody and loses nothing it sent."""
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


# The history of concurrent operations


class Send(NamedTuple):
    """A send that returned, and when; times are those of one clock for all processes."""

    invoked_ns: int
    responded_ns: int
    ids: Sequence[int]


class Receive(NamedTuple):
    """A receive of one subscriber, and when."""

    invoked_ns: int
    responded_ns: int
    kind: str
    ids: Sequence[int]
    full: bool  # whether it could not give more


def random_sends(publisher: Publisher, chance: random.Random, name: str, count: int) -> List[Tuple[Send, List[bytes]]]:
    """Send single messages and batches."""
    history = []
    for number in range(count):
        payloads = numbered(f"{name}/{number}", chance.choice([1, 1, 1, 2, 5]))
        start = time.monotonic_ns()
        ids = [publisher.send(payloads[0])] if len(payloads) == 1 else publisher.send_many(payloads)
        history.append((Send(start, time.monotonic_ns(), list(ids)), payloads))
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.002))
    return history


def random_receives(subscriber: Subscriber, chance: random.Random, count: int) -> List[Tuple[Receive, List[bytes]]]:
    """Receive in all ways."""
    history = []
    for _ in range(count):
        kind = chance.choice(["receive", "receive", "many", "many", "top"])
        timeout, limit = chance.choice([0, 0, 0.005]), chance.choice([1, 3, 100])
        start = time.monotonic_ns()
        msgs: Sequence[Optional[bytes]]
        if kind == "many":
            with subscriber.receive_many(max_messages=limit, timeout=timeout) as batch:
                msgs, end = batch, time.monotonic_ns()
        else:
            call = subscriber.receive if kind == "receive" else subscriber.receive_to_top
            limit = 1
            with call(timeout=timeout) as msg:
                msgs, end = [msg], time.monotonic_ns()
        payloads = [msg for msg in msgs if msg is not None]
        history.append((Receive(start, end, kind, [], len(payloads) == limit), payloads))
    return history


def random_history(connection: Connection, path: pathlib.Path, seed: str) -> None:
    """Send and receive from several threads at once: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        connection.send("ready")
        told(connection)
        senders = [
            Task(lambda name=name: random_sends(publisher, random.Random(name), name, 60))  # type: ignore[misc]
            for name in (f"{seed} sender {number}" for number in range(2))
        ]
        receivers = {
            name:
            Task(lambda name=name: random_receives(  # type: ignore[misc]
                environment.new_subscriber(name), random.Random(seed + name), 150))
            for name in (f"{seed} subscriber {number}" for number in range(2))
        }
        connection.send(([sender.result() for sender in senders], {
            name: receiver.result()
            for name, receiver in receivers.items()
        }))


def check_sends(sends: Sequence[Send]) -> None:
    """Verify that ids are unique, together in a batch, and follow the order of sends that do not overlap."""
    ids = sorted(message_id for send in sends for message_id in send.ids)
    assert ids == list(range(1, len(ids) + 1))
    assert all(list(send.ids) == list(range(send.ids[0], send.ids[0] + len(send.ids))) for send in sends)
    by_invocation = sorted(sends)
    by_response = sorted(sends, key=lambda send: send.responded_ns)
    ended, highest = 0, 0
    for send in by_invocation:
        while by_response[ended].responded_ns < send.invoked_ns:
            highest = max(highest, by_response[ended].ids[-1])
            ended += 1
        assert send.ids[0] > highest


def check_receives(receives: Sequence[Receive], sends: Sequence[Send]) -> None:
    """Verify that one subscriber got the messages in order, and saw in each receive all that was sent before it."""
    invoked = {message_id: send.invoked_ns for send in sends for message_id in send.ids}
    next_id = 1
    for receive in receives:
        sent_before = max((send.ids[-1] for send in sends if send.responded_ns < receive.invoked_ns), default=0)
        if receive.kind == "top":
            assert not receive.ids or receive.ids[0] >= max(next_id, sent_before)
        else:
            assert list(receive.ids) == list(range(next_id, next_id + len(receive.ids)))
        assert all(invoked[message_id] < receive.responded_ns for message_id in receive.ids)
        if receive.ids:
            next_id = receive.ids[-1] + 1
        if not receive.full:
            assert next_id > sent_before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.long
def test_history_is_linearizable(opened: Opened, seed: int) -> None:
    """What was sent before send returned is seen by every later receive, of every thread and process, in one order."""
    seeds = [f"{seed}/{number}" for number in range(2)]
    opened.environment.new_control([f"{one} subscriber {number}" for one in seeds for number in range(2)])
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(process(random_history, opened.environment.path, one)) for one in seeds]
        for connection in connections:
            assert told(connection) == "ready"
        for connection in connections:
            connection.send("go")
        results = [told(connection) for connection in connections]
    sent: List[Tuple[Send,
                     List[bytes]]] = [pair for histories, _ in results for history in histories for pair in history]
    sends = [send for send, _ in sent]
    ids = {payload: message_id for send, payloads in sent for payload, message_id in zip(payloads, send.ids)}
    check_sends(sends)
    assert [ids[payload] for payload in opened.drain()] == list(range(1, len(ids) + 1))
    for name, history in [pair for _, receivers in results for pair in receivers.items()]:
        last = Receive(time.monotonic_ns(), 2**63, "rest", [], False)
        history.append((last, drained(opened.environment.new_subscriber(name))))
        check_receives([receive._replace(ids=[ids[payload] for payload in payloads]) for receive, payloads in history],
                       sends)
