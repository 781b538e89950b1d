"""Messages that are sent for later."""

import contextlib
import datetime
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time as wall
from multiprocessing.connection import Connection
from typing import Callable, Dict, List

import pytest
from google.protobuf.wrappers_pb2 import StringValue

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, clock, errors, moments
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import limits
from persipubsub.lmdb_engine import engine
from persipubsub.lmdb_engine.process import futex, group_commit, wakeup
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.rules import delays
from tests.concurrency import WAIT_S, Opened, Task, process, told

MakeEnvironment = Callable[..., Environment]
RELAXED = Durability.PROCESS_CRASH


class Boots:
    """The clocks of the machine, and its boots."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot, self.boottime_us, self.wall_us = 1, 10**9, 10**15
        monkeypatch.setattr(clock, "boottime_us", lambda: self.boottime_us)
        monkeypatch.setattr(clock, "wall_us", lambda: self.wall_us)
        monkeypatch.setattr(clock, "boot_id", lambda: self.boot.to_bytes(16, "big"))

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.boottime_us += round(seconds * 1e6)
        self.wall_us += round(seconds * 1e6)


@pytest.fixture(name="boots")
def boots_fixture(monkeypatch: pytest.MonkeyPatch) -> Boots:
    """Have the clocks stand still."""
    return Boots(monkeypatch)


def pending(environment: Environment) -> List[bytes]:
    """Receive and acknowledge all that is pending for "a"."""
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        return messages


def test_a_delayed_message_comes_when_it_is_due(new_environment: MakeEnvironment, boots: Boots) -> None:
    """It has no id until it is due; then whoever looks finds it, without a publisher."""
    environment = new_environment("a", durability=RELAXED)
    publisher, control = environment.new_publisher(), environment.new_control()
    message = publisher.send_later(b"later", delay_s=60)
    assert message.due == moments.utc(boots.wall_us + 60_000_000)
    assert publisher.send(b"now") == 1
    boots.forward(59.999999)
    assert (control.status().delayed, control.status().messages, pending(environment)) == (1, 1, [b"now"])
    boots.forward(0.000001)
    assert environment.new_subscriber("a").front() == b"later"
    assert (control.status().delayed, control.status().messages, control.status().next_id) == (0, 1, 3)


@pytest.mark.parametrize("look", ["history", "receive_to_top", "rewind", "send"])
def test_any_access_appends_what_is_due(look: str, new_environment: MakeEnvironment, boots: Boots) -> None:
    """History and the latest message include what is due, and a send comes after it."""
    environment = new_environment("a", durability=RELAXED)
    publisher, control = environment.new_publisher(), environment.new_control()
    publisher.send(b"now")
    publisher.send_later(b"later", delay_s=1)
    boots.forward(1)
    if look == "history":
        assert [one.payload for one in control.history()] == [b"now", b"later"]
    elif look == "receive_to_top":
        with environment.new_subscriber("a").receive_to_top(timeout=0) as message:
            assert message == b"later"
    elif look == "rewind":
        assert control.rewind("a", "earliest") == 2
    else:
        assert publisher.send(b"behind") == 3


def test_status_writes_nothing(new_environment: MakeEnvironment, boots: Boots) -> None:
    """A message that is due and not appended yet counts as delayed, however often the status is read."""
    environment = new_environment("a", durability=RELAXED)
    environment.new_publisher().send_later(b"later", delay_s=1)
    control = environment.new_control()
    boots.forward(2)
    for _ in range(2):
        status = control.status()
        assert (status.delayed, status.messages, status.next_id, status.subscribers["a"].pending) == (1, 0, 1, 0)
    control.prune_dangling_messages()
    assert (control.status().delayed, control.status().subscribers["a"].pending) == (0, 1)


def test_the_order_of_delayed_messages(new_environment: MakeEnvironment, boots: Boots,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """They come by due time, those of one due time as they were sent; a few with each transaction."""
    monkeypatch.setattr(delays, "APPENDED_MESSAGES_MAX", 3)
    environment = new_environment("a", durability=RELAXED)
    publisher, control = environment.new_publisher(), environment.new_control()
    at = moments.utc(boots.wall_us + 5_000_000)
    publisher.send_later(b"4", delay_s=9)
    for payload in (b"1", b"2"):
        publisher.send_later(payload, at=at)
    publisher.send_later(b"3", delay_s=5)
    publisher.send_later(b"0", delay_s=1)
    boots.forward(10)
    control.prune_dangling_messages()  # appends some
    status = control.status()
    assert (status.messages, status.delayed) == (3, 2)
    assert [*pending(environment), *pending(environment)] == [b"0", b"1", b"2", b"3", b"4"]


def test_what_is_due_at_once_comes_at_once(new_environment: MakeEnvironment, boots: Boots) -> None:
    """Without a delay, or for a time in the past, a message is sent at once and cannot be cancelled."""
    environment = new_environment("a", durability=RELAXED)
    publisher = environment.new_publisher()
    message = publisher.send_later(b"1", delay_s=0)
    publisher.send_later(b"2", at=datetime.datetime(1960, 1, 1, tzinfo=datetime.timezone.utc))
    publisher.send_later(b"3", at=moments.utc(boots.wall_us).astimezone(datetime.timezone(datetime.timedelta(hours=9))))
    assert not publisher.cancel(message)
    assert pending(environment) == [b"1", b"2", b"3"]


def test_cancelling(new_environment: MakeEnvironment, boots: Boots) -> None:
    """Any publisher can cancel what is not due yet, once, with a pickled handle too; all parts are deleted."""
    environment = new_environment("a", durability=RELAXED)
    publisher, control = environment.new_publisher(), environment.new_control()
    long, short = publisher.send_later(bytes(200_000), delay_s=1), publisher.send_later(b"short", delay_s=2)
    assert environment.new_publisher().cancel(pickle.loads(pickle.dumps(long)))
    assert not publisher.cancel(long)
    assert control.status().delayed == 1
    boots.forward(2)
    assert not publisher.cancel(short), "it is due"
    assert pending(environment) == [b"short"]
    assert not publisher.cancel(DelayedMessage(-1, -1)) and not publisher.cancel(DelayedMessage(2**70, 1))


def test_long_messages(new_environment: MakeEnvironment, boots: Boots) -> None:
    """A message of any length comes as it was sent."""
    environment = new_environment("a", durability=RELAXED)
    payloads = [bytes([size % 256]) * size for size in (0, 65_519, 65_520, 65_521, 131_040, 1_000_000)]
    for payload in payloads:
        environment.new_publisher().send_later(payload, delay_s=1)
    assert environment.new_control().check() == ()
    boots.forward(1)
    assert pending(environment) == payloads


def test_a_due_message_keeps_the_mark(new_environment: MakeEnvironment, boots: Boots) -> None:
    """A due message overflows the queue as a send does; one over a lowered mark is dropped, and counted."""
    environment = new_environment("a", durability=RELAXED, high_watermark=HighWaterMark(max_messages=3))
    publisher, control = environment.new_publisher(), environment.new_control()
    publisher.send_many([b"1", b"2", b"3"])
    publisher.send_later(b"4", delay_s=1)
    publisher.send_later(bytes(100_000), delay_s=2)
    boots.forward(1)
    control.prune_dangling_messages()  # appends it
    assert (control.status().messages, control.status().pruned.overflow) == (2, 2)
    control.set_hwm(HighWaterMark(max_messages=3, hwm_db_size=99_999))
    boots.forward(1)
    control.prune_dangling_messages()
    assert (control.status().pruned.overflow, control.status().next_id, control.status().delayed) == (3, 6, 0)
    assert pending(environment) == [b"3", b"4"]


def test_delayed_messages_are_bounded(new_environment: MakeEnvironment, boots: Boots) -> None:
    """Delayed messages, and their bytes, are limited by the high-water mark; more is an error."""
    del boots
    environment = new_environment("a", durability=RELAXED, high_watermark=HighWaterMark(max_messages=2))
    publisher, control = environment.new_publisher(), environment.new_control()
    first = publisher.send_later(b"1", delay_s=1)
    publisher.send_later(b"2", delay_s=1)
    with pytest.raises(errors.TooManyDelayedError, match="has 2 delayed messages.*max_messages=2"):
        publisher.send_later(b"3", delay_s=1)
    publisher.cancel(first)
    control.set_hwm(HighWaterMark(max_messages=None, hwm_db_size=300_000))
    publisher.send_later(bytes(200_000), delay_s=1)
    with pytest.raises(errors.TooManyDelayedError, match="hwm_db_size=300000"):
        publisher.send_later(bytes(200_000), delay_s=1)
    with pytest.raises(errors.MessageTooLargeError):
        publisher.send_later(bytes(300_001), delay_s=1)
    assert control.status().delayed == 2


def test_the_largest_message_may_be_delayed(new_environment: MakeEnvironment, boots: Boots) -> None:
    """A message as large as the queue may be is accepted and comes when it is due."""
    environment = new_environment("a", durability=RELAXED, high_watermark=HighWaterMark(hwm_db_size=300_000))
    environment.new_publisher().send_later(bytes(300_000), delay_s=1)
    boots.forward(1)
    assert pending(environment) == [bytes(300_000)]


@pytest.mark.parametrize("look", ["history", "front"])
@pytest.mark.parametrize("boot", [0, 2])
@pytest.mark.parametrize("step_s", [-10**6, -60, 0, 60, 10**6])
def test_no_clock_loses_a_delayed_message(step_s: int, boot: int, look: str, new_environment: MakeEnvironment,
                                          boots: Boots) -> None:
    """A wall clock that is set within a boot changes nothing; whatever it says at a boot, no message is lost."""
    environment = new_environment("a", durability=RELAXED)
    publisher = environment.new_publisher()
    publisher.send_later(b"1", delay_s=60)
    publisher.send_later(b"2", delay_s=120)
    boots.wall_us += step_s * 10**6
    boots.forward(59)
    assert pending(environment) == []
    boots.forward(1)
    assert pending(environment) == [b"1"]
    boots.boot, boots.boottime_us = boot, 0
    left_s = 60 - (step_s if step_s > 0 else 0)
    if look == "history":
        assert [one.payload for one in environment.new_control().history()] == ([] if left_s > 0 else [b"2"])
    else:
        assert environment.new_subscriber("a").front() == (None if left_s > 0 else b"2")
    boots.forward(max(0, left_s))
    assert pending(environment) == [b"2"]


def test_clearing_deletes_delayed_messages_too(new_environment: MakeEnvironment, boots: Boots) -> None:
    """Clearing deletes delayed messages; removing the last subscriber does not."""
    environment = new_environment("a", durability=RELAXED)
    publisher, control = environment.new_publisher(), environment.new_control()
    for clear in (control.clear_messages, control.clear_all_subscribers):
        publisher.send_later(b"", delay_s=1)
        publisher.send(b"")
        assert clear() == 2
        assert control.status().delayed == 0
    control.add_subscriber("b")
    publisher.send_later(b"later", delay_s=1)
    control.remove_subscriber("b")
    control.add_subscriber("a")
    boots.forward(1)
    assert pending(environment) == [b"later"]
    assert control.status().pruned.dangling == 1, "what was awaited when the subscribers were cleared"


NAIVE = datetime.datetime(2026, 1, 1)


@pytest.mark.parametrize("kwargs, error, text", [
    ({
        "delay_s": -1
    }, errors.ArgumentError, "delay_s must be from 0 to 1e.09 seconds, got -1"),
    ({
        "delay_s": float("nan")
    }, errors.ArgumentError, "delay_s .*nan"),
    ({
        "delay_s": float("inf")
    }, errors.ArgumentError, "delay_s .*inf"),
    ({
        "delay_s": "1"
    }, errors.ArgumentTypeError, "delay_s must be a number of seconds, got str"),
    ({
        "at": NAIVE
    }, errors.ArgumentError, "at must have a timezone"),
    ({
        "at": 1e9
    }, errors.ArgumentTypeError, "at must be a datetime with a timezone, got float"),
    ({
        "at": NAIVE.replace(4000, tzinfo=datetime.timezone.utc)
    }, errors.ArgumentError, "at must be before the year 4000"),
    ({}, errors.ArgumentTypeError, "either delay_s, in seconds, or at, a datetime; got neither"),
    ({
        "delay_s": 1,
        "at": NAIVE
    }, errors.ArgumentTypeError, "got both"),
])
def test_invalid_delays(kwargs: Dict[str, object], error: type, text: str, new_environment: MakeEnvironment) -> None:
    """Each wrong argument has an error that names it and what is allowed; nothing is stored."""
    environment = new_environment("a", durability=RELAXED)
    publisher = environment.new_publisher()
    with pytest.raises(error, match=text):
        publisher.send_later(b"", **kwargs)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(errors.ArgumentTypeError, match="cancel takes a DelayedMessage"):
        publisher.cancel(1)  # type: ignore[arg-type]  # on purpose
    assert environment.new_control().status().delayed == 0
    publisher.close()
    with pytest.raises(errors.ClosedError):
        publisher.send_later(b"", delay_s=1)
    with pytest.raises(errors.ClosedError):
        publisher.cancel(DelayedMessage(1, 1))


# Waiting


def sleeping(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when somebody in this process sleeps."""
    asleep, wait = threading.Event(), futex.wait

    def telling_wait(address: int, expected: int, timeout_s: float) -> None:
        asleep.set()
        wait(address, expected, timeout_s)

    monkeypatch.setattr(futex, "wait", telling_wait)
    return asleep


