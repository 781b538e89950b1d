"""Mistakes of habit: each says what to do instead, and receives nothing."""

import asyncio
import gc
import inspect
import warnings
from typing import Any, List

import pytest

from persipubsub import errors
from tests.conformance.queues import NewQueue, Queue, received

WAYS = ["receive", "receive_many", "receive_to_top", "receive_delivery", "receive_deliveries"]


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue with a message."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    return queue


def endpoints(queue: Queue) -> List[Any]:
    """Make a subscriber for threads, and one for tasks."""
    return [queue.environment.new_subscriber("a"), queue.environment.new_async_subscriber("a")]


@pytest.mark.capability("asyncio")
@pytest.mark.parametrize("way", WAYS)
def test_a_receive_without_with(way: str, queue: Queue) -> None:
    """A receive whose block was forgotten is a ResourceWarning that shows the right form; nothing is received."""
    for subscriber, remedy in zip(endpoints(queue),
                                  ("with subscriber.receive() as", "async with subscriber.receive()")):
        with pytest.warns(ResourceWarning, match="never entered") as caught:
            getattr(subscriber, way)(timeout=0)
            gc.collect()
        assert remedy in str(caught[0].message)
    assert received(queue.environment.new_subscriber("a")) == b"x"


@pytest.mark.capability("asyncio")
@pytest.mark.parametrize("way", WAYS)
def test_a_block_is_no_mistake(way: str, queue: Queue) -> None:
    """A receive whose block is entered warns of nothing, also if the block raises or finds nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            plain, tasks = endpoints(queue)
            with getattr(plain, way)(timeout=0):
                pass

            async def receive(subscriber: Any) -> None:
                async with getattr(subscriber, way)(timeout=0):
                    pass

            asyncio.run(receive(tasks))
        gc.collect()


@pytest.mark.capability("asyncio")
@pytest.mark.parametrize("use", [
    lambda receipt: receipt.decode(), lambda receipt: receipt.headers, lambda receipt: receipt.message,
    lambda receipt: receipt.id
])
def test_a_receipt_taken_for_its_message(use: Any, queue: Queue) -> None:
    """An attribute of a receipt that only its message has raises AttributeError with the right form."""
    for subscriber in endpoints(queue):
        receipt = subscriber.receive(timeout=0)
        with pytest.raises(AttributeError, match=r"with subscriber.receive\(\) as message"):
            use(receipt)
        with pytest.warns(ResourceWarning):
            del receipt
            gc.collect()


def test_iterating_over_a_subscriber(queue: Queue) -> None:
    """A loop over a subscriber raises ArgumentTypeError that names the methods to loop over."""
    subscriber: Any = queue.environment.new_subscriber("a")
    with pytest.raises(errors.ArgumentTypeError, match=r"messages\(\)"):
        for _ in subscriber:
            pass
    assert received(subscriber) == b"x"


@pytest.mark.capability("asyncio")
def test_iterating_over_a_subscriber_of_tasks(queue: Queue) -> None:
    """A loop over a subscriber for tasks, with or without ``async``, raises ArgumentTypeError."""
    subscriber: Any = queue.environment.new_async_subscriber("a")

    async def main() -> None:
        with pytest.raises(errors.ArgumentTypeError, match=r"messages\(\)"):
            async for _ in subscriber:
                pass
        with pytest.raises(errors.ArgumentTypeError, match=r"messages\(\)"):
            for _ in subscriber:
                pass

    asyncio.run(main())
    assert received(queue.environment.new_subscriber("a")) == b"x"


@pytest.mark.capability("asyncio")
@pytest.mark.parametrize("way", WAYS)
def test_with_in_place_of_async_with(way: str, queue: Queue) -> None:
    """``with`` and ``await`` before what a task receives raise ArgumentTypeError that names ``async with``."""
    subscriber: Any = queue.environment.new_async_subscriber("a")

    async def main() -> None:
        with pytest.warns(ResourceWarning):
            with pytest.raises(errors.ArgumentTypeError, match="async with"):
                with getattr(subscriber, way)(timeout=0):
                    pass
            with pytest.raises(errors.ArgumentTypeError, match="async with"):
                await getattr(subscriber, way)(timeout=0)
            gc.collect()

    asyncio.run(main())
    assert received(queue.environment.new_subscriber("a")) == b"x"


@pytest.mark.capability("asyncio")
def test_async_with_in_place_of_with(queue: Queue) -> None:
    """``async with`` before what a thread receives is an error of Python; nothing is received."""
    subscriber: Any = queue.environment.new_subscriber("a")

    async def main() -> None:
        with pytest.warns(ResourceWarning):
            with pytest.raises((AttributeError, TypeError)):
                async with subscriber.receive(timeout=0):
                    pass
            gc.collect()

    asyncio.run(main())
    assert received(subscriber) == b"x"


@pytest.mark.capability("asyncio")
def test_a_send_that_is_not_awaited(queue: Queue) -> None:
    """What a task sends without ``await`` is Python's warning, and is not sent."""
    coroutine = queue.environment.new_async_publisher().send(b"y")
    assert inspect.iscoroutine(coroutine)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del coroutine
        gc.collect()
    assert received(queue.environment.new_subscriber("a")) == b"x"
    assert received(queue.environment.new_subscriber("a")) is None
