"""How soon a waiting process receives a message, and what waiting costs."""

import dataclasses
import functools
import itertools
import pathlib
import statistics
import struct
import time
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.processes import CONTEXT, Channel, Work, answer, crew, report_ready, run_together
from benchmarks.results import OURS, Idle, Latency, Setting
from benchmarks.scale import Scale

#: How long every process sleeps before each message.
PAUSE_S = 0.002
#: No message takes longer, unless it is lost.
ARRIVAL_S_MAX = 30

# A message says when it was sent; the monotonic clock is the same for all processes.
STAMP = struct.Struct("d")

#: Sends a stamp to all waiting processes, in a fresh queue, and returns the samples in seconds.
Exchange = Callable[[pathlib.Path, Setting, int], List[float]]


def wake_ups(scale: Scale, directory: pathlib.Path) -> Iterator[Latency]:
    """The time from before the send until a waiting process has the message, for each number of waiting processes."""
    for waiting in scale.waiting_processes:
        setting = Setting(None, STAMP.size, waiting_processes=waiting)
        contestants: Sequence[Tuple[str, Setting, Exchange]] = (
            (floors.PIPE, setting, through_pipes),
            (OURS, dataclasses.replace(setting, durability="relaxed"), through_queue),
            (OURS, dataclasses.replace(setting, durability="durable"), through_queue),
        )
        yield from interleaved("wake-up", contestants, scale, directory)


def interleaved(workload: str, contestants: Sequence[Tuple[str, Setting, Exchange]], scale: Scale,
                directory: pathlib.Path) -> Iterator[Latency]:
    """Measure in turn, and sum up the samples of all rounds."""

    def run(setting: Setting, exchange: Exchange) -> List[float]:
        # Many waiting processes yield many samples at once, and take longer.
        count = max(3, scale.wake_ups // (1 if setting.waiting_processes == 1 else 10))
        with measure.fresh_directory(directory) as fresh:
            return exchange(fresh, setting, count)

    turns = [functools.partial(run, setting, exchange) for _, setting, exchange in contestants]
    for number, rounds in measure.in_turn(turns, scale.rounds).items():
        name, setting, _ = contestants[number]
        yield measure.latency(workload, name, setting, list(itertools.chain(*rounds)))


def through_queue(directory: pathlib.Path, setting: Setting, count: int) -> List[float]:
    """Send through a queue on which each process waits as a subscriber of its own."""
    waiting = setting.waiting_processes or 1
    arrived = CONTEXT.RawArray("q", waiting)
    with queues.opened(directory, dataclasses.replace(setting, subscribers=waiting)) as environment:
        environment.new_control(durability=queues.durability(setting))

    def wait_as(number: int) -> Work:

        def work(connection: Channel) -> None:
            with persipubsub.new_environment(directory) as own:
                subscriber = own.new_subscriber(queues.names(waiting)[number])

                def receive() -> Tuple[float, bytes]:
                    with subscriber.receive(timeout=ARRIVAL_S_MAX) as message:
                        return time.monotonic(), message or b""

                _receive_stamps(connection, receive, arrived, number, count)

        return work

    with crew([wait_as(number) for number in range(waiting)]) as connections:
        run_together(connections)
        with persipubsub.new_environment(directory) as environment:
            send = environment.new_publisher().send
            _send_stamps(send, arrived, count)
            return _collected(connections)


def through_pipes(_directory: pathlib.Path, setting: Setting, count: int) -> List[float]:
    """Send through one pipe for each waiting process. Nothing is stored."""
    waiting = setting.waiting_processes or 1
    arrived = CONTEXT.RawArray("q", waiting)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(waiting)]

    def wait_as(number: int) -> Work:

        def work(connection: Channel) -> None:

            def receive() -> Tuple[float, bytes]:
                message = pipes[number][0].recv_bytes()
                return time.monotonic(), message

            _receive_stamps(connection, receive, arrived, number, count)

        return work

    def send(stamp: bytes) -> None:
        for _, sending in pipes:
            sending.send_bytes(stamp)

    with crew([wait_as(number) for number in range(waiting)]) as connections:
        run_together(connections)
        _send_stamps(send, arrived, count)
        samples = _collected(connections)
    for ends in pipes:
        ends[0].close()
        ends[1].close()
    return samples


def _collected(connections: Sequence[Channel]) -> List[float]:
    samples: List[float] = []
    for connection in connections:
        samples += answer(connection, list)
    return samples


def _receive_stamps(connection: Channel, receive: Callable[[], Tuple[float, bytes]], arrived: Any, number: int,
                    count: int) -> None:
    """Receive all stamps, count them where the sender sees it, and report the latencies."""
    samples = []
    report_ready(connection)
    for index in range(count):
        received_s, stamp = receive()
        samples.append(received_s - STAMP.unpack(stamp)[0])
        arrived[number] = index + 1
    connection.send(samples)


def _send_stamps(send: Callable[[bytes], object], arrived: Any, count: int) -> None:
    """Send stamps, each after all processes have received the one before and sleep again."""
    for index in range(count):
        give_up_s = time.monotonic() + ARRIVAL_S_MAX
        while min(arrived) < index:
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"A stamp did not arrive in {ARRIVAL_S_MAX} s.")
            time.sleep(PAUSE_S / 4)
        time.sleep(PAUSE_S)
        send(STAMP.pack(time.monotonic()))


def idle(scale: Scale, directory: pathlib.Path) -> Iterator[Idle]:
    """The processor time of a process that waits for a message that does not come."""

    def wait_on_pipe() -> float:
        return _cpu_ms_per_s(functools.partial(_wait_on_pipe, waiting_s=scale.waiting_s), scale.waiting_s)

    def wait_on_queue() -> float:
        with measure.fresh_directory(directory) as fresh:
            with queues.opened(fresh, Setting()):
                pass
            work = functools.partial(_wait_on_queue, directory=fresh, waiting_s=scale.waiting_s)
            return _cpu_ms_per_s(work, scale.waiting_s)

    for number, found_ms in measure.in_turn([wait_on_pipe, wait_on_queue], scale.rounds).items():
        name = (floors.PIPE, OURS)[number]
        yield Idle("idle", name, Setting(), measure.significant(statistics.median(found_ms)))


def _cpu_ms_per_s(work: Work, waiting_s: float) -> float:
    with crew([work]) as connections:
        run_together(connections)
        return answer(connections[0], float) * 1000 / waiting_s


def _wait_on_pipe(connection: Channel, waiting_s: float) -> None:
    receiving, sending = CONTEXT.Pipe(duplex=False)
    report_ready(connection)
    start_s = time.process_time()
    receiving.poll(waiting_s)
    connection.send(time.process_time() - start_s)
    sending.close()


def _wait_on_queue(connection: Channel, directory: pathlib.Path, waiting_s: float) -> None:
    with persipubsub.new_environment(directory) as environment:
        subscriber = environment.new_subscriber(queues.names(1)[0])
        report_ready(connection)
        start_s = time.process_time()
        with subscriber.receive(timeout=waiting_s):
            connection.send(time.process_time() - start_s)
