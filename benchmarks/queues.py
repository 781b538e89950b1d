"""The contestant persipubsub, written as users would write it."""

import contextlib
import pathlib
from typing import Any, Callable, Iterator, List, Optional, Sequence

import persipubsub
from benchmarks.floors import backlog, fill_count, payload
from benchmarks.measure import Bounds, Steps
from benchmarks.results import Setting
from persipubsub.engine.values import Msg
from persipubsub.queue import Durability, HighWaterMark


def durability(setting: Setting) -> Durability:
    """Return the durability of a setting."""
    return Durability.POWER_LOSS if setting.durability == "durable" else Durability.PROCESS_CRASH


def names(count: Optional[int]) -> List[str]:
    """Name subscribers; there is always one."""
    return [f"subscriber-{number}" for number in range(count or 1)]


@contextlib.contextmanager
def opened(directory: pathlib.Path,
           setting: Setting,
           mark: Optional[HighWaterMark] = None) -> Iterator[persipubsub.Environment]:
    """Set a queue up, with its backlog unless a receiver is measured."""
    with persipubsub.new_environment(directory) as environment:
        environment.new_control(names(setting.subscribers), mark, durability=Durability.PROCESS_CRASH)
        yield environment


def fill(publisher: "persipubsub.Publisher", messages: Sequence[bytes], count: int) -> None:
    """Send a backlog, one of the given messages after the other."""
    part = fill_count(max(map(len, messages)))
    for start in range(0, count, part):
        publisher.send_many([messages[number % len(messages)] for number in range(start, min(count, start + part))])


@contextlib.contextmanager
def sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Send one message, or a batch."""
    with opened(directory, setting) as environment:
        publisher = environment.new_publisher()
        fill(publisher, [payload(setting)], setting.backlog_messages or 0)
        environment.new_control(durability=durability(setting))
        yield Steps(sends(publisher, payload(setting), setting.batch_messages or 1))


def sends(publisher: "persipubsub.Publisher[Msg]", message: Msg, count: int) -> Callable[[], int]:
    """Make a step that sends one message, or a batch."""
    batch = [message] * count

    def step_one() -> int:
        publisher.send(message)
        return 1

    def step_many() -> int:
        publisher.send_many(batch)
        return count

    return step_one if count == 1 else step_many


@contextlib.contextmanager
def taking(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    """Receive one message, or a batch. Further subscribers keep their cursors."""
    message, pending = payload(setting), backlog(setting, bounds)
    with opened(directory, setting) as environment:
        publisher = environment.new_publisher()
        environment.new_control(durability=durability(setting))
        fill(publisher, [message], pending)
        subscriber = environment.new_subscriber(names(1)[0])
        yield Steps(receiving(subscriber, setting.batch_messages or 1), lambda: fill(publisher, [message], pending))


def receiving(subscriber: "persipubsub.Subscriber[Any]", count: int, timeout_s: float = 0) -> Callable[[], int]:
    """Make a step that receives one message, or a batch; 0 if there is none."""

    def step_one() -> int:
        with subscriber.receive(timeout=timeout_s) as message:
            return 0 if message is None else 1

    def step_many() -> int:
        with subscriber.receive_many(count, timeout=timeout_s) as messages:
            return len(messages)

    return step_one if count == 1 else step_many
