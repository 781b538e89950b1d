"""Arguments: one that is wrong raises an error that names it, and leaves the queue as it was."""

import itertools
import math
from typing import Any, Callable, Dict, List, NamedTuple

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.forms import AnyPublisher, AnySubscriber
from tests.conformance.queues import NewQueue, Queue, drained, numbered

TYPE, VALUE = errors.ArgumentTypeError, errors.ArgumentError
MIB = 1024**2


class Wrong(NamedTuple):
    """A value that is refused, and how."""

    kind: type
    value: Any


NAMES = [Wrong(TYPE, value) for value in (5, None, b"a", ["a"])]
NAMES += [Wrong(VALUE, value) for value in ("", "x" * 256, "\xe9" * 128, "a\0b", "\ud800")]
TIMEOUTS = [Wrong(TYPE, "1"), Wrong(TYPE, True), Wrong(VALUE, -1), Wrong(VALUE, -0.001), Wrong(VALUE, math.nan)]
COUNTS = [Wrong(TYPE, "1"), Wrong(TYPE, True), Wrong(TYPE, 1.5), Wrong(VALUE, 0), Wrong(VALUE, -1)]


def unchanged(queue: Queue) -> None:
    """Make sure that a queue is as it was, and goes on."""
    queue.publisher().send(b"next")
    assert drained(queue.subscriber()) == [b"first", b"next"]


def refused(queue: Queue, wrong: List[Wrong], names: str, call: Callable[[Any], object]) -> None:
    """Make sure that a call refuses some values, by an error that says what they were given for."""
    queue.publisher().send(b"first")
    for kind, value in wrong:
        with pytest.raises(kind, match=names):
            call(value)
    unchanged(queue)


@pytest.mark.parametrize("method", [
    "add_subscriber", "remove_subscriber",
    pytest.param("prune_all_messages_for", marks=pytest.mark.capability("clearing")),
    pytest.param("rewind", marks=pytest.mark.capability("replay")),
    pytest.param("dead_letters", marks=pytest.mark.capability("dead_letters"))
])
def test_names_of_subscribers(method: str, new_queue: NewQueue) -> None:
    """A name is a str of 1 to 255 bytes of UTF-8 without NUL, wherever it is given."""
    queue, others = new_queue("a"), ["earliest"] if method == "rewind" else []
    refused(queue, NAMES, "identifier", lambda value: getattr(queue.control, method)(value, *others))


@pytest.mark.both_forms
def test_the_name_of_an_endpoint(new_queue: NewQueue) -> None:
    """A subscriber has a name of 1 to 255 bytes of UTF-8 without NUL."""
    queue = new_queue("a")
    refused(queue, NAMES, "identifier", queue.subscriber)


def test_lists_of_names(new_queue: NewQueue) -> None:
    """``new_control`` takes an iterable of names, and not one name; with a wrong one it adds none."""
    queue = new_queue("a")
    refused(queue, [Wrong(TYPE, "ab"), Wrong(TYPE, b"ab"), Wrong(TYPE, 5)], "subscriber_ids",
            queue.environment.new_control)
    wrong = [Wrong(kind, ["new", value]) for kind, value in NAMES]
    for kind, value in wrong:
        with pytest.raises(kind, match="identifier"):
            queue.environment.new_control(value)
    with pytest.raises(errors.UnknownSubscriberError):
        queue.subscriber("new")


SETTINGS: Dict[str, List[Wrong]] = {
    "high_watermark": [Wrong(TYPE, 5), Wrong(TYPE, {})],
    "high_water_mark": [Wrong(TYPE, 5)],
    "strategy": [Wrong(TYPE, 0), Wrong(TYPE, "prune_first")],
    "durability": [Wrong(TYPE, "POWER_LOSS")],
    "create": [Wrong(TYPE, 1)],
    "retention_s": [Wrong(TYPE, "1"), Wrong(VALUE, -1),
                    Wrong(VALUE, math.nan),
                    Wrong(VALUE, 1e12)],
    "deduplication_window_s": [Wrong(TYPE, "1"), Wrong(VALUE, 0), Wrong(VALUE, 1e12)],
    "deduplication_max": [Wrong(TYPE, 1.5), Wrong(VALUE, 0), Wrong(VALUE, 10**7 + 1)],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, new_queue: NewQueue) -> None:
    """A setting of a wrong type or outside its limits is refused."""
    queue = new_queue("a")
    refused(queue, SETTINGS[name], name, lambda value: queue.environment.new_control(**{name: value}))


def test_the_mark_and_the_strategy(new_queue: NewQueue) -> None:
    """``set_hwm`` takes a HighWaterMark, ``set_strategy`` a Strategy."""
    queue = new_queue("a")
    refused(queue, [Wrong(TYPE, None), Wrong(TYPE, 5)], "hwm", queue.control.set_hwm)
    for wrong in (None, 0, "prune_first"):
        with pytest.raises(TYPE, match="strategy"):
            queue.control.set_strategy(wrong)  # type: ignore[arg-type]  # on purpose


