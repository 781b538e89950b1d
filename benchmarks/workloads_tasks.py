"""Tasks of asyncio, beside plain calls by one thread: sending, receiving, and waiting."""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
import statistics
import time
from typing import Awaitable, Callable, Iterator, List

import persipubsub
from benchmarks import measure, queues
from benchmarks.floors import backlog, payload
from benchmarks.measure import Bounds, Contestant, Tally, Turn
from benchmarks.results import OURS, Idle, Rate, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES, our_send, our_take
from benchmarks.workloads_together import slices_of_threads
from persipubsub.aio import AsyncSubscriber

PLAIN = "plain calls"


def sending(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Tasks of one loop that send, each message by itself."""
    for durability in DURABILITIES:
        setting = Setting(durability, 100, 1)
        contestants = [Contestant(PLAIN, setting, our_send)]
        contestants += [
            Contestant(OURS, dataclasses.replace(setting, tasks=count), _tasks_sending) for count in scale.tasks
        ]
        yield from measure.contest("tasks-sent", contestants, scale, directory, slices_of_threads(scale))


def taking(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """One task that receives, messages by themselves and in batches."""
    for durability in DURABILITIES:
        for batch_messages in (1, BATCH_MESSAGES):
            setting = Setting(durability, 100, batch_messages)
            contestants = [
                Contestant(PLAIN, setting, our_take),
                Contestant(OURS, dataclasses.replace(setting, tasks=1), _task_taking)
            ]
            yield from measure.contest("tasks-taken", contestants, scale, directory, slices_of_threads(scale))


@contextlib.contextmanager
def _tasks_sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Turn]:
    message = payload(setting)
    with queues.opened(directory, setting) as environment, _loop() as loop:
        environment.new_control(durability=queues.durability(setting))
        publisher = environment.new_async_publisher()

        async def step() -> int:
            await publisher.send(message)
            return 1

        yield lambda bounds: loop.run_until_complete(_run_tasks([step] * (setting.tasks or 1), bounds))


@contextlib.contextmanager
def _task_taking(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Turn]:
    message, pending = payload(setting), backlog(setting, bounds)
    with queues.opened(directory, setting) as environment, _loop() as loop:
        environment.new_control(durability=queues.durability(setting))
        publisher = environment.new_publisher()
        subscriber = environment.new_async_subscriber(queues.names(1)[0])
        step = functools.partial(_receive, subscriber, setting.batch_messages or 1)

        def turn(within: Bounds) -> Tally:
            queues.fill(publisher, [message], pending)
            return loop.run_until_complete(_run_tasks([step], within))

        yield turn


async def _receive(subscriber: AsyncSubscriber[bytes], count: int) -> int:
    """Receive a message, or a batch; return how many there were."""
    if count == 1:
        async with subscriber.receive(timeout=0) as message:
            return 0 if message is None else 1
    async with subscriber.receive_many(count, timeout=0) as messages:
        return len(messages)


async def _run_tasks(steps: List[Callable[[], Awaitable[int]]], bounds: Bounds) -> Tally:
    """Run each step again and again in a task of its own, until the time is over or there is nothing more."""
    start_s = time.perf_counter()

    async def repeat(step: Callable[[], Awaitable[int]]) -> int:
        total, done = 0, 1
        while done and time.perf_counter() < start_s + bounds.seconds:
            done = await step()
            total += done
        return total

    counts = await asyncio.gather(*map(repeat, steps))
    return Tally(sum(counts), time.perf_counter() - start_s)


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


def waiting(scale: Scale, directory: pathlib.Path) -> Iterator[Idle]:
    """Measure the processor time of tasks that wait for a message that does not come."""
    for count in scale.tasks:
        found_ms = []
        for _ in range(scale.few_rounds):
            with measure.fresh_directory(directory) as fresh:
                setting = Setting(subscribers=count)
                with queues.opened(fresh, setting) as environment, _loop() as loop:
                    found_ms.append(loop.run_until_complete(_wait(environment, count, scale.waiting_s)))
        yield Idle("tasks-waiting", OURS, Setting(tasks=count), measure.significant(statistics.median(found_ms)))


async def _wait(environment: persipubsub.Environment, count: int, waiting_s: float) -> float:
    """Let tasks wait, each as a subscriber of its own; return the milliseconds of processor time per second."""

    async def receive(name: str) -> None:
        async with environment.new_async_subscriber(name).receive(timeout=None):
            pass

    tasks = [asyncio.ensure_future(receive(name)) for name in queues.names(count)]
    await asyncio.sleep(waiting_s)  # until all of them wait
    start_s = time.process_time()
    await asyncio.sleep(waiting_s)
    spent_s = time.process_time() - start_s
    await environment.new_async_publisher().send(b"the end")
    await asyncio.gather(*tasks)
    return spent_s * 1000 / waiting_s
