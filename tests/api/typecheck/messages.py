"""What checkers know of the messages of an endpoint. Checked by mypy and pyright, and never run.

Where a line is wrong on purpose, its comment is needed: both checkers complain of one that is not.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import ContextManager, Iterator, List, Optional

from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from typing_extensions import assert_type

from persipubsub import Control, Environment, Publisher, Subscriber, new_environment
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.engine.values import BytesLike
from persipubsub.subscriber import Receipt


def made_without_a_type(env: Environment) -> None:
    """A subscriber is one of bytes unless a type is given; a publisher is one of what has bytes."""
    assert_type(env.new_publisher(), Publisher[BytesLike])
    assert_type(env.new_publisher(True), Publisher[BytesLike])
    assert_type(env.new_publisher(autosync=True, message_type=None), Publisher[BytesLike])
    assert_type(env.new_subscriber("a"), Subscriber[bytes])
    assert_type(env.new_subscriber(identifier="a"), Subscriber[bytes])


def made_with_a_type(env: Environment) -> None:
    """The type that is given is that of the endpoint."""
    assert_type(env.new_publisher(message_type=StringValue), Publisher[StringValue])
    assert_type(env.new_publisher(True, message_type=StringValue), Publisher[StringValue])
    assert_type(env.new_subscriber("a", message_type=StringValue), Subscriber[StringValue])
    assert_type(env.new_subscriber("a", StringValue), Subscriber[StringValue])
    env.new_subscriber("a", message_type=StringValue())  # type: ignore[call-overload]  # a message, no class


def made_for_tasks(env: Environment) -> None:
    """Endpoints for tasks have the types of the plain ones."""
    assert_type(env.new_async_publisher(), AsyncPublisher[BytesLike])
    assert_type(env.new_async_subscriber("a"), AsyncSubscriber[bytes])
    assert_type(env.new_async_publisher(message_type=StringValue), AsyncPublisher[StringValue])
    assert_type(env.new_async_subscriber("a", message_type=StringValue), AsyncSubscriber[StringValue])


async def used_in_tasks(publisher: AsyncPublisher[StringValue], subscriber: AsyncSubscriber[StringValue]) -> None:
    """Tasks send and receive messages of the type."""
    assert_type(await publisher.send(StringValue(value="a")), int)
    await publisher.send(b"a")  # type: ignore[arg-type]  # bytes
    async with subscriber.receive(timeout=0) as message:
        assert_type(message, Optional[StringValue])
    async with subscriber.receive_many() as messages:
        assert_type(messages, List[StringValue])
    async for one in subscriber.messages():
        assert_type(one, StringValue)
    assert_type(await subscriber.front(), Optional[StringValue])


def a_name_without_a_type_is_one_of_bytes(publisher: Publisher, subscriber: Subscriber) -> None:
    """Annotations of programs that know of no message types mean what they did."""
    assert_type(publisher, Publisher[BytesLike])
    publisher.send(bytearray())
    publisher.send_many([b"", memoryview(b"")])
    assert_type(subscriber.front(), Optional[bytes])


def sent(publisher: Publisher[StringValue], plain: Publisher[bytes]) -> None:
    """Only messages of the type are sent."""
    assert_type(publisher.send(StringValue(value="a")), int)
    publisher.send_many([StringValue(value="a")])
    publisher.send_many(StringValue(value=text) for text in "ab")
    plain.send_many([b"a", b"b"])
    publisher.send(b"a")  # type: ignore[arg-type]  # bytes
    publisher.send(Struct())  # type: ignore[arg-type]  # another type
    publisher.send_many([b"a"])  # type: ignore[list-item]  # bytes
    plain.send("a")  # type: ignore[arg-type]  # text
    plain.send(StringValue())  # type: ignore[arg-type]  # a message
    with publisher as same:
        assert_type(same, Publisher[StringValue])


def wants_publisher_of_bytes(publisher: Publisher[bytes]) -> None:
    """Send nothing but bytes."""
    publisher.send(b"a")


def passed(env: Environment, publisher: Publisher, typed: Publisher[StringValue]) -> None:
    """A publisher of all that has bytes may be passed where bytes will be sent; one of messages may not."""
    wants_publisher_of_bytes(env.new_publisher())
    wants_publisher_of_bytes(publisher)
    wants_publisher_of_bytes(typed)  # type: ignore[arg-type]  # it sends messages


def received(subscriber: Subscriber[StringValue], plain: Subscriber[bytes]) -> None:
    """Every way to receive returns messages of the type."""
    with subscriber.receive(timeout=0) as message:
        assert_type(message, Optional[StringValue])
    with subscriber.receive_to_top() as message:
        assert_type(message, Optional[StringValue])
    with subscriber.receive_many() as messages:
        assert_type(messages, List[StringValue])
    assert_type(subscriber.messages(), Iterator[StringValue])
    assert_type(subscriber.front(), Optional[StringValue])
    assert_type(subscriber.receive(), Receipt[Optional[StringValue]])
    with plain.receive() as payload:
        assert_type(payload, Optional[bytes])
    with plain.receive_many() as payloads:
        assert_type(payloads, List[bytes])
    assert_type(plain.messages(), Iterator[bytes])
    for message in subscriber.messages():
        print(message.value.upper())
        message.valeu  # type: ignore[attr-defined]  # pylint: disable=pointless-statement  # there is no such field
    with subscriber as same:
        assert_type(same, Subscriber[StringValue])


def deployed() -> None:
    """A queue is bound to a class of messages, or to a name."""
    with new_environment("queue") as env:
        assert_type(env.new_control(message_type=StringValue), Control)
        assert_type(env.new_control(["a"], message_type="shop.Order"), Control)
        env.new_control(message_type=StringValue())  # type: ignore[arg-type]  # a message, no class


def passed_on(subscriber: Subscriber[StringValue]) -> ContextManager[Optional[StringValue]]:
    """What receive returns is a context manager of the message to any function that takes one."""
    return subscriber.receive()
