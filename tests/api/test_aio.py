"""Publishers and subscribers for tasks: what they do, how many commits and threads that takes, and on which loops."""

# pylint: disable=protected-access  # no public method shows the number of a transaction

import asyncio
import collections
import contextlib
import functools
import itertools
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading
import time
from typing import Any, Awaitable, Callable, List, Set

import pytest
import uvloop
from google.protobuf.wrappers_pb2 import StringValue

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, clock, errors, moments
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.engine import limits
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import group_commit
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending
from tests.concurrency import MANY, WAIT_S, Opened, Sender, Task, by_sender, numbered, wait_until
from tests.faults.test_io_errors import outcomes

MakeEnvironment = Callable[..., Environment]
Run = Callable[[Callable[[], Awaitable[Any]]], Any]
MakeLoop = Callable[[], asyncio.AbstractEventLoop]

TASKS = 1000
LOOPS: List[MakeLoop] = [asyncio.new_event_loop, uvloop.new_event_loop]


def run_in(make_loop: MakeLoop, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine as asyncio.run does, in a loop of some kind, with a bound of time."""
    loop = make_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(main(), WAIT_S))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture(name="run", params=LOOPS, ids=["asyncio", "uvloop"])
def run_fixture(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine, once for each kind of loop."""
    return lambda main: run_in(request.param, main)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue that does not wait for the disk."""
    return new_environment("a", "b", durability=Durability.PROCESS_CRASH, high_watermark=MANY)


def commits(environment: Environment) -> int:
    """Return the number of the newest transaction that LMDB has committed."""
    held = open_queues.acquire(environment.path)
    try:
        return held.read(lambda txn: txn._txn.id())
    finally:
        open_queues.release(held)


def watch_threads() -> int:
    """Count the threads that sleep until something is published."""
    return sum(thread.name == "persipubsub-watch" for thread in threading.enumerate())


async def until_waiting(environment: Environment, count: int) -> None:
    """Let others run until a number of tasks wait for a message."""
    while len(environment._bridged()._own_threads().watcher._waiting) < count:
        await asyncio.sleep(0.001)


async def receive_one(subscriber: AsyncSubscriber[bytes], timeout: Any = None) -> Any:
    """Receive and acknowledge a message."""
    async with subscriber.receive(timeout=timeout) as msg:
        return msg


# What each method does


def test_send_and_receive(environment: Environment, run: Run) -> None:
    """Messages arrive in order, the end of the block acknowledges them, and an empty queue returns None in time."""

    async def main() -> None:
        async with environment.new_async_publisher() as pub, environment.new_async_subscriber("a") as sub:
            assert await pub.send(b"1") == 1
            assert await pub.send_many([b"2", b"3"]) == range(2, 4)
            assert await pub.send_many([]) == range(0)
            for expected in [b"1", b"2", b"3"]:
                assert await sub.front() == expected
                assert await receive_one(sub) == expected
            assert await sub.front() is None
            assert await receive_one(sub, timeout=0) is None
            assert await receive_one(sub, timeout=0.01) is None

    run(main)


def test_protobuf_messages(new_environment: MakeEnvironment, run: Run) -> None:
    """Endpoints for tasks with a message type send and return messages; anything else stays."""
    environment = new_environment("a", message_type=StringValue)

    async def main() -> None:
        pub = environment.new_async_publisher(message_type=StringValue)
        sub = environment.new_async_subscriber("a", message_type=StringValue)
        await pub.send(StringValue(value="one"))
        with pytest.raises(errors.ArgumentTypeError):
            await pub.send(b"bytes")  # type: ignore[arg-type]  # the mistake
        environment.new_publisher().send(b"\xff")
        async with sub.receive(timeout=0) as message:
            assert message == StringValue(value="one")
        with pytest.raises(errors.DecodeError):
            async with sub.receive(timeout=0):
                pass
        await sub.pop()
        assert await sub.front() is None
        assert await pub.send(StringValue(value="once"), "id") == await pub.send(StringValue(value="again"), "id")
        assert [message.value async for message in sub.messages(timeout=0)] == ["once"]

    run(main)


def test_send_later(new_environment: MakeEnvironment, run: Run) -> None:
    """A task sends delayed messages and cancels them, with a type or without, as the other endpoints do."""
    environment = new_environment("a", message_type=StringValue, high_watermark=HighWaterMark(max_messages=2))

    async def main() -> None:
        pub = environment.new_async_publisher(message_type=StringValue)
        sub = environment.new_async_subscriber("a", message_type=StringValue)
        far = await pub.send_later(StringValue(value="far"), delay_s=1000)
        soon = await pub.send_later(StringValue(value="soon"), at=moments.utc(clock.wall_us() + 100_000))
        assert far.number < soon.number and soon.due < far.due
        with pytest.raises(errors.TooManyDelayedError):
            await pub.send_later(StringValue(value="one too many"), delay_s=1000)
        async with sub.receive() as message:
            assert message == StringValue(value="soon")
        assert [await pub.cancel(soon), await pub.cancel(far)] == [False, True]
        other = environment.new_publisher(message_type=StringValue).send_later(StringValue(value="other"), 1000)
        assert await pub.cancel(other)
        with pytest.raises(errors.ArgumentTypeError):
            await pub.send_later(b"bytes", delay_s=1)  # type: ignore[arg-type]  # the mistake

    run(main)
    assert environment.new_control().status().delayed == 0


def test_delayed_sends_share_a_commit(environment: Environment, run: Run) -> None:
    """Sends, delayed sends and cancellations of tasks at the same time share one commit."""

    async def main() -> None:
        pub = environment.new_async_publisher()
        far = await pub.send_later(b"far", delay_s=1000)
        before = commits(environment)
        first, second, was_delayed = await asyncio.gather(pub.send(b"1"), pub.send(b"2"), pub.cancel(far))
        assert (first, second, was_delayed, commits(environment)) == (1, 2, True, before + 1)
        later = await asyncio.gather(*(pub.send_later(b"2", delay_s=1000) for _ in range(TASKS)), pub.send(b"4"))
        assert commits(environment) - before <= 3
        assert len(set(later)) == TASKS + 1

    run(main)
    assert environment.new_control().status().delayed == TASKS


def test_receive_many(environment: Environment, run: Run) -> None:
    """A batch keeps its bounds and is acknowledged in one commit."""

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send_many([b"1", b"22", b"333", b"4"])
        before = commits(environment)
        async with sub.receive_many(max_messages=2) as msgs:
            assert msgs == [b"1", b"22"]
        assert commits(environment) == before + 1
        async with sub.receive_many(max_bytes=3) as msgs:
            assert msgs == [b"333"]
        async with sub.receive_many() as msgs:
            assert msgs == [b"4"]
        async with sub.receive_many(timeout=0) as msgs:
            assert msgs == []

    run(main)


def test_receive_to_top(environment: Environment, run: Run) -> None:
    """It returns the latest message; the block acknowledges everything up to it, and nothing sent meanwhile."""

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        await pub.send_many([b"1", b"2", b"3"])
        async with sub.receive_to_top() as msg:
            assert msg == b"3"
            await pub.send(b"4")
        assert await receive_one(sub) == b"4"
        async with sub.receive_to_top(timeout=0) as msg:
            assert msg is None

    run(main)


def test_block_that_raises(environment: Environment, run: Run) -> None:
    """A message whose block raises comes again."""

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send(b"1")
        with pytest.raises(ZeroDivisionError):
            async with sub.receive():
                raise ZeroDivisionError
        assert await receive_one(sub) == b"1"

    run(main)


def test_pop(environment: Environment, run: Run) -> None:
    """The next message is acknowledged unread; where there is none, ``pop`` raises EmptyError."""

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send_many([b"1", b"2"])
        await sub.pop()
        assert await sub.front() == b"2"
        await sub.pop()
        with pytest.raises(errors.EmptyError):
            await sub.pop()

    run(main)


@pytest.mark.parametrize("acknowledge_every", [1, 3])
def test_messages(environment: Environment, run: Run, acknowledge_every: int) -> None:
    """A loop gets all messages, ends when none comes in time, and acknowledges finished ones when it is left."""

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        await pub.send_many([b"%d" % number for number in range(10)])
        async with contextlib.aclosing(sub.messages(acknowledge_every=acknowledge_every)) as messages:
            async for msg in messages:
                if msg == b"4":
                    break
        assert await sub.front() == b"4"
        assert [msg async for msg in sub.messages(timeout=0.01, acknowledge_every=acknowledge_every)
                ] == [b"%d" % number for number in range(4, 10)]
        assert await sub.front() is None

    run(main)


def test_messages_left_without_closing(environment: Environment, run: Run) -> None:
    """A loop that is left by break acknowledges what it has to a moment later, and warns of nothing."""

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send_many([b"1", b"2", b"3"])
        async for msg in sub.messages(acknowledge_every=3):
            if msg == b"3":
                break
        while await sub.front() != b"3":
            await asyncio.sleep(0)

    run(main)


def test_messages_do_not_outlive_their_timeout(environment: Environment, run: Run,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop does not return messages that expired while it was at those before them."""

    async def main() -> None:
        environment.new_control(high_watermark=HighWaterMark(message_timeout=1))
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send_many([b"1", b"2"])
        later_us = persipubsub.clock.boottime_us() + 2 * 10**6
        got = []
        async for msg in sub.messages(timeout=0, acknowledge_every=2):
            got.append(msg)
            monkeypatch.setattr(persipubsub.clock, "boottime_us", lambda: later_us)
        assert got == [b"1"]

    run(main)


# Errors


def test_mistakes_are_found_at_once(environment: Environment, run: Run) -> None:
    """Arguments outside their limits are refused as by the other endpoints, most of them before anything is awaited."""
    sub = environment.new_async_subscriber("a")
    wrong: List[Callable[[], object]] = [
        lambda: sub.receive(timeout=-1),
        lambda: sub.receive_to_top(timeout=float("nan")),
        lambda: sub.receive_many(max_messages=0),
        lambda: sub.receive_many(max_bytes=0),
        lambda: sub.messages(acknowledge_every=0),
        lambda: environment.new_async_subscriber(""),
    ]
    for call in wrong:
        with pytest.raises(errors.ArgumentError):
            call()
    with pytest.raises(errors.UnknownSubscriberError):
        environment.new_async_subscriber("nobody")

    async def main() -> None:
        pub: AsyncPublisher[Any] = environment.new_async_publisher()
        with pytest.raises(errors.ArgumentTypeError):
            await pub.send("text")
        with pytest.raises(errors.ArgumentTypeError):
            await pub.send_many(b"bytes")
        with pytest.raises(errors.ArgumentError):
            await pub.send_later(b"1", delay_s=-1)
        with pytest.raises(errors.ArgumentTypeError):
            await pub.cancel(1)  # type: ignore[arg-type]  # the mistake
        pub.close()
        with pytest.raises(errors.ClosedError):
            await pub.send_later(b"1", delay_s=1)

    run(main)


def test_wrong_message_fails_alone(environment: Environment, run: Run) -> None:
    """Of tasks that send in one commit, only one whose message exceeds the mark gets an error."""

    async def main() -> None:
        environment.new_control(high_watermark=HighWaterMark(hwm_db_size=1024**2, max_messages=10**6))
        pub = environment.new_async_publisher()
        payloads = [b"%d" % number for number in range(100)]
        payloads[50] = bytes(2 * 1024**2)
        before = commits(environment)
        results = await asyncio.gather(*map(pub.send, payloads), return_exceptions=True)
        assert commits(environment) == before + 2  # those before it, and those behind it
        assert [number for number, result in enumerate(results)
                if isinstance(result, errors.MessageTooLargeError)] == [50]
        assert sorted(result for result in results if isinstance(result, int)) == list(range(1, 100))
        del payloads[50]
        async with environment.new_async_subscriber("a").receive_many() as msgs:
            assert msgs == payloads

    run(main)


def test_removed_while_waiting(environment: Environment, run: Run) -> None:
    """Waiting as a subscriber that is removed raises UnknownSubscriberError; others wait on."""

    async def main() -> None:
        waiting = asyncio.ensure_future(receive_one(environment.new_async_subscriber("a")))
        other = asyncio.ensure_future(receive_one(environment.new_async_subscriber("b")))
        await until_waiting(environment, 2)
        environment.new_control().remove_subscriber("a")
        with pytest.raises(errors.UnknownSubscriberError):
            await waiting
        await environment.new_async_publisher().send(b"1")
        assert await other == b"1"

    run(main)


@pytest.mark.slow
@pytest.mark.parametrize("closes", ["subscriber", "environment"])
def test_closed_while_waiting(environment: Environment, run: Run, closes: str) -> None:
    """Closing the subscriber or its Environment ends a wait with ClosedError, and its thread."""

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        waiting = asyncio.ensure_future(receive_one(sub))
        await until_waiting(environment, 1)
        (sub if closes == "subscriber" else environment).close()
        with pytest.raises(errors.ClosedError):
            await waiting
        with pytest.raises(errors.ClosedError):
            await sub.front()
        pub = environment.new_async_publisher() if closes == "subscriber" else None
        if pub is not None:
            pub.close()
            with pytest.raises(errors.ClosedError):
                await pub.send(b"1")

    run(main)
    wait_until(lambda: not watch_threads())


# Costs


def test_import_is_lean() -> None:
    """A program that uses no tasks does not import asyncio."""
    code = "import sys, persipubsub; sys.exit(bool({'asyncio', 'persipubsub.endpoints.bridge'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_S)


def test_many_sends_few_commits(environment: Environment, run: Run) -> None:
    """A thousand tasks that send at once make a commit or two, and each gets the id of its message."""

    async def main() -> None:
        pub = environment.new_async_publisher()
        before = commits(environment)
        ids = await asyncio.gather(*(pub.send(b"%d" % number) for number in range(TASKS)))
        assert commits(environment) - before <= 2
        assert ids == list(range(1, TASKS + 1))
        async with environment.new_async_subscriber("a").receive_many() as msgs:
            assert msgs == [b"%d" % number for number in range(TASKS)]

    run(main)


@pytest.mark.slow
def test_many_wait_on_one_thread(new_environment: MakeEnvironment, run: Run) -> None:
    """A thousand waiting tasks hold one thread, and each gets its message; when none waits, no thread is left."""
    names = [f"waiter {number}" for number in range(TASKS)]
    environment = new_environment(*names, durability=Durability.PROCESS_CRASH)

    async def main() -> None:
        wait_until(lambda: not watch_threads())
        before = threading.active_count()
        waiting = [asyncio.ensure_future(receive_one(environment.new_async_subscriber(name))) for name in names]
        await until_waiting(environment, TASKS)
        while threading.active_count() > before + 1:
            await asyncio.sleep(0.01)
        assert watch_threads() == 1
        await environment.new_async_publisher().send(b"1")
        assert await asyncio.gather(*waiting) == [b"1"] * TASKS

    count = threading.active_count()
    run(main)
    assert all(subscriber.pending == 0 for subscriber in environment.new_control().status().subscribers.values())
    wait_until(lambda: threading.active_count() <= count)


# Waiting


def test_no_wakeup_is_missed(environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only wake-ups end the waits here, and whatever the moment at which a message is sent, its receiver gets it."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 10 * WAIT_S)
    rounds = 500

    def answer() -> None:
        pub, sub = environment.new_publisher(), environment.new_subscriber("b")
        for msg in sub.messages(timeout=WAIT_S):
            if msg == b"end":
                return
            if msg == b"question":
                pub.send(b"answer")

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        task = Task(answer)
        for _ in range(rounds):
            await pub.send(b"question")
            for expected in (b"question", b"answer"):
                assert await receive_one(sub, timeout=WAIT_S) == expected
        await pub.send(b"end")
        task.result()

    run(main)


@pytest.mark.parametrize("polling", [False, True])
def test_delayed_message_ends_a_wait(polling: bool, opened: Opened, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but its due time ends these waits: of a task that waits already, and of one that comes after an answer.
    """
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 10 * WAIT_S)
    if polling:
        monkeypatch.setattr(opened.handle._wakeup, "words", None)  # as on macOS

    async def main() -> None:
        sub = opened.environment.new_async_subscriber("a")
        waiting = asyncio.ensure_future(receive_one(sub))
        await until_waiting(opened.environment, 1)
        opened.publisher.send_later(b"1", delay_s=0.2)
        assert await waiting == b"1"
        opened.publisher.send_later(b"2", delay_s=0.2)
        waiting = asyncio.ensure_future(receive_one(sub))
        await until_waiting(opened.environment, 1)
        opened.publisher.send(b"3")
        # Now the watcher sleeps, and nobody whom it knew waits any more. On a slow machine the other one comes first.
        assert {await waiting, await receive_one(sub)} == {b"2", b"3"}

    run(main)
    opened.publisher.send(b"so that the thread that waits ends")


@pytest.mark.slow
def test_waiting_costs_nothing(new_environment: MakeEnvironment, run: Run) -> None:
    """A hundred tasks that wait use next to no processor time."""
    names = [f"waiter {number}" for number in range(100)]
    environment = new_environment(*names, durability=Durability.PROCESS_CRASH)

    async def main() -> None:
        waiting = [asyncio.ensure_future(receive_one(environment.new_async_subscriber(name))) for name in names]
        await until_waiting(environment, len(names))
        start_s = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - start_s < 0.1
        await environment.new_async_publisher().send(b"1")
        assert await asyncio.gather(*waiting) == [b"1"] * 100

    run(main)


@pytest.mark.slow
def test_loop_that_is_closed_while_a_task_waits(environment: Environment, run: Run) -> None:
    """A loop that is closed under its tasks leaves no thread behind, and sends what was being sent."""
    abandoned: List[Any] = []

    async def abandon() -> None:
        abandoned.append(asyncio.ensure_future(receive_one(environment.new_async_subscriber("b"))))
        await until_waiting(environment, 1)
        abandoned.append(asyncio.ensure_future(environment.new_async_publisher().send(b"1")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def main() -> None:
        assert await receive_one(environment.new_async_subscriber("a")) == b"1"

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.close()
    wait_until(lambda: not watch_threads())
    run(main)
    for task in abandoned:
        task._log_destroy_pending = False  # asyncio would complain, rightly
        task.get_coro().close()


# Threads, processes, forks


def test_two_loops(environment: Environment) -> None:
    """Loops in threads of their own use one Environment, one publisher and one subscriber at the same time."""
    pub = environment.new_async_publisher()
    subs = [environment.new_async_subscriber(name) for name in ("a", "b")]
    count = 300

    async def work(number: int) -> List[bytes]:
        sends = [asyncio.ensure_future(pub.send(b"%d:%d" % (number, index))) for index in range(count)]
        got: List[bytes] = []
        async for msg in subs[number].messages(acknowledge_every=10):
            got.append(msg)
            if len(got) == 2 * count:
                break
        await asyncio.gather(*sends)
        return got

    tasks = [
        Task(lambda number=number, make=make: run_in(make, lambda: work(number)))  # type: ignore[misc]  # defaults
        for number, make in enumerate(LOOPS)
    ]
    got = tasks[0].result()
    assert tasks[1].result() == got
    assert by_sender(got) == {str(number): [b"%d:%d" % (number, index) for index in range(count)] for number in (0, 1)}


def use_inherited(pub: AsyncPublisher[bytes], sub: AsyncSubscriber[bytes]) -> None:
    """Use what was inherited or unpickled: the main function of a process."""

    async def main() -> None:
        await pub.send(b"child")
        assert await receive_one(sub, timeout=WAIT_S) is not None

    run_in(asyncio.new_event_loop, main)


@pytest.mark.usefixtures("patient_forks")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_process(environment: Environment, run: Run, method: str) -> None:
    """A child that is made while tasks of its parent wait uses the same objects, with threads of its own."""
    context: Any = multiprocessing.get_context(method)

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        waiting = asyncio.ensure_future(receive_one(sub))
        await until_waiting(environment, 1)
        child = context.Process(target=use_inherited, args=(pub, environment.new_async_subscriber("b")))
        child.start()
        assert await waiting == b"child"
        while child.is_alive():
            await asyncio.sleep(0.01)
        assert child.exitcode == 0
        await pub.send(b"parent")
        assert await receive_one(sub) == b"parent"

    run(main)


def test_pickled(environment: Environment, run: Run) -> None:
    """Endpoints can be pickled, and their repr says what they are."""
    pub, sub = environment.new_async_publisher(autosync=True), environment.new_async_subscriber("a")
    assert repr(pub).startswith("<AsyncPublisher of ")
    assert repr(sub).startswith("<AsyncSubscriber 'a' of ")

    async def main() -> None:
        assert await pickle.loads(pickle.dumps(pub)).send_many([b"1", b"2"]) == [1, 2]
        other = pickle.loads(pickle.dumps(sub))
        assert other.identifier == "a"
        assert await receive_one(other) == b"1"

    run(main)


# What the endpoints share with the others


def test_autosync(environment: Environment, run: Run) -> None:
    """With autosync each message of a batch has a commit of its own, and an error leaves those before it sent."""

    async def main() -> None:
        environment.new_control(high_watermark=HighWaterMark(hwm_db_size=1000_000))
        pub = environment.new_async_publisher(autosync=True)
        before = commits(environment)
        assert await pub.send_many([b"1", b"2"]) == [1, 2]
        assert commits(environment) == before + 2
        with pytest.raises(errors.MessageTooLargeError):
            await pub.send_many([b"3", bytes(2000_000), b"4"])
        async with environment.new_async_subscriber("a").receive_many() as msgs:
            assert msgs == [b"1", b"2", b"3"]

    run(main)


def test_warnings(new_environment: MakeEnvironment, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Sending into a queue without subscribers warns once."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)

    async def main() -> None:
        pub = environment.new_async_publisher()
        await asyncio.gather(pub.send(b"1"), pub.send(b"2"))

    run(main)
    assert len([record for record in caplog.records if "has no subscribers" in record.message]) == 1


@pytest.mark.parametrize("threads_that_may_start", [0, 1])
def test_machine_without_threads(environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch,
                                 threads_that_may_start: int) -> None:
    """Where no thread can be started, whoever needs one gets an error that names the limit, and the next use works."""
    start, started = threading.Thread.start, itertools.count()

    def refuse(thread: threading.Thread) -> None:
        if next(started) >= threads_that_may_start:
            raise RuntimeError("can't start new thread")
        start(thread)

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(errors.StorageError, match="thread"):
                await receive_one(sub, timeout=1)
            with pytest.raises(errors.StorageError, match="thread"):
                await pub.send(b"1")
        assert await pub.send(b"2") == 1
        assert await receive_one(sub) == b"2"

    run(main)


IO_ERROR_PROGRAM = """
import asyncio, sys
import persipubsub
async def main():
    publisher = persipubsub.new_environment(sys.argv[1]).new_async_publisher()
    for name in ("first", "second", "third"):
        sends = (publisher.send(b"%s %d" % (name.encode(), number)) for number in range(3))
        print(name, *(type(result).__name__ for result in await asyncio.gather(*sends, return_exceptions=True)))
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_io_error_in_a_commit_of_many(new_environment: MakeEnvironment) -> None:
    """After an I/O error all senders of a commit learn the same: failed, or unknown; the next send works."""
    seen: Set[str] = set()
    for number in range(1, 5):
        environment = new_environment("a", name=str(number))
        environment.close()
        found = outcomes(environment.path, f"pwrite64:error=EIO:when={number}", IO_ERROR_PROGRAM)
        with new_environment("a", name=str(number)) as reopened:
            stored = [msg.decode() for msg in reopened.new_subscriber("a").messages(timeout=0)]
        for name, *results in found:
            [result] = set(results)
            seen.add(result)
            there = [msg for msg in stored if msg.startswith(name)]
            assert there in [[], [f"{name} {index}" for index in range(3)]]
            assert result == "CommitUnknownError" or bool(there) == (result == "int")
        assert len([results for _, *results in found if results == ["int"] * 3]) >= 2
    assert "CommitUnknownError" in seen


# The commits that tasks share


def test_large_group_is_split(environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one commit may hold is committed in several, in order; each send has its own id."""
    monkeypatch.setattr(group_commit, "GROUP_MESSAGES_MAX", 30)

    async def main() -> None:
        pub = environment.new_async_publisher()
        before = commits(environment)
        assert await asyncio.gather(*(pub.send(b"%d" % number) for number in range(100))) == list(range(1, 101))
        assert 4 <= commits(environment) - before <= 6
        async with environment.new_async_subscriber("a").receive_many() as msgs:
            assert msgs == [b"%d" % number for number in range(100)]

    run(main)


def test_operation_that_fails_amid_a_group(opened: Opened) -> None:
    """Where one of the operations of a group fails after it has written, the others are committed all the same."""

    def fail(txn: Transaction) -> None:
        put(b"lost")(txn)
        raise ZeroDivisionError

    def put(payload: bytes) -> Callable[[Transaction], object]:
        return lambda txn: appending.put(txn, [payload], len(payload), len(payload))

    outcomes_of_all = opened.handle._writer.run_all([(put(b"1"), ()), (fail, ()), (put(b"2"), ())])
    assert [type(outcome.error) for outcome in outcomes_of_all] == [type(None), ZeroDivisionError, type(None)]
    assert opened.drain() == [b"1", b"2"]
    opened.assert_quiet()


def test_many_operations_that_fail_amid_a_group(opened: Opened) -> None:
    """However many operations of a group fail after they have written, each runs at most twice."""
    count, runs = 600, collections.Counter[int]()

    def operation(number: int, txn: Transaction) -> None:
        runs[number] += 1
        appending.put(txn, [b"%d" % number], 3, 3)
        if number % 3 == 0:
            raise errors.ArgumentError("wrong")

    outcomes = opened.handle._writer.run_all([(functools.partial(operation, number), ()) for number in range(count)])
    assert [number for number, outcome in enumerate(outcomes) if outcome.error is not None] == [*range(0, count, 3)]
    assert max(runs.values()) == 2
    assert opened.drain() == [b"%d" % number for number in range(count) if number % 3]
    opened.assert_quiet()


def test_threads_and_tasks_send_together(opened: Opened, run: Run) -> None:
    """Threads and tasks that send share the commits of the leader, and every message is there once."""
    stop = threading.Event()
    senders = [Sender(opened.publisher, f"thread {number}", stop) for number in range(2)]

    async def send(pub: AsyncPublisher[bytes], name: str) -> List[bytes]:
        payloads = numbered(name, 200)
        for payload in payloads:
            await pub.send(payload)
        return payloads

    async def main() -> None:
        pub = opened.environment.new_async_publisher()
        await asyncio.gather(*(send(pub, f"task {number}") for number in range(20)))

    try:
        run(main)
    finally:
        stop.set()
    expected = {f"task {number}": numbered(f"task {number}", 200) for number in range(20)}
    expected.update({f"thread {number}": sender.result() for number, sender in enumerate(senders)})
    assert by_sender(opened.sent()) == expected
    opened.assert_quiet()
