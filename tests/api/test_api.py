"""What users may do with a queue: both spellings of everything, and what each call promises."""

# pylint: disable=too-many-lines  # one short test for each promise

import array
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import gc
import itertools
import logging
import math
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import types
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, Subscriber, clock, errors
from persipubsub.engine import limits
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.engine import LmdbEngine
from persipubsub.lmdb_engine.records import database, layouts, runs
from persipubsub.lmdb_engine.records.database import Database
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.rules import cursors, invariants, message_log
from tests.damages import DELIVERY_DAMAGES, Raw, change_subscriber, pack

T = TypeVar("T")
MakeEnvironment = Callable[..., Environment]
Records = Dict[str, Dict[bytes, bytes]]

WAIT_S = 30  # for what happens at once unless something is broken
MIB = 1024**2


class Opened(NamedTuple):
    """A queue with one subscriber, "a", and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment) -> Opened:
    """Set up a queue that does not wait for the disk."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    return Opened(environment, environment.new_control(), environment.new_publisher(), environment.new_subscriber("a"))


def drain(subscriber: Subscriber) -> List[bytes]:
    """Receive and acknowledge everything that is there."""
    return list(subscriber.messages(timeout=0))


def pending(control: Control) -> Dict[str, int]:
    """Return how many messages each subscriber has not acknowledged."""
    return {name: subscriber.pending for name, subscriber in control.status().subscribers.items()}


@contextlib.contextmanager
def raw_copy(path: pathlib.Path) -> Iterator[lmdb.Environment]:
    """Open a copy of a queue's data file, as it is at this moment. Nobody may be writing."""
    with tempfile.TemporaryDirectory() as directory:
        # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
        shutil.copyfile(path / "data.mdb", pathlib.Path(directory) / "data.mdb")
        with lmdb.Environment(directory, readonly=True, lock=False, max_dbs=32) as environment:
            yield environment


def commits_so_far(environment: Environment) -> int:
    """Return LMDB's number of the newest commit of a queue."""
    with raw_copy(environment.path) as raw:
        return raw.info()["last_txnid"]


def dump(path: pathlib.Path) -> Records:
    """Read all records of a queue."""
    with raw_copy(path) as raw:
        databases = {name: raw.open_db(name.encode(), create=False) for name in SubDatabases._fields}
        with raw.begin() as txn:
            return {name: dict(txn.cursor(database)) for name, database in databases.items()}


def in_thread(function: Callable[[], T]) -> "concurrent.futures.Future[T]":
    """Run a function in a thread that does not keep a failed test from ending."""
    future: "concurrent.futures.Future[T]" = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again by result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@pytest.fixture(name="waiting")