MARKS: Dict[str, List[Wrong]] = {
    "message_timeout":
    [Wrong(TYPE, "5"), Wrong(TYPE, True), *(Wrong(VALUE, value) for value in (0, -1, math.nan, 1e12))],
    "max_messages": [Wrong(TYPE, "5"),
                     Wrong(TYPE, 5.0),
                     Wrong(TYPE, True),
                     Wrong(VALUE, 0),
                     Wrong(VALUE, 2**63)],
    "hwm_db_size": [Wrong(TYPE, 1e9), Wrong(VALUE, 0), Wrong(VALUE, 2**46 + 1)],
}


@pytest.mark.parametrize("name", MARKS)
def test_limits_of_a_mark(name: str) -> None:
    """A limit of a high-water mark of a wrong type or outside its bounds is refused; None is no limit."""
    for kind, value in MARKS[name]:
        with pytest.raises(kind, match=name):
            HighWaterMark(**{name: value})
    assert HighWaterMark(**{name: None}).limits() == {name: None}


def test_two_names_of_one_limit() -> None:
    """``max_messages`` and ``max_msgs_num`` are one limit: both at once are refused."""
    with pytest.raises(TYPE, match="max_msgs_num"):
        HighWaterMark(max_messages=5, max_msgs_num=5)


@pytest.mark.both_forms
def test_messages(new_queue: NewQueue) -> None:
    """A message is like bytes: text has to be encoded first."""
    queue = new_queue("a")
    refused(queue, [Wrong(TYPE, value) for value in ("text", None, 5, [b"x"])], "bytes-like", queue.publisher().send)


@pytest.mark.both_forms
def test_a_message_of_too_many_bytes(new_queue: NewQueue) -> None:
    """A message of more than 1 GiB raises MessageTooLargeError, which is an ArgumentError, and nothing is sent."""
    queue = new_queue("a")
    queue.publisher().send(b"first")
    with pytest.raises(errors.MessageTooLargeError) as raised:
        queue.publisher().send(bytes(1024**3 + 1))
    assert isinstance(raised.value, errors.ArgumentError)
    unchanged(queue)


@pytest.mark.both_forms
def test_batches(new_queue: NewQueue) -> None:
    """A batch is an iterable of messages, and not one message; the error for a wrong one says which."""
    queue = new_queue("a")
    publisher = queue.publisher()
    refused(queue, [Wrong(TYPE, value) for value in (b"x", "x", bytearray(b"x"), 5, None)], "iterable",
            publisher.send_many)
    with pytest.raises(TYPE, match="1"):
        publisher.send_many([b"0", None, b"2"])  # type: ignore[list-item]  # on purpose


@pytest.mark.both_forms
def test_a_batch_without_end(new_queue: NewQueue) -> None:
    """A batch of more than 1,000,000 messages raises BatchTooLargeError, also without end, and nothing is sent."""
    queue = new_queue("a")
    queue.publisher().send(b"first")
    with pytest.raises(errors.BatchTooLargeError) as raised:
        queue.publisher().send_many(itertools.repeat(b""))
    assert isinstance(raised.value, ValueError)
    unchanged(queue)


@pytest.mark.both_forms
def test_a_batch_of_too_many_bytes(new_queue: NewQueue) -> None:
    """A batch of more than 1 GiB raises BatchTooLargeError, and nothing is sent."""
    queue = new_queue("a")
    queue.publisher().send(b"first")
    with pytest.raises(errors.BatchTooLargeError):
        queue.publisher().send_many([bytes(8 * MIB)] * 129)
    unchanged(queue)


WAYS: Dict[str, Callable[..., Any]] = {
    "receive": lambda subscriber, **arguments: subscriber.receive(**arguments),
    "receive_many": lambda subscriber, **arguments: subscriber.receive_many(**arguments),
    "receive_to_top": lambda subscriber, **arguments: subscriber.receive_to_top(**arguments),
    "messages": lambda subscriber, **arguments: subscriber.messages(**arguments),
    "receive_delivery": lambda subscriber, **arguments: subscriber.receive_delivery(**arguments),
    "receive_deliveries": lambda subscriber, **arguments: subscriber.receive_deliveries(**arguments),
    "deliveries": lambda subscriber, **arguments: subscriber.deliveries(**arguments),
}


@pytest.mark.both_forms
@pytest.mark.parametrize("way", WAYS)
def test_timeouts(way: str, new_queue: NewQueue) -> None:
    """A timeout is a number of seconds from 0 on, or None; the call itself raises."""
    queue = new_queue("a")
    refused(queue, TIMEOUTS, "timeout", lambda value: WAYS[way](queue.subscriber(), timeout=value))


@pytest.mark.both_forms
@pytest.mark.parametrize("way, name", [("receive_many", "max_messages"), ("receive_many", "max_bytes"),
                                       ("messages", "acknowledge_every"), ("receive_deliveries", "max_messages"),
                                       ("receive_deliveries", "max_bytes"), ("deliveries", "acknowledge_every")])
