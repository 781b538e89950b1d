"""Tasks: what is promised beyond what both forms of endpoints do."""

import asyncio
import contextlib
import functools
import pickle
import time
from typing import Any, AsyncIterator, Awaitable, Callable, Coroutine, List, TypeVar

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from persipubsub import Environment, HighWaterMark, errors
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from tests.conformance.forms import WAIT_S
from tests.conformance.queues import NewQueue, Queue, drained, numbered, received, start

pytestmark = pytest.mark.capability("asyncio")

T = TypeVar("T")


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue with two subscribers."""
    return new_queue("a", "b")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a loop of its own, for a bounded time."""
    return asyncio.run(asyncio.wait_for(main(), WAIT_S))


@contextlib.asynccontextmanager
async def endpoints(environment: Environment) -> "AsyncIterator[tuple[AsyncPublisher[bytes], AsyncSubscriber[bytes]]]":
    """Make a publisher and the subscriber "a"."""
    async with environment.new_async_publisher() as publisher, environment.new_async_subscriber("a") as subscriber:
        yield publisher, subscriber


async def receive_one(subscriber: AsyncSubscriber[bytes], timeout: Any = None) -> Any:
    """Receive and acknowledge a message."""
    async with subscriber.receive(timeout=timeout) as msg:
        return msg


async def cancelled(awaitable: Awaitable[object], turns: int = 20) -> None:
    """Begin something, cancel it some iterations of the loop later, and wait for its end."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_tasks_send_at_the_same_time(queue: Queue) -> None:
    """What tasks send at once arrives once, with ids of its own, in the order in which it was begun."""

    async def main() -> List[int]:
        publisher = queue.environment.new_async_publisher()
        return await asyncio.gather(*(publisher.send(msg) for msg in numbered(200)))

    ids = run(main)
    assert ids == sorted(set(ids))
    assert drained(queue.subscriber()) == numbered(200)


@pytest.mark.capability("high_water_mark")
def test_a_send_that_fails_fails_alone(new_queue: NewQueue) -> None:
    """Of tasks that send at once, the one with a message over the mark gets the error, and all others are sent."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100_000))

    async def main() -> List[Any]:
        publisher = queue.environment.new_async_publisher()
        msgs = [*numbered(5), bytes(100_001), *numbered(5, 5)]
        return await asyncio.gather(*map(publisher.send, msgs), return_exceptions=True)

    results = run(main)
    assert [isinstance(one, errors.MessageTooLargeError) for one in results] == [False] * 5 + [True] + [False] * 5
    assert drained(queue.subscriber()) == numbered(10)


def test_many_tasks_wait(new_queue: NewQueue) -> None:
    """A message wakes all tasks that wait as different subscribers."""
    identifiers = [f"subscriber {number}" for number in range(50)]
    queue = new_queue(*identifiers)

    async def main() -> List[Any]:
        subscribers = [queue.environment.new_async_subscriber(identifier) for identifier in identifiers]
        waiting = [asyncio.ensure_future(receive_one(subscriber)) for subscriber in subscribers]
        await asyncio.sleep(0)
        await queue.environment.new_async_publisher().send(b"x")
        return await asyncio.gather(*waiting)

    assert run(main) == [b"x"] * 50


def test_a_task_that_waits_holds_up_no_other(queue: Queue) -> None:
    """The loop goes on while a task waits for a message."""

    async def main() -> int:
        async with endpoints(queue.environment) as (publisher, subscriber):
            waiting, turns = asyncio.ensure_future(receive_one(subscriber)), 0
            for _ in range(50):
                await asyncio.sleep(0.001)
                turns += not waiting.done()
            await publisher.send(b"x")
            assert await waiting == b"x"
            return turns

    assert run(main) == 50


def test_a_wait_that_is_cancelled(queue: Queue) -> None:
    """A cancelled wait acknowledges nothing: the next message is there for whoever asks."""

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            for turns in (0, 1, 3, 20):
                await cancelled(receive_one(subscriber), turns)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(receive_one(subscriber), 0.02)
            await publisher.send(b"x")
            assert await subscriber.front() == b"x"
            assert await receive_one(subscriber, 0) == b"x"

    run(main)


def test_a_block_that_is_cancelled(queue: Queue) -> None:
    """A message whose block is cancelled comes again."""

    async def handle(subscriber: AsyncSubscriber[bytes], begun: asyncio.Event) -> None:
        async with subscriber.receive():
            begun.set()
            await asyncio.sleep(WAIT_S)

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            await publisher.send(b"x")
            begun = asyncio.Event()
            task = asyncio.ensure_future(handle(subscriber, begun))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await receive_one(subscriber, 0) == b"x"

    run(main)


