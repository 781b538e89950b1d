"""What the tests of threads, interrupts, signal handlers and forks share: threads, processes, and a queue to use."""

# pylint: disable=protected-access  # no public method shows what an operation leaves behind

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
from typing import Any, Callable, Dict, Generic, Iterator, List, NamedTuple, Optional, Sequence, Set, TypeVar

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Environment, HighWaterMark, Publisher, Subscriber
from persipubsub.lmdb_engine.engine import LmdbEngine
from persipubsub.lmdb_engine.process import group_commit
from persipubsub.lmdb_engine.records.transaction import Transaction

T = TypeVar("T")
MakeEnvironment = Callable[..., Environment]

WAIT_S = 60  # for what happens soon unless something is broken
LOOK_S = 0.0005
#: What a thread may have to wait when another one was interrupted: it looks again after a second. A busy machine adds.
HELD_UP_S_MAX = group_commit.WAIT_S_MAX + 4
PACKAGE = os.path.dirname(persipubsub.__file__)
TESTS = os.path.dirname(__file__)
#: What measures the coverage, and what Python does before and after a fork, do not survive an interrupt. In what
#: hypothesis has the garbage collector call it would be lost, with a warning.
NOT_INTERRUPTED = [f"{os.sep}coverage{os.sep}", f"{os.sep}logging{os.sep}", f"{os.sep}hypothesis{os.sep}"]
#: More than any test sends.
MANY = HighWaterMark(max_messages=2**40)

#: How long a storm lasts, and how often one forks.
STORMS_S = [1, pytest.param(20, marks=pytest.mark.long)]
STORMS_FORKS = [30, pytest.param(300, marks=pytest.mark.long)]

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

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._future.done()

    def exception(self) -> Optional[BaseException]:
        """Wait for the end; return the exception with which it ended, if any."""
        return self._future.exception(WAIT_S)

    def result(self) -> T:
        """Wait for the end; return or raise its result."""
        return self._future.result(WAIT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what happens soon unless something is broken."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)


@contextlib.contextmanager
def process(function: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in a process that is no child of this one, with a connection to it. It has to end well."""
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
    """Return what another process says."""
    assert connection.poll(WAIT_S)
    return connection.recv()


def hold_write_lock(connection: Connection, *paths: pathlib.Path) -> None:
    """Keep LMDB's write locks of queues: the main function of a process."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            raw = stack.enter_context(lmdb.Environment(os.fspath(path), create=False, max_readers=1024, max_dbs=32))
            stack.enter_context(raw.begin(write=True))
        connection.send("held")
        told(connection)


def send_from_a_process(_connection: Connection, path: pathlib.Path, payload: bytes) -> None:
    """Send a message: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(payload)


class Opened(NamedTuple):
    """A queue with the subscribers "a", "b" and "all", and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber  # "a"
    handle: LmdbEngine

    def send(self, payload: bytes) -> Callable[[], int]:
        """Return a function that sends a message."""
        return lambda: self.publisher.send(payload)

    def drain(self) -> List[bytes]:
        """Receive and acknowledge everything that is there for "a"."""
        return drained(self.subscriber)

    def sent(self) -> List[bytes]:
        """Return everything that was sent: nobody else receives what is for "all"."""
        return drained(self.environment.new_subscriber("all"))

    def queued(self) -> int:
        """Return how many operations wait for the one that is going on."""
        return len(self.handle._writer._queued)

    def is_led(self) -> bool:
        """Return whether a thread is running, or about to run, operations."""
        return bool(self.handle._writer._leaders)

    def is_used(self) -> bool:
        """Return whether a transaction is going on in this process."""
        return bool(self.handle._session._gate.inside)

    def assert_quiet(self) -> None:
        """Make sure that this thread has left nothing behind, and that whoever comes can write at once."""
        assert threading.get_ident() not in list(self.handle._session._gate.inside.values())
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


def drained(subscriber: Subscriber) -> List[bytes]:
    """Receive and acknowledge everything that is there for a subscriber."""
    return list(subscriber.messages(timeout=0, acknowledge_every=1000))


def numbered(sender: object, count: int) -> List[bytes]:
    """Return messages that say which sender sent them, and in which order."""
    return [f"{sender}:{number}".encode() for number in range(count)]


def by_sender(payloads: Sequence[bytes]) -> Dict[str, List[bytes]]:
    """Sort what :func:`numbered` gave by sender, in the order given."""
    found: Dict[str, List[bytes]] = collections.defaultdict(list)
    for payload in payloads:
        found[payload.decode().rpartition(":")[0]].append(payload)
    return found


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


# Points of an operation


class Point:
    """One of the points of an operation where Python looks for signals.

    These are the beginnings of functions and the returns from C; the steps of loops are left to the storms.
    """

    def __init__(self, number: int, action: Callable[[], object]) -> None:
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


def everywhere(operation: Callable[[], object], action: Callable[[], object]) -> int:
    """Do something at each point of an operation in turn; return the number of points."""
    for number in itertools.count():
        point = Point(number, action)
        point.run(operation)
        if not point.reached:
            return number
    raise AssertionError


def holds_foreign_lock(frame: Optional[types.FrameType]) -> bool:
    """Return whether a signal came while a lock may be held that others, or the handler itself, need."""
    while frame is not None and not frame.f_code.co_filename.startswith((PACKAGE, TESTS)):
        if any(name in frame.f_code.co_filename for name in NOT_INTERRUPTED):
            return True
        frame = frame.f_back
    return False


def interrupt(_signal: int = 0, frame: Optional[types.FrameType] = None) -> None:
    """Do what Ctrl-C does, unless that could leave a lock held for ever."""
    if not holds_foreign_lock(frame):
        raise KeyboardInterrupt


def serve_uses(connection: Connection, path: pathlib.Path) -> None:
    """Open, send, receive and close each time when told to, until told None: the main function of a process."""
    while (payload := told(connection)) is not None:
        with persipubsub.new_environment(path) as environment:
            environment.new_publisher().send(payload)
            received = drained(environment.new_subscriber("all"))
        connection.send(received[-1:] == [payload])


def interrupted_everywhere(operation: Callable[[], object], after: Callable[[bool], None]) -> None:
    """Interrupt an operation at each of its points in turn; each interrupt ends it, none is swallowed.

    :param after: called each time, with whether the operation returned
    """
    for number in itertools.count():
        point = Point(number, interrupt)
        try:
            point.run(operation)
            returned = True
        except KeyboardInterrupt:
            returned = False
        assert returned != point.reached
        after(returned)
        if not point.reached:
            return


def interrupted_at_random(operations: Sequence[Callable[[], object]], storm_s: float, seed: int = 1) -> int:
    """Run operations for a while and interrupt each at a random moment; return how often that happened."""
    chance = random.Random(seed)
    deadline = time.monotonic() + storm_s
    hits = 0
    with alarm_handler(interrupt):
        while time.monotonic() < deadline:
            try:
                # Once, so that no second one interrupts what cleans up after the first.
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.000001, 0.003))
                try:
                    chance.choice(operations)()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
    return hits


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
        """Compare what is stored with the notes."""
        stored = collections.Counter(self._opened.drain())
        assert stored.keys() >= self.sent
        assert stored.keys() <= self.unknown
        assert all(count == 1 for count in stored.values())
