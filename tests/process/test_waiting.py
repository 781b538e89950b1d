"""Waiting: a commit wakes whoever waits, in any process, and waiting costs nothing until then."""

# pylint: disable=protected-access  # no public method shows the order of the steps of a wake-up

import itertools
import logging
import os
import pathlib
import random
import resource
import signal
import struct
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Callable, Dict, List, Optional, Tuple

import pytest

import persipubsub
from persipubsub import Durability, Environment, clock, errors
from persipubsub.engine import limits
from persipubsub.lmdb_engine.process import futex, wakeup
from persipubsub.lmdb_engine.process.wakeup import FutexWatch, Wakeup
from tests.concurrency import WAIT_S, process, told

pytestmark = pytest.mark.slow  # starts many processes, or waits

MakeEnvironment = Callable[..., Environment]

#: Where only a wake-up may end a wait, not the look that is acknowledged each second in any case.
SLEEP_S_NEVER = 10 * WAIT_S
#: No sleep is longer than a second. A busy machine adds.
FOUND_S_MAX = limits.SLEEP_S_MAX + 1
WAITERS = 200
CPU_S_MAX = 0.05
ROUNDS = 4000


def call_before_sleeping(function: Callable[[], None]) -> None:
    """Have a function called once in this process, just before somebody sleeps until it is woken."""
    calls = itertools.count()
    wait = futex.wait

    def calling_wait(address: int, expected: int, timeout_s: float) -> None:
        if next(calls) == 0:
            function()
        wait(address, expected, timeout_s)

    futex.wait = calling_wait


def sleep_until_woken() -> None:
    """Turn off the look of a waiting subscriber of this process once a second."""
    limits.SLEEP_S_MAX = SLEEP_S_NEVER


@pytest.fixture(name="until_woken")
def until_woken_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the look of a waiting subscriber once a second."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", SLEEP_S_NEVER)


