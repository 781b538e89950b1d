"""Protobuf messages through typed endpoints, beside bytes and protobuf called by hand."""

import contextlib
import functools
import pathlib
from typing import Callable, Iterator

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

import persipubsub
from benchmarks import floors, measure, queues
from benchmarks.measure import Bounds, Contestant, Steps
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES

BY_HAND = "bytes, encoded by hand"
NAME = queues.names(1)[0]

Step = Callable[[], int]


def _message(setting: Setting) -> FieldDescriptorProto:
    """Make a message of a size, of a type that comes with protobuf: text, numbers and enums in six fields."""
    message = FieldDescriptorProto(name="x",
                                   number=5,
                                   label=FieldDescriptorProto.LABEL_OPTIONAL,
                                   type=FieldDescriptorProto.TYPE_MESSAGE,
                                   type_name=".shop.Item",
                                   json_name="item")
    message.name = "x" * ((setting.payload_bytes or 0) - message.ByteSize() + 1)
    return message


def _sender_by_hand(environment: "persipubsub.Environment", message: FieldDescriptorProto, count: int) -> Step:
    publisher, batch = environment.new_publisher(), [message] * count

    def step_one() -> int:
        publisher.send(message.SerializeToString())
        return 1

    def step_many() -> int:
        publisher.send_many([each.SerializeToString() for each in batch])
        return count

    return step_one if count == 1 else step_many


def _taker_by_hand(environment: "persipubsub.Environment", count: int) -> Step:
    subscriber, decode = environment.new_subscriber(NAME), FieldDescriptorProto.FromString

    def step_one() -> int:
        with subscriber.receive(timeout=0) as payload:
            return 0 if payload is None or decode(payload) is None else 1

    def step_many() -> int:
        with subscriber.receive_many(count, timeout=0) as payloads:
            return len([decode(payload) for payload in payloads])

    return step_one if count == 1 else step_many


@contextlib.contextmanager
def _sending(by_hand: bool, directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    with queues.opened(directory, setting) as environment:
        environment.new_control(durability=queues.durability(setting))
        message, count = _message(setting), setting.batch_messages or 1
        if by_hand:
            yield Steps(_sender_by_hand(environment, message, count))
        else:
            yield Steps(queues.sends(environment.new_publisher(message_type=FieldDescriptorProto), message, count))


@contextlib.contextmanager
def _taking(by_hand: bool, directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    payload, count = _message(setting).SerializeToString(), setting.batch_messages or 1
    with queues.opened(directory, setting) as environment:
        publisher = environment.new_publisher()
        environment.new_control(durability=queues.durability(setting))
        refill = functools.partial(queues.fill, publisher, [payload], floors.backlog(setting, bounds))
        refill()
        typed = environment.new_subscriber(NAME, message_type=FieldDescriptorProto)
        yield Steps(_taker_by_hand(environment, count) if by_hand else queues.receiving(typed, count), refill)


def protobuf(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Send and receive messages one by one and in batches."""
    scale = scale.with_few_rounds()
    for workload, opening in (("protobuf-sent", _sending), ("protobuf-taken", _taking)):
        for durability in DURABILITIES:
            for batch_messages in (1, BATCH_MESSAGES):
                setting = Setting(durability, 100, batch_messages)
                contestants = [
                    Contestant(name, setting, measure.stepwise(functools.partial(opening, by_hand)))
                    for name, by_hand in ((BY_HAND, True), (OURS, False))
                ]
                yield from measure.contest(workload, contestants, scale, directory)