def waiting_fixture(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a subscriber has found nothing and is about to wait."""
    event = threading.Event()
    original = LmdbEngine.watch

    def watch(self: LmdbEngine, longest_sleep_s: float) -> Any:
        result = original(self, longest_sleep_s)
        event.set()
        return result

    monkeypatch.setattr(LmdbEngine, "watch", watch)
    return event


class FakeWatch:
    """Stands for a wait during which something happens."""

    def __init__(self, happen: Callable[[], object]) -> None:
        self._happen = happen
        self.waits_s: List[float] = []

    def arm(self) -> None:
        """Do nothing: what happens during a wait is found after it."""

    def wait(self, timeout_s: float) -> None:
        """Let it happen."""
        self.waits_s.append(timeout_s)
        self._happen()

    def reserve(self, due_us: int) -> bool:
        """Return that nobody else waits."""
        return bool(due_us)

    def close(self) -> None:
        """Do nothing."""


# Exports


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    root = pathlib.Path(persipubsub.__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, "-c", code],
                          check=True,
                          capture_output=True,
                          text=True,
                          env={
                              **os.environ, "PYTHONPATH": path
                          }).stdout


def test_all_is_sorted_and_complete() -> None:
    """All documented names of the package are exported, sorted, and so are the modules that users import."""
    assert persipubsub.__all__ == sorted(set(persipubsub.__all__))
    modules = {"clock", "control", "environment", "errors", "message", "publisher", "queue", "subscriber"}
    classes = {"Control", "Durability", "Environment", "HighWaterMark", "Publisher", "Strategy", "Subscriber"}
    messages = {"Delivery", "Envelope", "Reject", "Retry"}
    assert set(persipubsub.__all__) == modules | classes | messages | {"initialize", "new_environment"}
    assert all(hasattr(persipubsub, name) for name in persipubsub.__all__)


def test_modules_are_reachable_after_a_plain_import() -> None:
    """``import persipubsub`` alone makes the documented names of its modules usable."""
    output = run_python("import persipubsub\n"
                        "print(callable(persipubsub.environment.new_environment), persipubsub.queue.HighWaterMark,"
                        " persipubsub.queue.Strategy.prune_first, persipubsub.errors.PersipubsubError)")
    assert output.startswith("True ")


# Both spellings


@pytest.mark.parametrize("make", [
    persipubsub.environment.new_environment, persipubsub.new_environment, persipubsub.environment.initialize,
    persipubsub.initialize, persipubsub.environment.Environment, persipubsub.Environment
])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_every_spelling_makes_an_environment(make: Callable[..., Environment], kind: Callable[[pathlib.Path], Any],
                                             tmp_path: pathlib.Path) -> None:
    """Every name of the factory takes a str or PathLike, by position or as ``path``; the queue works."""
    path = tmp_path / "parent" / "queue"
    with make(kind(path)) as first, make(path=kind(path)) as second:
        assert not path.parent.exists()
        first.new_control(["a"])
        assert second.new_publisher().send(b"x") == 1
        assert isinstance(first, Environment) and first.path == path


@pytest.mark.parametrize("keyword", ["high_watermark", "high_water_mark"])
def test_both_spellings_of_the_high_watermark(keyword: str, new_environment: MakeEnvironment) -> None:
    """``new_control`` takes the high-water mark under both names, for a new and for an existing queue."""
    environment = new_environment(**{keyword: HighWaterMark(max_messages=7)})
    assert environment.new_control().status().high_watermark == HighWaterMark(None, 7, None)
    again: Any = {keyword: HighWaterMark(message_timeout=8)}
    environment.new_control(**again)
    assert environment.new_control().status().high_watermark == HighWaterMark(8, 7, None)


@pytest.mark.parametrize("arguments", [{}, {
    "message_timeout": None,
    "max_messages": None,
    "hwm_db_size": None
}, {
    "message_timeout": None,
    "max_msgs_num": None
}])
def test_high_watermark_defaults(arguments: Dict[str, None]) -> None:
    """None means no limit, and a limit that is left out reads as None."""
    mark = persipubsub.queue.HighWaterMark(**arguments)
    assert (mark.message_timeout, mark.max_messages, mark.hwm_db_size) == (None, None, None)


def test_both_spellings_of_the_high_watermarks_parts() -> None:
    """``max_msgs_num`` and ``hwm_lmdb_size`` are other names of the same values, as is ``_HighWaterMark``."""
    # pylint: disable=protected-access  # the name in the released code of 1.0.0
    mark = persipubsub.queue._HighWaterMark(message_timeout=5, max_msgs_num=6, hwm_db_size=7)
    assert persipubsub.queue._HighWaterMark is persipubsub.queue.HighWaterMark is HighWaterMark
    assert mark == HighWaterMark(5, 6, 7) == HighWaterMark(message_timeout=5, max_messages=6, hwm_db_size=7)
    assert mark.max_messages == mark.max_msgs_num == 6
    assert mark.hwm_db_size == mark.hwm_lmdb_size == 7


def test_high_watermark_is_a_value() -> None:
    """High-water marks compare, hash and pickle by value, differ in any part, and cannot be changed."""
    mark = HighWaterMark(5, 6, 7)
    assert pickle.loads(pickle.dumps(mark)) == mark and hash(HighWaterMark(5, 6, 7)) == hash(mark)
    assert len({mark, HighWaterMark(5, 6, 7), HighWaterMark(4, 6, 7), HighWaterMark(5, 5, 7)}) == 3
    assert mark not in (HighWaterMark(5, 6, 8), (5, 6, 7))
    assert repr(mark) == "HighWaterMark(message_timeout=5, max_messages=6, hwm_db_size=7)"
    with pytest.raises(AttributeError, match="max_messages"):
        mark.max_messages = 8
    with pytest.raises(AttributeError, match="max_messages"):
        del mark.max_messages
    assert mark == HighWaterMark(5, 6, 7)


def test_both_spellings_of_the_strategy() -> None:
    """The upper-case names of the strategies are the same members."""
    # pylint: disable=protected-access  # the name in the released code of 1.0.0
    assert persipubsub.queue._Strategy is persipubsub.queue.Strategy is Strategy
    aliases = {name: member.name for name, member in Strategy.__members__.items()}
    assert aliases["PRUNE_FIRST"] == "prune_first" and aliases["PRUNE_LAST"] == "prune_last"
    assert aliases["REFUSE"] == "refuse"
    assert list(Strategy) == [Strategy.prune_first, Strategy.prune_last, Strategy.refuse]


# Sending


def test_ids_rise_from_one_in_the_order_of_commits(opened: Opened, new_environment: MakeEnvironment) -> None:
    """Ids begin at 1, follow the order of commits across publishers, and are never reused."""
    other = new_environment("a").new_publisher()
    assert opened.publisher.send(msg=b"1") == 1
    assert opened.publisher.send_many(msgs=[b"2", b"3", b"4"]) == range(2, 5)
    assert other.send(b"5") == 5
    assert opened.publisher.send(b"6") == 6
    opened.control.clear_messages()
    assert opened.publisher.send(b"7") == 7
    opened.control.clear_all_subscribers()
    assert opened.publisher.send(b"8") == 8
    opened.environment.new_control(["a"], HighWaterMark(max_messages=1), Strategy.prune_last)
    assert [other.send(b"9"), other.send(b"10")] == [9, 10]


def test_ids_continue_after_reopening(new_environment: MakeEnvironment) -> None:
    """A queue that is empty when it is opened again continues with the next id."""
    with new_environment("a") as environment:
        assert environment.new_publisher().send(b"x") == 1
        assert drain(environment.new_subscriber("a")) == [b"x"]
    assert new_environment().new_publisher().send(b"y") == 2


def test_an_empty_batch_writes_nothing(opened: Opened) -> None:
    """``send_many`` of nothing returns no ids and commits nothing."""
    before = commits_so_far(opened.environment)
    assert not opened.publisher.send_many([])
    assert commits_so_far(opened.environment) == before
    assert opened.publisher.send(b"x") == 1


@pytest.mark.parametrize("make", [list, tuple, iter, lambda msgs: (msg for msg in msgs)])
def test_a_batch_is_any_iterable(make: Callable[[List[bytes]], Any], opened: Opened) -> None:
    """``send_many`` takes any iterable, sends in its order, and needs one commit."""
    before = commits_so_far(opened.environment)
    assert opened.publisher.send_many(make([b"%d" % i for i in range(100)])) == range(1, 101)
    assert commits_so_far(opened.environment) == before + 1
    assert drain(opened.subscriber) == [b"%d" % i for i in range(100)]


@pytest.mark.parametrize("message", [
    b"abc",
    bytearray(b"abc"),
    memoryview(b"abc"),
    memoryview(b"a-b-c")[::2],
    array.array("B", b"abc"),
    memoryview(array.array("H", b"abc0")).cast("B")[:3]
])
def test_a_message_is_bytes_like(message: Any, opened: Opened) -> None:
    """Every bytes-like object is sent as its bytes, alone and in a batch, and is received as bytes."""
    opened.publisher.send(message)
    opened.publisher.send_many([b"", message])
    with opened.subscriber.receive_many(timeout=0) as msgs:
        assert msgs == [b"abc", b"", b"abc"] and {type(msg) for msg in msgs} == {bytes}


def test_a_sent_buffer_may_be_reused(opened: Opened) -> None:
    """What is received are the bytes at the time of sending."""
    buffer: Any = bytearray(b"before")
    opened.publisher.send(buffer)
    opened.publisher.send_many([buffer])
    buffer[:] = b"after!"
    assert drain(opened.subscriber) == [b"before", b"before"]


def test_autosync_commits_each_message(opened: Opened) -> None:
    """With ``autosync``, ``send_many`` commits each message by itself: an error leaves those before it sent."""
    opened.control.set_hwm(HighWaterMark(hwm_db_size=2**20))
    before = commits_so_far(opened.environment)
    publisher = opened.environment.new_publisher(autosync=True)
    assert list(publisher.send_many([b"1", b"2", b"3"])) == [1, 2, 3]
    assert commits_so_far(opened.environment) == before + 3
    with pytest.raises(errors.MessageTooLargeError):
        publisher.send_many([b"4", bytes(2**20 + 1), b"5"])
    assert drain(opened.subscriber) == [b"1", b"2", b"3", b"4"]


def test_order_per_publisher(opened: Opened, new_environment: MakeEnvironment) -> None:
    """Messages of several publishers are received in the order in which they were sent."""
    publishers = [opened.publisher, opened.environment.new_publisher(), new_environment("a").new_publisher()]
    for number in range(50):
        publishers[number % 3].send_many([b"%d" % number] * (number % 4))
        publishers[(number + 1) % 3].send(b"%d" % number)
    expected = [b"%d" % number for number in range(50) for _ in range(number % 4 + 1)]
    assert drain(opened.subscriber) == expected


@pytest.mark.parametrize(
    "size_bytes",
    [0, 1, 4096, 65519, 65520, 65521, 65512 + 65520, 65512 + 65520 + 1, MIB,
     pytest.param(100 * MIB, id="100MiB")])
def test_sizes(size_bytes: int, opened: Opened) -> None:
    """A message of any size arrives as sent, alone and among others; once acknowledged, nothing of it is left."""
    payload = random.Random(size_bytes).randbytes(size_bytes)
    opened.publisher.send_many([b"before", payload, b"after"])
    assert opened.subscriber.front() == b"before"
    with opened.subscriber.receive_many(timeout=0, max_bytes=2**31) as msgs:
        assert [len(msg) for msg in msgs] == [6, size_bytes, 5]
        assert msgs[1] == payload
    if size_bytes <= MIB:
        opened.publisher.send(payload)
        assert opened.subscriber.front() == payload
        with opened.subscriber.receive(timeout=0) as msg:
            assert msg == payload
        opened.publisher.send(payload)
        with opened.subscriber.receive_to_top(timeout=0) as msg:
            assert msg == payload
    opened.control.prune_dangling_messages()  # small ones wait for others
    left = dump(opened.environment.path)
    assert not left["data_db"] and not left["chunk_db"]


# Receiving


def test_every_subscriber_gets_every_message(new_environment: MakeEnvironment) -> None:
    """A message that one subscriber acknowledged stays for the others, until all have."""
    environment = new_environment("a", "b")
    control = environment.new_control()
    environment.new_publisher().send_many([b"1", b"2"])
    assert drain(environment.new_subscriber("a")) == [b"1", b"2"]
    assert pending(control) == {"a": 0, "b": 2} and control.status().messages == 2
    assert drain(environment.new_subscriber("b")) == [b"1", b"2"]
    assert control.status().messages == 0


Receive = Callable[[Subscriber, Optional[float]], ContextManager[Any]]

RECEIVES = [
    pytest.param(lambda subscriber, timeout: subscriber.receive(timeout=timeout), b"1", [b"2", b"3"], id="receive"),
    pytest.param(lambda subscriber, timeout: subscriber.receive_to_top(timeout=timeout), b"3", [], id="receive_to_top"),
    pytest.param(lambda subscriber, timeout: subscriber.receive_many(max_messages=2, timeout=timeout), [b"1", b"2"],
                 [b"3"],
                 id="receive_many"),
]


@pytest.mark.parametrize("receive, received, left", RECEIVES)
def test_messages_are_acknowledged_when_the_block_ends(receive: Receive, received: object, left: List[bytes],
                                                       opened: Opened) -> None:
    """The end of a block acknowledges exactly what was received, in one commit."""
    opened.publisher.send_many([b"1", b"2", b"3"])
    before = commits_so_far(opened.environment)
    with receive(opened.subscriber, 0) as got:
        assert got == received
        assert pending(opened.control) == {"a": 3} and commits_so_far(opened.environment) == before
        opened.publisher.send(b"sent in the block")
    assert commits_so_far(opened.environment) == before + 2
    assert drain(opened.subscriber) == left + [b"sent in the block"]


@pytest.mark.parametrize("receive, received, left", RECEIVES)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_messages_are_kept_when_the_block_raises(receive: Receive, received: object, left: List[bytes],
                                                 kind: Callable[[], BaseException], opened: Opened) -> None:
    """A block that raises anything acknowledges nothing, and the same messages come again."""
    opened.publisher.send_many([b"1", b"2", b"3"])
    before = commits_so_far(opened.environment)
    error = kind()
    with pytest.raises(type(error)) as raised:
        with receive(opened.subscriber, 0) as got:
            assert got == received
            raise error
    assert raised.value is error
    assert pending(opened.control) == {"a": 3} and commits_so_far(opened.environment) == before
    with receive(opened.subscriber, 0) as got:
        assert got == received
    assert drain(opened.subscriber) == left


@pytest.mark.parametrize("receive, received, left", RECEIVES)
def test_timeout_zero_looks_once(receive: Receive, received: object, left: List[bytes], opened: Opened,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timeout of 0 an empty queue is looked at once, without waiting, and nothing is written."""
    looks: List[str] = []
    for name in ("look", "look_at_top"):
        original = getattr(LmdbEngine, name)

        def look(self: LmdbEngine, *args: Any, _name: str = name, _original: Callable[..., Any] = original) -> Any:
            looks.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(LmdbEngine, name, look)
    monkeypatch.setattr(LmdbEngine, "watch", lambda *_: pytest.fail("it waits"))
    before = commits_so_far(opened.environment)
    with receive(opened.subscriber, 0) as got:
        assert got == ([] if isinstance(received, list) else None)
    assert len(looks) == 1 and commits_so_far(opened.environment) == before
    opened.publisher.send_many([b"1", b"2", b"3"])
    with receive(opened.subscriber, 0) as got:
        assert got == received
    assert drain(opened.subscriber) == left


def set_clock(monkeypatch: pytest.MonkeyPatch, monotonic_s: Callable[[], float]) -> None:
    """Let subscribers measure their timeouts by another clock."""
    replaced = types.SimpleNamespace(monotonic_s=monotonic_s, boottime_us=clock.boottime_us)
    monkeypatch.setattr(persipubsub.subscriber, "clock", replaced)


@pytest.mark.parametrize("receive, received, left", RECEIVES)
def test_a_timeout_passes(receive: Receive, received: object, left: List[bytes], opened: Opened,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a message, a receive waits for the timeout, neither less nor for ever, and returns None."""
    del left
    clock_s = itertools.count(1000.0, 0.25)
    watch = FakeWatch(lambda: None)
    set_clock(monkeypatch, lambda: next(clock_s))
    monkeypatch.setattr(LmdbEngine, "watch", lambda *_: watch)
    with receive(opened.subscriber, 1.5) as got:
        assert got == ([] if isinstance(received, list) else None)
    assert watch.waits_s == [1.0, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("receive, received, left", RECEIVES)
@pytest.mark.parametrize("timeout", [None, WAIT_S, math.inf])
def test_a_waiting_receive_gets_what_is_sent(receive: Receive, received: object, left: List[bytes],
                                             timeout: Optional[float], opened: Opened,
                                             waiting: threading.Event) -> None:
    """A receive that waits, with a timeout or not, gets and acknowledges the message sent meanwhile."""
    del left

    def receive_one() -> object:
        with receive(opened.subscriber, timeout) as got:
            return got

    future = in_thread(receive_one)
    assert waiting.wait(WAIT_S)
    assert not future.done()
    opened.publisher.send(b"x")
    assert future.result(WAIT_S) == ([b"x"] if isinstance(received, list) else b"x")
    assert opened.subscriber.front() is None


@pytest.mark.parametrize("timeout, retries, longest_sleep_s", [(10, 4, 1), (1, 4, 0.25), (2, 20, 0.1), (0.5, 1, 0.5),
                                                               (None, 10, 1)])
def test_retries_bound_the_sleep(timeout: Optional[float], retries: int, longest_sleep_s: float, opened: Opened,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """No sleep between two looks is longer than timeout / retries, nor than a second."""
    asked_s: List[float] = []

    def watch(_: LmdbEngine, longest_s: float) -> FakeWatch:
        asked_s.append(longest_s)
        return FakeWatch(lambda: opened.publisher.send(b"x"))

    monkeypatch.setattr(LmdbEngine, "watch", watch)
    for receive in (opened.subscriber.receive, opened.subscriber.receive_to_top):
        with receive(timeout=timeout, retries=retries) as msg:
            assert msg == b"x"
    with opened.subscriber.receive_many(timeout=timeout, retries=retries) as msgs:
        assert msgs == [b"x"]
    assert asked_s == pytest.approx([longest_sleep_s] * 3)


def test_receive_many_returns_at_most_max_messages_in_order(opened: Opened) -> None:
    """``receive_many`` returns at most ``max_messages``, 1,000 by default, without waiting."""
    opened.publisher.send_many(b"%d" % number for number in range(1010))
    with opened.subscriber.receive_many(timeout=None) as msgs:
        assert msgs == [b"%d" % number for number in range(1000)]
    with opened.subscriber.receive_many(max_messages=3, timeout=None) as msgs:
        assert msgs == [b"1000", b"1001", b"1002"]
    with opened.subscriber.receive_many(max_messages=10**30, timeout=None) as msgs:
        assert len(msgs) == 7


@pytest.mark.parametrize("max_bytes, count", [(1, 1), (10, 1), (11, 1), (20, 2), (29, 2), (30, 3), (10**30, 4)])
def test_receive_many_stops_at_max_bytes(max_bytes: int, count: int, opened: Opened) -> None:
    """``receive_many`` returns at most ``max_bytes``, but always one message; it acknowledges only those."""
    opened.publisher.send_many([bytes(10)] * 4)
    with opened.subscriber.receive_many(timeout=0, max_bytes=max_bytes) as msgs:
        assert len(msgs) == count
    assert pending(opened.control) == {"a": 4 - count}


def test_receive_many_stops_at_64_mib(opened: Opened) -> None:
    """By default ``receive_many`` returns at most 64 MiB, so that a backlog does not fill the memory."""
    opened.publisher.send_many([bytes(16 * MIB)] * 5)
    with opened.subscriber.receive_many(timeout=0) as msgs:
        assert len(msgs) == 4


@pytest.mark.parametrize("acknowledge_every", [1, 2, 3, 10])
def test_breaking_out_of_messages(acknowledge_every: int, opened: Opened) -> None:
    """Leaving the loop over messages acknowledges exactly the finished ones, however many share a commit."""
    opened.publisher.send_many(b"%d" % number for number in range(6))
    for msg in opened.subscriber.messages(timeout=0, acknowledge_every=acknowledge_every):
        if msg == b"2":
            break
    assert pending(opened.control) == {"a": 4}
    with pytest.raises(ConnectionError):
        for msg in opened.subscriber.messages(timeout=0, acknowledge_every=acknowledge_every):
            if msg == b"4":
                raise ConnectionError()
    assert pending(opened.control) == {"a": 2}
    assert list(opened.subscriber.messages(timeout=0, acknowledge_every=acknowledge_every)) == [b"4", b"5"]
    assert pending(opened.control) == {"a": 0}


def test_messages_are_acknowledged_when_the_loop_asks_for_the_next(opened: Opened) -> None:
    """A loop acknowledges a message when the next one is asked for."""
    opened.publisher.send_many([b"1", b"2", b"3"])
    seen = [(msg, pending(opened.control)["a"]) for msg in opened.subscriber.messages(timeout=0)]
    assert seen == [(b"1", 3), (b"2", 2), (b"3", 1)]
    assert pending(opened.control) == {"a": 0}


def test_acknowledge_every_saves_commits(opened: Opened) -> None:
    """``acknowledge_every`` acknowledges that many messages in one commit."""
    opened.publisher.send_many([b"x"] * 25)
    before = commits_so_far(opened.environment)
    assert len(list(opened.subscriber.messages(timeout=0, acknowledge_every=10))) == 25
    assert commits_so_far(opened.environment) == before + 3


def test_messages_go_on_with_what_comes(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop over messages waits for further ones, and ends when the timeout passes without any."""
    to_come = [b"2", b"3", b"4"]

    def happen() -> None:
        if to_come:
            opened.publisher.send(to_come.pop(0))
        else:
            set_clock(monkeypatch, lambda: math.inf)

    monkeypatch.setattr(LmdbEngine, "watch", lambda *_: FakeWatch(happen))
    opened.publisher.send(b"1")
    assert list(opened.subscriber.messages(timeout=WAIT_S)) == [b"1", b"2", b"3", b"4"]


def test_messages_wait_for_ever_by_default(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a timeout the loop over messages never ends by itself."""
    waits = iter([None] * 5000 + [opened.publisher])

    def happen() -> None:
        publisher = next(waits)
        if publisher is not None:
            publisher.send(b"x")

    monkeypatch.setattr(LmdbEngine, "watch", lambda *_: FakeWatch(happen))
    assert next(iter(opened.subscriber.messages())) == b"x"


def test_front_and_pop(opened: Opened) -> None:
    """``front`` returns the next message again and again, None if there is none; ``pop`` acknowledges just that one."""
    assert opened.subscriber.front() is None
    opened.publisher.send_many([b"1", b"", b"3"])
    assert [opened.subscriber.front(), opened.subscriber.front()] == [b"1", b"1"]
    opened.subscriber.pop()
    assert opened.subscriber.front() == b""
    opened.subscriber.pop()
    opened.subscriber.pop()
    assert opened.subscriber.front() is None
    with pytest.raises(errors.EmptyError, match="'a'"):
        opened.subscriber.pop()


def test_acknowledging_twice_is_acknowledging_once(opened: Opened) -> None:
    """Two receivers as one subscriber may get one message; the later end changes nothing."""
    other = opened.environment.new_subscriber("a")
    opened.control.add_subscriber("slow")  # keeps everything in the queue, whatever "a" acknowledges
    opened.publisher.send_many([b"1", b"2", b"3", b"4"])
    with opened.subscriber.receive(timeout=0) as first, other.receive(timeout=0) as second:
        assert first == second == b"1"
    with opened.subscriber.receive(timeout=0) as first:
        assert first == b"2"
        with other.receive_many(max_messages=2, timeout=0) as msgs:
            assert msgs == [b"2", b"3"]
    assert drain(other) == [b"4"] and opened.subscriber.front() is None


# Control


def test_new_control_applies_only_what_is_given(new_environment: MakeEnvironment) -> None:
    """``new_control`` on an existing queue sets what it is given and leaves the rest, messages too, as stored."""
    mark = HighWaterMark(5, 6, 7 * MIB)
    environment = new_environment("a",
                                  high_watermark=mark,
                                  strategy=Strategy.prune_last,
                                  durability=Durability.PROCESS_CRASH)

    def stored() -> Tuple[object, ...]:
        status = environment.new_control().status()
        return status.high_watermark, status.strategy, status.durability, pending(environment.new_control())

    environment.new_publisher().send(b"x")
    assert stored() == (mark, Strategy.prune_last, Durability.PROCESS_CRASH, {"a": 1})
    environment.new_control(["a", "b", "b"])
    assert stored() == (mark, Strategy.prune_last, Durability.PROCESS_CRASH, {"a": 1, "b": 0})
    environment.new_control([], durability=Durability.POWER_LOSS)
    assert stored() == (mark, Strategy.prune_last, Durability.POWER_LOSS, {"a": 1, "b": 0})
    environment.new_control(strategy=Strategy.prune_first)
    assert stored() == (mark, Strategy.prune_first, Durability.POWER_LOSS, {"a": 1, "b": 0})
    environment.new_control(high_watermark=HighWaterMark(8))
    mark = HighWaterMark(8, 6, 7 * MIB)
    assert stored() == (mark, Strategy.prune_first, Durability.POWER_LOSS, {"a": 1, "b": 0})


def test_defaults_of_a_new_queue(new_environment: MakeEnvironment) -> None:
    """A new queue for which nothing is given survives power loss, prunes first, and has no limits."""
    status = new_environment().new_control().status()
    assert (status.high_watermark, status.strategy, status.durability,
            dict(status.subscribers)) == (HighWaterMark(None, None,
                                                        None), Strategy.prune_first, Durability.POWER_LOSS, {})


def test_is_initialized(opened: Opened) -> None:
    """A queue that was set up is initialised, until somebody deletes its files."""
    assert opened.control.is_initialized()
    for file in opened.environment.path.iterdir():
        file.unlink()
    assert not opened.control.is_initialized()


def test_a_new_subscriber_begins_at_the_end(opened: Opened) -> None:
    """A new subscriber gets what is sent from then on; adding it again changes nothing."""
    opened.publisher.send(b"1")
    opened.control.add_subscriber("b")
    opened.publisher.send(b"2")
    opened.control.add_subscriber("b")
    assert drain(opened.environment.new_subscriber("b")) == [b"2"]
    assert drain(opened.subscriber) == [b"1", b"2"]


def test_a_subscriber_added_again_is_a_new_one(opened: Opened) -> None:
    """The handle of a removed subscriber never becomes the one added again under its name, not even in a block."""
    opened.control.add_subscriber("b")
    opened.publisher.send(b"1")
    with opened.subscriber.receive(timeout=0) as msg:
        assert msg == b"1"
        opened.control.remove_subscriber("a")
        opened.control.add_subscriber("a")
        opened.publisher.send(b"2")
    assert pending(opened.control) == {"a": 1, "b": 2}
    for call in (opened.subscriber.front, opened.subscriber.pop):
        with pytest.raises(errors.UnknownSubscriberError, match="'a' was removed"):
            call()
    assert drain(opened.environment.new_subscriber("a")) == [b"2"]


def test_a_subscriber_that_is_removed_in_the_block(opened: Opened) -> None:
    """A block ends without an error if its subscriber was removed meanwhile."""
    opened.control.add_subscriber("b")
    opened.publisher.send(b"1")
    with opened.subscriber.receive(timeout=0) as msg:
        assert msg == b"1"
        opened.control.remove_subscriber("a")
    assert pending(opened.control) == {"b": 1}


def test_adding_a_subscriber_returns_whether_it_is_new(opened: Opened) -> None:
    """``add_subscriber`` returns whether the subscriber is new."""
    held = open_queues.acquire(opened.environment.path)
    assert [held.change(lambda txn: cursors.add_subscriber(txn, b"b")) for _ in range(3)] == [True, False, False]
    open_queues.release(held)


def test_removing_a_subscriber_frees_what_it_alone_awaited(opened: Opened) -> None:
    """Removing a subscriber deletes the messages that only it awaited, with the last one all."""
    opened.control.add_subscriber("b")
    opened.publisher.send_many([b"1", b"2", b"3"])
    for _ in range(2):
        opened.subscriber.pop()
    assert opened.control.status().messages == 3
    opened.control.remove_subscriber("b")
    assert opened.control.status().messages == 1 and opened.subscriber.front() == b"3"
    opened.control.remove_subscriber("a")
    assert opened.control.status().messages == 0


def test_a_removed_subscribers_waiting_receive_ends(opened: Opened, waiting: threading.Event) -> None:
    """Waiting as a subscriber that is removed raises UnknownSubscriberError."""
    future = in_thread(lambda: next(opened.subscriber.messages()))
    assert waiting.wait(WAIT_S)
    opened.control.remove_subscriber("a")
    with pytest.raises(errors.UnknownSubscriberError, match="'a' was removed"):
        future.result(WAIT_S)


@pytest.mark.parametrize("identifier", [*SubDatabases._fields, "format", "header", "x", "é" * 127 + "x", "a b/../.c"])
def test_identifiers_share_no_name_space_with_ours(identifier: str, opened: Opened) -> None:
    """Any identifier of 1 to 255 bytes works, the names of our own sub-databases too."""
    opened.control.add_subscriber(identifier)
    opened.publisher.send(b"x")
    subscriber = opened.environment.new_subscriber(identifier)
    assert subscriber.identifier == identifier and drain(subscriber) == [b"x"]
    assert set(pending(opened.control)) == {"a", identifier}
    opened.control.remove_subscriber(identifier)
    assert set(pending(opened.control)) == {"a"} and opened.subscriber.front() == b"x"


def test_clear_messages(opened: Opened) -> None:
    """``clear_messages`` returns how many it deleted; subscribers and publishers continue."""
    opened.control.add_subscriber("b")
    opened.publisher.send_many([b"1", b"2", b"3"])
    opened.subscriber.pop()
    assert opened.control.clear_messages() == 3
    assert opened.control.clear_messages() == 0
    assert pending(opened.control) == {"a": 0, "b": 0} and opened.subscriber.front() is None
    opened.publisher.send(b"4")
    assert drain(opened.subscriber) == [b"4"]


def test_clear_all_subscribers(opened: Opened) -> None:
    """``clear_all_subscribers`` removes subscribers and messages; open publishers go on."""
    opened.control.add_subscriber("b")
    opened.publisher.send_many([b"1", b"2", b"3"])
    assert opened.control.clear_all_subscribers() == 3
    status = opened.control.status()
    assert not status.subscribers and status.messages == 0
    assert opened.publisher.send(b"4") == 4
    opened.control.add_subscriber("c")
    assert opened.publisher.send(b"5") == 5
    assert drain(opened.environment.new_subscriber("c")) == [b"5"]


def test_prune_all_messages_for(opened: Opened) -> None:
    """``prune_all_messages_for`` skips what one subscriber alone awaits, and returns how many messages."""
    opened.control.add_subscriber("b")
    opened.publisher.send_many([b"1", b"2", b"3"])
    opened.subscriber.pop()
    assert opened.control.prune_all_messages_for("a") == 2
    assert opened.control.prune_all_messages_for("a") == 0
    assert pending(opened.control) == {"a": 0, "b": 3}
    assert opened.control.prune_all_messages_for("b") == 3
    assert opened.control.status().messages == 0
    opened.publisher.send(b"4")
    assert drain(opened.subscriber) == [b"4"]


def test_nothing_dangles(opened: Opened) -> None:
    """Pruning dangling messages keeps those that somebody awaits; the others are deleted already."""
    opened.control.add_subscriber("b")
    opened.publisher.send_many([b"1", b"2"])
    drain(opened.subscriber)
    assert opened.control.prune_dangling_messages() == 0
    assert drain(opened.environment.new_subscriber("b")) == [b"1", b"2"]
    assert opened.control.prune_dangling_messages() == 0


def test_a_queue_without_subscribers_stores_nothing(new_environment: MakeEnvironment,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    """Without subscribers a send returns ids and stores nothing; a warning at once and one at the end count it."""
    environment = new_environment()
    control = environment.new_control()
    publishers = [environment.new_publisher(), environment.new_publisher()]
    assert [publisher.send(b"x") for publisher in publishers + publishers] == [1, 2, 3, 4]
    assert publishers[0].send_many([bytes(100_000)] * 3) == range(5, 8)
    stored = dump(environment.path)
    assert not stored["data_db"] and not stored["chunk_db"] and control.status().messages == 0
    publishers[0].send_later(b"due at once", delay_s=0)
    environment.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("no subscribers" in warning and str(environment.path) in warning for warning in warnings)
    assert "sent: 1 messages" in warnings[0] and "sent: 7 messages" in warnings[1]


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
def test_an_overflow_warns_with_the_count(strategy: Strategy, new_environment: MakeEnvironment,
                                          caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the queue and how many messages an overflow dropped; so does one at the end."""
    environment = new_environment("a", high_watermark=HighWaterMark(max_messages=4), strategy=strategy)
    publisher = environment.new_publisher()
    for _ in range(4):
        publisher.send(b"x")
    assert not caplog.records
    publisher.send(b"x")  # 4 // 2 + 1 went
    assert publisher.send_many([b"x"] * 7) == range(6, 13)  # to 4, 3 went, to 4, 3 went, 3
    assert environment.new_control().status().messages == 3
    environment.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all(str(environment.path) in warning for warning in warnings)
    assert "3 messages" in warnings[0] and "6 messages" in warnings[1]


def test_status(new_environment: MakeEnvironment) -> None:
    """``status`` describes the whole queue exactly, and cannot be changed."""
    environment = new_environment("a", "b", high_watermark=HighWaterMark(90, 80, 70 * MIB))
    control = environment.new_control()
    status = control.status()
    assert (status.path, status.messages, status.size_bytes, status.oldest_age_s) == (environment.path, 0, 0, None)
    assert (status.next_id, status.floor, status.high_watermark) == (1, 1, HighWaterMark(90, 80, 70 * MIB))
    assert {(one.next_id, one.pending, one.oldest_pending_age_s)
            for one in status.subscribers.values()} == {(1, 0, None)}
    environment.new_publisher().send_many([bytes(5000), bytes(1), bytes(100_000)])
    environment.new_subscriber("a").pop()
    status = control.status()
    assert (status.messages, status.next_id, status.floor) == (3, 4, 1)
    assert 105_001 <= status.size_bytes <= 150_000 and status.size_bytes % 4096 == 0
    assert status.oldest_age_s is not None and 0 <= status.oldest_age_s < WAIT_S
    assert (status.subscribers["a"].next_id, status.subscribers["a"].pending) == (2, 2)
    assert (status.subscribers["b"].next_id, status.subscribers["b"].pending) == (1, 3)
    ages_s = [subscriber.oldest_pending_age_s for subscriber in status.subscribers.values()]
    assert all(age_s is not None and 0 <= age_s < WAIT_S for age_s in ages_s)
    for frozen, field in ((status, "messages"), (status.subscribers["a"], "pending")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, 0)


def test_status_is_exact_where_ids_have_gaps(new_environment: MakeEnvironment) -> None:
    """Counts are exact also where ``prune_last`` has left gaps in the ids."""
    environment = new_environment("a", "b", high_watermark=HighWaterMark(max_messages=4), strategy=Strategy.prune_last)
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    for number in range(6):
        publisher.send(b"%d" % number)  # 1 and 2 and 3 went, their ids 2 to 4
    control = environment.new_control()
    assert pending(control) == {"a": 3, "b": 3}
    subscriber.pop()
    assert pending(control) == {"a": 2, "b": 3}
    assert drain(subscriber) == [b"4", b"5"] and pending(control) == {"a": 0, "b": 3}
    assert drain(environment.new_subscriber("b")) == [b"0", b"4", b"5"]


# Environments


def test_an_environment_touches_no_disk(tmp_path: pathlib.Path) -> None:
    """Making and closing an Environment makes no file and no directory."""
    with persipubsub.new_environment(tmp_path / "parent" / "queue"):
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_relative_path_survives_a_change_of_directory(tmp_path: pathlib.Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """An Environment of a relative path stays with its queue when the working directory changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with persipubsub.new_environment("queue") as environment:
        monkeypatch.chdir(tmp_path / "elsewhere")
        environment.new_control(["a"])
        assert environment.path == tmp_path / "queue" and (tmp_path / "queue" / "data.mdb").exists()


def in_use(path: pathlib.Path) -> bool:
    """Return whether anybody has the queue open."""
    with open(path / "use.lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("through", ["the same path", "a symlink", "a symlinked parent", "dots"])
def test_two_environments_share_the_queue(through: str, tmp_path: pathlib.Path) -> None:
    """Several Environments of a queue, by whatever paths, work at the same time, and one survives the other's end."""
    path = tmp_path / "parent" / "queue"
    (tmp_path / "parent").mkdir()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "parent_link").symlink_to(tmp_path / "parent")
    other_path = {
        "the same path": path,
        "a symlink": tmp_path / "link",
        "a symlinked parent": tmp_path / "parent_link" / "queue",
        "dots": tmp_path / "parent" / ".." / "parent" / "queue"
    }[through]
    first, second = persipubsub.new_environment(path), persipubsub.new_environment(other_path)
    first.new_control(["a"])
    publisher, subscriber = first.new_publisher(), second.new_subscriber("a")
    publisher.send(b"1")
    assert subscriber.front() == b"1"
    first.close()
    assert drain(subscriber) == [b"1"]
    assert second.new_publisher().send(b"2") == 2 and in_use(path)
    second.close()
    assert not in_use(path)


def test_one_environment_is_closed_while_the_other_waits(opened: Opened, new_environment: MakeEnvironment,
                                                         waiting: threading.Event) -> None:
    """Closing an Environment does not end a receive that waits in another Environment of the queue."""
    subscriber = new_environment("a").new_subscriber("a")
    future = in_thread(lambda: next(subscriber.messages()))
    assert waiting.wait(WAIT_S)
    opened.environment.close()
    new_environment("a").new_publisher().send(b"x")
    assert future.result(WAIT_S) == b"x"


def test_a_forgotten_environment_closes(tmp_path: pathlib.Path) -> None:
    """An Environment that nobody refers to any more, nor to anything that it made, closes the queue."""
    environment = persipubsub.new_environment(tmp_path / "queue")
    environment.new_control(["a"])
    publisher = environment.new_publisher()
    del environment
    gc.collect()
    assert publisher.send(b"x") == 1 and in_use(tmp_path / "queue")
    del publisher
    gc.collect()
    assert not in_use(tmp_path / "queue")


def test_context_managers(opened: Opened) -> None:
    """Each object is a context manager that returns itself, is closed at the end, and may be closed again."""
    environment = opened.environment
    for make, name in ((environment.new_control, "Control"), (environment.new_publisher, "Publisher"),
                       (lambda: environment.new_subscriber("a"),
                        "Subscriber 'a'"), (lambda: Environment(environment.path), "Environment")):
        with make() as made:
            made.close()
        with make() as made:
            assert repr(made) == f"<{name} of {environment.path}>"
        assert repr(made) == f"<{name} of {environment.path} (closed)>"
        made.close()
    with pytest.raises(ValueError):
        with environment.new_publisher() as publisher:
            raise ValueError()
    with pytest.raises(errors.ClosedError):
        publisher.send(b"x")


def test_pickling(opened: Opened) -> None:
    """Environment and endpoints pickle as what it takes to open them again; those made together stay together."""
    opened.publisher.send(b"1")
    autosync = opened.environment.new_publisher(autosync=True)
    before = commits_so_far(opened.environment)
    copies = pickle.loads(pickle.dumps((opened, autosync)))
    environment, control, publisher, subscriber = copies[0]
    assert environment is not opened.environment and environment.path == opened.environment.path
    opened.environment.close()
    assert control.status().next_id == 2 and commits_so_far(environment) == before
    assert publisher.send_many([b"2", b"3"]) == range(2, 4)
    before = commits_so_far(environment)
    assert list(copies[1].send_many([b"4", b"5"])) == [4, 5]
    assert commits_so_far(environment) == before + 2
    assert subscriber.identifier == "a" and drain(subscriber) == [b"1", b"2", b"3", b"4", b"5"]
    environment.close()
    for call in (control.status, lambda: publisher.send(b"x"), subscriber.front):
        with pytest.raises(errors.ClosedError):
            call()


# Storage


def test_publishing_writes_nothing_per_subscriber(tmp_path: pathlib.Path) -> None:
    """A publish to 1,000 subscribers adds the records of its messages and of its commit, and changes no other."""
    path = tmp_path / "queue"
    identifiers = [f"subscriber {number}" for number in range(1000)]
    with persipubsub.new_environment(path) as environment:
        environment.new_control(identifiers)
        # Two, since the first record of a queue is deleted by the second commit.
        environment.new_publisher().send(b"before")
        environment.new_publisher().send(b"before")
    before = dump(path)
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send_many([b"1", b"2", bytes(100_000)])
    after = dump(path)
    for name in SubDatabases._fields:
        assert before[name].items() <= after[name].items(), name
    added = {name: len(after[name]) - len(before[name]) for name in SubDatabases._fields}
    assert added == {**dict.fromkeys(SubDatabases._fields, 0), "data_db": 3, "chunk_db": 1, "meta_db": 1}
    with persipubsub.new_environment(path) as environment:
        assert set(pending(environment.new_control()).values()) == {5}
        for identifier in (identifiers[0], identifiers[999]):
            assert drain(environment.new_subscriber(identifier)) == [b"before", b"before", b"1", b"2", bytes(100_000)]


def written_bytes(publish: Callable[[], object]) -> int:
    """Count the bytes that this process hands to the kernel while it publishes."""

    def written() -> int:
        text = pathlib.Path("/proc/self/io").read_text(encoding="ascii")
        return int(dict(line.split(": ") for line in text.splitlines())["wchar"])

    before = written()
    publish()
    return written() - before


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="only Linux counts what a process writes")
def test_publishing_writes_as_much_for_many_subscribers_as_for_one(new_environment: MakeEnvironment,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish to 1,000 subscribers writes exactly as many pages as one to a single subscriber."""
    monkeypatch.setattr(runs, "RUN_US_MAX", -1)  # whether a send joins a run must not depend on the time it takes
    written = []
    for count in (1, 1000):
        publisher = new_environment(*map(str, range(count)), name=f"queue {count}").new_publisher()
        publisher.send(b"x")
        publishes: List[Callable[[], object]] = [functools.partial(publisher.send, b"x")] * 10
        publishes.append(functools.partial(publisher.send_many, [b"x" * 100] * 100))
        written.append([written_bytes(publish) for publish in publishes])
    assert written[0] == written[1] and min(written[0]) >= 4096


@pytest.fixture(name="syncs")
def syncs_fixture(monkeypatch: pytest.MonkeyPatch) -> List[bool]:
    """Return a list of whether LMDB was told to sync commits, one entry each time it is opened."""
    syncs: List[bool] = []
    original = lmdb.Environment

    def environment(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("subdir", True):
            syncs.append(kwargs.get("sync", True))
        return original(*args, **kwargs)

    monkeypatch.setattr("persipubsub.lmdb_engine.records.database.lmdb.Environment", environment)
    return syncs


def test_durability_is_switched_under_open_publishers(new_environment: MakeEnvironment, syncs: List[bool]) -> None:
    """Durability is stored; each switch holds for the next send of every open publisher, and loses nothing."""
    environment, other = new_environment("a"), new_environment("a")
    publishers = [environment.new_publisher(), other.new_publisher()]
    control, subscriber = environment.new_control(), other.new_subscriber("a")
    sent: List[bytes] = []
    for durability, sync in ((Durability.POWER_LOSS, True), (Durability.PROCESS_CRASH, False),
                             (Durability.POWER_LOSS, True), (Durability.PROCESS_CRASH, False)):
        other.new_control(durability=durability)
        for publisher in publishers:
            sent.append(b"%d" % publisher.send(b"%d" % (len(sent) + 1)))
            assert syncs[-1] is sync
        assert control.status().durability == durability
    assert syncs == [True, False, True, False]
    assert drain(subscriber) == sent == [b"%d" % number for number in range(1, 9)]


def test_durability_is_read_when_opened_again(new_environment: MakeEnvironment, syncs: List[bool]) -> None:
    """A queue keeps its durability for those who open it later."""
    for durability, sync in ((Durability.PROCESS_CRASH, False), (Durability.POWER_LOSS, True)):
        with new_environment("a", durability=durability):
            pass
        with new_environment() as environment:
            environment.new_publisher().send(b"x")
            assert syncs[-1] is sync and environment.new_control().status().durability == durability


def test_control_is_durable_under_either_durability(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change through a Control is brought to the disk, once it is committed, also where sends are not."""
    commits = [commits_so_far(opened.environment)]
    original = Database.sync

    def sync(self: Database) -> None:
        original(self)
        commits.append(commits_so_far(opened.environment))

    monkeypatch.setattr(Database, "sync", sync)
    for call, brings in (
        (lambda: opened.publisher.send(b"1"), False),
        (opened.subscriber.pop, False),
        (lambda: opened.control.add_subscriber("b"), True),
        (lambda: opened.publisher.send(b"2"), False),
        (lambda: opened.control.prune_all_messages_for("b"), True),
        (lambda: opened.control.set_hwm(HighWaterMark(5)), True),
        (lambda: opened.control.set_strategy(Strategy.prune_last), True),
        (opened.control.clear_messages, True),
        (lambda: opened.control.remove_subscriber("b"), True),
        (opened.control.clear_all_subscribers, True),
        (lambda: opened.environment.new_control(["c"]), True),
    ):
        before = list(commits)
        call()
        assert commits == (before + [commits_so_far(opened.environment)] if brings else before)
        if brings:
            assert commits[-1] > commits[-2]


REMOVALS: Dict[str, Callable[[Opened], object]] = {
    "clear": lambda opened: opened.control.clear_messages(),
    "prune": lambda opened: opened.control.prune_all_messages_for("a"),
    "remove": lambda opened: opened.control.remove_subscriber("b"),
    "take": lambda opened: drain_at_once(opened.subscriber),
}


def drain_at_once(subscriber: Subscriber) -> None:
    """Acknowledge everything in one commit."""
    with subscriber.receive_many(max_messages=10**6, timeout=0):
        pass


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_large_removal(removal: str, opened: Opened) -> None:
    """25,000 messages are removed at once; one write deletes at most 10,000 of them, the next ones the rest."""
    if removal == "remove":
        opened.control.add_subscriber("b")
    opened.publisher.send_many([b"x"] * 25_000)
    if removal == "remove":
        drain_at_once(opened.subscriber)
    seen = [(commits_so_far(opened.environment), 25_000)]

    def see() -> None:
        stored = dump(opened.environment.path)["data_db"]
        seen.append((commits_so_far(opened.environment), len(stored)))

    REMOVALS[removal](opened)
    assert opened.control.status().messages == 0 and opened.subscriber.front() is None
    see()
    assert seen[-1][1] >= 15_000 - 1
    for number in range(1, 4):
        opened.publisher.send(b"%d" % number)
        see()
        assert opened.control.status().messages == number
    assert seen[-1][1] == 3
    for (commit_before, stored_before), (commit, stored) in zip(seen, seen[1:]):
        assert stored_before - stored <= 10_000 * (commit - commit_before)
    assert opened.control.check() == () and drain(opened.subscriber) == [b"1", b"2", b"3"]


def test_a_large_removal_counts(opened: Opened) -> None:
    """A removal that is done in parts returns at once how many messages it removes, each counted once."""
    opened.publisher.send_many([b"x"] * 25_000)
    assert opened.control.clear_messages() == 25_000
    assert opened.control.clear_messages() == 0
    opened.publisher.send_many([b"x"] * 25_000)
    assert opened.control.clear_messages() == 25_000
    opened.publisher.send_many([b"x"] * 5)
    assert opened.control.clear_all_subscribers() == 5


# Backup and check


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_backup(existing: bool, kind: Callable[[pathlib.Path], Any], opened: Opened, tmp_path: pathlib.Path) -> None:
    """A backup is a queue of the same content, that only its owner may read, and from then on independent."""
    opened.environment.new_control(["b"], HighWaterMark(90, 80, 70 * MIB), Strategy.prune_last)
    opened.publisher.send_many([b"1", bytes(200_000), b"3"])
    opened.subscriber.pop()
    path = tmp_path / "parent" / "copy"
    if existing:
        path.mkdir(parents=True)
    opened.control.backup(kind(path))
    assert path.stat().st_mode & 0o777 == (path.stat().st_mode & 0o777 if existing else 0o700)
    assert (path / "data.mdb").stat().st_mode & 0o777 == 0o600
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control()
        assert control.check() == ()
        fields = ("messages", "size_bytes", "next_id", "floor", "high_watermark", "strategy", "durability")
        copied, original = control.status(), opened.control.status()
        assert {name: getattr(copied, name) for name in fields} == {name: getattr(original, name) for name in fields}
        assert pending(control) == {"a": 2, "b": 3}
        assert drain(environment.new_subscriber("a")) == [bytes(200_000), b"3"]
        assert environment.new_publisher().send(b"copy") == 4
    assert pending(opened.control) == {"a": 2, "b": 3} and opened.publisher.send(b"original") == 4


def test_backup_of_a_queue_in_use(opened: Opened, tmp_path: pathlib.Path) -> None:
    """A backup made while messages are sent holds a prefix of what was sent, whole batches only."""
    stop = threading.Event()

    def publish() -> int:
        batches = 0
        while not stop.is_set():
            opened.publisher.send_many([b"%d" % batches] * 10)
            batches += 1
        return batches

    future = in_thread(publish)
    try:
        for number in range(10):
            opened.control.backup(tmp_path / str(number))
    finally:
        stop.set()
    batches = future.result(WAIT_S)
    expected = [b"%d" % batch for batch in range(batches) for _ in range(10)]
    for number in range(10):
        with persipubsub.new_environment(tmp_path / str(number)) as environment:
            with environment.new_subscriber("a").receive_many(10**6, timeout=0) as msgs:
                assert msgs == expected[:len(msgs)] and len(msgs) % 10 == 0


def test_a_backup_never_overwrites(opened: Opened, tmp_path: pathlib.Path) -> None:
    """A backup into a directory with anything in it, another queue or this one, is refused and changes nothing."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"content")
    (tmp_path / "file").write_bytes(b"content")
    for path in (tmp_path / "other", tmp_path / "file", opened.environment.path):
        with pytest.raises(errors.PathError) as raised:
            opened.control.backup(path)
        assert str(path) in str(raised.value) and raised.value.filename == str(path)
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["file"]
    assert (tmp_path / "other" / "file").read_bytes() == (tmp_path / "file").read_bytes() == b"content"
    assert opened.publisher.send(b"x") == 1


def change_header(raw: Raw, **fields: Any) -> None:
    """Change fields of the header."""
    header = layouts.decode_header(raw.get("queue_db", layouts.HEADER_KEY))
    raw.put("queue_db", layouts.HEADER_KEY, layouts.encode_header(header._replace(**fields)))


def change_run(raw: Raw, index: int, **fields: Any) -> None:
    """Change fields of a run's record."""
    key, value = raw.all("meta_db")[index]
    raw.put("meta_db", *layouts.encode_run(layouts.decode_run(key, value)._replace(**fields)))


def change_place_and_count(raw: Raw, identifier: bytes, place: int, new_place: int) -> None:
    """Move the cursor of the only subscriber of a position to one that has none."""
    change_subscriber(raw, identifier, next_id=new_place)
    raw.delete("pending_db", pack(place))
    raw.put("pending_db", pack(new_place), pack(1))


def put_delayed(raw: Raw, payload: bytes = b"", **fields: int) -> None:
    """Store a delayed message, and say so in the header but for some fields."""
    raw.put("delayed_db", layouts.DELAYED_KEY.pack(2**62, 1, 0), payload)
    change_header(raw, **{"delayed": 1, "next_due_us": 2**62, "next_delayed_number": 2, **fields})


def put_once(raw: Raw, message_id: int = 1, by_id: bool = True, order: bool = True, times: int = 1) -> None:
    """Remember a deduplication id."""
    if by_id:
        raw.put("once_db", b"x", layouts.encode_deduplicated(layouts.Deduplicated(message_id, times)))
    for time_us in range(1, 1 + times * order):
        raw.put("once_order_db", layouts.DEDUPLICATION_ORDER_KEY.pack(time_us, message_id), b"x")


# The queue: ids 1 and 2 in one run, 3 in the second, 4 (three parts) in the third, each larger than those before.
# Subscriber "a" (number 1) has its cursor at 3, "b" (number 2) at 2.
DAMAGES: Sequence[Tuple[str, str, Callable[[Raw], object]]] = [
    ("I1", "a place is not counted", lambda raw: raw.delete("pending_db", pack(3))),
    ("I1", "a place is counted twice", lambda raw: raw.put("pending_db", pack(3), pack(2))),
    ("I1", "a place of nobody is counted", lambda raw: raw.put("pending_db", pack(4), pack(1))),
    ("I1", "a place is another one", lambda raw: change_subscriber(raw, b"a", next_id=4)),
    ("I1", "two subscribers have one number", lambda raw: change_subscriber(raw, b"a", number=2)),
    ("I1", "a number will be given again", lambda raw: change_header(raw, next_subscriber_number=2)),
    ("I2", "a large message lies below the low-water mark", lambda raw: raw.put("data_db", pack(1), bytes(4097))),
    ("I2", "messages wait that are not there", lambda raw: change_header(raw, waiting=7)),
    ("I3", "a message is of no run", lambda raw: raw.delete("meta_db", pack(1))),
    ("I3", "times of runs fall", lambda raw: change_run(raw, 1, time_us=1)),
    ("I3", "a total is wrong", lambda raw: change_run(raw, 1, messages_before=1)),
    ("I3", "there are more bytes than the messages of a run can have", lambda raw: change_run(raw, 1, bytes_before=9)),
    ("I3", "a message is missing", lambda raw: raw.delete("data_db", pack(3))),
    ("I0", "a place cannot be read", lambda raw: raw.put("subscriber_db", b"a", b"x")),
    ("I4", "a place is beyond the next id", lambda raw: change_place_and_count(raw, b"a", 3, 9)),
    ("I5", "runs overlap", lambda raw: change_run(raw, 1, messages_before=3)),
    ("I6", "an entry of the index is of nobody", lambda raw: raw.put("index_db", struct.pack(">IQ", 7, 1), b"")),
    ("I7", "there is no such strategy", lambda raw: change_header(raw, strategy=9)),
    ("I7", "the mark is 0 messages", lambda raw: change_header(raw, max_messages=0)),
    ("I7", "the mark is 0 bytes", lambda raw: change_header(raw, hwm_db_size=0)),
    ("I7", "no message type has such a name", lambda raw: raw.put("queue_db", layouts.MESSAGE_TYPE_KEY, b"a b")),
    ("I7", "the timeout is 0", lambda raw: change_header(raw, message_timeout_us=0)),
    ("I7", "the retention is over the timeout", lambda raw: change_header(raw, message_timeout_us=5, retention_us=6)),
    ("I9", "a long message lacks a part", lambda raw: raw.delete("chunk_db",
                                                                 raw.all("chunk_db")[0][0])),
    ("I13", "no delayed message is counted", lambda raw: change_header(raw, delayed=1)),
    ("I13", "the first due time is of no message", lambda raw: change_header(raw, next_due_us=2**62)),
    ("I13", "a delayed message is not counted", lambda raw: put_delayed(raw, delayed=0)),
    ("I13", "the first due time is later", lambda raw: put_delayed(raw, next_due_us=2**63)),
    ("I13", "a number will be given again", lambda raw: put_delayed(raw, next_delayed_number=1)),
    ("I13", "a delayed message lacks a part", lambda raw: put_delayed(raw, payload=pack(66_000) + bytes(65_512))),
    ("I14", "an id is not in order", lambda raw: put_once(raw, order=False)),
    ("I14", "an id is only in order", lambda raw: put_once(raw, by_id=False)),
    ("I14", "an id is of a message that was not sent", lambda raw: put_once(raw, message_id=9)),
    ("I14", "an id is in order twice", lambda raw: put_once(raw, times=2)),
    ("I15", "an identity is cut off", lambda raw: raw.put("queue_db", layouts.IDENTITY_KEY, b"cut off")),
    ("I15", "a route is of nobody", lambda raw: raw.put("queue_db", layouts.ROUTE_PREFIX + b"nobody", bytes(32))),
    ("I0", "a route is cut off", lambda raw: raw.put("queue_db", layouts.ROUTE_PREFIX + b"all", bytes(31))),
    ("I15", "a relay is of no queue", lambda raw: raw.put("queue_db", layouts.RELAYED_PREFIX + b"cut off", bytes(16))),
    ("I9", "a part is of no message", lambda raw: raw.put("chunk_db", struct.pack(">QI", 1, 1), b"x")),
    ("I9", "a short message has a part", lambda raw: raw.put("chunk_db", struct.pack(">QI", 3, 1), b"x")),
    ("I9", "a long message has a part too many", lambda raw: raw.put("chunk_db", struct.pack(">QI", 4, 9), b"x")),
]


@pytest.fixture(name="damaged")
def damaged_fixture(new_environment: MakeEnvironment) -> Iterator[Tuple[pathlib.Path, Raw]]:
    """Set up the queue that the damages are for."""
    with new_environment("a", "b") as environment:
        publisher = environment.new_publisher()
        publisher.send_many([b"1", b"2"])
        publisher.send(b"three")
        publisher.send(bytes(2 * 65520 + 1))
        drain_two = environment.new_subscriber("a")
        drain_two.pop()
        drain_two.pop()
        environment.new_subscriber("b").pop()
        assert environment.new_control().check() == ()
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        yield environment.path, raw


@pytest.mark.damages_queues
@pytest.mark.parametrize(
    "invariant, damage",
    [pytest.param(invariant, damage, id=f"{invariant}: {what}") for invariant, what, damage in DAMAGES])
def test_check_finds(invariant: str, damage: Callable[[Raw], object], damaged: Tuple[pathlib.Path, Raw]) -> None:
    """``check`` finds every kind of damage, and names the invariant that it breaks."""
    path, raw = damaged
    damage(raw)
    raw.environment.close()
    # Without a Control, which begins with a write, and a write repairs some of this.
    found = database.inspect(path, invariants.check)
    assert invariant in {violation.invariant for violation in found}
    assert all(str(violation).startswith(f"{violation.invariant} (") and violation.found for violation in found)


@pytest.mark.damages_queues
def test_control_checks(damaged: Tuple[pathlib.Path, Raw]) -> None:
    """``Control.check`` returns all violations."""
    path, raw = damaged
    raw.put("index_db", struct.pack(">IQ", 7, 1), b"")
    raw.delete("chunk_db", raw.all("chunk_db")[0][0])
    raw.environment.close()
    with persipubsub.new_environment(path) as environment:
        found = environment.new_control().check()
    assert {violation.invariant for violation in found} == {"I6", "I9"}


def test_every_invariant_is_damaged_by_a_test() -> None:
    """The tests of ``check`` break each of its invariants."""
    assert {invariant for invariant, _, _ in [*DAMAGES, *DELIVERY_DAMAGES]} == set(invariants.INVARIANTS)


def test_limits_are_those_documented() -> None:
    """The limits on messages, batches, identifiers and removals have the documented values."""
    assert persipubsub.queue.MESSAGE_BYTES_MAX == limits.BATCH_BYTES_MAX == 1024**3
    assert persipubsub.queue.BATCH_MESSAGES_MAX == 1_000_000
    assert limits.IDENTIFIER_BYTES_MAX == 255 and message_log.DELETIONS_MAX == 10_000 and layouts.PART_BYTES == 65520
    assert limits.RECEIVE_BYTES_MAX == 64 * MIB and limits.SLEEP_S_MAX == 1


def test_a_queue_that_must_be_there_is_not_made(tmp_path: pathlib.Path) -> None:
    """With create=False a mistyped path is an error and no new queue; one that is there is looked at, and changed."""
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        with pytest.raises(errors.NotInitializedError, match="queue"):
            environment.new_control(["a"], create=False)
        assert not (tmp_path / "queue").exists()
        environment.new_control()
        assert set(environment.new_control(["a"], create=False).status().subscribers) == {"a"}
        with pytest.raises(errors.ArgumentTypeError, match="create"):
            environment.new_control(create=1)  # type: ignore[arg-type]  # the mistake


def test_no_id_beyond_the_last(new_environment: MakeEnvironment) -> None:
    """Ids go up to 2 ** 63 - 1; a send beyond them is refused, and what was sent arrives."""
    environment = new_environment("a")
    held = open_queues.acquire(environment.path)
    held.change(lambda txn: txn.mark_end(limits.MESSAGE_ID_END - 2))
    open_queues.release(held)
    publisher = environment.new_publisher()
    assert publisher.send(b"1") == limits.MESSAGE_ID_END - 2
    with pytest.raises(errors.StorageError, match="Set up another queue"):
        publisher.send_many([b"2", b"3"])
    assert publisher.send(b"2") == limits.MESSAGE_ID_END - 1
    with pytest.raises(errors.StorageError):
        publisher.send(b"3")
    assert list(environment.new_subscriber("a").messages(timeout=0)) == [b"1", b"2"]


def test_clearing_does_not_count_what_had_expired(new_environment: MakeEnvironment,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of cleared messages counts only what somebody could still have received."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)
    environment = new_environment("a", high_watermark=persipubsub.HighWaterMark(10))
    control, publisher = environment.new_control(), environment.new_publisher()
    for clear in (control.clear_messages, control.clear_all_subscribers):
        publisher.send(b"old")
        now_us += 11_000_000
        publisher.send_later(b"later", delay_s=100)
        assert control.status().messages == 0
        assert clear() == 1
    assert control.status().pruned.timeout == 2
