"""Protobuf messages: every call returns them, invalid ones stay, and a queue may be bound to one type."""

import itertools
import json
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
from typing import Any, Callable, ContextManager, List, Optional, Type

import hypothesis
import pytest
from google.protobuf import struct_pb2, wrappers_pb2
from google.protobuf.message import Message
from hypothesis import strategies as st

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, compaction, errors, recovery
from persipubsub.lmdb_engine.process import files
from persipubsub.typed import protobuf
from tests.api.shop import Invoice, Order

MakeEnvironment = Callable[..., Environment]

ORDERS = [Order(number=number, item="tea") for number in range(1, 6)]
#: A tag of which no field follows.
NO_MESSAGE = b"\xff"


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue of orders that does not wait for the disk."""
    return new_environment("a", durability=Durability.PROCESS_CRASH, message_type=Order)


def send_all(environment: Environment, *messages: Any) -> None:
    """Send orders, and bytes that are none."""
    with environment.new_publisher() as publisher:
        for message in messages:
            publisher.send(message if isinstance(message, bytes) else message.SerializeToString())


def pending(environment: Environment) -> int:
    """Return how many messages the subscriber has not acknowledged."""
    return environment.new_control().status().subscribers["a"].pending


def test_every_call_gives_messages(environment: Environment) -> None:
    """What is sent as messages is received as equal messages, by each way to receive."""
    publisher = environment.new_publisher(message_type=Order)
    assert publisher.send(ORDERS[0]) == 1
    assert publisher.send_many(iter(ORDERS[1:])) == range(2, 6)
    subscriber = environment.new_subscriber("a", message_type=Order)
    assert subscriber.front() == ORDERS[0]
    with subscriber.receive(timeout=0) as order:
        assert order == ORDERS[0] and isinstance(order, Order)
    with subscriber.receive_many(2, timeout=0) as orders:
        assert orders == ORDERS[1:3]
    assert next(iter(subscriber.messages(timeout=0))) == ORDERS[3]
    with subscriber.receive_to_top(timeout=0) as order:
        assert order == ORDERS[4]
    assert subscriber.front() is None and not list(subscriber.messages(timeout=0))
    with subscriber.receive(timeout=0) as order, subscriber.receive_many(timeout=0) as orders:
        assert order is None and orders == []


def test_bytes_on_the_disk_are_those_of_protobuf(environment: Environment) -> None:
    """A subscriber of bytes gets the encoded message, so that both sides may change to message types one by one."""
    environment.new_publisher(message_type=Order).send_many(ORDERS)
    plain = environment.new_subscriber("a")
    assert list(map(Order.FromString, plain.messages(timeout=0))) == ORDERS


@pytest.mark.parametrize("message", [
    wrappers_pb2.StringValue(value="tea"),
    wrappers_pb2.StringValue(),
    wrappers_pb2.BytesValue(value=bytes(200_000)),
    struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=1)}),
    struct_pb2.Struct()
])
def test_types_that_come_with_protobuf(message: Message, new_environment: MakeEnvironment) -> None:
    """A well-known type is as good as a generated one, also where a message has no bytes, or very many."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH, message_type=type(message))
    environment.new_publisher(message_type=type(message)).send(message)
    with environment.new_subscriber("a", message_type=type(message)).receive(timeout=0) as received:
        assert received == message


# Refused by a send

REFUSED = [
    (b"bytes", errors.ArgumentTypeError, "must be a shop.Order .*, got bytes"),
    (None, errors.ArgumentTypeError, "got NoneType"),
    (Invoice(text="x"), errors.ArgumentTypeError, "must be a shop.Order .*, got tests.api.shop.Invoice"),
    (Order, errors.ArgumentTypeError, "must be a shop.Order"),
    (Order(item="tea"), errors.ArgumentError, "cannot be encoded: .* shop.Order is missing required fields: number"),
]


@pytest.mark.parametrize("autosync", [False, True])
@pytest.mark.parametrize("message, kind, tells", REFUSED)
def test_a_wrong_message_is_refused(message: Any, kind: type, tells: str, autosync: bool,
                                    environment: Environment) -> None:
    """A message of another type, or one that lacks fields, raises an error that says so, and nothing is sent."""
    publisher = environment.new_publisher(autosync, message_type=Order)
    with pytest.raises(errors.PersipubsubError, match=tells) as caught:
        publisher.send(message)
    assert caught.type is kind
    with pytest.raises(errors.PersipubsubError, match=f"Message 1 of the batch: .*{tells}.* None was sent") as caught:
        publisher.send_many([ORDERS[0], message, ORDERS[1]])
    assert caught.type is kind
    assert pending(environment) == 0


