"""Limits of a queue: nothing is dropped unless somebody asked for it, and a full queue may refuse what is sent."""

import asyncio
import contextlib
import itertools
import os
import pathlib
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, List, Optional

import pytest

import persipubsub
from persipubsub import (Control, Durability, Envelope, Environment, HighWaterMark, Publisher, Strategy, Subscriber,
                         clock, errors)
from persipubsub.aio import AsyncPublisher
from persipubsub.endpoints import room, room_watcher
from tests.children import status_of
from tests.concurrency import (CONTEXT, WAIT_S, Opened, Task, by_sender, drained, interrupted_everywhere, numbered,
                               process, told, wait_until)
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]

KIB = 1024
DAY_S = 86400
#: What the pages of one message can hold beside its payload.
PAGES_BYTES = 2 * 4096
#: A sleep of this length is noticed: a test ends before it.
NEVER_S = 1000.0
#: How many messages each of many senders sends.
MESSAGES = 60


class Queue:
    """A queue with the subscriber "a"."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.control: Control = environment.new_control()
        self.publisher: Publisher = environment.new_publisher()
        self.subscriber: Subscriber = environment.new_subscriber("a")

    @property
    def messages(self) -> int:
        """Return how many messages it has."""
        return self.control.status().messages

    def waiting_send(self, payload: bytes = b"last") -> "Task[int]":
        """Send in another thread, which waits for room; return once it waits."""
        task = Task(lambda: self.publisher.send(payload, timeout=None))
        wait_until(lambda: is_wanted(self.environment))
        return task


def is_wanted(environment: Environment) -> bool:
    """Return whether a sender of any process waits for room."""
    # The fourth word of the mapped file: see persipubsub.lmdb_engine.process.wakeup.
    return bool((environment.path / "wakeup").read_bytes()[12])


@pytest.fixture(name="full")
def full_fixture(new_environment: MakeEnvironment, no_looks: None) -> Queue:
    """Set up a queue that refuses messages, with as many as it may have: four."""
    del no_looks
    queue = Queue(refusing(new_environment))
    queue.publisher.send_many([b"1", b"2", b"3", b"4"])
    return queue


def refusing(new_environment: MakeEnvironment, mark: HighWaterMark = HighWaterMark(max_messages=4),
             **settings: Any) -> Environment:
    """Set up a queue that refuses messages and does not wait for the disk."""
    return new_environment("a",
                           strategy=Strategy.refuse,
                           high_watermark=mark,
                           durability=Durability.PROCESS_CRASH,
                           **settings)


@pytest.fixture(name="no_looks")
def no_looks_fixture(monkeypatch: pytest.MonkeyPatch, time_limit: None) -> None:
    """Have senders sleep until they are woken: a test in which nobody wakes them fails."""
    del time_limit
    never_look(monkeypatch)


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the senders of this process sleep until they are woken."""
    for module in (room, room_watcher):
        monkeypatch.setattr(module, "SLEEP_S_MAX", NEVER_S)


# Nothing is dropped


def test_a_new_queue_has_no_limits(new_environment: MakeEnvironment) -> None:
    """The high-water mark of a queue for which nothing is set has no limit."""
    mark = new_environment("a").new_control().status().high_watermark
    assert (mark.message_timeout, mark.max_messages, mark.hwm_db_size) == (None, None, None)


