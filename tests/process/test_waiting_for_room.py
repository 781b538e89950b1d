"""Senders that wait until a full queue has room: whatever makes room wakes them, in any process."""

import itertools
import logging
import pathlib
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Callable, Dict, List, Optional

import pytest

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, Strategy, errors
from persipubsub.endpoints import room
from persipubsub.engine import limits
from persipubsub.lmdb_engine.process import futex, wakeup
from persipubsub.lmdb_engine.process.wakeup import PollingWatch, RoomWatch, Wakeup, Words
from tests.children import start_child, status_of
from tests.concurrency import CONTEXT, WAIT_S, Task, process, told, wait_until
from tests.process.test_waiting import Turns

pytestmark = pytest.mark.slow  # starts many processes, or waits

MakeEnvironment = Callable[..., Environment]

#: Where only a wake-up may end a wait, not the attempt that is made each second in any case.
SLEEP_S_NEVER = 10 * WAIT_S
#: No sleep is longer than a second. A busy machine adds.
FOUND_S_MAX = limits.SLEEP_S_MAX + 2
FULL = 3
#: The words of the file by which processes wake each other.
WANTED, FREED = 3, 4


@pytest.fixture(name="full")
def full_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a full queue that refuses messages, of which "b" has acknowledged all."""
    environment = new_environment("a",
                                  "b",
                                  durability=Durability.PROCESS_CRASH,
                                  strategy=Strategy.refuse,
                                  high_watermark=HighWaterMark(max_messages=FULL))
    fill(environment)
    return environment


def fill(environment: Environment) -> None:
    """Send until the queue is full; only "a" awaits the messages."""
    with pytest.raises(errors.QueueFullError):
        for number in itertools.count():
            environment.new_publisher().send(b"%d" % number)
    environment.new_control().prune_all_messages_for("b")


def word(environment: Environment, index: int) -> int:
    """Return a word of the file by which processes wake each other."""
    content = (environment.path / "wakeup").read_bytes()
    return memoryview(content).cast("I")[index]


class Waiting(Task[object]):
    """A thread that waits for room, and when its wait ended."""

    def __init__(self, environment: Environment, count: int = 1, timeout: Optional[float] = WAIT_S) -> None:
        self._publisher = environment.new_publisher()
        self._messages, self._timeout = [b"waited"] * count, timeout
        self.ended_s = 0.0
        super().__init__(self._send)

    def _send(self) -> object:
        try:
            return self._publisher.send_many(self._messages, timeout=self._timeout)
        except errors.PersipubsubError as error:
            return error
        finally:
            self.ended_s = time.monotonic()


def wait_for_room(connection: Connection, path: pathlib.Path) -> None:
    """Send one message once there is room, woken and not by looking: the main function of a process."""
    setattr(room, "SLEEP_S_MAX", SLEEP_S_NEVER)
    with persipubsub.new_environment(path) as environment:
        connection.send("sending")
        connection.send(environment.new_publisher().send(b"waited", timeout=None))


CHANGES: Dict[str, Callable[[Environment], object]] = {
    "acknowledge": lambda environment: environment.new_subscriber("a").pop(),
    "clear": lambda environment: environment.new_control().clear_messages(),
    "prune": lambda environment: environment.new_control().prune_all_messages_for("a"),
    "remove": lambda environment: environment.new_control().remove_subscriber("a"),
    "raise the limit": lambda environment: environment.new_control().set_hwm(max_messages=FULL + 1),
    "lift the limit": lambda environment: environment.new_control().set_hwm(max_messages=None),
    "another strategy": lambda environment: environment.new_control().set_strategy(Strategy.prune_first),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_room_wakes_another_process(change: str, full: Environment) -> None:
    """Whatever makes room in one process wakes a sender that waits in another one."""
    with process(wait_for_room, full.path) as waiter:
        assert told(waiter) == "sending"
        wait_until(lambda: word(full, WANTED) == 1)
        CHANGES[change](full)
        assert told(waiter) == FULL + 1


def test_a_sender_waits_until_its_batch_fits(full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is sent when all of it fits, and not before."""
    monkeypatch.setattr(room, "SLEEP_S_MAX", SLEEP_S_NEVER)
    waiting, subscriber = Waiting(full, count=FULL), full.new_subscriber("a")
    for _ in range(FULL):
        wait_until(lambda: word(full, WANTED) == 1)
        assert not waiting.done()
        subscriber.pop()
    assert waiting.result() == range(FULL + 1, 2 * FULL + 1)


