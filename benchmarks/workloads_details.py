"""What headers and deliveries cost beside plain messages, in processor time of the one process that does it."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Callable, Iterator

import persipubsub
from benchmarks import measure, queues
from benchmarks.floors import backlog, payload
from benchmarks.measure import Bounds, Contestant, Steps
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES

PLAIN = "plain messages"
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
WITH_HEADERS, DELIVERIES = "with headers", "as deliveries"


def details(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Sending with headers beside sending without, and receiving deliveries beside receiving messages."""
    for batch_messages in (1, BATCH_MESSAGES):
        setting = Setting("relaxed", 100, batch_messages)
        yield from measure.contest("details-sent", [
            Contestant(PLAIN, setting, measure.stepwise(queues.sending, time.process_time)),
            Contestant(OURS, dataclasses.replace(setting, detail=WITH_HEADERS),
                       measure.stepwise(_sending, time.process_time)),
        ], scale, directory)
        taking = [Contestant(PLAIN, setting, measure.stepwise(queues.taking, time.process_time))]
        taking += [
            Contestant(OURS, dataclasses.replace(setting, detail=detail), measure.stepwise(_taking, time.process_time))
            for detail in (DELIVERIES, f"{DELIVERIES} {WITH_HEADERS}")
        ]
        yield from measure.contest("details-taken", taking, scale, directory)


def _envelope(setting: Setting) -> "persipubsub.Envelope[bytes]":
    """Return the message of a setting, with headers if it has some."""
    return persipubsub.Envelope(payload(setting), HEADERS if WITH_HEADERS in (setting.detail or "") else None)


@contextlib.contextmanager
def _sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Send one message with headers, or a batch."""
    with queues.opened(directory, setting) as environment:
        publisher, envelope, count = environment.new_publisher(), _envelope(setting), setting.batch_messages or 1
        batch = [envelope] * count

        def step_one() -> int:
            publisher.send(envelope)
            return 1

        def step_many() -> int:
            publisher.send_many(batch)
            return count

        yield Steps(step_one if count == 1 else step_many)


@contextlib.contextmanager
def _taking(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    """Receive one delivery, or a batch."""
    envelope, pending = _envelope(setting), backlog(setting, bounds)
    with queues.opened(directory, setting) as environment:
        refill = functools.partial(_fill, environment.new_publisher(), envelope, pending)
        refill()
        yield Steps(_receiving(environment.new_subscriber(queues.names(1)[0]), setting.batch_messages or 1), refill)


def _fill(publisher: "persipubsub.Publisher", envelope: "persipubsub.Envelope[bytes]", count: int) -> None:
    for start in range(0, count, BATCH_MESSAGES):
        publisher.send_many([envelope] * min(BATCH_MESSAGES, count - start))


def _receiving(subscriber: "persipubsub.Subscriber[bytes]", count: int) -> Callable[[], int]:

    def step_one() -> int:
        with subscriber.receive_delivery(timeout=0) as delivery:
            return 0 if delivery is None else 1

    def step_many() -> int:
        with subscriber.receive_deliveries(count, timeout=0) as deliveries:
            return len(deliveries)

    return step_one if count == 1 else step_many