def test_counts(way: str, name: str, new_queue: NewQueue) -> None:
    """A number of messages or bytes is an int of 1 at least; the call itself raises."""
    queue = new_queue("a")
    refused(queue, COUNTS, name, lambda value: WAYS[way](queue.subscriber(), **{name: value}))


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("receive")])
def test_retries(way: str, new_queue: NewQueue) -> None:
    """``retries`` is an int of 1 at least, however large."""
    queue = new_queue("a")
    subscriber = queue.environment.new_subscriber("a")
    refused(queue, COUNTS, "retries", lambda value: WAYS[way](subscriber, retries=value))
    with WAYS[way](subscriber, retries=10**400, timeout=0) as found:
        assert not found


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.capability("shared"))])
def test_a_peek(shared: bool, new_queue: NewQueue) -> None:
    """A peek takes an int of 1 at least, however large, and shows what there is."""
    queue = new_queue("a")
    refused(queue, COUNTS, "max_messages", lambda value: queue.control.peek("a", value))
    if shared:
        queue.control.add_subscriber("workers", shared=True)
    queue.publisher().send(b"1")
    assert queue.control.peek("workers" if shared else "a", 10**400) == [b"1"]


SUBSCRIBER_SETTINGS: Dict[str, List[Wrong]] = {
    "shared": [Wrong(TYPE, 1)],
    "lease_s": [Wrong(TYPE, "30"), Wrong(VALUE, 0),
                Wrong(VALUE, math.nan), Wrong(VALUE, 1e10)],
    "max_deliveries": [Wrong(TYPE, 1.5), Wrong(VALUE, 0), Wrong(VALUE, 10**9 + 1)],
    "retry_delay_s": [Wrong(TYPE, "1"), Wrong(VALUE, -1), Wrong(VALUE, 61)],
    "retry_delay_max_s": [Wrong(TYPE, "1"), Wrong(VALUE, 0.5), Wrong(VALUE, 1e10)],
    "dead_letters_max": [Wrong(TYPE, True), Wrong(VALUE, 0),
                         Wrong(VALUE, 10**6 + 1)],
}


@pytest.mark.capability("shared", "dead_letters")
@pytest.mark.parametrize("name", SUBSCRIBER_SETTINGS)
def test_settings_of_a_shared_subscriber(name: str, new_queue: NewQueue) -> None:
    """A setting of a shared subscriber of a wrong type or outside its limits is refused, and nobody is added."""
    queue = new_queue("a")
    refused(queue, SUBSCRIBER_SETTINGS[name], name,
            lambda value: queue.control.add_subscriber("new", **{
                **{
                    "shared": True
                }, name: value
            }))
    with pytest.raises(errors.UnknownSubscriberError):
        queue.subscriber("new")


@pytest.mark.capability("shared", "dead_letters")
@pytest.mark.parametrize("name", ["lease_s", "retry_delay_s", "retry_delay_max_s", "dead_letters_max"])
def test_settings_of_a_plain_subscriber(name: str, new_queue: NewQueue) -> None:
    """What makes sense for a shared subscriber only, or with a limit of deliveries, is refused for a plain one."""
    queue = new_queue("a")
    refused(queue, [Wrong(VALUE, 5)], name, lambda value: queue.control.add_subscriber("a", **{name: value}))


@pytest.mark.capability("dead_letters")
@pytest.mark.parametrize("method", ["requeue_dead_letters", "discard_dead_letters"])
def test_ids_of_dead_letters(method: str, new_queue: NewQueue) -> None:
    """Ids of dead letters are an iterable of ints."""
    queue = new_queue("a")
    refused(queue, [Wrong(TYPE, value) for value in ("1", 1, [True], ["1"])], "id",
            lambda value: getattr(queue.control, method)("a", value))


def test_the_kind_of_a_publisher(new_queue: NewQueue) -> None:
    """``autosync`` is a bool."""
    queue = new_queue("a")
    refused(queue, [Wrong(TYPE, 1), Wrong(TYPE, "yes")], "autosync", queue.environment.new_publisher)


@pytest.mark.both_forms
def test_names_of_arguments(new_queue: NewQueue) -> None:
    """Arguments have their documented names, and ``msg``, ``msgs`` and ``identifier`` as in 1.0.0."""
    queue = new_queue()
    environment = queue.environment
    environment.new_control(subscriber_ids=["a"])
    environment.new_publisher(autosync=False).send(msg=b"0")
    environment.new_publisher().send_many(msgs=numbered(2, 1))
    subscriber = environment.new_subscriber(identifier="a")
    with subscriber.receive(timeout=1, retries=5) as msg:
        assert msg == b"0"
    publisher_of_form: AnyPublisher = queue.publisher()
    publisher_of_form.send(msg=b"3")
    subscriber_of_form: AnySubscriber = queue.subscriber(identifier="a")
    assert drained(subscriber_of_form) == numbered(3, 1)
