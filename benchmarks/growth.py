"""The disk space of a queue: for its contents, and while as much is received as is sent."""

import itertools
import os
import pathlib
import random
from typing import Iterator, Sequence, Tuple

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.results import OURS, Churn, FileSize, Setting
from benchmarks.scale import Scale

CHECKPOINTS = 20
MIB = 1024**2


def file_sizes(scale: Scale, directory: pathlib.Path) -> Iterator[FileSize]:
    """The disk space that a queue of one subscriber needs for its messages."""
    for payload_bytes in scale.payloads_bytes:
        setting = Setting("relaxed", payload_bytes)
        message = floors.payload(setting)
        count = min(scale.million, scale.churn_bytes // 4 // payload_bytes)
        with measure.fresh_directory(directory) as fresh:
            with floors.open_raw(fresh, durable=False) as environment:
                floors.fill_raw(environment, itertools.count(1), message, count)
            yield _file_size(floors.RAW_LMDB, setting, fresh, count)
        with measure.fresh_directory(directory) as fresh:
            with queues.opened(fresh, setting) as our_environment:
                queues.fill(our_environment.new_publisher(), [message], count)
            yield _file_size(OURS, setting, fresh, count)


def _file_size(name: str, setting: Setting, directory: pathlib.Path, count: int) -> FileSize:
    stored_bytes, file_bytes = count * (setting.payload_bytes or 0), data_file_bytes(directory)
    return FileSize("file-size", name, setting, stored_bytes, file_bytes,
                    measure.significant(file_bytes / stored_bytes))


def data_file_bytes(directory: pathlib.Path) -> int:
    """Return the size of LMDB's data file."""
    return (directory / "data.mdb").stat().st_size


def churns(scale: Scale, directory: pathlib.Path) -> Iterator[Churn]:
    """Send and receive a million messages through a queue whose backlog stays the same."""
    # The sizes of the mixed ones are spread evenly over the orders of magnitude from 100 B to 1 MiB.
    spread = random.Random(4)
    mixed = [os.urandom(int(100 * (MIB / 100)**spread.random())) for _ in range(997)]
    for messages, setting in (
        ([os.urandom(100)], Setting("relaxed", batch_messages=100, backlog_messages=10_000, detail="100 B")),
        ([os.urandom(MIB)], Setting("relaxed", batch_messages=5, backlog_messages=50, detail="1 MiB")),
        (mixed, Setting("relaxed", batch_messages=10, backlog_messages=500, detail="100 B to 1 MiB")),
    ):
        mean_bytes = sum(map(len, messages)) / len(messages)
        count = min(scale.million, int(scale.churn_bytes / mean_bytes))
        batches = max(1, count // CHECKPOINTS // (setting.batch_messages or 1))
        with measure.fresh_directory(directory) as fresh, queues.opened(fresh, setting) as environment:
            points = list(_churn(environment, fresh, setting, messages, batches))
        yield Churn("churn",
                    OURS,
                    setting,
                    sent_messages=tuple(point[0] for point in points),
                    sent_bytes=tuple(point[1] for point in points),
                    file_mb=tuple(point[2] for point in points),
                    second_half_growth=measure.significant(points[-1][2] / points[CHECKPOINTS // 2][2]))


def _churn(environment: "persipubsub.Environment", directory: pathlib.Path, setting: Setting, messages: Sequence[bytes],
           batches: int) -> Iterator[Tuple[int, int, float]]:
    """Send and receive batches between two looks; return the messages and bytes sent, and the MB of the file."""
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber(queues.names(1)[0])
    part, endless = setting.batch_messages or 1, itertools.cycle(messages)
    publisher.send_many(list(itertools.islice(endless, setting.backlog_messages)))
    sent_messages = sent_bytes = 0
    for checkpoint in range(CHECKPOINTS + 1):
        for _ in range(batches if checkpoint else 0):
            batch = list(itertools.islice(endless, part))
            publisher.send_many(batch)
            with subscriber.receive_many(part, timeout=0):
                pass
            sent_messages += part
            sent_bytes += sum(map(len, batch))
        yield sent_messages, sent_bytes, measure.significant(data_file_bytes(directory) / 1e6)