def test_a_block_that_has_ended_when_it_is_cancelled(queue: Queue) -> None:
    """A cancellation that comes at the end of a block is raised when its message has been acknowledged."""

    async def handle(subscriber: AsyncSubscriber[bytes]) -> None:
        async with subscriber.receive():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            await publisher.send(b"x")
            with pytest.raises(asyncio.CancelledError):
                await asyncio.ensure_future(handle(subscriber))
            assert await subscriber.front() is None

    run(main)


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_a_loop_that_is_cancelled(acknowledge_every: int, queue: Queue) -> None:
    """Of a loop that is cancelled exactly the messages whose iteration had ended are acknowledged."""

    async def work(subscriber: AsyncSubscriber[bytes], begun: asyncio.Event) -> None:
        async with contextlib.aclosing(subscriber.messages(acknowledge_every=acknowledge_every)) as messages:
            async for msg in messages:
                if msg == b"2":
                    begun.set()
                    await asyncio.sleep(WAIT_S)

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            await publisher.send_many(numbered(4))
            begun = asyncio.Event()
            task = asyncio.ensure_future(work(subscriber, begun))
            await begun.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    run(main)
    assert drained(queue.subscriber()) == [b"2", b"3"]


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_a_send_that_is_cancelled(turns: int, queue: Queue) -> None:
    """A batch whose send is cancelled is there wholly or not at all, and what is sent next comes behind it."""

    async def main() -> None:
        publisher = queue.environment.new_async_publisher()
        await cancelled(publisher.send_many(numbered(5)), turns)
        await publisher.send(b"next")

    run(main)
    assert drained(queue.subscriber()) in ([b"next"], [*numbered(5), b"next"])


def test_nothing_goes_on_behind_a_cancelled_send(queue: Queue) -> None:
    """Whatever became of a cancelled send is decided when its await has ended."""

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            await cancelled(publisher.send(b"x"), 1)
            found = await subscriber.front()
            await asyncio.sleep(0.02)
            assert await subscriber.front() == found

    run(main)


def test_a_loop_that_is_closed_at_once(queue: Queue) -> None:
    """With ``aclosing`` a loop that is left has acknowledged its finished messages when its block ends."""

    async def main() -> Any:
        async with endpoints(queue.environment) as (publisher, subscriber):
            await publisher.send_many(numbered(20))
            async with contextlib.aclosing(subscriber.messages(acknowledge_every=10)) as messages:
                async for msg in messages:
                    if msg == b"9":
                        break
            return await subscriber.front()

    assert run(main) == b"9"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["subscriber", "environment"])
def test_closing_ends_waits(what: str, queue: Queue) -> None:
    """Tasks that wait get ClosedError within about a second when another task closes what they wait with."""

    async def main() -> List[Any]:
        subscriber = queue.environment.new_async_subscriber("a")
        waiting = [asyncio.ensure_future(receive_one(subscriber)) for _ in range(3)]
        await asyncio.sleep(0.02)
        (subscriber if what == "subscriber" else queue.environment).close()
        return await asyncio.gather(*waiting, return_exceptions=True)

    begin = time.monotonic()
    assert [type(error) for error in run(main)] == [errors.ClosedError] * 3
    assert time.monotonic() - begin < 5


def test_loops_in_threads(queue: Queue) -> None:
    """Loops of several threads use the same publisher and the same subscriber."""
    publisher = queue.environment.new_async_publisher()
    subscriber = queue.environment.new_async_subscriber("b")

    async def main() -> Any:
        await asyncio.gather(*(publisher.send(b"x") for _ in range(10)))
        return await subscriber.front()

    assert [one.result(60) for one in [start(lambda: run(main)) for _ in range(4)]] == [b"x"] * 4
    assert len(drained(queue.subscriber())) == 40


def test_one_loop_after_the_other(queue: Queue) -> None:
    """Endpoints outlive the loop in which they were used first."""
    publisher, subscriber = queue.environment.new_async_publisher(), queue.environment.new_async_subscriber("a")
    for msg in numbered(3):
        run(functools.partial(publisher.send, msg))
        assert run(lambda: receive_one(subscriber)) == msg


def test_both_forms_beside_each_other(queue: Queue) -> None:
    """Plain endpoints and those for tasks are of one queue, and may be used in turn."""

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, subscriber):
            queue.environment.new_publisher().send(b"plain")
            await publisher.send(b"task")
            assert await receive_one(subscriber) == b"plain"
            assert received(queue.environment.new_subscriber("a")) == b"task"
            assert await subscriber.front() is None

    run(main)


