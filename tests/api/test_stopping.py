"""Stopping loses no work; closing an Environment leaves what runs to the next delivery."""

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from typing import AsyncIterator, Callable, ContextManager, Iterator, List, Optional, TypeVar

import pytest

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, Publisher, Reject, Retry, Strategy, Subscriber, errors
from persipubsub import subscriber as subscriber_module
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.endpoints import room, room_watcher
from persipubsub.engine import limits
from persipubsub.subscriber import SharedSubscriber
from persipubsub.testing import QueueFactory, drain, publish
from tests.children import status_of
from tests.concurrency import HELD_UP_S_MAX, WAIT_S, Point, Task, alarm_handler, wait_until
from tests.process.forking import fork

T = TypeVar("T")
MakeEnvironment = Callable[..., Environment]

#: A sleep of this length is noticed: a test ends before it.
NEVER_S = 1000.0
#: A stop that comes so late ends a wait that has missed the one before.
LATE_S = 5.0


@pytest.fixture(name="env", params=[False, True], ids=["plain", "shared"])
def env_fixture(request: pytest.FixtureRequest, persipubsub_queue: QueueFactory) -> Environment:
    """Return the Environment of a queue with the messages 1, 2 and 3 for the subscriber ``a``."""
    env = persipubsub_queue()
    env.new_control().add_subscriber("a", shared=request.param, retry_delay_s=0 if request.param else None)
    publish(env, b"1", b"2", b"3")
    return env


@pytest.mark.parametrize("stop", [Environment.stop, None])
def test_work_that_runs_at_a_stop_is_acknowledged(stop: "Callable[[Environment], None]", env: Environment) -> None:
    """A block that runs at a stop is acknowledged, and nothing is received afterwards."""
    subscriber = env.new_subscriber("a")
    with subscriber.receive(timeout=0) as message:
        assert message == b"1"
        if stop is None:
            subscriber.stop()
        else:
            stop(env)
    assert subscriber.stopped
    with subscriber.receive(timeout=None) as nothing:
        assert nothing is None
    with subscriber.receive_many(timeout=None) as messages:
        assert messages == []
    assert not list(subscriber.messages(timeout=0))
    assert drain(Environment(env.path), "a") == [b"2", b"3"]


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_an_iteration_that_runs_at_a_stop_is_the_last(acknowledge_every: int, env: Environment) -> None:
    """A loop ends after the iteration in which it is stopped, and that message is acknowledged."""
    subscriber, received = env.new_subscriber("a"), []
    for message in subscriber.messages(acknowledge_every=acknowledge_every):
        received.append(message)
        if message == b"2":
            subscriber.stop()
    assert received == [b"1", b"2"]
    assert drain(Environment(env.path), "a") == [b"3"]


def test_a_wait_ends_at_a_stop(env: Environment) -> None:
    """A thread that waits for a message gets none once the Environment is stopped."""
    drain(env, "a")

    def wait(subscriber: Subscriber) -> List[bytes]:
        return list(subscriber.messages(timeout=2 * WAIT_S))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait, env.new_subscriber("a")) for _ in range(2)]
        env.stop()
        assert [one.result(WAIT_S) for one in waiting] == [[], []]


def test_what_is_made_after_a_stop_has_stopped(env: Environment) -> None:
    """A stop that comes before a program has made its subscribers stops these as well, for tasks too."""
    env.stop()
    assert not list(env.new_subscriber("a").messages(timeout=0))

    async def receive() -> None:
        async for message in env.new_async_subscriber("a").messages(timeout=0):
            raise AssertionError(message)

    asyncio.run(receive())
    assert publish(env, b"4") and drain(Environment(env.path), "a") == [b"1", b"2", b"3", b"4"]