def test_a_wrong_message_far_into_a_batch_is_named(environment: Environment) -> None:
    """In a batch that is encoded in parts, the error has the index in the whole batch."""
    publisher = environment.new_publisher(message_type=Order)
    with pytest.raises(errors.ArgumentError, match="Message 1500 of the batch: .*number"):
        publisher.send_many([*ORDERS * 300, Order(), *ORDERS])
    assert pending(environment) == 0
    assert publisher.send_many(ORDERS * 300) == range(1, 1501)
    assert list(environment.new_subscriber("a", Order).messages(timeout=0, acknowledge_every=1000)) == ORDERS * 300


@pytest.mark.parametrize("messages", [ORDERS[0], b"bytes", "text", 5, None])
def test_a_batch_must_be_one(messages: Any, environment: Environment) -> None:
    """What is no iterable of messages is refused as a batch; for a single message, the error names send."""
    with pytest.raises(errors.ArgumentTypeError, match="iterable of messages, got .* use send"):
        environment.new_publisher(message_type=Order).send_many(messages)


def test_a_message_over_the_mark_is_refused(environment: Environment) -> None:
    """The limits of a message are those of its bytes."""
    environment.new_control(high_watermark=HighWaterMark(hwm_db_size=1000))
    with pytest.raises(errors.MessageTooLargeError):
        environment.new_publisher(message_type=Order).send(Order(number=1, item="x" * 1000))
    assert pending(environment) == 0


@pytest.mark.parametrize("message_type", [bytes, object, Message, ORDERS[0], 5])
def test_what_is_no_message_type(message_type: Any, environment: Environment) -> None:
    """Whatever is no class of messages is refused as a message_type, everywhere."""
    for make in (lambda: environment.new_publisher(message_type=message_type),
                 lambda: environment.new_subscriber("a", message_type=message_type),
                 lambda: environment.new_control(message_type=message_type)):
        with pytest.raises(errors.ArgumentTypeError, match="message_type must be a class of protobuf messages"):
            make()


def test_an_endpoint_needs_the_class(environment: Environment) -> None:
    """The name of a type, which is enough to bind a queue, makes no publisher and no subscriber."""
    name: Any = "shop.Order"
    for make in (lambda: environment.new_publisher(message_type=name),
                 lambda: environment.new_subscriber("a", message_type=name)):
        with pytest.raises(errors.ArgumentTypeError, match="class of protobuf messages.*, got 'shop.Order'"):
            make()


# What is no message


def entered(receipt: ContextManager[Any]) -> None:
    """Enter and leave a block."""
    with receipt:
        pass


READ: List[Callable[[Any], object]] = [
    lambda subscriber: subscriber.front(),
    lambda subscriber: entered(subscriber.receive(timeout=0)),
    lambda subscriber: entered(subscriber.receive_many(timeout=0)),
    lambda subscriber: entered(subscriber.receive_to_top(timeout=0)),
    lambda subscriber: list(subscriber.messages(timeout=0)),
    lambda subscriber: list(subscriber.messages(timeout=0, acknowledge_every=10)),
]


@pytest.mark.parametrize("payload, tells", [(NO_MESSAGE, "is not a shop.Order: .*"),
                                            (b"", "is not a shop.Order: it lacks required fields: number")])
@pytest.mark.parametrize("read", READ)
def test_an_invalid_message_stays(read: Callable[[Any], object], payload: bytes, tells: str,
                                  environment: Environment) -> None:
    """Bytes that are no message raise an error with queue, subscriber and id, and stay until pop acknowledges them."""
    send_all(environment, payload)
    subscriber = environment.new_subscriber("a", message_type=Order)
    where = f"Message 1 of the queue at {re.escape(str(environment.path))}, for the subscriber 'a'"
    for _ in range(2):
        with pytest.raises(errors.DecodeError, match=f"{where}, {tells}") as caught:
            read(subscriber)
        copied = pickle.loads(pickle.dumps(caught.value))
        for error in (caught.value, copied):
            assert (error.message_id, error.payload) == (1, payload)
    assert pending(environment) == 1
    subscriber.pop()
    assert pending(environment) == 0


