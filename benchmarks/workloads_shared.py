"""Shared subscribers: their cost beside plain subscribers, and the cost of many messages in flight.

Everything here is relaxed, and measured by the processor time of the one process that does it.
"""

import contextlib
import dataclasses
import pathlib
import time
from typing import Iterator

import persipubsub
from benchmarks import measure, queues
from benchmarks.floors import backlog, payload
from benchmarks.measure import Bounds, Contestant, Steps
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import Scale

PLAIN = "plain subscriber"
WORKERS = "workers"
BATCHES_MESSAGES = (1, 100)
#: The small number of messages in flight to compare with. The same number of leases ends repeatedly.
FEW = 10
HOLD_BATCH_MESSAGES = 1000
#: No lease of this ends while it is measured, and those of the other one do all the time.
LONG_LEASE_S, SHORT_LEASE_S = 1e6, 0.01


def taken(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Receiving as the only worker, beside receiving as a plain subscriber."""
    plain, shared = (measure.stepwise(opening, time.process_time) for opening in (queues.taking, _taking))
    for batch_messages in BATCHES_MESSAGES:
        setting = Setting("relaxed", 100, batch_messages)
        contestants = [Contestant(PLAIN, setting, plain), Contestant(OURS, setting, shared)]
        yield from measure.contest("shared-taken", contestants, scale, directory)


def in_flight(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Sending, and claiming messages whose lease has ended, while few messages of many are in flight, or all."""
    scale, many = scale.with_few_rounds(), scale.million // 10
    for workload, batch_messages, opening in (("in-flight-sent", 1, _sending), ("in-flight-sent", 1000, _sending),
                                              ("in-flight-claimed", 1, _claiming)):
        setting = Setting("relaxed", 100, batch_messages, backlog_messages=many)
        contestants = [
            Contestant(OURS, dataclasses.replace(setting, inflight_messages=count),
                       measure.stepwise(opening, time.process_time)) for count in (FEW, many)
        ]
        yield from measure.contest(workload, contestants, scale, directory)


@contextlib.contextmanager
def _taking(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    """Receive and acknowledge one message, or a batch."""
    message, pending = payload(setting), backlog(setting, bounds)
    with _shared(directory, setting) as environment:
        publisher, worker = environment.new_publisher(), environment.new_subscriber(WORKERS)
        queues.fill(publisher, [message], pending)
        yield Steps(queues.receiving(worker, setting.batch_messages or 1),
                    lambda: queues.fill(publisher, [message], pending))


@contextlib.contextmanager
def _shared(directory: pathlib.Path, setting: Setting) -> Iterator["persipubsub.Environment"]:
    """Set up a queue with a shared subscriber only."""
    with persipubsub.new_environment(directory) as environment:
        environment.new_control([], durability=queues.durability(setting))
        _share(environment, LONG_LEASE_S)
        yield environment


def _share(environment: "persipubsub.Environment", lease_s: float) -> None:
    environment.new_control().add_subscriber(WORKERS, shared=True, lease_s=lease_s, max_deliveries=10**9)


def _hold(worker: "persipubsub.Subscriber[bytes]", count: int) -> None:
    """Receive messages, and neither acknowledge them nor give them back."""
    for start in range(0, count, HOLD_BATCH_MESSAGES):
        receipt = worker.receive_many(min(HOLD_BATCH_MESSAGES, count - start), timeout=0)
        receipt.__enter__()  # pylint: disable=unnecessary-dunder-call  # it is not left


@contextlib.contextmanager
def _held(directory: pathlib.Path, setting: Setting) -> Iterator["persipubsub.Environment"]:
    """Set up a backlog whose last messages are in flight, a few of them with short leases.

    A plain subscriber keeps all of the backlog, so that however many are in flight, it is as large.
    """
    count = setting.inflight_messages or 0
    with queues.opened(directory, setting) as environment:
        publisher = environment.new_publisher()
        queues.fill(publisher, [payload(setting)], (setting.backlog_messages or 0) - count)
        _share(environment, LONG_LEASE_S)
        queues.fill(publisher, [payload(setting)], count)
        worker = environment.new_subscriber(WORKERS)
        _hold(worker, count - FEW)
        _share(environment, SHORT_LEASE_S)
        _hold(worker, FEW)
        yield environment


@contextlib.contextmanager
def _sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Send one message, or a batch, behind what is in flight."""
    with _held(directory, setting) as environment:
        yield Steps(queues.sends(environment.new_publisher(), payload(setting), setting.batch_messages or 1))


@contextlib.contextmanager
def _claiming(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Claim the next message whose lease has ended: the short leases end again and again."""
    with _held(directory, setting) as environment:
        worker = environment.new_subscriber(WORKERS)

        def step() -> int:
            receipt = worker.receive(timeout=0)
            # pylint: disable-next=unnecessary-dunder-call  # it is not left
            return 0 if receipt.__enter__() is None else 1

        yield Steps(step, lambda: time.sleep(SHORT_LEASE_S))
