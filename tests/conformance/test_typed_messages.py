"""Messages of a type: each way to receive returns them, what is none stays, and a queue may be bound to one type."""

import contextlib
import pickle
from typing import Any, Callable, Iterator, List

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from persipubsub import HighWaterMark, Publisher, Subscriber, errors
from tests.conformance.queues import Failed, NewQueue, Queue, drained

pytestmark = pytest.mark.capability("message_types")

STRING = "google.protobuf.StringValue"
NO_MESSAGE = b"\xff"


def texts(*values: str) -> List[StringValue]:
    """Return messages."""
    return [StringValue(value=value) for value in values]


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue that is bound to a type."""
    return new_queue("a", message_type=StringValue)


@pytest.fixture(name="publisher")
def publisher_fixture(queue: Queue) -> "Publisher[StringValue]":
    """Make a publisher of the type."""
    return queue.environment.new_publisher(message_type=StringValue)


@pytest.fixture(name="subscriber")
def subscriber_fixture(queue: Queue) -> "Subscriber[StringValue]":
    """Make a subscriber of the type."""
    return queue.environment.new_subscriber("a", message_type=StringValue)


def test_every_way_to_receive(publisher: "Publisher[StringValue]", subscriber: "Subscriber[StringValue]") -> None:
    """Each way to receive, and ``front``, returns messages of the type, also one of no bytes."""
    publisher.send_many(texts("", "1", "2", "3", "4", "5"))
    assert subscriber.front() == StringValue()
    with subscriber.receive(timeout=0) as msg:
        assert msg == StringValue()
    with subscriber.receive_many(max_messages=2, timeout=0) as msgs:
        assert msgs == texts("1", "2")
    assert next(iter(subscriber.messages(timeout=0))).value == "3"
    subscriber.pop()
    with subscriber.receive_to_top(timeout=0) as msg:
        assert msg == StringValue(value="5")


def test_nothing_to_receive(subscriber: "Subscriber[StringValue]") -> None:
    """Where nothing is there, a subscriber of a type returns what one of bytes does."""
    with subscriber.receive(timeout=0) as msg, subscriber.receive_many(timeout=0) as msgs:
        assert msg is None and msgs == [] and subscriber.front() is None


def test_what_is_stored_are_bytes(queue: Queue, publisher: "Publisher[StringValue]",
                                  subscriber: "Subscriber[StringValue]") -> None:
    """A subscriber of bytes gets what SerializeToString gave, and a publisher of bytes may send it."""
    publisher.send(StringValue(value="1"))
    queue.environment.new_publisher().send(StringValue(value="2").SerializeToString())
    assert queue.environment.new_subscriber("a").front() == StringValue(value="1").SerializeToString()
    assert list(subscriber.messages(timeout=0)) == texts("1", "2")


def test_the_bytes_are_those_at_the_time_of_sending(publisher: "Publisher[StringValue]",
                                                    subscriber: "Subscriber[StringValue]") -> None:
    """What a program does with its message after the send changes nothing."""
    msg = StringValue(value="before")
    publisher.send(msg)
    msg.value = "behind"
    assert subscriber.front() == StringValue(value="before")


@pytest.mark.parametrize("wrong", [b"bytes", "text", None, Struct(), Int64Value(value=1)])
def test_what_is_of_another_type(wrong: Any, publisher: "Publisher[StringValue]",
                                 subscriber: "Subscriber[StringValue]") -> None:
    """What is of another type is refused with ArgumentTypeError, alone and in a batch, of which nothing is sent."""
    for send in (lambda: publisher.send(wrong), lambda: publisher.send_many([StringValue(), wrong])):
        with pytest.raises(errors.ArgumentTypeError):
            send()
    assert subscriber.front() is None


def test_required_fields(new_queue: NewQueue) -> None:
    """A message that lacks required fields is refused with ArgumentError and the names of the fields."""
    queue = new_queue("a")
    message_type = descriptor_pb2.UninterpretedOption.NamePart
    publisher = queue.environment.new_publisher(message_type=message_type)
    lacking = message_type(name_part="x")
    for send in (lambda: publisher.send(lacking), lambda: publisher.send_many([lacking])):
        with pytest.raises(errors.ArgumentError, match="is_extension"):
            send()
    assert queue.subscriber().front() is None
    queue.environment.new_publisher().send(lacking.SerializePartialToString())
    with pytest.raises(errors.DecodeError):
        queue.environment.new_subscriber("a", message_type=message_type).front()


@pytest.mark.capability("high_water_mark")
def test_limits_count_the_bytes(new_queue: NewQueue) -> None:
    """A message whose bytes are over the mark is refused."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100_000))
    publisher = queue.environment.new_publisher(message_type=StringValue)
    with pytest.raises(errors.MessageTooLargeError):
        publisher.send(StringValue(value="x" * 100_000))