def test_what_protobuf_writes_but_does_not_read(new_environment: MakeEnvironment) -> None:
    """A message nested more deeply than protobuf reads is invalid for its receiver, and stays."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    top = value = struct_pb2.Value()
    for _ in range(60):  # each is two levels
        value = value.list_value.values.add()
    environment.new_publisher(message_type=struct_pb2.Value).send(top)
    with pytest.raises(errors.DecodeError, match="is not a google.protobuf.Value"):
        environment.new_subscriber("a", message_type=struct_pb2.Value).front()
    assert pending(environment) == 1


def test_a_batch_ends_before_an_invalid_message(environment: Environment) -> None:
    """A batch ends before an invalid message, then comes the error, then the messages after it."""
    send_all(environment, *ORDERS[:2], NO_MESSAGE, *ORDERS[2:])
    subscriber = environment.new_subscriber("a", message_type=Order)
    with subscriber.receive_many(timeout=0) as orders:
        assert orders == ORDERS[:2]
    assert pending(environment) == 4
    with pytest.raises(errors.DecodeError, match="Message 3 "), subscriber.receive_many(timeout=0):
        pass
    subscriber.pop()
    with subscriber.receive_many(timeout=0) as orders:
        assert orders == ORDERS[2:]
    assert pending(environment) == 0


@pytest.mark.parametrize("acknowledge_every", [1, 2, 10])
def test_a_loop_acknowledges_the_messages_before_an_invalid_one(acknowledge_every: int,
                                                                environment: Environment) -> None:
    """A loop that meets an invalid message has acknowledged exactly those before it."""
    send_all(environment, *ORDERS[:3], NO_MESSAGE, *ORDERS[3:])
    subscriber = environment.new_subscriber("a", message_type=Order)
    received = []
    with pytest.raises(errors.DecodeError, match="Message 4 "):
        for order in subscriber.messages(timeout=0, acknowledge_every=acknowledge_every):
            received.append(order)
    assert received == ORDERS[:3]
    assert environment.new_control().status().subscribers["a"].next_id == 4
    subscriber.pop()
    assert list(subscriber.messages(timeout=0, acknowledge_every=acknowledge_every)) == ORDERS[3:]


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.lists(st.one_of(st.integers(-2**63, 2**63 - 1), st.none()), max_size=20),
                  st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
def test_any_mixture_is_worked_off(sent: List[Optional[int]], at_most: List[int], by_batches: bool) -> None:
    """Skipping invalid messages by pop, a subscriber gets each valid one once and in order."""
    with tempfile.TemporaryDirectory() as directory, persipubsub.new_environment(directory) as environment:
        control = environment.new_control(["a"], durability=Durability.PROCESS_CRASH)
        send_all(environment, *(NO_MESSAGE if number is None else Order(number=number) for number in sent))
        subscriber = environment.new_subscriber("a", message_type=Order)
        received: List[Optional[int]] = []
        for count in itertools.cycle(at_most):
            try:
                if by_batches:
                    with subscriber.receive_many(count, timeout=0) as orders:
                        received += [order.number for order in orders]
                else:
                    for order in subscriber.messages(timeout=0, acknowledge_every=count):
                        received.append(order.number)
            except errors.DecodeError as error:
                assert error.message_id == len(received) + 1
                received.append(None)
                subscriber.pop()
            if not control.status().messages:
                break
        assert received == sent
        assert control.check() == ()


def test_receive_to_top_skips_invalid_messages(environment: Environment) -> None:
    """An invalid message does not keep receive_to_top from the latest one."""
    send_all(environment, NO_MESSAGE, ORDERS[0])
    with environment.new_subscriber("a", message_type=Order).receive_to_top(timeout=0) as order:
        assert order == ORDERS[0]
    assert pending(environment) == 0


# Binding


@pytest.mark.parametrize("bound, other", [(Order, Invoice), (Invoice, Order)])
def test_another_type_is_refused(bound: Type[Message], other: Type[Message], new_environment: MakeEnvironment) -> None:
    """A queue that is bound to a type refuses publishers and subscribers of another, and names both and the remedy."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH, message_type=bound)
    name, wanted = bound.DESCRIPTOR.full_name, other.DESCRIPTOR.full_name
    for make in (lambda: environment.new_publisher(message_type=other),
                 lambda: environment.new_subscriber("a", message_type=other)):
        with pytest.raises(errors.MessageTypeError) as raised:
            make()
        for part in (f"bound to the message type {name}, not to {wanted}.", f" message_type={bound.__name__}, "):
            assert part in str(raised.value)
    assert environment.new_control().status().message_type == name