@pytest.mark.parametrize("days", [1, 400, 40_000])
def test_old_messages_stay(days: int, new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a message timeout, a message waits for its subscribers for a day, a year or a century."""
    queue = Queue(new_environment("a"))
    queue.publisher.send(b"old")
    sent_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: sent_us + days * DAY_S * 1_000_000)
    assert queue.control.prune_dangling_messages() == 0
    queue.publisher.send(b"new")
    assert drained(queue.subscriber) == [b"old", b"new"]
    assert queue.control.status().pruned.timeout == 0


def test_many_messages_stay(new_environment: MakeEnvironment) -> None:
    """Without a limit, 70,000 messages stay, whether sent together or one by one beyond them."""
    queue = Queue(new_environment("a", durability=Durability.PROCESS_CRASH))
    queue.publisher.send_many([b"x"] * 70_000)
    queue.publisher.send(b"y")
    assert queue.messages == 70_001
    with queue.subscriber.receive_many(max_messages=100_000, timeout=0) as msgs:
        assert msgs == [b"x"] * 70_000 + [b"y"]


# Setting limits


def set_by_control(queue: Queue, **limits: Any) -> None:
    """Set limits as a program that opens the queue again."""
    queue.environment.new_control(high_watermark=HighWaterMark(**limits))


def set_by_mark(queue: Queue, **limits: Any) -> None:
    """Set limits by a high-water mark."""
    queue.control.set_hwm(HighWaterMark(**limits))


def set_one_by_one(queue: Queue, **limits: Any) -> None:
    """Set limits by their names."""
    queue.control.set_hwm(**limits)


SETTERS = [set_by_control, set_by_mark, set_one_by_one]


@pytest.mark.parametrize("setter", SETTERS)
def test_a_limit_that_is_left_out_stays(setter: Callable[..., None], new_environment: MakeEnvironment) -> None:
    """To set one limit leaves the others as stored, and None removes one."""
    queue = Queue(new_environment("a"))
    steps: List[Dict[str, Any]] = [{
        "message_timeout": 5
    }, {
        "max_messages": 6
    }, {
        "hwm_db_size": 70_000
    }, {
        "max_messages": None
    }, {
        "message_timeout": None,
        "hwm_db_size": 80_000
    }, {
        "hwm_db_size": None
    }]
    stored: Dict[str, Any] = dict.fromkeys(("message_timeout", "max_messages", "hwm_db_size"))
    for step in steps:
        setter(queue, **step)
        stored.update(step)
        assert queue.control.status().high_watermark == HighWaterMark(**stored)


def test_a_mark_without_limits_changes_none(new_environment: MakeEnvironment) -> None:
    """A high-water mark that leaves out every limit sets up a queue without any, and changes none later."""
    queue = Queue(new_environment("a", high_watermark=HighWaterMark()))
    assert queue.control.status().high_watermark == HighWaterMark(None, None, None)
    set_by_control(queue, max_messages=3)
    queue.control.set_hwm(HighWaterMark())
    assert queue.control.status().high_watermark == HighWaterMark(None, 3, None)


def test_what_was_left_out_survives_a_copy() -> None:
    """A high-water mark reports which limits it has; a limit of None differs from one that was left out."""
    assert HighWaterMark().given == () and HighWaterMark().limits() == {}
    assert HighWaterMark(None).given == ("message_timeout", ) and HighWaterMark(None) != HighWaterMark()
    assert HighWaterMark(max_msgs_num=None).limits() == {"max_messages": None}
    assert repr(HighWaterMark(None, hwm_db_size=7)) == "HighWaterMark(message_timeout=None, hwm_db_size=7)"


# Refusing


def test_a_full_queue_refuses(full: Queue) -> None:
    """At the mark, send and send_many raise QueueFullError and use no id; they work again once there is room."""
    for payload in (b"5", Envelope(b"5", {"name": "text"}, "id")):
        with pytest.raises(errors.QueueFullError):
            full.publisher.send(payload)
        with pytest.raises(errors.QueueFullError):
            full.publisher.send_many([payload])
    assert full.messages == 4
    full.subscriber.pop()
    assert full.publisher.send(b"5") == 5
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"5"]


def test_a_batch_is_refused_as_a_whole(full: Queue) -> None:
    """A batch for which there is not enough room is not sent, not even in part; one that fits is."""
    full.subscriber.pop()
    with pytest.raises(errors.QueueFullError):
        full.publisher.send_many([b"5", b"6"])
    assert full.publisher.send_many([b"5"]) == range(5, 6)
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"5"]


def test_autosync_sends_what_fits(full: Queue) -> None:
    """With autosync, the messages of a batch are sent one by one until one is refused."""
    full.subscriber.pop()
    with pytest.raises(errors.QueueFullError):
        full.environment.new_publisher(autosync=True).send_many([b"5", b"6"])
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("timeout", [0, 5, None])
def test_what_never_fits_is_refused_at_once(timeout: Optional[float], new_environment: MakeEnvironment) -> None:
    """A batch or a message that exceeds a limit by itself raises without a wait, even where the queue is empty."""
    queue = Queue(refusing(new_environment, HighWaterMark(max_messages=4, hwm_db_size=64 * KIB)))
    start = time.monotonic()
    with pytest.raises(errors.BatchTooLargeError, match="max_messages=4"):
        queue.publisher.send_many([b""] * 5, timeout=timeout)
    with pytest.raises(errors.BatchTooLargeError, match=f"hwm_db_size={64 * KIB}"):
        queue.publisher.send_many([bytes(33 * KIB)] * 2, timeout=timeout)
    with pytest.raises(errors.MessageTooLargeError, match=f"hwm_db_size={64 * KIB}"):
        queue.publisher.send(bytes(64 * KIB + 1), timeout=timeout)
    with pytest.raises(errors.MessageTooLargeError, match=f"hwm_db_size={64 * KIB}"):
        queue.publisher.send(bytes(64 * KIB), headers={"one": "more"}, timeout=timeout)
    assert time.monotonic() - start < 4
    assert queue.messages == 0


def test_the_error_names_the_limit_that_is_reached(new_environment: MakeEnvironment) -> None:
    """QueueFullError says which limit is reached and how full the queue is, and not the other limit."""
    queue = Queue(refusing(new_environment, HighWaterMark(max_messages=4, hwm_db_size=256 * KIB)))
    queue.publisher.send_many([b"1", b"2", b"3", b"4"])
    with pytest.raises(errors.QueueFullError, match="has 4 messages .* 1 more of 1 bytes .* max_messages=4") as raised:
        queue.publisher.send(b"5")
    assert "hwm_db_size" not in str(raised.value) and "timeout" in str(raised.value)
    queue.control.clear_messages()
    queue.publisher.send(bytes(200 * KIB))
    with pytest.raises(errors.QueueFullError, match=rf"1 messages of \d+ bytes.* hwm_db_size={256 * KIB}\.") as raised:
        queue.publisher.send(bytes(100 * KIB))
    assert "max_messages" not in str(raised.value)
    queue.control.set_hwm(max_messages=1)
    with pytest.raises(errors.QueueFullError, match=f"max_messages=1 and hwm_db_size={256 * KIB}"):
        queue.publisher.send(bytes(100 * KIB))


def filled(queue: Queue, payload: bytes) -> int:
    """Send messages until one is refused; return how many were sent."""
    for count in itertools.count():
        try:
            queue.publisher.send(payload)
        except errors.QueueFullError:
            return count
    raise AssertionError


@pytest.mark.parametrize("size_bytes", [1, 100, 2 * KIB, 5 * KIB, 70 * KIB])
def test_refusing_by_size(size_bytes: int, new_environment: MakeEnvironment) -> None:
    """A queue with a limit of bytes takes messages until it is full, and as many again once they are received."""
    queue = Queue(refusing(new_environment, HighWaterMark(hwm_db_size=256 * KIB)))
    counts = []
    for _ in range(3):
        counts.append(filled(queue, bytes(size_bytes)))
        assert queue.control.status().size_bytes <= 256 * KIB + size_bytes + PAGES_BYTES
        assert len(drained(queue.subscriber)) == counts[-1]
        assert queue.messages == 0
    assert counts[0] * (size_bytes + 100) > 60 * KIB and max(counts) <= min(counts) * 1.2 + 1


@pytest.mark.parametrize("retention_s", [0, 3600])
def test_whatever_fits_by_itself_fits_into_an_empty_queue(retention_s: float, new_environment: MakeEnvironment) -> None:
    """Whatever was received before, a message of the size of the mark is sent once all is acknowledged."""
    mark = 200_000
    queue = Queue(refusing(new_environment, HighWaterMark(hwm_db_size=mark), retention_s=retention_s))
    for size_bytes in (1, 3000, 70_000, mark, 10, mark, mark - 1, 65_520, mark):
        queue.publisher.send(bytes(size_bytes))
        with pytest.raises(errors.QueueFullError):
            queue.publisher.send(bytes(mark))
        assert drained(queue.subscriber) == [bytes(size_bytes)]


def test_a_send_again_at_the_mark_returns_the_first_id(full: Queue) -> None:
    """A message that is deduplicated needs no room; one that was refused is not remembered as sent."""
    full.subscriber.pop()
    assert full.publisher.send(b"5", deduplication_id="five") == 5
    with pytest.raises(errors.QueueFullError):
        full.publisher.send(b"6", deduplication_id="six")
    assert full.publisher.send(b"5", deduplication_id="five") == 5
    assert full.publisher.send_many([Envelope(b"5", None, "five")] * 3) == [5, 5, 5]
    full.subscriber.pop()
    assert full.publisher.send(b"6", deduplication_id="six") == 6


def test_others_in_a_group_are_sent(full: Queue) -> None:
    """Of tasks that send in one commit, as many succeed as there is room for, and the others get the error."""
    for _ in range(3):
        full.subscriber.pop()

    async def main() -> List[Any]:
        publisher = full.environment.new_async_publisher()
        return await asyncio.gather(*(publisher.send(b"%d" % number) for number in range(20)), return_exceptions=True)

    results = asyncio.run(main())
    assert sum(isinstance(result, int) for result in results) == 3
    assert sum(isinstance(result, errors.QueueFullError) for result in results) == 17
    assert full.messages == 4


def test_messages_without_subscribers_need_no_room(full: Queue) -> None:
    """A queue without subscribers stores nothing, so it never refuses."""
    full.control.remove_subscriber("a")
    assert full.publisher.send_many([b"x"] * 100) == range(5, 105)


def test_expired_messages_make_room(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are older than the timeout do not count, though nobody has looked at the queue since."""
    queue = Queue(refusing(new_environment, HighWaterMark(message_timeout=60, max_messages=2)))
    queue.publisher.send_many([b"1", b"2"])
    sent_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: sent_us + 120_000_000)
    queue.publisher.send_many([b"3", b"4"])
    assert drained(queue.subscriber) == [b"3", b"4"]


