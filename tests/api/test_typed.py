"""Messages that are sent as JSON, or by a codec of the program's own: they arrive as they were sent, or are refused."""

import asyncio
import contextlib
import dataclasses
import datetime
import http
import json
import math
from typing import Any, Callable, List

import hypothesis
import pytest
from hypothesis import strategies as st

from persipubsub import Durability, Envelope, Environment, errors, typed
from persipubsub.engine.values import Found
from tests.api.kinds import KINDS, Counted, Invoice, Kind, Line, Numbers, Order, Point, Sent, opened

MakeEnvironment = Callable[..., Environment]

EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue that does not wait for the disk."""
    return new_environment("a", durability=Durability.PROCESS_CRASH)


def pending(environment: Environment) -> int:
    """Return how many messages the subscriber has not acknowledged."""
    return environment.new_control().status().subscribers["a"].pending


# What is sent arrives


@EACH_KIND
def test_every_way_to_send_and_receive(kind: Kind, environment: Environment) -> None:
    """Messages arrive as equal messages of their class, by each way to send and to receive."""
    publisher, subscriber = opened(environment, kind.message_type)
    first, last = kind.messages[0], kind.messages[-1]
    publisher.send(first)
    publisher.send(last, headers={"a": "b"})
    publisher.send_many([*kind.messages, Envelope(first, deduplication_id="1")])
    publisher.send_later(last, delay_s=0)
    expected = [first, last, *kind.messages, first, last]
    assert subscriber.front() == first and type(subscriber.front()) is type(first)
    with subscriber.receive(timeout=0) as message:
        assert message == expected[0]
    with subscriber.receive_delivery(timeout=0) as delivery:
        assert delivery is not None and (delivery.message, delivery.headers) == (expected[1], {"a": "b"})
    with subscriber.receive_many(1, timeout=0) as messages:
        assert messages == expected[2:3]
    assert list(subscriber.messages(timeout=0, acknowledge_every=10)) == expected[3:]
    publisher.send(last)
    with subscriber.receive_to_top(timeout=0) as message:
        assert message == last
    assert subscriber.front() is None


@EACH_KIND
def test_tasks(kind: Kind, environment: Environment) -> None:
    """Tasks send and receive messages of the type."""

    async def run() -> List[Any]:
        async with environment.new_async_publisher(message_type=kind.message_type) as publisher:
            await publisher.send_many(kind.messages)
        async with environment.new_async_subscriber("a", kind.message_type) as subscriber:
            with pytest.raises(errors.ArgumentTypeError):
                environment.new_async_subscriber("a", 5)  # type: ignore[call-overload]  # the mistake
            return [message async for message in subscriber.messages(timeout=0)]

    assert asyncio.run(run()) == kind.messages


@pytest.mark.parametrize("kind", KINDS[:-1], ids=str)
def test_what_is_stored_is_json(kind: Kind, environment: Environment) -> None:
    """The payload is JSON in UTF-8 on one line, and JSON that a publisher of bytes sends is received as a message."""
    publisher, subscriber = opened(environment, kind.message_type)
    publisher.send(kind.messages[-1])
    payload = environment.new_subscriber("a").front()
    assert payload is not None and b"\n" not in payload
    subscriber.pop()
    environment.new_publisher().send(json.dumps(json.loads(payload), indent=1).encode())
    assert subscriber.front() == kind.messages[-1]


@pytest.mark.parametrize("payload", [
    Invoice(invoiceNumber=1, lines=[Line(articleName="tea")]).model_dump_json(exclude={"label"}),
    '{"invoiceNumber": 1, "lines": [{"articleName": "tea"}]}',
    '{"number": 1, "total": "1.50", "lines": [{"article": "tea"}]}',
])
def test_names_and_aliases_of_a_model(payload: str, environment: Environment) -> None:
    """A model is decoded by the names and by the aliases of its fields, so JSON that was made by hand arrives, too."""
    environment.new_publisher().send(payload.encode())
    assert environment.new_subscriber("a", Invoice).front() == Invoice(invoiceNumber=1, lines=[Line(articleName="tea")])


ANY_TEXT = st.text(st.characters(exclude_categories=[]))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda values: st.lists(values) | st.tuples(values) | st.dictionaries(ANY_TEXT | st.integers(), values))


def is_json(value: Any) -> bool:
    """Return whether JSON has a value that is equal to a value."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json(key) and is_json(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return math.isfinite(value) if isinstance(value, float) else not isinstance(value, tuple)


