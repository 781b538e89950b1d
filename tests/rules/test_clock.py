"""How time passes for a queue: what is too old is never delivered, and no step of the wall clock changes that."""

import ast
import pathlib
import shutil
import tempfile
from typing import Any, Callable, Dict, List, Tuple

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Environment, HighWaterMark, Publisher, Strategy, Subscriber, clock, errors
from persipubsub.lmdb_engine.records import layouts

MakeEnvironment = Callable[..., Environment]

TIMEOUT_S = 100
YEAR_S = 365 * 24 * 60 * 60


class Machine:
    """The clocks of a machine that has booted and may boot again, in seconds."""

    def __init__(self) -> None:
        self.boot = 1
        self.boottime_s: float = 1000
        self.wall_s: float = 50 * YEAR_S

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.boottime_s += seconds
        self.wall_s += seconds

    def reboot(self, wall_s: float) -> None:
        """Start again, with whatever the wall clock says then."""
        self.boot += 1
        self.boottime_s = 7
        self.wall_s = wall_s


@pytest.fixture(name="machine")
def machine_fixture(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put the library on a machine whose clocks the test sets."""
    machine = Machine()
    monkeypatch.setattr(clock, "boottime_us", lambda: round(machine.boottime_s * 1e6))
    monkeypatch.setattr(clock, "wall_us", lambda: round(machine.wall_s * 1e6))
    # As random as real ones: they rise and fall from boot to boot.
    monkeypatch.setattr(clock, "boot_id", lambda: bytes([machine.boot * 5 % 7]) * 16)
    return machine


class Opened:
    """A queue with the subscribers "a" and "b", as one process uses it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.control: Control = environment.new_control(["a", "b"])
        self.publisher: Publisher = environment.new_publisher()
        self.subscriber: Subscriber = environment.new_subscriber("a")
        self.other: Subscriber = environment.new_subscriber("b")


@pytest.fixture(name="opened")
def opened_fixture(machine: Machine, new_environment: MakeEnvironment) -> Opened:
    """Set up a queue whose messages expire."""
    assert machine.boot == 1
    return Opened(new_environment(high_watermark=HighWaterMark(message_timeout=TIMEOUT_S)))


def reopen(opened: Opened, new_environment: MakeEnvironment) -> Opened:
    """Close the queue and open it again, as after a reboot."""
    opened.environment.close()
    return Opened(new_environment())


def drain(subscriber: Subscriber) -> List[bytes]:
    """Receive and acknowledge everything that is there."""
    return list(subscriber.messages(timeout=0))


def commit_times_s(path: pathlib.Path) -> List[float]:
    """Return the times of all runs that a queue remembers."""
    with tempfile.TemporaryDirectory() as directory:
        # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
        shutil.copyfile(path / "data.mdb", pathlib.Path(directory) / "data.mdb")
        with lmdb.Environment(directory, readonly=True, lock=False, max_dbs=32) as raw:
            database = raw.open_db(b"meta_db", create=False)
            with raw.begin() as txn:
                return [layouts.decode_run(key, value).time_us / 1e6 for key, value in txn.cursor(database)]


# Expiry


def receive(subscriber: Subscriber) -> Any:
    """Receive a message."""
    with subscriber.receive(timeout=0) as msg:
        return msg


def receive_to_top(subscriber: Subscriber) -> Any:
    """Receive the latest message."""
    with subscriber.receive_to_top(timeout=0) as msg:
        return msg


def receive_many(subscriber: Subscriber) -> Any:
    """Receive all messages."""
    with subscriber.receive_many(timeout=0) as msgs:
        return msgs or None


def pop(subscriber: Subscriber) -> Any:
    """Acknowledge a message unread; return whether there was one."""
    try:
        return subscriber.pop()
    except errors.EmptyError:
        return None


def first_of_messages(subscriber: Subscriber) -> Any:
    """Start a loop over messages."""
    return next(iter(subscriber.messages(timeout=0)), None)


WAYS: Dict[str, Callable[[Subscriber], Any]] = {
    "receive": receive,
    "receive_to_top": receive_to_top,
    "receive_many": receive_many,
    "messages": first_of_messages,
    "front": lambda subscriber: subscriber.front(),
    "pop": pop,
}


@pytest.mark.parametrize("way", WAYS)
def test_expired_messages_are_never_delivered(way: str, opened: Opened, machine: Machine) -> None:
    """A message older than the timeout is never delivered, and leaves the queue without a send."""
    opened.publisher.send_many([b"1", b"2"])
    opened.publisher.send(b"3")
    machine.sleep(TIMEOUT_S + 0.000001)
    before = opened.control.status()
    assert WAYS[way](opened.subscriber) is None
    assert before.messages == opened.control.status().messages == 0
    assert opened.control.status().size_bytes == 0  # the look that met them has removed them
    assert not drain(opened.other)


@pytest.mark.parametrize("way, expected", [("receive", b"1"), ("receive_to_top", b"3"),
                                           ("receive_many", [b"1", b"2", b"3"]), ("messages", b"1"), ("front", b"1")])
def test_messages_live_to_the_end_of_the_timeout(way: str, expected: object, opened: Opened, machine: Machine) -> None:
    """A message of exactly the age of the timeout is delivered."""
    opened.publisher.send_many([b"1", b"2"])
    opened.publisher.send(b"3")
    machine.sleep(TIMEOUT_S)
    assert opened.control.status().messages == 3
    assert WAYS[way](opened.subscriber) == expected


@pytest.mark.parametrize("way, expected", [("receive", b"new 1"), ("receive_to_top", b"new 2"),
                                           ("receive_many", [b"new 1", b"new 2"]), ("messages", b"new 1"),
                                           ("front", b"new 1")])
def test_younger_messages_are_delivered(way: str, expected: object, opened: Opened, machine: Machine) -> None:
    """Only old messages expire: younger ones come, without any of the older ones."""
    opened.publisher.send_many([b"old"] * 3)
    machine.sleep(TIMEOUT_S * 0.6)
    opened.publisher.send_many([b"new 1", b"new 2"])
    machine.sleep(TIMEOUT_S * 0.6)
    assert WAYS[way](opened.subscriber) == expected
    assert drain(opened.other) == [b"new 1", b"new 2"]


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_messages_expire_during_a_loop(acknowledge_every: int, opened: Opened, machine: Machine) -> None:
    """A message that expires while the loop is at one before it is not delivered."""
    opened.publisher.send_many([b"1", b"2"])
    loop = iter(opened.subscriber.messages(timeout=0, acknowledge_every=acknowledge_every))
    assert next(loop) == b"1"
    machine.sleep(TIMEOUT_S + 1)
    opened.publisher.send(b"3")
    assert list(loop) == [b"3"]


@pytest.mark.parametrize("acknowledge_every", [1, 2, 10])
def test_a_loop_continues_after_expired_messages(acknowledge_every: int, opened: Opened, machine: Machine) -> None:
    """If some messages of a loop expire, it continues with the younger ones, each of them once."""
    opened.publisher.send_many([b"1", b"2"])
    machine.sleep(60)
    opened.publisher.send_many([b"3", b"4"])
    loop = iter(opened.subscriber.messages(timeout=0, acknowledge_every=acknowledge_every))
    assert next(loop) == b"1"
    machine.sleep(50)
    assert list(loop) == [b"3", b"4"]
    assert opened.control.status().subscribers["a"].pending == 0
    assert drain(opened.other) == [b"3", b"4"]


def test_a_message_that_expires_in_the_block_is_acknowledged(opened: Opened, machine: Machine) -> None:
    """A block acknowledges what it received in time, even if it has expired meanwhile."""
    opened.publisher.send(b"1")
    with opened.subscriber.receive(timeout=0) as msg:
        assert msg == b"1"
        machine.sleep(TIMEOUT_S + 1)
        opened.publisher.send(b"2")
    assert drain(opened.subscriber) == [b"2"]


def test_status_does_not_count_the_expired(opened: Opened, machine: Machine) -> None:
    """``status`` has ages, and counts only what has not expired, for the queue and each subscriber."""
    opened.publisher.send_many([b"old"] * 3)
    machine.sleep(60)
    opened.publisher.send(b"new")
    machine.sleep(10)
    opened.subscriber.pop()
    status = opened.control.status()
    assert (status.messages, status.oldest_age_s) == (4, 70)
    assert {
        name: (one.pending, one.oldest_pending_age_s)
        for name, one in status.subscribers.items()
    } == {
        "a": (3, 70),
        "b": (4, 70)
    }
    machine.sleep(50)
    status = opened.control.status()
    assert (status.messages, status.oldest_age_s, status.next_id) == (1, 60, 5)
    assert {(one.pending, one.oldest_pending_age_s) for one in status.subscribers.values()} == {(1, 60)}
    machine.sleep(50)
    status = opened.control.status()
    assert (status.messages, status.oldest_age_s) == (0, None)
    assert {(one.pending, one.oldest_pending_age_s) for one in status.subscribers.values()} == {(0, None)}


def test_status_is_of_one_moment(opened: Opened, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of a status are of the same time, though time passes while it is read."""
    opened.publisher.send(b"1")

    def boottime_us() -> int:
        machine.sleep(1)
        return round(machine.boottime_s * 1e6)

    monkeypatch.setattr(clock, "boottime_us", boottime_us)
    for _ in range(TIMEOUT_S + 2):
        status = opened.control.status()
        seen = {(status.messages, status.oldest_age_s)}
        seen |= {(one.pending, one.oldest_pending_age_s) for one in status.subscribers.values()}
        assert len(seen) == 1


def test_pruning_expires_old_messages_now(opened: Opened, machine: Machine) -> None:
    """``prune_dangling_messages`` removes expired messages, and returns how many."""
    opened.publisher.send_many([b"1", b"2", b"3"])
    machine.sleep(TIMEOUT_S / 2)
    opened.publisher.send(b"4")
    assert opened.control.prune_dangling_messages() == 0
    machine.sleep(TIMEOUT_S / 2 + 1)
    assert opened.control.prune_dangling_messages() == 3
    assert opened.control.prune_dangling_messages() == 0
    assert drain(opened.subscriber) == [b"4"]


def test_a_send_expires_old_messages(opened: Opened, machine: Machine) -> None:
    """A send removes expired messages, so that they do not pile up where nobody receives."""
    for _ in range(5):
        opened.publisher.send_many([bytes(10_000)] * 100)
        assert opened.control.status().size_bytes <= 100 * 3 * 4096 + 10 * 4096
        machine.sleep(TIMEOUT_S + 1)


def test_the_expired_do_not_overflow(opened: Opened, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """What has expired does not count towards the number of messages at which the queue overflows."""
    opened.control.set_hwm(HighWaterMark(TIMEOUT_S, max_messages=4))
    opened.publisher.send_many([b"old"] * 3)
    machine.sleep(TIMEOUT_S + 1)
    opened.publisher.send_many([b"1", b"2"])
    opened.publisher.send_many([b"3", b"4"])
    assert ["expired" in record.getMessage() for record in caplog.records] == [True]
    assert drain(opened.subscriber) == [b"1", b"2", b"3", b"4"]


def test_large_expiry(opened: Opened, machine: Machine) -> None:
    """25,000 messages expire at one look, and what was sent since is found at once."""
    opened.publisher.send_many([b"old"] * 25_000)
    machine.sleep(TIMEOUT_S / 2)
    opened.publisher.send(b"new")
    machine.sleep(TIMEOUT_S / 2 + 1)
    assert opened.subscriber.front() == b"new"
    assert opened.control.status().messages == 1 and opened.control.check() == ()
    assert drain(opened.subscriber) == drain(opened.other) == [b"new"]


@pytest.mark.parametrize("timeout_s", [0.000001, 0.5, 1, 2.5, 3600, 10**11])
def test_timeouts(timeout_s: float, opened: Opened, machine: Machine) -> None:
    """Timeouts from a microsecond to thousands of years are stored as given, and hold to the microsecond."""
    opened.control.set_hwm(HighWaterMark(message_timeout=timeout_s))
    stored = opened.control.status().high_watermark.message_timeout
    assert stored == timeout_s and isinstance(stored, type(timeout_s))
    machine.boottime_s = 0  # where a float of seconds has the microseconds
    opened.publisher.send(b"x")
    if timeout_s < 10**11:
        machine.sleep(timeout_s)
        assert opened.subscriber.front() == b"x"
        machine.sleep(0.000001)
        assert opened.subscriber.front() is None
    else:
        machine.sleep(3000 * YEAR_S)
        assert opened.subscriber.front() == b"x"


def test_a_shorter_timeout_holds_at_once(opened: Opened, machine: Machine) -> None:
    """A timeout set through Control holds for what is in the queue already, and a longer one brings nothing back."""
    opened.publisher.send(b"1")
    machine.sleep(50)
    opened.publisher.send(b"2")
    opened.control.set_hwm(HighWaterMark(message_timeout=49))
    assert opened.subscriber.front() == b"2"
    opened.control.set_hwm(HighWaterMark(message_timeout=1000))
    assert drain(opened.subscriber) == drain(opened.other) == [b"2"]


# Steps of the wall clock


@pytest.mark.parametrize("step_s", [-100 * YEAR_S, -49 * YEAR_S, -3600, 3600, 100 * YEAR_S])
def test_the_wall_clock_steps_within_a_boot(step_s: float, opened: Opened, machine: Machine,
                                            new_environment: MakeEnvironment) -> None:
    """A step of the wall clock expires nothing early and keeps nothing longer, also at an opening then."""
    opened.publisher.send(b"1")
    machine.wall_s += step_s
    assert opened.subscriber.front() == b"1"
    opened.publisher.send(b"2")
    assert opened.control.status().oldest_age_s == 0
    opened = reopen(opened, new_environment)
    opened.publisher.send(b"3")
    machine.sleep(TIMEOUT_S)
    assert opened.subscriber.front() == b"1" and opened.control.status().oldest_age_s == TIMEOUT_S
    machine.wall_s -= 2 * step_s
    machine.sleep(0.5)
    assert opened.subscriber.front() is None
    assert len(set(commit_times_s(opened.environment.path))) == 1


# Reboots


@pytest.mark.parametrize("back_s", [0.001, 3600, 49 * YEAR_S])
def test_a_reboot_with_the_wall_clock_set_back(back_s: float, opened: Opened, machine: Machine,
                                               new_environment: MakeEnvironment) -> None:
    """After a reboot with the wall clock set back, commit times go on rising, and messages live for the timeout."""
    opened.publisher.send(b"1")
    machine.sleep(50)
    opened.publisher.send(b"2")
    machine.reboot(machine.wall_s - back_s)
    opened = reopen(opened, new_environment)
    assert opened.control.status().oldest_age_s == 50
    machine.sleep(20)
    opened.publisher.send(b"3")
    times_s = commit_times_s(opened.environment.path)
    assert times_s == sorted(times_s) and times_s[-1] - times_s[-2] == 20
    machine.sleep(30)
    assert opened.subscriber.front() == b"1"
    machine.sleep(1)
    assert opened.subscriber.front() == b"2"
    machine.sleep(50)
    assert drain(opened.subscriber) == [b"3"]


def test_the_time_between_two_boots_counts(opened: Opened, machine: Machine, new_environment: MakeEnvironment) -> None:
    """Where the wall clock went on while the machine was off, that time counts."""
    opened.publisher.send(b"1")
    machine.sleep(10)
    opened.publisher.send(b"2")
    machine.reboot(machine.wall_s + 80)
    opened = reopen(opened, new_environment)
    assert opened.control.status().oldest_age_s == 90
    machine.sleep(15)
    assert drain(opened.subscriber) == [b"2"]


def test_readers_agree_before_the_first_write_of_a_boot(opened: Opened, machine: Machine) -> None:
    """After a reboot, time passes for readers before the first write, which agrees with them."""
    opened.publisher.send(b"1")
    machine.reboot(machine.wall_s + 40)
    # Nobody opens a Control here: that would write.
    with persipubsub.new_environment(opened.environment.path) as environment:
        subscriber = environment.new_subscriber("a")
        assert opened.control.status().oldest_age_s == 40 and subscriber.front() == b"1"
        machine.sleep(50)
        assert opened.control.status().oldest_age_s == 90 and subscriber.front() == b"1"
        environment.new_publisher().send(b"2")
        assert opened.control.status().oldest_age_s == 90
        machine.sleep(11)
        assert subscriber.front() == b"2"


def test_the_wall_clock_is_read_once_in_a_boot(opened: Opened, machine: Machine,
                                               new_environment: MakeEnvironment) -> None:
    """After the first write of a boot, the wall clock does not matter until the next boot."""
    for _ in range(3):
        machine.reboot(machine.wall_s + 10)
        opened = reopen(opened, new_environment)
        opened.publisher.send(b"x")
        start_s = commit_times_s(opened.environment.path)[-1]
        machine.wall_s += 77
        machine.sleep(1)
        opened.publisher.send(b"x")
        assert commit_times_s(opened.environment.path)[-1] == pytest.approx(start_s + 1, abs=1e-6)
        drain(opened.subscriber)
        drain(opened.other)


@pytest.mark.parametrize("wall_s", [1000 * YEAR_S, 100_000 * YEAR_S])
def test_a_wall_clock_far_ahead(wall_s: float, opened: Opened, machine: Machine,
                                new_environment: MakeEnvironment) -> None:
    """After a boot with the wall clock far ahead and one with the right time, messages still live for the timeout."""
    right_s = machine.wall_s
    opened.publisher.send(b"before")
    machine.reboot(wall_s)
    opened = reopen(opened, new_environment)
    assert opened.subscriber.front() is None
    opened.publisher.send(b"1")
    machine.sleep(TIMEOUT_S)
    assert opened.subscriber.front() == b"1"
    machine.reboot(right_s)
    opened = reopen(opened, new_environment)
    opened.publisher.send(b"2")
    machine.sleep(TIMEOUT_S / 2)
    assert drain(opened.subscriber) == [b"1", b"2"]
    machine.sleep(TIMEOUT_S / 2 + 1)
    assert not drain(opened.other)
    opened.publisher.send(b"3")
    assert drain(opened.other) == [b"3"]
    times_s = commit_times_s(opened.environment.path)
    assert times_s == sorted(times_s)


@pytest.mark.parametrize("wall_s", [0, 1, -3600])
def test_a_wall_clock_at_the_epoch(wall_s: float, machine: Machine, new_environment: MakeEnvironment) -> None:
    """A machine without a clock of its own, which boots in 1970 or before, has a queue that works."""
    machine.reboot(wall_s)
    opened = Opened(new_environment(high_watermark=HighWaterMark(message_timeout=TIMEOUT_S)))
    opened.publisher.send(b"1")
    machine.sleep(TIMEOUT_S)
    assert drain(opened.subscriber) == [b"1"]
    machine.reboot(50 * YEAR_S)
    opened = reopen(opened, new_environment)
    assert not drain(opened.other)
    opened.publisher.send(b"2")
    assert drain(opened.other) == [b"2"]


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
def test_commit_times_rise_whatever_the_clocks_do(strategy: Strategy, machine: Machine,
                                                  new_environment: MakeEnvironment) -> None:
    """Through steps, reboots and overflows, commit times never fall."""
    opened = Opened(new_environment(high_watermark=HighWaterMark(10**9, max_messages=7), strategy=strategy))
    steps: List[Tuple[float, bool]] = [(10, False), (-500, True), (3, False), (-5000, False), (1, True), (900, True)]
    for number in range(30):
        step_s, reboots = steps[number % len(steps)]
        if reboots:
            machine.reboot(machine.wall_s + step_s)
            opened = reopen(opened, new_environment)
        else:
            machine.wall_s += step_s
        machine.sleep(1)
        opened.publisher.send_many([b"x"] * (number % 3 + 1))
        times_s = commit_times_s(opened.environment.path)
        assert times_s == sorted(times_s)


# The clocks themselves


def test_the_real_clocks() -> None:
    """The time since boot rises, the wall clock is that of the epoch, and the boot id stays the same."""
    first, second = clock.boottime_us(), clock.boottime_us()
    assert 0 < first <= second
    assert clock.wall_us() > 1_700_000_000 * 10**6
    assert len(clock.boot_id()) == 16 and clock.boot_id() == clock.boot_id()


def uses_time(text: str) -> bool:
    """Return whether a module imports :mod:`time`, or asks :mod:`datetime` for the time."""
    return any(
        isinstance(node, ast.Import) and any(alias.name == "time"
                                             for alias in node.names) or isinstance(node, ast.ImportFrom)
        and node.module == "time" or isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
        for node in ast.walk(ast.parse(text)))


def test_only_the_clock_uses_pythons_time() -> None:
    """No other module of the package asks Python for the time or sleeps: what freezes time in tests would stop it."""
    package = pathlib.Path(persipubsub.__file__).parent
    found = {file.name for file in package.rglob("*.py") if uses_time(file.read_text(encoding="utf-8"))}
    assert found == {"clock.py"}
