"""Protobuf messages through typed endpoints, beside bytes and protobuf called by hand."""

import contextlib
import functools
import pathlib
from typing import Callable, Iterator

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from benchmarks import floors, measure, queues
from benchmarks.measure import Bounds, Contestant, Steps
from benchmarks.results import OURS, Rate, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES

BY_HAND = "bytes, encoded by hand"


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


@contextlib.contextmanager
def _sending(by_hand: bool, directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    message, count = _message(setting), setting.batch_messages or 1
    batch = [message] * count
    with queues.opened(directory, setting) as environment:
        plain, typed = environment.new_publisher(), environment.new_publisher(message_type=FieldDescriptorProto)
        environment.new_control(durability=queues.durability(setting))

        def one_by_hand() -> int:
            plain.send(message.SerializeToString())
            return 1

        def many_by_hand() -> int:
            plain.send_many([each.SerializeToString() for each in batch])
            return count

        def one_typed() -> int:
            typed.send(message)
            return 1

        def many_typed() -> int:
            typed.send_many(batch)
            return count

        yield Steps(_chosen(count, by_hand, one_by_hand, many_by_hand, one_typed, many_typed))


@contextlib.contextmanager
def _taking(by_hand: bool, directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    payload, count = _message(setting).SerializeToString(), setting.batch_messages or 1
    pending = floors.backlog(setting, bounds)
    decode = FieldDescriptorProto.FromString
    with queues.opened(directory, setting) as environment:
        publisher, name = environment.new_publisher(), queues.names(1)[0]
        environment.new_control(durability=queues.durability(setting))
        plain, typed = environment.new_subscriber(name), environment.new_subscriber(name, FieldDescriptorProto)
        refill = functools.partial(queues.fill, publisher, [payload], pending)

        def one_by_hand() -> int:
            with plain.receive(timeout=0) as received:
                return 0 if received is None or not decode(received).number else 1

        def many_by_hand() -> int:
            with plain.receive_many(count, timeout=0) as received:
                return len([decode(each) for each in received])

        def one_typed() -> int:
            with typed.receive(timeout=0) as received:
                return 0 if received is None or not received.number else 1

        def many_typed() -> int:
            with typed.receive_many(count, timeout=0) as received:
                return len(received)

        refill()
        yield Steps(_chosen(count, by_hand, one_by_hand, many_by_hand, one_typed, many_typed), refill)


def _chosen(count: int, by_hand: bool, *steps: Callable[[], int]) -> Callable[[], int]:
    one_by_hand, many_by_hand, one_typed, many_typed = steps
    if by_hand:
        return one_by_hand if count == 1 else many_by_hand
    return one_typed if count == 1 else many_typed


def protobuf(scale: Scale, directory: pathlib.Path) -> Iterator[Rate]:
    """Send and take messages one by one and in batches."""
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