@hypothesis.given(st.lists(PLAIN) | st.dictionaries(ANY_TEXT | st.none(), PLAIN) | ANY_TEXT)
def test_a_plain_value_arrives_or_is_refused(value: Any) -> None:
    """A dict, list or str arrives as an equal value if JSON has one, and is refused if not."""
    coding = typed.coding_of(type(value))
    if is_json(value):
        assert coding.decoded(Found([1], [coding.encode(value)]), "a", "queue").payloads == [value]
    else:
        with pytest.raises(errors.ArgumentError):
            coding.encode(value)


# What is refused


@EACH_KIND
def test_what_is_of_another_type(kind: Kind, environment: Environment) -> None:
    """A message of another type raises an error of this package, alone and in a batch, and nothing is sent."""
    publisher, _ = opened(environment, kind.message_type)
    expected = errors.ArgumentError if kind.name == "geometry.Point" else errors.ArgumentTypeError
    for send in (publisher.send, lambda message: publisher.send_later(message, 5)):
        with pytest.raises(expected):
            send(kind.wrong)
    many = kind.messages * 600
    with pytest.raises(expected, match=f"^Message {len(many)} of the batch: .* None was sent.$"):
        publisher.send_many([*many, kind.wrong])
    assert pending(environment) == 0 and environment.new_control().status().delayed == 0


@dataclasses.dataclass
class RushOrder(Order):
    """A class that derives from a message type."""

    hours: int = 1


class PaidInvoice(Invoice):
    """The same of a model."""


def nested(depth: int) -> List[Any]:
    """Return a list in lists."""
    result: List[Any] = []
    for _ in range(depth):
        result = [result]
    return result


_CIRCLE: List[Any] = []
_CIRCLE.append(_CIRCLE)
_CHAIN = Order(1)
_CHAIN.next = _CHAIN

UNSENDABLE = [
    # Plain values
    (dict, {
        "a": float("nan")
    }, "finite float"),
    (list, [float("-inf")], "finite float"),
    (dict, {
        1: "a"
    }, "only dict with str as keys"),
    (dict, {
        "a": {
            None: 1
        }
    }, "JSON cannot have a NoneType there"),
    (dict, {
        "a": (1, 2)
    }, "another value"),
    (dict, {
        "a": {1}
    }, "another value"),
    (dict, {
        "a": b"x"
    }, "another value"),
    (list, [datetime.date(2026, 1, 1)], "another value"),
    (list, [range(3)], "JSON cannot have a range there"),
    (list, [Point(1, 2)], "another value"),
    (str, "\ud800", "surrogates not allowed"),
    (list, [10**5000], "Exceeds the limit"),
    (list, _CIRCLE, "RecursionError"),
    (list, nested(100_000), "RecursionError"),
    # What no subscriber could decode
    (Order, Order("1"), "Expected `int`, got `str` - at `\\$.number`"),  # type: ignore[arg-type]  # the mistake
    (Order, Order(1, weight=float("nan")), "Expected `float`, got `null`"),
    (Order, Order(1, anything=object()), "Encoding objects of type object is unsupported"),
    (Order, Order(1, anything="\ud800"), "surrogates not allowed"),
    (Order, _CHAIN, "RecursionError"),
    (Sent, Sent(None), "Expected `int`, got `null`"),  # type: ignore[arg-type]  # the mistake
    (Invoice, Invoice.model_construct(number="one"), "number: Input should be a valid integer"),
    (Invoice, Invoice.model_construct(number=-1, code="A"), "greater than 0; code: Value error, it has capitals"),
    (Numbers, Numbers.model_construct([None]), "0: Input should be a valid integer"),  # type: ignore[list-item]  # too
    # Subclasses
    (Order, RushOrder(1), "A message must be a .*Order, got .*RushOrder. What a subclass adds would not arrive"),
    (Invoice, PaidInvoice(invoiceNumber=1), "got .*PaidInvoice. What a subclass adds would not arrive"),
]


@pytest.mark.parametrize("message_type, message, tells", UNSENDABLE, ids=lambda value: "")
def test_what_would_not_arrive_is_refused(message_type: Any, message: Any, tells: str,
                                          environment: Environment) -> None:
    """A message that would arrive changed, or that no subscriber could decode, is refused with the reason."""
    publisher, _ = opened(environment, message_type)
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError), match=tells):
        publisher.send(message)
    assert pending(environment) == 0