def test_a_wait_for_room_ends_at_a_stop(persipubsub_queue: QueueFactory) -> None:
    """A publisher that waits for room gets QueueFullError at a stop, and has sent nothing; later ones do not wait."""
    env = persipubsub_queue(["a"], HighWaterMark(max_messages=1), Strategy.refuse)
    publish(env, b"1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(env.new_publisher().send, b"2", timeout=2 * WAIT_S)
        env.stop()
        with pytest.raises(errors.QueueFullError):
            waiting.result(WAIT_S)
    with pytest.raises(errors.QueueFullError):
        env.new_publisher().send(b"3", timeout=WAIT_S)
    assert drain(Environment(env.path), "a") == [b"1"]


def _received(subscriber: Subscriber) -> ContextManager[object]:
    return subscriber.receive(timeout=0)


def test_a_block_outlives_its_subscriber(env: Environment) -> None:
    """The end of a block acknowledges its message, even if the Subscriber was closed during the block."""
    subscriber = env.new_subscriber("a")
    with _received(subscriber):
        subscriber.close()
    assert drain(env, "a") == [b"2", b"3"]


def test_a_block_does_not_outlive_its_environment(env: Environment) -> None:
    """The end of a block raises ClosedError if the queue was closed meanwhile, and the message is delivered again."""
    with pytest.raises(errors.ClosedError), _received(env.new_subscriber("a")):
        env.close()
    with Environment(env.path) as again:
        status = again.new_control().status().subscribers["a"]
        assert (status.taken, status.pending) == (0, 3)


# Threads, signals, processes


@pytest.fixture(name="never_looks")
def never_looks_fixture(monkeypatch: pytest.MonkeyPatch, time_limit: None) -> None:
    """Have waits last until they are woken: a test in which nobody wakes them fails."""
    del time_limit
    for module in (subscriber_module, room, room_watcher, limits):
        monkeypatch.setattr(module, "SLEEP_S_MAX", NEVER_S)


def receive(environment: Environment) -> object:
    """Wait for a message."""
    with environment.new_subscriber("a").receive(timeout=None) as message:
        return message


def receive_many(environment: Environment) -> object:
    """Wait for messages."""
    with environment.new_subscriber("a").receive_many(timeout=None) as messages:
        return messages or None


def receive_delivery(environment: Environment) -> object:
    """Wait for a delivery."""
    with environment.new_subscriber("a").receive_delivery(timeout=None) as delivery:
        return delivery


def receive_to_top(environment: Environment) -> object:
    """Wait for the latest message."""
    with environment.new_subscriber("a").receive_to_top(timeout=None) as message:
        return message


def loop_over(environment: Environment) -> object:
    """Wait in a loop over messages."""
    return list(environment.new_subscriber("a").messages(acknowledge_every=5)) or None


def retry(environment: Environment) -> object:
    """Wait for a message that is to be delivered again much later."""
    environment.new_publisher().send(b"retried")
    subscriber = environment.new_subscriber("a")
    with subscriber.receive(timeout=0):
        raise Retry(1000)
    with subscriber.receive(timeout=None) as message:
        return message


def receive_as_a_task(environment: Environment) -> object:
    """Wait for a message as a task."""

    async def main() -> object:
        async with environment.new_async_subscriber("a").receive(timeout=None) as message:
            return message

    return asyncio.run(main())


def loop_as_a_task(environment: Environment) -> object:
    """Wait in a loop over messages as a task."""

    async def main() -> List[bytes]:
        return [message async for message in environment.new_async_subscriber("a").messages()]

    return asyncio.run(main()) or None


WAITS = [receive, receive_many, receive_delivery, loop_over, receive_as_a_task, loop_as_a_task]


def is_awaited(environment: Environment) -> bool:
    """Return whether a subscriber of any process waits."""
    # The second word of the mapped file: see persipubsub.lmdb_engine.process.wakeup.
    return bool((environment.path / "wakeup").read_bytes()[4])


@pytest.mark.parametrize("wait", [*WAITS, receive_to_top, retry])
@pytest.mark.usefixtures("never_looks")
def test_a_stop_wakes_every_wait(wait: Callable[[Environment], object], new_environment: MakeEnvironment) -> None:
    """Whatever waits gets nothing when another thread stops the Environment, without a look at the queue meanwhile."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    task = Task(lambda: wait(environment))
    wait_until(lambda: is_awaited(environment))
    environment.stop()
    assert task.result() is None


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.usefixtures("never_looks")
def test_a_stop_wakes_every_worker(wait: Callable[[Environment], object], new_environment: MakeEnvironment) -> None:
    """Workers of a shared subscriber that wait get nothing when they are stopped."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)
    environment.new_control().add_subscriber("a", shared=True)
    tasks = [Task(lambda: wait(environment)) for _ in range(3)]
    wait_until(lambda: is_awaited(environment))
    environment.stop()
    assert [task.result() for task in tasks] == [None] * 3


@pytest.mark.parametrize("wait", [receive, receive_many, loop_over])
@pytest.mark.usefixtures("never_looks")
def test_a_signal_handler_stops_a_wait(wait: Callable[[Environment], object], new_environment: MakeEnvironment) -> None:
    """A wait without an end ends when a signal handler of its thread stops the Environment."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    with alarm_handler(lambda *_signal: environment.stop()):
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)  # again, since the first may come before the thread sleeps
        assert wait(environment) is None


def full(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue that has as many messages as it may have: one."""
    environment = new_environment("a",
                                  high_watermark=HighWaterMark(max_messages=1),
                                  strategy=Strategy.refuse,
                                  durability=Durability.PROCESS_CRASH)
    environment.new_publisher().send(b"1")
    return environment


def received(subscriber: Subscriber) -> Optional[bytes]:
    """Wait for a message, and acknowledge it."""
    with subscriber.receive(timeout=None) as message:
        return message


def send(publisher: Publisher) -> None:
    """Wait for room in a full queue, in vain."""
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"x", timeout=None)