def test_many_senders_share_the_room(full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many waiting senders gets room in the end, woken and not by looking; none sends more than fits."""
    monkeypatch.setattr(room, "SLEEP_S_MAX", SLEEP_S_NEVER)
    all_waiting = [Waiting(full) for _ in range(20)]
    subscriber = full.new_subscriber("a")
    with persipubsub.new_environment(full.path) as environment:
        control = environment.new_control()
        for _ in range(len(all_waiting) + FULL):
            with subscriber.receive(timeout=WAIT_S) as message:
                assert message is not None
            control.prune_all_messages_for("b")
            assert control.status().messages <= FULL
    assert sorted(ids[0] for ids in (waiting.result() for waiting in all_waiting)  # type: ignore[index]
                  ) == list(range(FULL + 1, FULL + 1 + len(all_waiting)))


def test_nobody_is_woken_where_nobody_waits(full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes room asks the kernel to wake somebody only if a sender may be asleep."""
    woken: List[int] = []
    monkeypatch.setattr(futex, "wake", woken.append)
    freed = word(full, FREED)
    full.new_subscriber("a").pop()
    full.new_control().clear_messages()
    assert not woken and word(full, FREED) == freed


def test_a_sender_that_gives_up(full: Environment) -> None:
    """A sender whose time is over raises the error that says how full the queue is, and the message is not sent."""
    begun_s = time.monotonic()
    with pytest.raises(errors.QueueFullError, match=f"max_messages={FULL}"):
        full.new_publisher().send(b"late", timeout=0.3)
    assert time.monotonic() - begun_s >= 0.3
    assert full.new_control().status().next_id == FULL + 1


def test_a_sender_that_was_killed(full: Environment) -> None:
    """A waiting sender that is killed costs one wake-up, and leaves the room to others."""
    ours, theirs = CONTEXT.Pipe()
    waiter = CONTEXT.Process(target=wait_for_room, args=(theirs, full.path), daemon=True)
    waiter.start()
    assert told(ours) == "sending"
    wait_until(lambda: word(full, WANTED) == 1)
    waiter.kill()
    waiter.join(WAIT_S)
    assert waiter.exitcode == -signal.SIGKILL
    freed, subscriber = [word(full, FREED)], full.new_subscriber("a")
    for _ in range(2):
        subscriber.pop()
        freed.append(word(full, FREED))
        assert word(full, WANTED) == 0
    assert freed[0] != freed[1] == freed[2]
    assert full.new_publisher().send_many([b"1", b"2"]) == range(FULL + 1, FULL + 3)


def test_a_process_that_dies_before_it_wakes(full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that a process made that was killed before it woke anybody is found within about a second."""
    monkeypatch.setattr(Words, "free", lambda self: None)
    waiting = Waiting(full)
    wait_until(lambda: word(full, WANTED) == 1)
    begun_s = time.monotonic()
    full.new_subscriber("a").pop()
    assert waiting.result() == range(FULL + 1, FULL + 2)
    assert waiting.ended_s - begun_s < FOUND_S_MAX


@pytest.mark.parametrize("timeout_s", [0.5, 2.5])
def test_room_by_expiry(timeout_s: float, full: Environment) -> None:
    """A sender gets the room of messages that expire while it waits, at the latest about a second after that."""
    waiting = Waiting(full)
    wait_until(lambda: word(full, WANTED) == 1)
    begun_s = time.monotonic()
    full.new_control().set_hwm(message_timeout=timeout_s)
    assert waiting.result() == range(FULL + 1, FULL + 2)
    assert waiting.ended_s - begun_s < timeout_s + FOUND_S_MAX


@pytest.mark.parametrize("end", ["stop", "close"])
def test_the_end_of_a_wait(end: str, full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping a publisher ends its wait now, closing it within about a second; the message is not sent."""
    if end == "stop":
        monkeypatch.setattr(room, "SLEEP_S_MAX", SLEEP_S_NEVER)
    with persipubsub.new_environment(full.path) as environment:
        waiting = Waiting(environment, timeout=None)
        wait_until(lambda: word(full, WANTED) == 1)
        getattr(environment, end)()
        assert isinstance(waiting.result(), errors.QueueFullError if end == "stop" else errors.ClosedError)
    assert full.new_control().status().next_id == FULL + 1


def test_a_signal_does_not_end_a_wait(full: Environment) -> None:
    """A signal whose handler returns interrupts the sleep of a waiting sender, not its wait."""
    handled, main = threading.Event(), threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())

    def disturb_and_make_room() -> None:
        wait_until(lambda: word(full, WANTED) == 1)
        for _ in range(5):
            handled.clear()
            signal.pthread_kill(main, signal.SIGUSR1)
            assert handled.wait(WAIT_S)
        full.new_subscriber("a").pop()

    disturbing = Task(disturb_and_make_room)
    try:
        assert full.new_publisher().send(b"waited", timeout=WAIT_S) == FULL + 1
    finally:
        disturbing.result()
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_waits_by_itself(full: Environment) -> None:
    """A child waits for room through what it inherits, while its parent waits, too."""
    publisher, waiting = full.new_publisher(), Waiting(full)
    wait_until(lambda: word(full, WANTED) == 1)
    child = start_child(lambda: publisher.send(b"of the child", timeout=WAIT_S))
    full.new_control().clear_messages()
    assert {waiting.result()[0], status_of(child)} == {FULL + 1, FULL + 2}  # type: ignore[index]


# Without a wake-up


def blocked(path: pathlib.Path) -> None:
    """Put a directory in the place of the file by which processes wake each other."""
    path.mkdir(parents=True)
    (path / "wakeup").mkdir()


@pytest.mark.parametrize("obstacle", ["no futex", "a directory"])
def test_without_a_wakeup_a_sender_polls(obstacle: str, new_environment: MakeEnvironment, tmp_path: pathlib.Path,
                                         monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the file cannot be made or mapped, a waiting sender polls, and the log says why."""
    if obstacle == "no futex":
        monkeypatch.setattr(futex, "AVAILABLE", False)
    else:
        blocked(tmp_path / "queue")
    with caplog.at_level(logging.WARNING):
        environment = new_environment("a", "b", strategy=Strategy.refuse, high_watermark=HighWaterMark(None, FULL))
    assert "There is no wake-up" in caplog.text
    fill(environment)
    waiting = Waiting(environment)
    begun_s = time.monotonic()
    environment.new_subscriber("a").pop()
    assert waiting.result() == range(FULL + 1, FULL + 2)
    assert waiting.ended_s - begun_s < FOUND_S_MAX


def test_what_a_process_without_a_wakeup_frees(full: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that is made by a process that cannot map the file is found within about a second."""
    waiting = Waiting(full)
    wait_until(lambda: word(full, WANTED) == 1)
    monkeypatch.setattr(futex, "AVAILABLE", False)
    begun_s = time.monotonic()
    with process(acknowledge_without_a_wakeup, full.path):
        assert waiting.result() == range(FULL + 1, FULL + 2)
    assert waiting.ended_s - begun_s < FOUND_S_MAX + 5  # the other process starts meanwhile


def acknowledge_without_a_wakeup(_connection: Connection, path: pathlib.Path) -> None:
    """Acknowledge a message without waking anybody: the main function of a process."""
    futex.AVAILABLE = False
    with persipubsub.new_environment(path) as environment:
        environment.new_subscriber("a").pop()


def test_a_wakeup_that_comes_later(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that could not map the file polls, and is woken once it can, as when descriptors are free again."""
    (tmp_path / "wakeup").mkdir()
    found = Wakeup(tmp_path, 0o600)
    assert isinstance(found.watch_room(1), PollingWatch)
    (tmp_path / "wakeup").rmdir()
    assert isinstance(found.watch_room(1), PollingWatch)  # it was tried a moment ago
    monkeypatch.setattr(wakeup, "TRY_EVERY_S", 0)
    found = Wakeup(tmp_path, 0o600)
    assert isinstance(found.watch_room(1), RoomWatch)


# Every order of steps


class Room:
    """A sender that comes to wait and a process that has made room, in two threads whose steps are in a given order."""

    def __init__(self, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = Wakeup(path, 0o600).words
        assert words is not None
        self._words, self._turns = words, Turns([])
        self.values = [0] * 5
        self.itemsize = 4
        monkeypatch.setattr(words, "_words", self)
        monkeypatch.setattr(futex, "wake", self._wake)
        monkeypatch.setattr(futex, "wait", self._sleep)
        self._watch = RoomWatch(words)
        self.free = 0
        self.asleep = False

    def __getitem__(self, index: int) -> int:
        self._turns.step()
        return self.values[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._turns.step()
        self.values[index] = value

    def run(self, order: List[str]) -> None:
        """Let the two threads make their steps."""
        self._turns = Turns(order)
        threads = [
            threading.Thread(target=self._leaving, args=(function, ), name=name)
            for name, function in (("maker", self.wake), ("sender", self._wait))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._turns = Turns([])

    def _leaving(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self._turns.leave()

    def wake(self) -> None:
        """Wake the sender if it waits, as a writer does after its commit."""
        if self[WANTED]:
            self._words.free()

    def _wait(self) -> None:
        self._watch.arm()
        self._turns.step()
        if not self.free:
            self._watch.wait(1)

    def _sleep(self, _address: int, expected: int, _timeout_s: float) -> None:
        self._turns.step()
        self.asleep = self.values[FREED] == expected  # what the kernel does in one step

    def _wake(self, _address: int) -> None:
        self._turns.step()
        self.asleep = False


@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("wanted", [0, 1])
def test_every_order_of_steps(wanted: int, is_taken: bool, tmp_path: pathlib.Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """However the steps of a process that wakes and of a sender that comes to wait interleave, the next room wakes it.

    :param wanted: whether a sender has waited before
    :param is_taken: whether the room of the first process is taken already
    """
    maker_steps, steps = 5, 9
    for places in itertools.combinations(range(steps), maker_steps):
        one = Room(tmp_path, monkeypatch)
        one.values[WANTED], one.free = wanted, int(not is_taken)
        one.run(["maker" if place in places else "sender" for place in range(steps)])
        assert not (one.asleep and one.free), places
        one.wake()
        assert not one.asleep, places