def test_retained_messages_give_way(new_environment: MakeEnvironment) -> None:
    """Messages that are only retained are deleted, the oldest first, before a send is refused."""
    queue = Queue(refusing(new_environment, retention_s=3600))
    queue.publisher.send_many([b"1", b"2", b"3", b"4"])
    for _ in range(3):
        queue.subscriber.pop()
    queue.publisher.send(b"5")
    assert [message.payload for message in queue.control.history()] == [b"2", b"3", b"4", b"5"]
    queue.publisher.send_many([b"6", b"7"])
    with pytest.raises(errors.QueueFullError):
        queue.publisher.send(b"8")
    assert [message.payload for message in queue.control.history()] == [b"4", b"5", b"6", b"7"]
    assert queue.control.status().pruned.overflow == 0


@pytest.mark.parametrize("size_bytes", [10, 100 * KIB])
def test_delayed_messages_come_at_the_mark(size_bytes: int, full: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delayed message was accepted when it was sent, so it is appended when it is due, though the queue is full."""
    full.publisher.send_later(bytes(size_bytes), delay_s=60)
    full.publisher.send_later(b"also", delay_s=60)
    sent_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: sent_us + 61_000_000)
    with pytest.raises(errors.QueueFullError):
        full.publisher.send(b"late")
    assert drained(full.subscriber) == [b"1", b"2", b"3", b"4", bytes(size_bytes), b"also"]
    assert full.control.status().delayed == 0


def test_a_message_that_is_due_at_once_is_refused(full: Queue) -> None:
    """A message that is sent with no delay is refused at the mark like any other, and may wait for room."""
    with pytest.raises(errors.QueueFullError):
        full.publisher.send_later(b"5", delay_s=0)
    assert full.control.status().delayed == 0
    task = Task(lambda: full.publisher.send_later(b"5", delay_s=0, timeout=None))
    wait_until(lambda: is_wanted(full.environment))
    full.subscriber.pop()
    task.result()
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"5"]


def test_delayed_messages_have_the_mark_as_their_own_limit(full: Queue) -> None:
    """As many messages may be delayed as the queue may have, also where it is full; a wait for room does not help."""
    for _ in range(4):
        full.publisher.send_later(b"x", delay_s=60)
    full.control.set_hwm(hwm_db_size=2**30)
    with pytest.raises(errors.TooManyDelayedError, match=r"max_messages=4\."):
        full.publisher.send_later(b"x", delay_s=60, timeout=None)


def test_the_strategy_can_change(full: Queue) -> None:
    """A queue that stops refusing drops messages, and one that begins to refuse drops none."""
    full.control.set_strategy(Strategy.prune_first)
    full.publisher.send(b"5")
    assert full.messages == 2
    full.publisher.send_many([b"6", b"7"])
    full.control.set_strategy(Strategy.refuse)
    with pytest.raises(errors.QueueFullError):
        full.publisher.send(b"8")
    assert drained(full.subscriber) == [b"4", b"5", b"6", b"7"]


def test_a_lowered_mark_refuses_and_keeps(full: Queue) -> None:
    """A mark below what is stored deletes nothing; sends are refused until enough was received."""
    full.control.set_hwm(max_messages=2)
    for left in (4, 3, 2):
        assert full.messages == left
        with pytest.raises(errors.QueueFullError):
            full.publisher.send(b"x")
        full.subscriber.pop()
    full.publisher.send(b"5")
    assert drained(full.subscriber) == [b"4", b"5"]


# Waiting for room


def pop(queue: Queue) -> None:
    """Acknowledge a message unread."""
    queue.subscriber.pop()


def receive(queue: Queue) -> None:
    """Receive and acknowledge a message."""
    with queue.subscriber.receive(timeout=0) as msg:
        assert msg == b"1"


def receive_to_top(queue: Queue) -> None:
    """Receive the latest message, and acknowledge all."""
    with queue.subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"4"


def receive_as_a_task(queue: Queue) -> None:
    """Receive and acknowledge a message as a task."""

    async def main() -> None:
        async with queue.environment.new_async_subscriber("a").receive(timeout=0) as msg:
            assert msg == b"1"

    asyncio.run(main())


def dead_letter(queue: Queue) -> None:
    """Make a message a dead letter."""
    queue.control.add_subscriber("a", max_deliveries=5)
    with queue.subscriber.receive(timeout=0):
        raise persipubsub.Reject("no")


def add_and_remove_the_last_but_one(queue: Queue) -> None:
    """Remove the only subscriber that awaits the messages; another one stays."""
    queue.control.add_subscriber("b")
    queue.control.remove_subscriber("a")


def raise_the_mark(queue: Queue) -> None:
    """Allow one message more."""
    queue.control.set_hwm(max_messages=5)


def in_another_process(queue: Queue) -> None:
    """Receive and acknowledge a message in another process."""
    with process(receive_one, queue.environment.path) as other:
        assert told(other) == b"1"


def receive_one(connection: Connection, path: pathlib.Path) -> None:
    """Receive and acknowledge a message: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        with environment.new_subscriber("a").receive(timeout=0) as msg:
            pass
        connection.send(msg)


FREEING = [
    pop, receive, receive_to_top, receive_as_a_task, dead_letter, add_and_remove_the_last_but_one, raise_the_mark,
    in_another_process, lambda queue: queue.control.remove_subscriber("a"),
    lambda queue: queue.control.prune_all_messages_for("a"), lambda queue: queue.control.clear_messages(),
    lambda queue: queue.control.clear_all_subscribers(), lambda queue: queue.control.set_strategy(Strategy.prune_last),
    lambda queue: queue.control.set_hwm(max_messages=None)
]
FREEING_NAMES = [
    "pop", "receive", "receive_to_top", "task", "dead letter", "other subscriber", "raised mark", "process",
    "remove_subscriber", "prune_all_messages_for", "clear_messages", "clear_all_subscribers", "set_strategy", "no mark"
]


@pytest.mark.parametrize("free", FREEING, ids=FREEING_NAMES)
def test_a_waiting_send_is_woken(free: Callable[[Queue], Any], full: Queue) -> None:
    """Whatever makes room wakes a sender that waits, without a look at the queue meanwhile."""
    task = full.waiting_send()
    free(full)
    assert task.result() == 5


@pytest.mark.parametrize("free", FREEING, ids=FREEING_NAMES)
def test_a_waiting_task_is_woken(free: Callable[[Queue], Any], full: Queue) -> None:
    """Whatever makes room wakes a task that waits to send."""

    async def main() -> int:
        waiting = asyncio.ensure_future(full.environment.new_async_publisher().send(b"last", timeout=None))
        while not is_wanted(full.environment):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(free, full)
        return await asyncio.wait_for(waiting, WAIT_S)

    assert asyncio.run(main()) == 5


def test_expiry_ends_a_wait(new_environment: MakeEnvironment) -> None:
    """A sender finds out within a second that messages have expired, though nothing was written."""
    queue = Queue(refusing(new_environment, HighWaterMark(message_timeout=0.5, max_messages=1)))
    queue.publisher.send(b"1")
    assert queue.publisher.send(b"2", timeout=WAIT_S) == 2
    assert asyncio.run(queue.environment.new_async_publisher().send(b"3", timeout=WAIT_S)) == 3


@pytest.mark.parametrize("timeout", [0.05, 0.3])
def test_a_wait_ends_in_time(timeout: float, full: Queue) -> None:
    """A wait for room ends with QueueFullError once the timeout has passed, and nothing is sent."""
    start = time.monotonic()
    with pytest.raises(errors.QueueFullError):
        full.publisher.send(b"5", timeout=timeout)
    with pytest.raises(errors.QueueFullError):
        full.publisher.send_many([b"5"], timeout=timeout)
    with pytest.raises(errors.QueueFullError):
        asyncio.run(full.environment.new_async_publisher().send(b"5", timeout=timeout))
    assert 3 * timeout <= time.monotonic() - start < WAIT_S
    assert full.messages == 4


@pytest.mark.parametrize("timeout, kind", [("1", errors.ArgumentTypeError), (True, errors.ArgumentTypeError),
                                           (-1, errors.ArgumentError), (float("nan"), errors.ArgumentError)])
def test_a_wrong_timeout_sends_nothing(timeout: Any, kind: type, new_environment: MakeEnvironment) -> None:
    """A timeout that is no number of seconds is an error, though there is room, and though there is nothing to send."""
    queue = Queue(new_environment("a"))
    publisher, task_publisher = queue.publisher, queue.environment.new_async_publisher()
    calls: List[Callable[[], object]] = [
        lambda: publisher.send(b"1", timeout=timeout), lambda: publisher.send_many([b"1"], timeout=timeout),
        lambda: publisher.send_many([], timeout=timeout),
        lambda: publisher.send_later(b"1", delay_s=5, timeout=timeout),
        lambda: asyncio.run(task_publisher.send(b"1", timeout=timeout)),
        lambda: asyncio.run(task_publisher.send_many([], timeout=timeout)),
        lambda: asyncio.run(task_publisher.send_later(b"1", delay_s=5, timeout=timeout))
    ]
    for call in calls:
        with pytest.raises(kind, match="timeout"):
            call()
    status = queue.control.status()
    assert (status.next_id, status.delayed) == (1, 0)


def test_a_cancelled_wait_sends_nothing(full: Queue) -> None:
    """A task that is cancelled while it waits for room has sent nothing, and others are woken."""

    async def main() -> int:
        publisher = full.environment.new_async_publisher()
        first, second = (asyncio.ensure_future(publisher.send(payload, timeout=None)) for payload in (b"5", b"6"))
        while not is_wanted(full.environment):
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        full.subscriber.pop()
        return await asyncio.wait_for(second, WAIT_S)

    assert asyncio.run(main()) == 5
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"6"]


