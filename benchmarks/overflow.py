"""The time of single calls that delete many messages: at the high-water mark, and after many messages expired."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Callable, Iterator, List, NamedTuple

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.results import OURS, Duration, Latency, Setting
from benchmarks.scale import Scale
from persipubsub.queue import HighWaterMark

#: Of a mark that single sends would take minutes to reach, batches fill all but this; then single sends go over it.
SENDS_AROUND_THE_MARK = 20_000
SMALL_MARK_MESSAGES = 65_536
EXPIRY_S = 1


def overflow(scale: Scale, directory: pathlib.Path) -> Iterator[Latency]:
    """The times of single relaxed sends while the mark is reached again and again; the floor never removes anything."""
    for mark_messages in scale.marks_messages:
        setting = Setting("relaxed", 100, mark_messages=mark_messages)
        floor_samples: List[float] = []
        samples: List[float] = []
        for _ in range(scale.few_rounds):
            sends = scale.sends_at_the_mark // scale.few_rounds
            with measure.fresh_directory(directory) as fresh:
                floor_samples += _floor_times(fresh, setting, sends)
            with measure.fresh_directory(directory) as fresh:
                samples += _times_at_the_mark(fresh, setting, sends)
        yield measure.latency("overflow", floors.RAW_LMDB, setting, floor_samples)
        yield measure.latency("overflow", OURS, setting, samples)


def _floor_times(directory: pathlib.Path, setting: Setting, sends: int) -> List[float]:
    message, ids = floors.payload(setting), itertools.count(1)
    with floors.open_raw(directory, durable=False) as environment:

        def put() -> None:
            with environment.begin(write=True) as txn:
                txn.put(floors.pack_key(next(ids)), message, append=True)

        return _times(put, sends)


def _times_at_the_mark(directory: pathlib.Path, setting: Setting, sends: int) -> List[float]:
    mark_messages, message = setting.mark_messages or 1, floors.payload(setting)
    with queues.opened(directory, setting, HighWaterMark(max_messages=mark_messages)) as environment:
        publisher = environment.new_publisher()
        send = functools.partial(publisher.send, message)
        # After the first time half of the mark is left, so it is reached after each half again.
        queues.fill(publisher, [message], mark_messages - min(SENDS_AROUND_THE_MARK // 2, mark_messages))
        return _times(send, sends if mark_messages <= SMALL_MARK_MESSAGES else SENDS_AROUND_THE_MARK)


def _times(call: Callable[[], object], count: int) -> List[float]:
    clock, times = time.perf_counter, []
    for _ in range(count):
        start_s = clock()
        call()
        times.append(clock() - start_s)
    return times


def expired(scale: Scale, directory: pathlib.Path) -> Iterator[Duration]:
    """The first look and the second one at a queue of which all but the last message have expired."""
    few, many = Setting("relaxed", 100, backlog_messages=1), Setting("relaxed", 100, backlog_messages=scale.million)
    settings = [(few, "first look"), (many, "first look"), (many, "second look")]
    times_s: List[List[float]] = [[] for _ in settings]
    for _ in range(scale.few_rounds):
        with contextlib.ExitStack() as stack:
            backlogs = [stack.enter_context(_backlog(directory, setting)) for setting in (few, many)]
            time.sleep(EXPIRY_S + 0.1)
            for backlog, own_s in zip(backlogs, times_s):
                backlog.let_expire()
                own_s.append(backlog.look())
            times_s[2].append(backlogs[1].look())
    for own_s, (setting, detail) in zip(times_s, settings):
        yield measure.duration("expired", OURS, dataclasses.replace(setting, detail=detail), own_s)


class _Backlog(NamedTuple):
    let_expire: Callable[[], None]  # the messages that are there, not the one that it sends
    look: Callable[[], float]  # returns the seconds that it took


@contextlib.contextmanager
def _backlog(directory: pathlib.Path, setting: Setting) -> Iterator[_Backlog]:
    """Send all messages but one."""
    messages, message = setting.backlog_messages or 0, floors.payload(setting)
    with measure.fresh_directory(directory) as fresh, queues.opened(fresh, setting) as environment:
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber(queues.names(1)[0])
        queues.fill(publisher, [message], messages - 1)

        def let_expire() -> None:
            publisher.send(message)
            environment.new_control(high_watermark=HighWaterMark(EXPIRY_S, 2 * messages))

        yield _Backlog(let_expire, lambda: _time_of_front(subscriber))


def _time_of_front(subscriber: "persipubsub.Subscriber") -> float:
    start_s = time.perf_counter()
    message = subscriber.front()
    taken_s = time.perf_counter() - start_s
    if message is None:
        raise RuntimeError("The last message expired as well: the machine was busy for a second.")
    return taken_s
