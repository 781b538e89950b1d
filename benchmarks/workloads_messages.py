"""Sending and receiving by one thread: by size of message, size of batch, number of subscribers, and backlog."""

import dataclasses
import pathlib
from typing import Iterator, List

from benchmarks import floors, measure, queues
from benchmarks.measure import Contestant
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import ROUND_BYTES_MAX, Scale

DURABILITIES = ("durable", "relaxed")
BATCH_MESSAGES = 1000
#: A batch of larger messages has fewer of them.
BATCH_BYTES_MAX = 16 * 1024**2

raw_send = measure.stepwise(floors.raw_sending)
named_send = measure.stepwise(floors.named_sending)
raw_take = measure.stepwise(floors.raw_taking)
disk_send = measure.stepwise(floors.disk_sending)
our_send = measure.stepwise(queues.sending)
our_take = measure.stepwise(queues.taking)


def batch_of(payload_bytes: int) -> int:
    """Return how many messages of a size make a batch."""
    return min(BATCH_MESSAGES, BATCH_BYTES_MAX // payload_bytes)


def send(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Single sends of messages of each size."""
    for setting in _by_size(scale, batch=False):
        yield from _sending("send", setting, scale, directory)


def send_limit(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Single sends beside the least that a queue has to do on LMDB: between it and the floor nothing can be gained."""
    for durability in DURABILITIES:
        setting = Setting(durability, 100, 1)
        contestants = [
            Contestant(floors.RAW_LMDB, setting, raw_send),
            Contestant(floors.NAMED_LMDB, setting, named_send),
            Contestant(OURS, setting, our_send)
        ]
        yield from measure.contest("send-limit", contestants, scale, directory)


def send_batch(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Batches of messages of each size."""
    for setting in _by_size(scale, batch=True):
        yield from _sending("send-batch", setting, scale, directory)


def _by_size(scale: Scale, batch: bool) -> Iterator[Setting]:
    for durability in DURABILITIES:
        for payload_bytes in scale.payloads_bytes:
            yield Setting(durability, payload_bytes, batch_of(payload_bytes) if batch else 1)


def _sending(workload: str, setting: Setting, scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    contestants = [Contestant(floors.RAW_LMDB, setting, raw_send), Contestant(OURS, setting, our_send)]
    if setting.durability == "durable":
        contestants.append(Contestant(floors.DISK, setting, disk_send))
    yield from measure.contest(workload, contestants, _bounded(scale, setting), directory)


def take(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Single receives of messages of each size."""
    for setting in _by_size(scale, batch=False):
        yield from _taking("take", setting, scale, directory)


def take_batch(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Batches received of messages of each size."""
    for setting in _by_size(scale, batch=True):
        yield from _taking("take-batch", setting, scale, directory)


def _taking(workload: str, setting: Setting, scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    contestants = [Contestant(floors.RAW_LMDB, setting, raw_take), Contestant(OURS, setting, our_take)]
    yield from measure.contest(workload, contestants, _bounded(scale, setting), directory)


def _bounded(scale: Scale, setting: Setting) -> Scale:
    """Bound the bytes of a round as well."""
    most = ROUND_BYTES_MAX // (setting.payload_bytes or 1)
    return dataclasses.replace(scale, round_messages_max=min(scale.round_messages_max, most))


def batch_sizes(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Batches of each size, sent and received."""
    scale = scale.with_few_rounds()
    for durability in DURABILITIES:
        for batch_messages in scale.batches_messages:
            setting = Setting(durability, 100, batch_messages)
            yield from _sending("batch-sizes-sent", setting, scale, directory)
            yield from _taking("batch-sizes-taken", setting, scale, directory)


def subscribers(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Sending to each number of subscribers, and receiving as one of them while the others keep their cursors."""
    scale = scale.with_few_rounds()
    for durability in DURABILITIES:
        for batch_messages in (1, BATCH_MESSAGES):
            setting = Setting(durability, 100, batch_messages)
            settings = [dataclasses.replace(setting, subscribers=count) for count in scale.subscribers]
            sending = [Contestant(floors.RAW_LMDB, setting, raw_send)]
            sending += [Contestant(OURS, one, our_send) for one in settings]
            yield from measure.contest("subscribers-sent", sending, scale, directory)
            taking = [Contestant(floors.RAW_LMDB, setting, raw_take)]
            taking += [Contestant(OURS, one, our_take) for one in settings]
            yield from measure.contest("subscribers-taken", taking, scale, directory)


def backlog(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Sending behind each backlog, and receiving from it. The floor has backlogs, too."""
    scale = scale.with_few_rounds()
    for durability in DURABILITIES:
        for batch_messages in (1, BATCH_MESSAGES):
            settings = [
                Setting(durability, 100, batch_messages, backlog_messages=count) for count in scale.backlogs_messages
            ]
            sending: List[Contestant] = []
            for setting in settings:
                sending += [Contestant(floors.RAW_LMDB, setting, raw_send), Contestant(OURS, setting, our_send)]
            # At most a tenth of the largest backlog is added, so that each one stays what it is called.
            short = dataclasses.replace(scale, round_messages_max=scale.million // 10)
            yield from measure.contest("backlog-sent", sending, short, directory)
            for setting in settings[1:]:
                yield from _taking("backlog-taken", setting, scale, directory)