# What is no message

LOOKS = pytest.mark.parametrize("look", [
    pytest.param(lambda subscriber: subscriber.receive(timeout=0), id="receive"),
    pytest.param(lambda subscriber: subscriber.receive_many(timeout=0), id="receive_many"),
    pytest.param(lambda subscriber: subscriber.receive_to_top(timeout=0), id="receive_to_top"),
    pytest.param(lambda subscriber: contextlib.nullcontext(next(subscriber.messages(timeout=0))), id="messages"),
    pytest.param(lambda subscriber: contextlib.nullcontext(subscriber.front()), id="front"),
])


@LOOKS
def test_what_does_not_parse(look: Callable[["Subscriber[StringValue]"], Any], queue: Queue,
                             subscriber: "Subscriber[StringValue]") -> None:
    """What is no message of the type raises DecodeError with its id and bytes, and stays; ``pop`` acknowledges it."""
    message_id = queue.environment.new_publisher().send(NO_MESSAGE)
    for _ in range(2):
        with pytest.raises(errors.DecodeError, match="'a'") as raised:
            with look(subscriber):
                pass
        assert isinstance(raised.value, ValueError)
        assert (raised.value.message_id, raised.value.payload) == (message_id, NO_MESSAGE)
    subscriber.pop()
    assert subscriber.front() is None


def test_a_batch_ends_before_what_does_not_parse(queue: Queue, publisher: "Publisher[StringValue]",
                                                 subscriber: "Subscriber[StringValue]") -> None:
    """``receive_many`` returns the messages before what is none, and raises when that is next."""
    publisher.send_many(texts("1", "2"))
    queue.environment.new_publisher().send(NO_MESSAGE)
    publisher.send(StringValue(value="3"))
    with subscriber.receive_many(timeout=0) as msgs:
        assert msgs == texts("1", "2")
    with pytest.raises(errors.DecodeError), subscriber.receive_many(timeout=0):
        pass
    subscriber.pop()
    assert subscriber.front() == StringValue(value="3")


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_a_loop_ends_before_what_does_not_parse(acknowledge_every: int, queue: Queue,
                                                publisher: "Publisher[StringValue]",
                                                subscriber: "Subscriber[StringValue]") -> None:
    """A loop has acknowledged the messages before what is none when it raises."""
    publisher.send_many(texts("1", "2"))
    queue.environment.new_publisher().send(NO_MESSAGE)
    seen = []
    with pytest.raises(errors.DecodeError):
        for msg in subscriber.messages(timeout=0, acknowledge_every=acknowledge_every):
            seen.append(msg)
    assert seen == texts("1", "2")
    assert drained(queue.environment.new_subscriber("a")) == [NO_MESSAGE]


def test_a_block_that_raises(publisher: "Publisher[StringValue]", subscriber: "Subscriber[StringValue]") -> None:
    """A message of a type whose block raised comes again."""
    publisher.send(StringValue(value="1"))
    with pytest.raises(Failed), subscriber.receive(timeout=0):
        raise Failed
    with subscriber.receive(timeout=0) as msg:
        assert msg == StringValue(value="1")


@pytest.mark.capability("dead_letters")
def test_what_does_not_parse_becomes_a_dead_letter(queue: Queue, publisher: "Publisher[StringValue]") -> None:
    """A DecodeError counts as a failed delivery; to look at what does not parse counts as none."""
    queue.control.add_subscriber("a", max_deliveries=2)
    subscriber = queue.environment.new_subscriber("a", message_type=StringValue)
    queue.environment.new_publisher().send(NO_MESSAGE)
    publisher.send(StringValue(value="1"))
    for _ in range(2):
        with pytest.raises(errors.DecodeError):
            subscriber.front()
        with pytest.raises(errors.DecodeError), subscriber.receive(timeout=0):
            pass
    letter, = queue.control.dead_letters("a")
    assert (letter.payload, letter.error_type) == (NO_MESSAGE, "persipubsub.errors.DecodeError")
    assert subscriber.front() == StringValue(value="1")


@pytest.mark.capability("shared", "dead_letters")
def test_what_does_not_parse_stops_no_workers(queue: Queue, publisher: "Publisher[StringValue]") -> None:
    """A worker of a type gets over what does not parse, which becomes a dead letter alone."""
    queue.control.add_subscriber("w", shared=True, max_deliveries=1)
    worker, seen = queue.environment.new_subscriber("w", message_type=StringValue), []
    publisher.send(StringValue(value="1"))
    queue.environment.new_publisher().send(NO_MESSAGE)
    publisher.send(StringValue(value="2"))
    for _ in range(5):
        with contextlib.suppress(errors.DecodeError), worker.receive_many(timeout=0) as msgs:
            seen += msgs
    assert seen == texts("1", "2")
    assert [letter.payload for letter in queue.control.dead_letters("w")] == [NO_MESSAGE]