def test_subclasses_of_plain_types(environment: Environment) -> None:
    """A value of a subclass of dict, list or str is sent, since it arrives as an equal value."""

    class Text(str):
        """A str."""

    class Ratio(float):
        """A float."""

    publisher, subscriber = opened(environment, dict)
    publisher.send(Counted({"a": [Text("b"), Ratio(0.5), http.HTTPStatus.OK]}))
    received = subscriber.front()
    assert received == {"a": ["b", 0.5, 200]} and not isinstance(received, Counted)


# What is no message


@EACH_KIND
def test_what_cannot_be_decoded(kind: Kind, environment: Environment) -> None:
    """Bytes that are no message raise DecodeError with their id and payload, stay, and are skipped by pop."""
    publisher, subscriber = opened(environment, kind.message_type)
    publisher.send_many(kind.messages)
    message_id = environment.new_publisher().send(kind.payload)
    publisher.send(kind.messages[0])
    with subscriber.receive_deliveries(timeout=0) as deliveries:
        assert [delivery.message for delivery in deliveries] == kind.messages
        assert [delivery.id for delivery in deliveries] == list(range(1, message_id))
    noun = kind.name.removeprefix("json:")
    for look in (subscriber.front, lambda: next(subscriber.messages(timeout=0)),
                 lambda: next(subscriber.deliveries(timeout=0))):
        with pytest.raises(errors.DecodeError,
                           match=f"^Message {message_id} of .*'a', is not a .*{noun}: .*pop") as caught:
            look()
        assert (caught.value.message_id, caught.value.payload) == (message_id, kind.payload)
        assert "\n" not in str(caught.value)
    subscriber.pop()
    assert subscriber.front() == kind.messages[0]


@EACH_KIND
@pytest.mark.parametrize("shared", [False, True])
def test_what_cannot_be_decoded_becomes_a_dead_letter(kind: Kind, shared: bool, environment: Environment) -> None:
    """Failing to decode a message counts as a failed delivery, so that it becomes a dead letter; others arrive."""
    control = environment.new_control()
    control.add_subscriber("worker", shared=shared, max_deliveries=2, retry_delay_s=0 if shared else None)
    subscriber = environment.new_subscriber("worker", kind.message_type)
    environment.new_publisher().send(kind.payload)
    environment.new_publisher(message_type=kind.message_type).send(kind.messages[0])
    received: List[Any] = []
    for _ in range(3):
        with contextlib.suppress(errors.DecodeError), subscriber.receive_many(timeout=0) as messages:
            received += messages
    assert received == [kind.messages[0]]
    letter, = control.dead_letters("worker")
    assert (letter.payload, letter.error_type) == (kind.payload, "persipubsub.errors.DecodeError")
    assert "is not a" in letter.error_text
    assert control.requeue_dead_letters("worker") == 1
    with pytest.raises(errors.DecodeError, match="^Message 1 of") as caught, subscriber.receive(timeout=0):
        pass
    assert caught.value.message_id == 1


@pytest.mark.parametrize("message_type, payload", [(dict, b'{"a": NaN}'), (list, b"[1e999]"), (str, b'"\xff"'),
                                                   (str, b'"\\ud800"'), (list, b"[" * 100_000), (dict, b"[]"),
                                                   (dict, b""), (list, b"[] []"), (str, "\ufeff\"\"".encode()),
                                                   (list, "[1]".encode("utf-16"))])
def test_what_is_no_json(message_type: Any, payload: bytes, environment: Environment) -> None:
    """What is no JSON in UTF-8, or JSON of another type, is no message, also where Python's json would accept it."""
    environment.new_publisher().send(payload)
    with pytest.raises(errors.DecodeError):
        environment.new_subscriber("a", message_type).front()


def test_an_error_does_not_show_values_of_a_model(environment: Environment) -> None:
    """The error of a model names its fields and what is wrong with them, and not their values, which may be secret."""
    environment.new_publisher().send(b'{"number": "sesame", "lines": [{"article": 5}]}')
    with pytest.raises(errors.DecodeError,
                       match="number: Input should be .*; lines.0.article: Input should be") as caught:
        environment.new_subscriber("a", Invoice).front()
    assert "sesame" not in str(caught.value)
    environment.new_subscriber("a").pop()
    environment.new_publisher().send(b"sesame")
    with pytest.raises(errors.DecodeError, match="is not a .*Invoice: Invalid JSON: ") as caught:
        environment.new_subscriber("a", Invoice).front()
    assert "sesame" not in str(caught.value)