def test_a_batch_waits_until_all_of_it_fits(full: Queue) -> None:
    """A batch that waits is sent as a whole, once there is room for all of it."""
    task = Task(lambda: full.publisher.send_many([b"5", b"6", b"7"], timeout=None))
    for _ in range(2):
        wait_until(lambda: is_wanted(full.environment))
        full.subscriber.pop()
    wait_until(lambda: is_wanted(full.environment))
    assert not task.done() and full.messages == 2
    full.subscriber.pop()
    assert task.result() == range(5, 8)


@pytest.mark.slow
@pytest.mark.parametrize("as_task", [False, True])
def test_waiting_for_room_costs_nothing(as_task: bool, full: Queue) -> None:
    """A sender that was woken in vain sleeps again, and takes no time of the processor."""
    batch = [b"5", b"6"]

    def send() -> object:
        if as_task:
            return asyncio.run(full.environment.new_async_publisher().send_many(batch, timeout=None))
        return full.publisher.send_many(batch, timeout=None)

    task = Task(send)
    wait_until(lambda: is_wanted(full.environment))
    full.subscriber.pop()
    wait_until(lambda: is_wanted(full.environment))
    before_s = time.process_time()
    time.sleep(1)
    assert time.process_time() - before_s < 0.2
    full.subscriber.pop()
    assert task.result() == range(5, 7)