@pytest.mark.parametrize("polling", [False, True])
def test_a_waiting_subscriber_wakes_when_a_message_is_due(polling: bool, opened: Opened,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleeping subscriber learns of a new delayed message, and gets it in time."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 10 * WAIT_S)
    asleep = sleeping(monkeypatch)
    if polling:
        monkeypatch.setattr(opened.handle._wakeup, "words", None)  # pylint: disable=protected-access  # as on macOS
    received = Task(lambda: next(opened.subscriber.messages()))
    assert polling or asleep.wait(WAIT_S)
    message = opened.publisher.send_later(b"due", delay_s=0.2)
    assert received.result() == b"due"
    assert moments.utc(wall.time_ns() // 1000) >= message.due - datetime.timedelta(seconds=0.1)


def test_a_type_does_not_delay_a_delayed_message(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber of protobuf messages wakes up for what is due as well."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 10 * WAIT_S)
    typed = opened.environment.new_subscriber("a", StringValue)
    opened.publisher.send_later(StringValue(value="due").SerializeToString(), delay_s=0.2)
    assert Task(lambda: next(typed.messages())).result() == StringValue(value="due")


def test_one_waiting_process_is_chosen_to_append(opened: Opened) -> None:
    """Of those that wait for one due time the first is told to append, whatever its process."""
    first, second = opened.handle.watch(1), Wakeup(opened.environment.path, 0o600).watch(1)
    assert [first.reserve(7 * 2**32 + 5),
            second.reserve(7 * 2**32 + 5),
            first.reserve(7 * 2**32 + 5)] == [True, False, False]
    assert [second.reserve(8 * 2**32 + 6), first.reserve(8 * 2**32 + 6)] == [True, False]


WAITERS = 20


def receive(connection: Connection, path: pathlib.Path, name: str) -> None:
    """Receive a message in a process of its own; return how many write transactions that took."""
    runs: List[object] = []
    run = group_commit.Writer.run

    def counting_run(self: group_commit.Writer, operation: Callable[..., object], *arguments: object) -> object:
        runs.append(operation)
        return run(self, operation, *arguments)  # type: ignore[arg-type]  # what it was given

    group_commit.Writer.run = counting_run  # type: ignore[assignment,method-assign]  # in this process only
    with persipubsub.new_environment(path) as environment:
        connection.send("ready")
        message = next(environment.new_subscriber(name).messages())
        connection.send((message, runs.count(engine.append_due)))


@pytest.mark.slow
def test_few_of_many_waiting_processes_append(new_environment: MakeEnvironment) -> None:
    """Every waiting subscriber gets a delayed message, and few of them write for it."""
    names = [f"s{number}" for number in range(WAITERS)]
    environment = new_environment(*names, durability=RELAXED)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(process(receive, environment.path, name)) for name in names]
        assert [told(connection) for connection in connections] == ["ready"] * WAITERS
        environment.new_publisher().send_later(b"due", delay_s=1.0)
        found = [told(connection) for connection in connections]
    assert [message for message, _ in found] == [b"due"] * WAITERS
    assert 1 <= sum(count for _, count in found) <= WAITERS // 2


SEND_LATER_AND_DIE = """
import os, signal, sys, persipubsub
publisher = persipubsub.new_environment(sys.argv[1]).new_publisher()
publisher.send_later(bytes(100_000), delay_s=0.001)
publisher.send_later(b"second", delay_s=0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("durability", Durability)
def test_a_delayed_message_survives_its_sender(durability: Durability, new_environment: MakeEnvironment) -> None:
    """A delayed message whose send_later returned is there though its process was killed."""
    environment = new_environment("a", durability=durability)
    died = subprocess.run([sys.executable, "-c", SEND_LATER_AND_DIE, environment.path], check=False)
    assert died.returncode == -signal.SIGKILL
    received = environment.new_subscriber("a").messages(timeout=WAIT_S)
    assert [next(received), next(received)] == [bytes(100_000), b"second"]


def test_a_claim_of_a_dead_process_delays_the_others_briefly(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process that was to append a due message died, another one soon does it."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 10 * WAIT_S)
    monkeypatch.setattr(wakeup.FutexWatch, "reserve", lambda self, due_us: False)
    opened.publisher.send_later(b"due", delay_s=0.05)
    assert next(opened.subscriber.messages(timeout=WAIT_S)) == b"due"


def test_a_backup_has_the_delayed_messages(new_environment: MakeEnvironment, boots: Boots,
                                           tmp_path: pathlib.Path) -> None:
    """A copy has them, and they become due there as well."""
    environment = new_environment("a", durability=RELAXED)
    environment.new_publisher().send_later(b"later", delay_s=1)
    environment.new_control().backup(tmp_path / "copy")
    boots.forward(1)
    with persipubsub.new_environment(tmp_path / "copy") as copy:
        assert pending(copy) == pending(environment) == [b"later"]