def test_a_queue_that_is_bound_to_nothing_accepts_all(new_environment: MakeEnvironment) -> None:
    """Without a binding, each side chooses its type, and the status has none."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    environment.new_publisher(message_type=Order).send(ORDERS[0])
    environment.new_publisher(message_type=Invoice).send(Invoice(text="x"))
    assert environment.new_subscriber("a", message_type=Order).front() == ORDERS[0]
    assert environment.new_control().status().message_type is None


def test_binding_again(environment: Environment) -> None:
    """A queue with messages stays bound to its type; an empty one may be bound to another, also by name."""
    environment.new_publisher(message_type=Order).send(ORDERS[0])
    environment.new_control(message_type=Order)
    environment.new_control(["b"])
    with pytest.raises(errors.MessageTypeError, match="bound to the message type shop.Order and has 1 messages"):
        environment.new_control(["c"], message_type="shop.Invoice")
    status = environment.new_control().status()
    assert status.message_type == "shop.Order" and set(status.subscribers) == {"a", "b"}
    environment.new_control().clear_messages()
    environment.new_control(message_type="shop.Invoice")
    assert environment.new_subscriber("a", message_type=Invoice).front() is None
    environment.new_publisher(message_type=Invoice).send(Invoice(text="x"))
    with pytest.raises(errors.MessageTypeError, match="bound to the message type shop.Invoice"):
        environment.new_control(message_type=Order)


def test_what_has_expired_does_not_keep_a_queue_bound(environment: Environment, persipubsub_clock: Any) -> None:
    """A queue whose messages have all expired may be bound to another type."""
    environment.new_control(high_watermark=HighWaterMark(message_timeout=500))
    environment.new_publisher(message_type=Order).send(ORDERS[0])
    persipubsub_clock.forward(501)
    environment.new_control(message_type=Invoice)
    assert environment.new_control().status().message_type == "shop.Invoice"


def test_a_queue_with_messages_may_be_bound(new_environment: MakeEnvironment) -> None:
    """An unbound queue may be bound at any time: nobody loses a message."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    environment.new_publisher(message_type=Order).send(ORDERS[0])
    environment.new_control(message_type=Order)
    assert environment.new_subscriber("a", message_type=Order).front() == ORDERS[0]


@pytest.mark.parametrize("name", ["", ".", "shop.", "shop..Order", "1shop", "shop Order", "shöp.Order", "a" * 1001])
def test_no_type_has_such_a_name(name: str, environment: Environment) -> None:
    """What cannot be the full name of a type is refused, and the queue stays bound as it was."""
    with pytest.raises(errors.ArgumentError, match="full name of a protobuf type"):
        environment.new_control(message_type=name)
    assert environment.new_control().status().message_type == "shop.Order"


def test_the_longest_name(environment: Environment) -> None:
    """A name of as many bytes as are allowed is stored as it is."""
    environment.new_control(message_type="a" * 1000)
    assert environment.new_control().status().message_type == "a" * 1000


@pytest.mark.parametrize("copied", ["backup", "compact", "recover", "recover all pages"])
def test_copies_are_bound(copied: str, environment: Environment, tmp_path: pathlib.Path) -> None:
    """A backup, a compacted queue and a recovered one are bound to the type and have the messages."""
    environment.new_publisher(message_type=Order).send_many(ORDERS)
    path = environment.path
    if copied == "backup":
        path = tmp_path / "backup"
        environment.new_control().backup(path)
    environment.close()
    if copied == "compact":
        compaction.compact(path)
    if copied == "recover all pages":
        with open(path / files.DATA_FILE, "r+b") as file:
            file.write(bytes(2 * 4096))  # both roots: nothing leads to any page
    if copied.startswith("recover"):
        assert recovery.recover(path).messages == len(ORDERS)
    with persipubsub.new_environment(path) as found:
        assert found.new_control().status().message_type == "shop.Order"
        with pytest.raises(errors.MessageTypeError):
            found.new_publisher(message_type=Invoice)
        assert list(found.new_subscriber("a", message_type=Order).messages(timeout=0)) == ORDERS
        assert found.new_control().check() == ()