def send_and_wait(connection: Connection, path: pathlib.Path, payload: bytes) -> None:
    """Send, waiting for room, and report the outcome: the main function of a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with persipubsub.new_environment(path) as environment, pytest.MonkeyPatch.context() as patch:
        never_look(patch)
        publisher = environment.new_publisher()
        connection.send(os.getpid())
        try:
            connection.send(publisher.send(payload, timeout=None))
        except KeyboardInterrupt:
            connection.send("interrupted")
            connection.send(publisher.send(b"after", timeout=None))


def until_asleep(environment: Environment, pid: int) -> None:
    """Wait until another process sleeps for room."""
    wait_until(lambda: is_wanted(environment))
    wait_until(
        lambda: pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "S")


def test_ctrl_c_ends_a_wait(full: Queue) -> None:
    """Ctrl-C ends a wait for room at once, nothing was sent, and the process can go on."""
    with process(send_and_wait, full.environment.path, b"5") as other:
        pid = told(other)
        until_asleep(full.environment, pid)
        os.kill(pid, signal.SIGINT)
        assert told(other) == "interrupted"
        full.subscriber.pop()
        assert told(other) == 5
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"after"]


def test_a_sender_that_is_killed_while_it_waits(full: Queue) -> None:
    """A sender that is killed while it waits for room has sent nothing, and takes no room from the others."""
    ours, theirs = CONTEXT.Pipe()
    killed = CONTEXT.Process(target=send_and_wait, args=(theirs, full.environment.path, b"5"), daemon=True)
    killed.start()
    until_asleep(full.environment, told(ours))
    task = full.waiting_send()
    killed.kill()
    killed.join(WAIT_S)
    assert killed.exitcode == -signal.SIGKILL
    full.subscriber.pop()
    assert task.result() == 5
    assert drained(full.subscriber) == [b"2", b"3", b"4", b"last"]


def send_numbered(connection: Connection, path: pathlib.Path, name: str) -> None:
    """Send messages by a thread and by a task, waiting for room each time: the main function of a process."""

    async def main(publisher: AsyncPublisher) -> None:
        for payload in numbered(f"{name} task", MESSAGES):
            await publisher.send(payload, timeout=None)

    with persipubsub.new_environment(path) as environment, pytest.MonkeyPatch.context() as patch:
        never_look(patch)
        publisher = environment.new_publisher()
        task = Task(lambda: asyncio.run(main(environment.new_async_publisher())))
        for payload in numbered(f"{name} thread", MESSAGES):
            publisher.send(payload, timeout=None)
        task.result()
        connection.send("sent")


@pytest.mark.slow
def test_an_interrupt_anywhere_in_a_wait(opened: Opened) -> None:
    """Wherever Ctrl-C comes in a wait for room, nothing is sent, and whoever comes next can send and receive."""
    opened.control.set_hwm(max_messages=1)
    opened.control.set_strategy(Strategy.refuse)
    opened.publisher.send(b"1")

    def wait() -> None:
        with pytest.raises(errors.QueueFullError):
            opened.publisher.send(b"2", timeout=0.002)

    def after(_returned: bool) -> None:
        opened.assert_quiet()
        assert opened.control.status().messages == 1

    interrupted_everywhere(wait, after)
    assert opened.drain() == [b"1"]


@pytest.mark.usefixtures("patient_forks")
def test_a_fork_during_a_wait(full: Queue) -> None:
    """A child that is forked while a thread waits for room can send itself, and wakes the thread of its parent."""
    task = full.waiting_send()

    def child() -> None:
        with pytest.raises(errors.QueueFullError):
            full.publisher.send(b"child", timeout=0.01)
        full.subscriber.pop()
        full.subscriber.pop()
        assert full.publisher.send(b"child", timeout=None)

    assert status_of(fork(child)) == 0
    task.result()
    assert sorted(drained(full.subscriber)) == [b"3", b"4", b"child", b"last"]


@pytest.mark.slow
@pytest.mark.parametrize("mark, at_once", [(1, 1), (3, 2), (10, 10)])
def test_no_wake_up_is_lost(mark: int, at_once: int, new_environment: MakeEnvironment, time_limit: None) -> None:
    """Senders in threads, tasks and processes that look only when woken get all messages to a slow receiver."""
    del time_limit
    environment, names = refusing(new_environment, HighWaterMark(max_messages=mark)), ["first", "second", "third"]
    subscriber, found = environment.new_subscriber("a"), list[bytes]()
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(process(send_numbered, environment.path, name)) for name in names]
        while len(found) < 2 * MESSAGES * len(names):
            with subscriber.receive_many(max_messages=at_once, timeout=WAIT_S) as msgs:
                assert msgs
                found += msgs
        assert [told(other) for other in others] == ["sent"] * len(names)
    by_name = by_sender(found)
    assert by_name == {name: numbered(name, MESSAGES) for name in by_name} and len(by_name) == 2 * len(names)