@pytest.fixture(name="sleeping")
def sleeping_fixture(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set just before a waiting subscriber of this process sleeps."""
    sleeping = threading.Event()
    monkeypatch.setattr(futex, "wait", futex.wait)
    call_before_sleeping(sleeping.set)
    return sleeping


class Waiting:
    """A thread that waits for a message, and what came of it."""

    def __init__(self, environment: Environment, timeout: Optional[float] = WAIT_S) -> None:
        self.subscriber = environment.new_subscriber("a")
        self._timeout = timeout
        self._result: object = None
        self._ended_s = 0.0
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            with self.subscriber.receive(self._timeout) as msg:
                self._result = msg
        except errors.PersipubsubError as error:
            self._result = error
        self._ended_s = time.monotonic()

    def result(self) -> object:
        """Wait for the end; return what was received or raised."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self._result

    def ended_since_s(self, start_s: float) -> float:
        """Wait for the end; return the time from a moment to it."""
        self.result()
        return self._ended_s - start_s


# Publications

CHANGES: Dict[str, Tuple[bool, Callable[[Environment], object]]] = {
    "send": (True, lambda environment: environment.new_publisher().send(b"2")),
    "send_many": (True, lambda environment: environment.new_publisher().send_many([b"2", b"3"])),
    "remove": (True, lambda environment: environment.new_control().remove_subscriber("b")),
    "clear": (True, lambda environment: environment.new_control().clear_all_subscribers()),
    "take": (False, lambda environment: environment.new_subscriber("a").pop()),
    "add": (False, lambda environment: environment.new_control().add_subscriber("c")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_published(change: str, new_environment: MakeEnvironment) -> None:
    """A message or the end of a subscriber, for which somebody may wait, is published; nothing else wakes anybody."""
    environment = new_environment("a", "b", durability=Durability.PROCESS_CRASH)
    publishes, make = CHANGES[change]

    def published() -> bytes:
        return (environment.path / "wakeup").read_bytes()[:4]

    environment.new_publisher().send(b"1")
    before = published()
    make(environment)
    assert (published() != before) == publishes


# Many


def fork_waiters(connection: Connection, path: pathlib.Path, count: int) -> None:
    """Have many children wait, each as a subscriber of its own: the main function of a process."""
    sleep_until_woken()
    ready, woken = os.pipe(), os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(2 * WAIT_S)
                wait_once(path, f"waiter {number}", ready[1], woken[1])
                status = 0
            except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    os.close(ready[1])
    os.close(woken[1])
    with open(ready[0], "rb") as ready_file:
        connection.send(len(ready_file.read(count)))
    with open(woken[0], "rb") as woken_file:
        connection.send([times[0] for times in struct.iter_unpack("Q", woken_file.read())])
    connection.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def wait_once(path: pathlib.Path, name: str, ready_fd: int, woken_fd: int) -> None:
    """Wait as a subscriber; write to one pipe before the sleep and to the other when woken."""

    def tell() -> None:
        os.write(ready_fd, b"x")

    call_before_sleeping(tell)
    with persipubsub.new_environment(path) as environment:
        with environment.new_subscriber(name).receive(timeout=WAIT_S) as msg:
            woken_ns = time.monotonic_ns()
        assert msg == b"wake up"
    # So short a write to a pipe is not mixed with those of others.
    os.write(woken_fd, struct.pack("Q", woken_ns))


@pytest.mark.parametrize("durability", Durability)
def test_one_send_wakes_200_processes(new_environment: MakeEnvironment, durability: Durability) -> None:
    """One send wakes 200 processes, each within a second, and each gets the message."""
    names = [f"waiter {number}" for number in range(WAITERS)]
    environment = new_environment(*names, durability=durability)
    publisher = environment.new_publisher()
    with process(fork_waiters, environment.path, WAITERS) as connection:
        assert told(connection) == WAITERS
        start_ns = time.monotonic_ns()
        publisher.send(b"wake up")
        delays_s = [(woken_ns - start_ns) / 1e9 for woken_ns in told(connection)]
        assert told(connection) == [0] * WAITERS
    assert len(delays_s) == WAITERS
    assert max(delays_s) < 1
    assert environment.new_control().status().messages == 0


# What waiting costs


def measure_waiting(connection: Connection, path: pathlib.Path) -> None:
    """Wait for nothing and report the processor time of the wait: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        subscriber = environment.new_subscriber("a")
        with subscriber.receive(timeout=0.01):
            pass
        before = resource.getrusage(resource.RUSAGE_SELF)
        with subscriber.receive(timeout=2.5) as msg:
            assert msg is None
        after = resource.getrusage(resource.RUSAGE_SELF)
    connection.send(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def test_waiting_takes_no_processor_time(new_environment: MakeEnvironment) -> None:
    """A process that waits for some seconds uses less than 50 ms of processor time, also while nobody wakes it."""
    with process(measure_waiting, new_environment("a").path) as connection:
        assert told(connection) < CPU_S_MAX


def test_a_wait_for_nothing_ends_in_time(new_environment: MakeEnvironment) -> None:
    """A wait without a message ends with None, not before its timeout."""
    subscriber = new_environment("a").new_subscriber("a")
    start_s = time.monotonic()
    with subscriber.receive(timeout=0.2) as msg:
        assert msg is None
    assert time.monotonic() - start_s >= 0.2


# No wake-up is missed


def answer(connection: Connection, path: pathlib.Path, rounds: int) -> None:
    """Answer each message by another one: the main function of a process."""
    sleep_until_woken()
    chance = random.Random(1)
    with persipubsub.new_environment(path / "there") as there, persipubsub.new_environment(path / "back") as back:
        subscriber, publisher = there.new_subscriber("a"), back.new_publisher()
        connection.send("ready")
        for _ in range(rounds):
            with subscriber.receive(timeout=WAIT_S) as msg:
                assert msg is not None
            spin(chance)
            publisher.send(msg)


def spin(chance: random.Random) -> None:
    """Let a moment pass, so that the other side is now asleep, now about to be."""
    end_ns = time.perf_counter_ns() + chance.choice([0, 0, chance.randrange(300_000)])
    while time.perf_counter_ns() < end_ns:
        pass


@pytest.mark.usefixtures("until_woken")
def test_no_wakeup_is_missed(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """Two processes that wait for each other thousands of times are woken each time, nearly always soon."""
    there = new_environment("a", name="there", durability=Durability.PROCESS_CRASH)
    back = new_environment("a", name="back", durability=Durability.PROCESS_CRASH)
    publisher, subscriber = there.new_publisher(), back.new_subscriber("a")
    chance = random.Random(2)
    delays_s = []
    with process(answer, tmp_path, ROUNDS) as connection:
        assert told(connection) == "ready"
        for number in range(ROUNDS):
            start_s = time.monotonic()
            publisher.send(b"%d" % number)
            with subscriber.receive(timeout=WAIT_S) as msg:
                assert msg == b"%d" % number
            delays_s.append(time.monotonic() - start_s)
            spin(chance)
    assert sorted(delays_s)[ROUNDS * 99 // 100] < 0.5
    assert sum(delays_s) < ROUNDS * 0.01


@pytest.mark.usefixtures("until_woken")
def test_no_wakeup_is_missed_by_threads(new_environment: MakeEnvironment) -> None:
    """Threads that wait as several subscribers for what several threads send are woken each time."""
    senders, each, names = 3, 300, ["a", "b", "c"]
    environment = new_environment(*names, durability=Durability.PROCESS_CRASH)
    publisher = environment.new_publisher()
    received: Dict[str, int] = {}

    def receive(name: str) -> None:
        messages = environment.new_subscriber(name).messages(WAIT_S)
        received[name] = sum(1 for _ in itertools.islice(messages, senders * each))

    def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(each):
            publisher.send(b"x")
            spin(chance)

    threads = [threading.Thread(target=receive, args=(name, ), daemon=True) for name in names]
    threads += [threading.Thread(target=send, args=(seed, ), daemon=True) for seed in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert received == {name: senders * each for name in names}


class Memory:
    """The two words of the file ``wakeup``, with something that happens just before one of the accesses to them."""

    def __init__(self) -> None:
        self._words = [0, 0]
        self._accesses_left = -1
        self._action: Callable[[], object] = lambda: None

    def before_access(self, number: int, action: Callable[[], object]) -> None:
        """Do something before the given one of the accesses from now on."""
        self._accesses_left, self._action = number, action

    def access(self) -> None:
        """Count an access; others may come in between."""
        self._accesses_left -= 1
        if self._accesses_left == -1:
            self._action()

    def __getitem__(self, index: int) -> int:
        self.access()
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.access()
        self._words[index] = value

    def read(self, index: int) -> int:
        """Look at a word, which is no access."""
        return self._words[index]

    def write(self, index: int, value: int) -> None:
        """Set a word, which is no access."""
        self._words[index] = value


class Interleaving:
    """A publisher and a waiting subscriber, in one process, whose steps happen in an order that the test chooses."""

    def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wakeup = Wakeup(path, 0o600)
        self.memory = Memory()
        words = self._wakeup.words
        assert words is not None
        monkeypatch.setattr(words, "_words", self.memory)
        monkeypatch.setattr(futex, "wake", self._wake)
        monkeypatch.setattr(futex, "wait", self._wait)
        self._watch = self._wakeup.watch(1)
        assert isinstance(self._watch, FutexWatch)
        self.committed = 0
        self.asleep = False
        self._seen = 0

    def publish(self) -> None:
        """Commit, and wake those who wait."""
        self.committed += 1
        self._wakeup.notify(self.committed)

    def wait(self) -> None:
        """Look, and sleep if there is nothing new since the last look."""
        self._watch.arm()
        found = self._look()
        if self._seen == found:
            self._watch.wait(1)
        self._seen = found

    def _look(self) -> int:
        return self.committed

    def _wait(self, address: int, expected: int, timeout_s: float) -> None:
        del address, timeout_s
        # What the kernel does in one step.
        self.asleep = self.memory.read(0) == expected

    def _wake(self, address: int) -> None:
        del address
        self.asleep = False


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_every_order_of_steps(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int) -> None:
    """However the steps of two publishers and a waiting subscriber interleave, nobody sleeps on.

    While one publisher wakes, somebody comes to wait, finds its message and comes again, and another one publishes.
    """
    one = Interleaving(tmp_path, monkeypatch)
    one.wait()
    assert one.asleep

    def come_and_publish() -> None:
        one.asleep = False  # it happened to look
        one.wait()
        one.wait()
        one.memory.before_access(second, one.publish)

    one.memory.before_access(first, come_and_publish)
    one.publish()
    one.memory.before_access(-1, one.publish)
    if one.committed == 1:  # there were fewer steps than that
        one.publish()
    assert not one.asleep


class Turns:
    """Decides which of several threads makes the next step. At the end of the order, any thread may."""

    def __init__(self, order: List[str]) -> None:
        self._order = order
        self._moving: Optional[str] = None
        self._changed = threading.Condition()

    def step(self) -> None:
        """Wait for the turn of this thread, which lasts until its next step."""
        name = threading.current_thread().name
        with self._changed:
            self._end(name)
            assert self._changed.wait_for(lambda: self._moving is None and (not self._order or self._order[0] == name),
                                          WAIT_S)
            self._moving = name

    def leave(self) -> None:
        """Make no more steps with this thread."""
        name = threading.current_thread().name
        with self._changed:
            self._end(name)
            self._order = [other for other in self._order if other != name]
            self._changed.notify_all()

    def _end(self, name: str) -> None:
        if self._moving == name:
            self._moving = None
            del self._order[:1]
            self._changed.notify_all()


class Ordered(Interleaving):
    """A publisher and a waiting subscriber, in two threads whose steps are in a given order."""

    def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path, monkeypatch)
        self._turns = Turns([])
        monkeypatch.setattr(self.memory, "access", lambda: self._turns.step())  # pylint: disable=unnecessary-lambda

    def run(self, order: List[str]) -> None:
        """Publish something while somebody comes to wait, looks, and sleeps once there is nothing more."""
        self._turns = Turns(order)
        threads = [
            threading.Thread(target=self._leaving, args=(function, ), name=name)
            for name, function in (("publisher", self.publish), ("waiter", self._wait_until_asleep))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._turns = Turns([])

    def has_seen_all(self) -> bool:
        """Return whether the waiting thread has found what was published."""
        return self._seen == self.committed

    def _leaving(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self._turns.leave()

    def _wait_until_asleep(self) -> None:
        self.asleep = False
        while not self.asleep and self._seen < 2:
            self.wait()

    def publish(self) -> None:
        self._turns.step()
        super().publish()

    def _look(self) -> int:
        self._turns.step()
        return super()._look()

    def _wait(self, address: int, expected: int, timeout_s: float) -> None:
        self._turns.step()
        super()._wait(address, expected, timeout_s)

    def _wake(self, address: int) -> None:
        self._turns.step()
        super()._wake(address)


@pytest.mark.parametrize("waiting", [0, 1])
def test_every_order_of_the_steps_of_two_threads(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
                                                 waiting: int) -> None:
    """However a publisher and a thread that comes to wait interleave, the next publication wakes it.

    :param waiting: whether somebody has waited before
    """
    publisher_steps, steps = 5, 13
    for places in itertools.combinations(range(steps), publisher_steps):
        one = Ordered(tmp_path, monkeypatch)
        one.memory.write(1, waiting)
        one.run(["publisher" if place in places else "waiter" for place in range(steps)])
        assert not one.asleep or one.has_seen_all(), places
        one.publish()
        assert not one.asleep, places


@pytest.mark.parametrize("step", range(3))
def test_a_publication_while_somebody_comes_to_wait(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
                                                    step: int) -> None:
    """A thread that comes to wait during a publication finds it or does not sleep."""
    one = Interleaving(tmp_path, monkeypatch)
    one.memory.before_access(step, one.publish)
    one.wait()
    if not one.committed:
        assert one.asleep
        one.publish()
    assert not one.asleep


def test_nobody_is_woken_where_nobody_waits(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A send asks the kernel to wake somebody only if somebody may be asleep."""
    woken: List[int] = []
    monkeypatch.setattr(futex, "wake", woken.append)
    environment = new_environment("a")
    publisher = environment.new_publisher()
    publisher.send(b"x")
    assert not woken
    with environment.new_subscriber("a").receive(timeout=0) as msg:
        assert msg == b"x"
    with environment.new_subscriber("a").receive(timeout=0.01) as msg:
        assert msg is None
    publisher.send_many([b"y", b"z"])
    publisher.send(b"z")
    assert len(woken) == 1


# What else ends a wait


def wait_for_removal(connection: Connection, path: pathlib.Path) -> None:
    """Wait as a subscriber that is removed meanwhile: the main function of a process."""
    sleep_until_woken()
    call_before_sleeping(lambda: connection.send("asleep"))
    with persipubsub.new_environment(path) as environment:
        try:
            with environment.new_subscriber("a").receive(timeout=None):
                connection.send("received")
        except errors.UnknownSubscriberError as error:
            connection.send(str(error))


@pytest.mark.parametrize("method", ["remove_subscriber", "clear_all_subscribers"])
def test_removal_wakes_a_waiting_subscriber(new_environment: MakeEnvironment, method: str) -> None:
    """Removing a subscriber ends the wait of another process at once, with an error that says so."""
    environment = new_environment("a", "b")
    control = environment.new_control()
    with process(wait_for_removal, environment.path) as connection:
        assert told(connection) == "asleep"
        getattr(control, method)(*(["a"] if method == "remove_subscriber" else []))
        assert "'a' was removed" in told(connection)


@pytest.mark.parametrize("closed", ["environment", "subscriber"])
@pytest.mark.parametrize("timeout", [WAIT_S, None])
def test_close_ends_a_wait(new_environment: MakeEnvironment, sleeping: threading.Event, closed: str,
                           timeout: Optional[float]) -> None:
    """A receive that waits ends with ClosedError within about a second when another thread closes what it uses."""
    environment = new_environment("a")
    waiting = Waiting(environment, timeout)
    assert sleeping.wait(WAIT_S)
    start_s = time.monotonic()
    (environment if closed == "environment" else waiting.subscriber).close()
    assert isinstance(waiting.result(), errors.ClosedError)
    assert waiting.ended_since_s(start_s) < FOUND_S_MAX


def test_a_signal_does_not_end_a_wait(new_environment: MakeEnvironment, sleeping: threading.Event) -> None:
    """A signal whose handler returns interrupts the sleep, not the wait."""
    environment = new_environment("a")
    handled = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    main = threading.get_ident()

    def disturb_and_send() -> None:
        assert sleeping.wait(WAIT_S)
        for _ in range(5):
            handled.clear()
            signal.pthread_kill(main, signal.SIGUSR1)
            assert handled.wait(WAIT_S)
        environment.new_publisher().send(b"sent")

    thread = threading.Thread(target=disturb_and_send, daemon=True)
    thread.start()
    try:
        with environment.new_subscriber("a").receive(timeout=WAIT_S) as msg:
            assert msg == b"sent"
    finally:
        thread.join(WAIT_S)
        signal.signal(signal.SIGUSR1, before)


# Where no wake-up comes


def test_a_publisher_that_dies_before_it_wakes(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch,
                                               sleeping: threading.Event) -> None:
    """A message whose publisher was killed between commit and wake-up is found within about a second."""
    monkeypatch.setattr(Wakeup, "notify", lambda self, transaction_id: None)
    environment = new_environment("a")
    publisher = environment.new_publisher()
    waiting = Waiting(environment)
    assert sleeping.wait(WAIT_S)
    start_s = time.monotonic()
    publisher.send(b"silent")
    assert waiting.result() == b"silent"
    assert waiting.ended_since_s(start_s) < FOUND_S_MAX


def test_without_futex_a_wait_polls(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch,
                                    caplog: pytest.LogCaptureFixture) -> None:
    """On a platform without futex a waiting subscriber polls, and the log says so once."""
    monkeypatch.setattr(futex, "AVAILABLE", False)
    looks: List[float] = []
    sleep = clock.sleep

    def noting_sleep(seconds: float) -> None:
        looks.append(seconds)
        sleep(seconds)

    with caplog.at_level(logging.WARNING):
        environment = new_environment("a", durability=Durability.PROCESS_CRASH)
        monkeypatch.setattr(clock, "sleep", noting_sleep)
        publisher = environment.new_publisher()
        with persipubsub.new_environment(environment.path) as other:
            for number in range(5):
                waiting = Waiting(other)
                publisher.send(b"%d" % number)
                assert waiting.result() == b"%d" % number
        with environment.new_subscriber("a").receive(timeout=0.3) as msg:
            assert msg is None
    assert [record for record in caplog.records if "There is no wake-up" in record.message] == caplog.records[:1]
    assert "no futex" in caplog.text and str(environment.path) in caplog.text
    assert len(looks) > 10
    assert 0 < min(looks) and max(looks) <= wakeup.POLLING_DELAY_S_MAX


def test_retries_bound_the_sleep_without_futex(new_environment: MakeEnvironment,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wake-up a subscriber looks at least as often as its retries say."""
    monkeypatch.setattr(futex, "AVAILABLE", False)
    looks: List[float] = []
    sleep = clock.sleep

    def noting_sleep(seconds: float) -> None:
        looks.append(seconds)
        sleep(seconds)

    subscriber = new_environment("a").new_subscriber("a")
    monkeypatch.setattr(clock, "sleep", noting_sleep)
    with subscriber.receive(timeout=0.1, retries=100) as msg:
        assert msg is None
    assert max(looks) <= 0.001


def test_where_the_wakeup_file_cannot_be_made(new_environment: MakeEnvironment, tmp_path: pathlib.Path,
                                              caplog: pytest.LogCaptureFixture) -> None:
    """If ``wakeup`` is no regular file, the queue works by polling, and the log says so."""
    (tmp_path / "queue" / "wakeup").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        environment = new_environment("a")
    waiting = Waiting(environment)
    environment.new_publisher().send(b"sent")
    assert waiting.result() == b"sent"
    assert "There is no wake-up" in caplog.text


def test_interrupts_in_a_row(tmp_path: pathlib.Path) -> None:
    """A sleep that was prepared before two interrupts, and begins after them, ends at once."""
    wakes = Wakeup(tmp_path, 0o600)
    watch = wakes.watch(1)
    watch.arm()
    wakes.interrupt()
    wakes.interrupt()
    begin = time.monotonic()
    watch.wait(WAIT_S)
    assert time.monotonic() - begin < WAIT_S / 2
