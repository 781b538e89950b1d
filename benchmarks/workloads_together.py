"""Concurrent use of one queue: threads that send, processes that send, a publisher and a subscriber."""

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
from typing import Any, Callable, Iterator, List, Protocol, Sequence

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.measure import Bounds, Contestant, Tally, Turn
from benchmarks.processes import CONTEXT, Channel, Work, answer, count_until, crew, report_ready, run_together
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES, raw_send

#: It takes a moment until all threads have started.
THREADS_SLICE_S = 0.1
#: Interval in which a subscriber checks whether its time is over.
LOOK_S = 0.05
#: The pipe is as fast after a second as after five.
PIPE_S_MAX = 1.0


def threads(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Threads of one process that send durably, each message by itself."""
    setting = Setting("durable", 100, threads=1)
    contestants = [Contestant(floors.RAW_LMDB, setting, raw_send)]
    contestants += [
        Contestant(OURS, dataclasses.replace(setting, threads=count), threads_sending) for count in scale.threads
    ]
    yield from measure.contest("threads", contestants, scale, directory, slices_of_threads(scale))


def slices_of_threads(scale: Scale) -> int:
    """Return into how many slices to cut a round of threads."""
    return max(1, int(scale.round_s / THREADS_SLICE_S))


@contextlib.contextmanager
def threads_sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Turn]:
    """Send from threads that share a publisher."""
    message = floors.payload(setting)
    with queues.opened(directory, setting) as environment:
        environment.new_control(durability=queues.durability(setting))
        publisher = environment.new_publisher()

        def step() -> int:
            publisher.send(message)
            return 1

        yield functools.partial(run_threads, [step] * (setting.threads or 1))


def run_threads(steps: Sequence[Callable[[], int]], bounds: Bounds) -> Tally:
    """Run each step again and again in a thread of its own."""
    counts = [0] * len(steps)
    start_s = time.monotonic()

    def repeat(number: int) -> None:
        counts[number] = count_until(start_s + bounds.seconds, steps[number])

    workers = [threading.Thread(target=repeat, args=(number, )) for number in range(len(steps))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Tally(sum(counts), time.monotonic() - start_s)


def processes(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Processes that send, each message by itself."""
    for durability in DURABILITIES:
        contestants: List[Contestant] = []
        for count in scale.processes:
            setting = Setting(durability, 100, processes=count)
            contestants += [
                Contestant(floors.RAW_LMDB, setting,
                           measure.at_once(functools.partial(_send_from_processes, work=_send_raw))),
                Contestant(OURS, setting, measure.at_once(functools.partial(_send_from_processes, work=_send_ours)))
            ]
        yield from measure.contest("processes", contestants, scale, directory, 1)


class ProcessWork(Protocol):
    """What each process does."""

    def __call__(self, connection: Channel, *, directory: pathlib.Path, setting: Setting, seconds: float) -> None:
        """Do it, once the start is signalled."""


def _send_from_processes(directory: pathlib.Path, setting: Setting, bounds: Bounds, work: ProcessWork) -> Tally:
    with queues.opened(directory / "queue", setting) as environment:
        environment.new_control(durability=queues.durability(setting))
    one = functools.partial(work, directory=directory, setting=setting, seconds=bounds.seconds)
    with crew([one] * (setting.processes or 1)) as connections:
        run_together(connections)
        counts = [answer(connection, int) for connection in connections]
    return Tally(sum(counts), bounds.seconds)


def _send_ours(connection: Channel, *, directory: pathlib.Path, setting: Setting, seconds: float) -> None:
    with persipubsub.new_environment(directory / "queue") as environment:
        publisher, message = environment.new_publisher(), floors.payload(setting)

        def step() -> int:
            publisher.send(message)
            return 1

        _report_count(connection, step, seconds)


def _send_raw(connection: Channel, *, directory: pathlib.Path, setting: Setting, seconds: float) -> None:
    message, unpack = floors.payload(setting), int.from_bytes
    with floors.open_raw(directory, setting.durability == "durable") as environment:

        def step() -> int:
            with environment.begin(write=True) as txn:
                # Others also send: the next id comes after the last one.
                cursor = txn.cursor()
                cursor.last()
                txn.put(floors.pack_key(unpack(cursor.key(), "big") + 1), message, append=True)
            return 1

        _report_count(connection, step, seconds)


def _report_count(connection: Channel, step: Callable[[], int], seconds: float) -> None:
    step()
    report_ready(connection)
    connection.send(count_until(time.monotonic() + seconds, step))


def end_to_end(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """A process that sends as fast as it can, and one that receives: what arrives."""
    for batch_messages in (1, BATCH_MESSAGES):
        contestants = [Contestant(floors.PIPE, Setting(None, 100, batch_messages), measure.at_once(_through_pipe))]
        contestants += [
            Contestant(OURS, Setting(durability, 100, batch_messages), measure.at_once(_through_queue))
            for durability in DURABILITIES
        ]
        longer = dataclasses.replace(scale.with_few_rounds(), round_s=scale.end_to_end_s)
        yield from measure.contest("end-to-end", contestants, longer, directory, 1)


def _through_queue(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Tally:
    with queues.opened(directory, setting) as environment:
        environment.new_control(durability=queues.durability(setting))

    def publish(connection: Channel) -> None:
        with persipubsub.new_environment(directory) as own:
            publisher = own.new_publisher()
            batch = [floors.payload(setting)] * (setting.batch_messages or 1)

            def step() -> int:
                if len(batch) == 1:
                    publisher.send(batch[0])
                else:
                    publisher.send_many(batch)
                return len(batch)

            report_ready(connection)
            count_until(time.monotonic() + bounds.seconds, step)

    def subscribe(connection: Channel) -> None:
        with persipubsub.new_environment(directory) as own:
            subscriber = own.new_subscriber(queues.names(1)[0])
            step = queues.receiving(subscriber, setting.batch_messages or 1, LOOK_S)
            report_ready(connection)
            connection.send(count_until(time.monotonic() + bounds.seconds, step))

    return Tally(_arrived(publish, subscribe), bounds.seconds)


def _through_pipe(_directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Tally:
    seconds = min(bounds.seconds, PIPE_S_MAX)
    receiving, sending = CONTEXT.Pipe(duplex=False)
    batch = [floors.payload(setting)] * (setting.batch_messages or 1)
    send: Callable[[Any], None] = sending.send if len(batch) > 1 else sending.send_bytes
    receive: Callable[[], object] = receiving.recv if len(batch) > 1 else receiving.recv_bytes

    def publish(connection: Channel) -> None:

        def step() -> int:
            send(batch if len(batch) > 1 else batch[0])
            return len(batch)

        report_ready(connection)
        # A little longer than the other side, which only looks at the clock when something arrives.
        count_until(time.monotonic() + seconds + LOOK_S, step)

    def subscribe(connection: Channel) -> None:

        def step() -> int:
            receive()
            return len(batch)

        report_ready(connection)
        connection.send(count_until(time.monotonic() + seconds, step))

    try:
        return Tally(_arrived(publish, subscribe), seconds)
    finally:
        receiving.close()
        sending.close()


def _arrived(publish: Work, subscribe: Work) -> int:
    with crew([publish, subscribe]) as connections:
        run_together(connections)
        return answer(connections[1], int)