def test_what_is_sent_from_a_thread_wakes_a_task(queue: Queue) -> None:
    """A task that waits is woken by a message of another thread."""

    async def main() -> Any:
        subscriber = queue.environment.new_async_subscriber("a")
        sending = start(lambda: queue.environment.new_publisher().send(b"x"), 0.05)
        msg = await receive_one(subscriber)
        sending.result()
        return msg

    assert run(main) == b"x"


@pytest.mark.parametrize("call", [
    "receive(timeout=-1)", "receive(timeout='1')", "receive_many(max_messages=0)", "receive_many(timeout=True)",
    "receive_to_top(timeout=-1)", "messages(acknowledge_every=0)", "messages(timeout=-1)",
    "receive_delivery(timeout=-1)", "receive_deliveries(max_messages=0)", "deliveries(timeout='1')"
])
def test_mistakes_are_found_before_anything_is_awaited(call: str, queue: Queue) -> None:
    """A wrong argument raises from the call, not from an await."""
    subscriber = queue.environment.new_async_subscriber("a")
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)):
        eval(f"subscriber.{call}", {"subscriber": subscriber})  # pylint: disable=eval-used  # of this file


@pytest.mark.capability("shared")
def test_a_crew_of_tasks(new_queue: NewQueue) -> None:
    """Tasks that work as one shared subscriber handle each message once together."""
    queue, handled = new_queue(), list[bytes]()
    queue.control.add_subscriber("a", shared=True)
    queue.publisher().send_many(numbered(50))

    async def work() -> None:
        async with queue.environment.new_async_subscriber("a") as worker:
            while (msg := await receive_one(worker, 0)) is not None:
                await worker.extend_lease()
                handled.append(msg)

    async def crew() -> None:
        await asyncio.gather(*(work() for _ in range(5)))

    run(crew)
    assert sorted(handled) == sorted(numbered(50))


@pytest.mark.capability("shared", "dead_letters")
def test_a_worker_that_is_cancelled(new_queue: NewQueue) -> None:
    """A task that is cancelled in its block gives its message back at once, and uncounted."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True, max_deliveries=1, retry_delay_s=60)
    queue.publisher().send(b"x")

    async def handle(begun: asyncio.Event) -> None:
        async with queue.environment.new_async_subscriber("a").receive():
            begun.set()
            await asyncio.sleep(WAIT_S)

    async def main() -> None:
        for _ in range(3):
            begun = asyncio.Event()
            task = asyncio.ensure_future(handle(begun))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)
    assert received(queue.subscriber()) == b"x"


@pytest.mark.capability("shared")
def test_workers_that_are_cancelled_while_they_wait(new_queue: NewQueue) -> None:
    """A message handed to a cancelled wait goes to another worker, uncounted, before the lease."""
    queue, handled = new_queue(), list[Any]()
    queue.control.add_subscriber("a", shared=True, max_deliveries=1, lease_s=3600)

    async def handle(worker: AsyncSubscriber[bytes]) -> None:
        async with worker.receive() as msg:
            handled.append(msg)

    async def main() -> None:
        async with endpoints(queue.environment) as (publisher, worker):
            for turns in range(10):
                await publisher.send(b"%d" % turns)
                await cancelled(handle(worker), turns)
            while len(handled) < 10:
                await handle(worker)

    run(main)
    assert sorted(handled) == numbered(10) and not drained(queue.subscriber())


@pytest.mark.capability("processes")
def test_endpoints_can_be_pickled(queue: Queue) -> None:
    """Endpoints for tasks that went through pickle open their queue anew, and say of what queue they are."""
    publisher = pickle.loads(pickle.dumps(queue.environment.new_async_publisher()))
    subscriber = pickle.loads(pickle.dumps(queue.environment.new_async_subscriber("a")))

    async def main() -> Any:
        async with publisher, subscriber:
            assert str(queue.environment.location) in repr(publisher) and "Async" in repr(subscriber)
            await publisher.send(b"x")
            return await receive_one(subscriber)

    assert run(main) == b"x"


@pytest.mark.capability("message_types")
def test_messages_of_a_type(queue: Queue) -> None:
    """Endpoints for tasks send and receive messages of a type, and refuse others."""

    async def main() -> None:
        publisher = queue.environment.new_async_publisher(message_type=StringValue)
        subscriber = queue.environment.new_async_subscriber("a", message_type=StringValue)
        await publisher.send(StringValue(value="1"))
        with pytest.raises(errors.ArgumentTypeError):
            await publisher.send(b"bytes")  # type: ignore[arg-type]  # on purpose
        async with subscriber.receive(timeout=0) as msg:
            assert msg == StringValue(value="1")
        await queue.environment.new_async_publisher().send(b"\xff")
        for _ in range(2):
            with pytest.raises(errors.DecodeError):
                async with subscriber.receive(timeout=0):
                    pass
        await subscriber.pop()
        assert await subscriber.front() is None

    run(main)
