"""What checkers know of messages that are sent as JSON or by a codec, of envelopes and of deliveries; never run.

Where a line is wrong on purpose, its comment is needed: both checkers complain of one that is not.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import dataclasses
from typing import Any, AsyncGenerator, Dict, Iterator, List, Optional

import msgspec
import pydantic
import pydantic.dataclasses
from typing_extensions import assert_type

from persipubsub import Delivery, Envelope, Environment, Publisher, Subscriber
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.subscriber import Receipt
from persipubsub.typed import Codec


@dataclasses.dataclass
class Order:
    """A dataclass."""

    number: int


class Parcel(msgspec.Struct):
    """A struct."""

    number: int


class Invoice(pydantic.BaseModel):
    """A model."""

    number: int


@pydantic.dataclasses.dataclass
class Payment:
    """A dataclass of pydantic."""

    cents: int


class OrderCodec:
    """A codec."""

    name = "shop.Order"

    def encode(self, message: Order) -> bytes:
        """Encode a message."""
        return bytes(message.number)

    def decode(self, payload: bytes) -> Order:
        """Decode a message."""
        return Order(len(payload))


def made(env: Environment, codec: Codec[Order]) -> None:
    """The type of an endpoint's messages is that of its message type."""
    assert_type(env.new_publisher(message_type=Order), Publisher[Order])
    assert_type(env.new_publisher(message_type=Parcel), Publisher[Parcel])
    assert_type(env.new_publisher(message_type=Invoice), Publisher[Invoice])
    assert_type(env.new_publisher(message_type=Payment), Publisher[Payment])
    assert_type(env.new_publisher(message_type=str), Publisher[str])
    assert_type(env.new_publisher(message_type=dict), Publisher[Dict[str, Any]])
    assert_type(env.new_publisher(message_type=list), Publisher[List[Any]])
    assert_type(env.new_publisher(message_type=OrderCodec()), Publisher[Order])
    assert_type(env.new_publisher(message_type=codec), Publisher[Order])
    assert_type(env.new_subscriber("a", Order), Subscriber[Order])
    assert_type(env.new_subscriber("a", message_type=Parcel), Subscriber[Parcel])
    assert_type(env.new_subscriber("a", message_type=Invoice), Subscriber[Invoice])
    assert_type(env.new_subscriber("a", dict), Subscriber[Dict[str, Any]])
    assert_type(env.new_subscriber("a", list), Subscriber[List[Any]])
    assert_type(env.new_subscriber("a", OrderCodec()), Subscriber[Order])
    assert_type(env.new_async_publisher(message_type=Order), AsyncPublisher[Order])
    assert_type(env.new_async_subscriber("a", message_type=OrderCodec()), AsyncSubscriber[Order])
    env.new_publisher(message_type=5)  # type: ignore[call-overload]  # no message type
    env.new_publisher(message_type=Order(1))  # type: ignore[call-overload]  # a message


def plain(env: Environment) -> None:
    """Elements of a dict or a list have any type, and the keys of a dict are str."""
    publisher = env.new_publisher(message_type=dict)
    publisher.send({"a": 1})
    publisher.send({1: "a"})  # type: ignore[dict-item]  # JSON has no such key
    publisher.send([1])  # type: ignore[arg-type]  # a list
    for message in env.new_subscriber("a", dict).messages():
        print(message["a"])
    with env.new_subscriber("a", list).receive() as elements:
        print(elements and elements[0])


def sent(publisher: Publisher[Order], untyped: Publisher[bytes]) -> None:
    """A message may be in an envelope, alone and in a batch."""
    publisher.send(Order(1))
    publisher.send(Envelope(Order(1), headers={"a": "b"}))
    publisher.send_many([Order(1), Envelope(Order(2), deduplication_id="2")])
    publisher.send_later(Envelope(Order(1)), delay_s=1)
    untyped.send(Envelope(b"a"))
    assert_type(Envelope(Order(1)), Envelope[Order])
    publisher.send(Parcel(number=1))  # type: ignore[arg-type]  # another type
    publisher.send(Envelope(Parcel(number=1)))  # type: ignore[arg-type]  # another type
    publisher.send_many([Order(1), Envelope(b"a")])  # type: ignore[arg-type]  # bytes
    untyped.send(Envelope("a"))  # type: ignore[arg-type]  # text
    publisher.send(Order(1), headers={"a": 1})  # type: ignore[dict-item]  # a number


def received(subscriber: Subscriber[Order]) -> None:
    """A delivery has a message of the type."""
    with subscriber.receive_delivery() as delivery:
        assert_type(delivery, Optional[Delivery[Order]])
        if delivery is not None:
            assert_type(delivery.message, Order)
            assert_type(delivery.headers.get("a"), Optional[str])
    with subscriber.receive_deliveries() as deliveries:
        assert_type(deliveries, List[Delivery[Order]])
    assert_type(subscriber.deliveries(), Iterator[Delivery[Order]])
    assert_type(subscriber.front_delivery(), Optional[Delivery[Order]])
    assert_type(subscriber.receive_delivery(), Receipt[Optional[Delivery[Order]]])


async def received_in_tasks(subscriber: AsyncSubscriber[Order]) -> None:
    """Tasks receive deliveries of the type, too."""
    async with subscriber.receive_delivery() as delivery:
        assert_type(delivery, Optional[Delivery[Order]])
    async with subscriber.receive_deliveries() as deliveries:
        assert_type(deliveries, List[Delivery[Order]])
    assert_type(subscriber.deliveries(), AsyncGenerator[Delivery[Order], None])
    assert_type(await subscriber.front_delivery(), Optional[Delivery[Order]])


def handled(delivery: Delivery[object]) -> None:
    """Handle a message of any type."""
    print(delivery.id, delivery.message)


def passed(delivery: Delivery[Order], publisher: Publisher[object]) -> Publisher[Order]:
    """A delivery of a type is one of any, and a publisher of any messages is one of each type."""
    handled(delivery)
    return publisher


def returned(subscriber: Subscriber[Order]) -> Optional[Order]:
    """A block that returns needs no return after it."""
    with subscriber.receive() as message:
        return message


def returned_in_a_loop(subscriber: Subscriber[Order]) -> List[Order]:
    """Nor does one in a loop without an end."""
    while True:
        with subscriber.receive_many() as messages:
            if messages:
                return messages


async def returned_in_a_task(subscriber: AsyncSubscriber[Order]) -> Optional[Order]:
    """Nor does one of a task."""
    async with subscriber.receive() as message:
        return message


async def mistaken(subscriber: Subscriber[bytes], asynchronous: AsyncSubscriber[bytes]) -> None:
    """What a program does with a subscriber by mistake is an error, as it is when it runs."""
    subscriber.receive().decode()  # type: ignore[attr-defined]  # not in a block
    asynchronous.receive().decode()  # type: ignore[attr-defined]  # not in a block
    list(subscriber)  # type: ignore[call-overload]  # not its messages
    [one async for one in asynchronous]  # type: ignore[attr-defined]  # pylint: disable=pointless-statement  # nor here
    await asynchronous.receive()  # type: ignore[misc]  # no async with