# Binding a queue


def test_endpoints_of_another_type(queue: Queue) -> None:
    """Publishers and subscribers of another type are refused when they are made; the error names both types."""
    for make in (lambda: queue.environment.new_publisher(message_type=Struct),
                 lambda: queue.environment.new_subscriber("a", message_type=Struct),
                 lambda: queue.environment.new_async_publisher(message_type=Struct)):
        with pytest.raises(errors.MessageTypeError, match=STRING) as raised:
            make()
        assert "google.protobuf.Struct" in str(raised.value) and isinstance(raised.value, errors.ArgumentError)


def test_a_queue_that_is_bound_to_nothing(new_queue: NewQueue) -> None:
    """A queue that is bound to no type accepts messages of each."""
    queue = new_queue("a")
    queue.environment.new_publisher(message_type=StringValue).send(StringValue(value="1"))
    queue.environment.new_publisher(message_type=Int64Value).send(Int64Value(value=2))
    assert len(drained(queue.subscriber())) == 2


@pytest.mark.capability("status")
def test_a_queue_may_be_bound_by_name(new_queue: NewQueue) -> None:
    """The name of a type binds a queue as its class does, also one with messages in it."""
    queue = new_queue("a")
    queue.publisher().send(b"")
    assert queue.control.status().message_type is None
    queue.environment.new_control(message_type=STRING)
    assert queue.control.status().message_type == STRING
    queue.environment.new_publisher(message_type=StringValue)
    with pytest.raises(errors.MessageTypeError):
        queue.environment.new_publisher(message_type=Struct)


@pytest.mark.capability("status")
def test_another_type_for_a_queue(queue: Queue, publisher: "Publisher[StringValue]",
                                  subscriber: "Subscriber[StringValue]") -> None:
    """A queue that is bound to a type may change to another one when it has no messages, and not before."""
    publisher.send(StringValue(value="1"))
    with pytest.raises(errors.MessageTypeError, match="1"):
        queue.environment.new_control(message_type=Struct)
    assert queue.control.status().message_type == STRING
    subscriber.pop()
    queue.environment.new_control(message_type=Struct)
    assert queue.control.status().message_type == "google.protobuf.Struct"


@pytest.mark.parametrize("wrong, kind", [("", errors.ArgumentError), ("a b", errors.ArgumentError),
                                         ("1.x", errors.ArgumentError), ("x" * 1001, errors.ArgumentError),
                                         (5, errors.ArgumentTypeError), (int, errors.ArgumentTypeError)])
def test_invalid_types(wrong: Any, kind: type, new_queue: NewQueue) -> None:
    """A queue cannot be bound to what is neither a class of messages nor a full name of one."""
    queue = new_queue("a")
    with pytest.raises(kind):
        queue.environment.new_control(message_type=wrong)
    queue.environment.new_publisher(message_type=StringValue)


@pytest.mark.parametrize("wrong", [int, StringValue(), STRING, 5])
def test_endpoints_need_a_class(wrong: Any, new_queue: NewQueue) -> None:
    """The type of a publisher or subscriber is a class of messages, and nothing else."""
    queue = new_queue("a")
    with pytest.raises(errors.ArgumentTypeError):
        queue.environment.new_publisher(message_type=wrong)
    with pytest.raises(errors.ArgumentTypeError):
        queue.environment.new_subscriber("a", message_type=wrong)


@pytest.mark.capability("processes")
def test_endpoints_can_be_pickled(publisher: "Publisher[StringValue]", subscriber: "Subscriber[StringValue]") -> None:
    """Endpoints that went through pickle have their type."""
    with pickle.loads(pickle.dumps(publisher)) as sending, pickle.loads(pickle.dumps(subscriber)) as receiving:
        sending.send(StringValue(value="1"))
        assert receiving.front() == StringValue(value="1")
        assert STRING in repr(sending) and STRING in repr(receiving)


@pytest.mark.parametrize("make", [iter, tuple, lambda msgs: (msg for msg in msgs)])
def test_a_batch_is_any_iterable(make: Callable[[List[StringValue]], "Iterator[StringValue]"],
                                 publisher: "Publisher[StringValue]", subscriber: "Subscriber[StringValue]") -> None:
    """A batch may be any iterable of messages."""
    publisher.send_many(make(texts("1", "2")))
    assert list(subscriber.messages(timeout=0)) == texts("1", "2")