def note_and_stop(points: List[bool], late: threading.Timer, stop: Callable[[], object]) -> None:
    """Stop a wait, and note whether that comes before the late stop."""
    points.append(late.is_alive())
    stop()


def stopped_everywhere(make: Callable[[], T], wait: Callable[[T], object], stop: Callable[[T], object]) -> int:
    """Stop each wait of an endpoint at another of its points; return the number of points. Each wait has to end."""
    for number in itertools.count():
        made = make()
        stop_it, points = functools.partial(stop, made), list[bool]()
        late = threading.Timer(LATE_S, stop_it)
        late.start()
        point = Point(number, functools.partial(note_and_stop, points, late, stop_it))
        assert point.run(functools.partial(wait, made)) is None
        in_time = late.is_alive()
        late.cancel()
        if points != [True]:
            return number  # it slept before it came to this point
        assert in_time, f"the stop at point {number} was missed"
        assert wait(made) is None
    raise AssertionError


@pytest.mark.slow
@pytest.mark.usefixtures("never_looks")
@pytest.mark.parametrize("shared", [False, True])
def test_no_stop_of_a_subscriber_is_missed(shared: bool, new_environment: MakeEnvironment) -> None:
    """Wherever a signal handler that stops a subscriber interrupts a wait for a message, the wait ends."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)
    environment.new_control().add_subscriber("a", shared=shared)
    assert stopped_everywhere(lambda: environment.new_subscriber("a"), received, Subscriber.stop) > 20


@pytest.mark.slow
@pytest.mark.usefixtures("never_looks")
def test_no_stop_of_a_publisher_is_missed(new_environment: MakeEnvironment) -> None:
    """Wherever a signal handler that stops a publisher interrupts a wait for room, the wait ends."""
    environment = full(new_environment)
    assert stopped_everywhere(environment.new_publisher, send, Publisher.stop) > 20


@pytest.mark.slow
@pytest.mark.usefixtures("never_looks")
def test_no_stop_of_tasks_is_missed(new_environment: MakeEnvironment) -> None:
    """Whenever another thread stops a subscriber and a publisher, tasks that wait as them end."""
    environment = full(new_environment)
    environment.new_control().add_subscriber("b")
    chance = random.Random(1)

    async def main() -> None:
        subscriber, publisher = environment.new_async_subscriber("b"), environment.new_async_publisher()

        async def send_in_vain() -> None:
            with pytest.raises(errors.QueueFullError):
                await publisher.send(b"x", timeout=None)

        waiting = asyncio.gather(anext(subscriber.messages(), None), send_in_vain())
        for made in (subscriber, publisher):
            threading.Timer(chance.uniform(0, 0.005), made.stop).start()
        assert not any(await asyncio.wait_for(waiting, WAIT_S))

    for _ in range(100):
        asyncio.run(main())


def test_stopping_while_endpoints_are_made(new_environment: MakeEnvironment) -> None:
    """An Environment can be stopped and closed while other threads make endpoints, which stop as well."""
    environment, made, interval_s = new_environment("a"), list[Publisher](), sys.getswitchinterval()

    def make() -> None:
        for _ in range(5000):
            made.append(environment.new_publisher())

    sys.setswitchinterval(1e-6)
    try:
        tasks = [Task(make) for _ in range(2)]
        while not all(task.done() for task in tasks):
            environment.stop()
    finally:
        sys.setswitchinterval(interval_s)
    for task in tasks:
        task.result()
    environment.new_control(high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    made[0].send(b"x")
    with pytest.raises(errors.QueueFullError):
        made[-1].send(b"x", timeout=None)


# What runs is finished


def test_a_loop_gives_back_what_it_has_not_begun(persipubsub_queue: QueueFactory) -> None:
    """A worker that is stopped in a batch gives back the others at once, without counting them as delivered."""
    env = persipubsub_queue()
    env.new_control().add_subscriber("a", shared=True, lease_s=1000)
    publish(env, *(b"%d" % number for number in range(6)))
    subscriber = env.new_subscriber("a")
    for message in subscriber.messages(acknowledge_every=4):
        if message == b"1":
            subscriber.stop()
    status = env.new_control().status().subscribers["a"]
    assert (status.taken, status.pending, status.in_flight) == (2, 4, 2)
    with Environment(env.path) as again, again.new_subscriber("a").receive_deliveries(timeout=0) as deliveries:
        assert [(one.message, one.delivery_count) for one in deliveries] == [(b"2", 1), (b"3", 1)]


@pytest.mark.parametrize("acknowledge_every", [1, 2, 10])
def test_a_loop_of_tasks_that_is_stopped(acknowledge_every: int, env: Environment) -> None:
    """A loop of a task ends after the iteration in which it is stopped, and that message is acknowledged."""

    async def main() -> List[bytes]:
        subscriber, found = env.new_async_subscriber("a"), []
        async for message in subscriber.messages(acknowledge_every=acknowledge_every):
            found.append(message)
            if message == b"2":
                subscriber.stop()
            await asyncio.sleep(0)
        assert subscriber.stopped
        async with subscriber.receive(timeout=None) as nothing:
            assert nothing is None
        async with subscriber.receive_deliveries(timeout=None) as deliveries:
            assert deliveries == []
        return found

    assert asyncio.run(main()) == [b"1", b"2"]
    assert drain(Environment(env.path), "a") == [b"3"]


@pytest.mark.parametrize("outcome", [None, Retry(0), Reject("no"), ValueError()])
def test_outcomes_of_what_runs_at_a_stop(outcome: Optional[Exception], persipubsub_queue: QueueFactory) -> None:
    """Whatever a block decides after it was stopped holds as always."""
    for kind in ({"shared": True, "retry_delay_s": 0}, {"max_deliveries": 3}):
        env = persipubsub_queue()
        control = env.new_control()
        control.add_subscriber("a", **kind)  # type: ignore[arg-type]  # of many types
        publish(env, b"1")
        with contextlib.suppress(ValueError), env.new_subscriber("a").receive() as message:
            assert message == b"1"
            env.stop()
            if outcome is not None:
                raise outcome
        rejected, done = isinstance(outcome, Reject), outcome is None
        assert [letter.payload for letter in control.dead_letters("a")] == [b"1"] * rejected
        assert drain(Environment(env.path), "a") == ([] if rejected or done else [b"1"])


def test_stopping_does_not_close(env: Environment) -> None:
    """What has stopped still looks, pops, extends leases and sends where there is room; the queue is as before."""
    subscriber = env.new_subscriber("a")
    env.stop()
    assert not subscriber.stopped or subscriber.identifier == "a"
    assert publish(env, b"4") and env.new_control().status().messages == 4
    if not isinstance(subscriber, SharedSubscriber):
        assert subscriber.front() == b"1"
        subscriber.pop()
        assert subscriber.front() == b"2"
    subscriber.stop()
    assert "closed" not in repr(subscriber)


@pytest.mark.usefixtures("patient_forks")
def test_a_child_of_what_has_stopped(env: Environment) -> None:
    """A forked child inherits that a subscriber has stopped, and stops its own without stopping that of its parent."""
    subscriber, other = env.new_subscriber("a"), env.new_subscriber("a")
    subscriber.stop()

    def child() -> None:
        with subscriber.receive(timeout=None) as nothing:
            assert nothing is None
        other.stop()
        with other.receive(timeout=None) as nothing:
            assert nothing is None

    assert status_of(fork(child)) == 0
    assert not other.stopped
    with other.receive(timeout=0) as message:
        assert message == b"1"


# Closing


@pytest.mark.slow
@pytest.mark.parametrize("closes", ["publisher", "environment"])
@pytest.mark.parametrize("as_task", [False, True])
def test_closing_ends_a_wait_for_room(as_task: bool, closes: str, new_environment: MakeEnvironment,
                                      time_limit: None) -> None:
    """A sender that waits for room while its publisher or its Environment is closed ends with ClosedError."""
    del time_limit
    environment = full(new_environment)
    publisher, task_publisher = environment.new_publisher(), environment.new_async_publisher()

    def wait() -> int:
        if as_task:
            return asyncio.run(task_publisher.send(b"x", timeout=None))
        return publisher.send(b"x", timeout=None)

    task = Task(wait)
    wait_until(lambda: bool((environment.path / "wakeup").read_bytes()[12]))
    if closes == "environment":
        environment.close()
    publisher.close()
    task_publisher.close()
    with pytest.raises(errors.ClosedError):
        task.result()


# Programs

#: A worker that a signal stops: says what it begins and what it has finished.
WORKER = """
import signal, sys, time
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as environment:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: environment.stop())
    subscriber = environment.new_subscriber("a")
    print("ready", flush=True)
    for message in subscriber.messages(acknowledge_every=3):
        print("begun", message.decode(), flush=True)
        time.sleep(float(sys.argv[2]))
        print("finished", message.decode(), flush=True)
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_told_to_end(number: signal.Signals, env: Environment) -> None:
    """A program that a signal stops in the middle of its work finishes and acknowledges that, and ends."""
    with worker(env, 0.5) as process:
        assert said(process) == ["ready", "begun 1"]
        process.send_signal(number)
        assert process.communicate(timeout=WAIT_S)[0].splitlines() == ["finished 1", "ended"]
    assert process.returncode == 0
    assert drain(env, "a") == [b"2", b"3"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_program_that_is_told_to_end(number: signal.Signals, env: Environment) -> None:
    """A program that waits for messages ends soon after it was told to."""
    drain(env, "a")
    with worker(env, 0) as process:
        assert said(process, 1) == ["ready"]
        wait_until(lambda: is_awaited(env))
        start = time.monotonic()
        process.send_signal(number)
        assert process.communicate(timeout=WAIT_S)[0] == "ended\n"
        assert time.monotonic() - start < HELD_UP_S_MAX
    assert process.returncode == 0


@contextlib.contextmanager
def worker(env: Environment, work_s: float) -> "Iterator[subprocess.Popen[str]]":
    """Run the worker."""
    command = [sys.executable, "-c", WORKER, str(env.path), str(work_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]", lines: int = 2) -> List[str]:
    """Return the next lines that a process prints."""
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(lines)]


@contextlib.asynccontextmanager
async def lifespan(path: pathlib.Path, handled: List[bytes]) -> AsyncIterator[AsyncPublisher]:
    """Do what a web service does before and after it serves: receive in a task, until it is stopped."""

    async def handle_all(subscriber: AsyncSubscriber[bytes]) -> None:
        async for message in subscriber.messages():
            await asyncio.sleep(0.05)
            handled.append(message)

    with persipubsub.new_environment(path) as environment:
        async with environment.new_async_publisher() as publisher, environment.new_async_subscriber("a") as subscriber:
            task = asyncio.ensure_future(handle_all(subscriber))
            try:
                yield publisher
            finally:
                environment.stop()
                await task


def test_the_lifespan_of_a_web_service(new_environment: MakeEnvironment, time_limit: None) -> None:
    """A web service whose lifespan receives in a task loses nothing of what that works on at its end."""
    del time_limit
    environment, handled = new_environment("a", durability=Durability.PROCESS_CRASH), list[bytes]()

    async def serve() -> None:
        async with lifespan(environment.path, handled) as publisher:
            for number in range(5):
                await publisher.send(b"%d" % number)
            while len(handled) < 2:
                await asyncio.sleep(0.001)

    asyncio.run(serve())
    assert len(handled) < 5
    assert handled + drain(environment, "a") == [b"%d" % number for number in range(5)]


def test_the_end_of_a_with_block(env: Environment) -> None:
    """Endpoints work with contextlib: an ExitStack and closing() close them, after what runs was acknowledged."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(Environment(env.path))
        subscriber = stack.enter_context(opened.new_subscriber("a"))
        publisher = stack.enter_context(contextlib.closing(opened.new_publisher()))
        stack.callback(opened.stop)
        assert stack.enter_context(subscriber.receive(timeout=0)) == b"1"
        publisher.send(b"4")
    assert opened.closed
    with pytest.raises(errors.ClosedError):
        publisher.send(b"5")
    assert drain(env, "a") == [b"2", b"3", b"4"]