# Pickling and looking at them


def test_endpoints_keep_their_type(environment: Environment) -> None:
    """A publisher and a subscriber that were pickled have the same type, and say so."""
    publisher = environment.new_publisher(True, message_type=Order)
    subscriber = environment.new_subscriber("a", message_type=Order)
    assert repr(publisher) == f"<Publisher of {environment.path} for shop.Order>"
    assert repr(subscriber) == f"<Subscriber 'a' of {environment.path} for shop.Order>"
    copies = pickle.loads(pickle.dumps((publisher, subscriber)))
    assert [repr(copy) for copy in copies] == [repr(publisher), repr(subscriber)]
    copies[0].send(ORDERS[0])
    assert copies[1].front() == ORDERS[0]
    with publisher as same, pytest.raises(errors.ArgumentTypeError):
        same.send(b"")
    assert repr(publisher).endswith("for shop.Order (closed)>")
    with pytest.raises(errors.ClosedError):
        publisher.send(ORDERS[0])


PLAIN = """
import sys, persipubsub
from persipubsub import deployment
with persipubsub.new_environment(sys.argv[1]) as env:
    env.new_control(["a"], message_type="shop.Order")
    env.new_publisher().send(b"x")
    env.new_subscriber("a").pop()
    env.new_control().status()
print([name for name in sys.modules if name.startswith("google")])
"""


def test_protobuf_is_imported_only_where_it_is_used(tmp_path: pathlib.Path) -> None:
    """Sending bytes, deploying and looking at a queue do not import protobuf."""
    done = subprocess.run([sys.executable, "-c", PLAIN, tmp_path / "queue"],
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=60)
    # The package google itself may be made at the start of Python, by the .pth file of another of its parts.
    assert not [name for name in json.loads(done.stdout.replace("'", '"')) if name != "google"]


# JSON


def test_json_of_a_payload() -> None:
    """A payload is written as one line of protobuf's JSON, from which the message can be read."""
    write = protobuf.json_writer("shop.Order")
    assert json.loads(write(Order(number=2**40, item="tée\n").SerializeToString())) == {
        "number": str(2**40),
        "item": "tée\n"
    }
    assert "\n" not in write(ORDERS[0].SerializeToString())
    with pytest.raises(ValueError, match="lacks required fields: number"):
        write(b"")
    with pytest.raises(ValueError, match="Error parsing"):
        write(NO_MESSAGE)


def test_json_needs_the_type() -> None:
    """A type that no module defines, and a missing module, are errors that say what to do."""
    with pytest.raises(errors.ArgumentError, match="type shop.Nothing is not known. Import the module"):
        protobuf.json_writer("shop.Nothing")
    with pytest.raises(errors.ArgumentError, match="module no.such_pb2 cannot be imported: .* PYTHONPATH"):
        protobuf.json_writer("shop.Order", ["no.such_pb2"])
    code = ("from persipubsub.typed import protobuf; "
            "print(protobuf.json_writer('google.protobuf.Duration', ['google.protobuf.duration_pb2'])(b'\\x08\\x05'))")
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout == '"5s"\n'


def test_json_of_what_json_cannot_say() -> None:
    """A message with a part of an unknown type is refused in words, not with a traceback of protobuf."""
    write = protobuf.json_writer("google.protobuf.Any", ["google.protobuf.any_pb2"])
    from google.protobuf import any_pb2
    with pytest.raises(ValueError, match="google.protobuf.Any cannot be written as JSON"):
        write(any_pb2.Any(type_url="type.googleapis.com/shop.Nothing", value=b"x").SerializeToString())
    with pytest.raises(ValueError, match="google.protobuf.Value cannot be written as JSON"):
        protobuf.json_writer("google.protobuf.Value")(struct_pb2.Value(number_value=float("nan")).SerializeToString())
