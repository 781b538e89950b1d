"""Headers: names and texts that travel with a message, whichever way it takes."""

from typing import Any, Dict, Iterable, List, Mapping

import pytest

from persipubsub import Envelope, HighWaterMark, Strategy, errors
from tests.conformance.forms import AnySubscriber, Msg
from tests.conformance.queues import NewQueue, PassTime, Queue, drained, failed, numbered, received

pytestmark = pytest.mark.both_forms

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tenant": "größe"}
OTHERS = {"content-type": "text/plain"}
#: A message that engines may store in several parts.
LONG = bytes(range(256)) * 600

HEADERS: Dict[str, Mapping[str, str]] = {
    "one": {
        "a": "b"
    },
    "empty text": {
        "a": ""
    },
    "many": {
        f"name-{number}": str(number)
        for number in range(64)
    },
    "a long name": {
        "n" * 255: "text"
    },
    "large": {
        "a": "x" * (64 * 1024 - len('{"a":""}'))
    },
    "all visible characters": {
        "!\"#$%&'()*+,-./0123456789;<=>?@AZ[\\]^_`az{|}~": "text"
    },
    "any text": {
        "a": "\0 \n\t\"\\\N{SNOWMAN}\U0001f600"
    },
    "names differ by case": {
        "Name": "1",
        "name": "2"
    },
}

WRONG: Dict[str, Any] = {
    "too many": {
        f"name-{number}": ""
        for number in range(65)
    },
    "too large": {
        "a": "x" * (64 * 1024 - len('{"a":""}') + 1)
    },
    "too large in UTF-8": {
        "a": "\N{SNOWMAN}" * (32 * 1024)
    },
    "no name": {
        "": "text"
    },
    "a long name": {
        "n" * 256: "text"
    },
    "a colon": {
        "a:b": "text"
    },
    "a space": {
        "a b": "text"
    },
    "a control character": {
        "a\n": "text"
    },
    "not ASCII": {
        "größe": "text"
    },
    "a surrogate": {
        "a": "\ud800"
    },
}
OF_WRONG_TYPE: Dict[str, Any] = {
    "bytes": {
        "a": b"text"
    },
    "a number": {
        "a": 1
    },
    "None": {
        "a": None
    },
    "a name of bytes": {
        b"a": "text"
    },
    "pairs": [("a", "text")],
    "a text": "a=text",
}


def headers_of(subscriber: AnySubscriber) -> List[Mapping[str, str]]:
    """Receive and acknowledge all messages; return their headers."""
    return [one.headers for one in subscriber.deliveries(timeout=0)]


# Sending


@pytest.mark.parametrize("enveloped", [False, True])
@pytest.mark.parametrize("name", HEADERS)
def test_headers_arrive(name: str, enveloped: bool, new_queue: NewQueue) -> None:
    """Headers arrive as they were sent, by argument and in an envelope; other messages have none."""
    queue = new_queue("a")
    publisher, headers = queue.publisher(), HEADERS[name]
    publisher.send(b"before")
    if enveloped:
        publisher.send(Envelope(b"x", headers))
    else:
        publisher.send(b"x", headers=headers)
    publisher.send(b"behind")
    assert headers_of(queue.subscriber()) == [{}, headers, {}]


@pytest.mark.parametrize("headers", [None, {}])
def test_no_headers(headers: Any, new_queue: NewQueue) -> None:
    """Without headers, and with none in a mapping, a message arrives with an empty mapping."""
    queue = new_queue("a")
    queue.publisher().send(b"x", headers=headers)
    queue.publisher().send(Envelope(b"x", headers))
    assert headers_of(queue.subscriber()) == [{}, {}]


def test_a_batch_of_messages_and_envelopes(new_queue: NewQueue) -> None:
    """A batch may have envelopes among its messages; each message arrives with its own headers, in order."""
    queue = new_queue("a")
    msgs: List[Msg] = [b"0", Envelope(b"1", TRACE), Envelope(b"2"), Envelope(LONG, OTHERS), b"4", Envelope(b"", TRACE)]
    ids = list(queue.publisher().send_many(msgs))
    assert ids == list(range(ids[0], ids[0] + 6))
    with queue.subscriber().receive_deliveries(timeout=0) as found:
        assert [one.message for one in found] == [b"0", b"1", b"2", LONG, b"4", b""]
        assert [one.headers for one in found] == [{}, TRACE, {}, OTHERS, {}, TRACE]
        assert [one.id for one in found] == ids


@pytest.mark.parametrize("make", [list, tuple, iter, lambda msgs: (msg for msg in msgs)])
def test_a_batch_of_envelopes_is_any_iterable(make: Any, new_queue: NewQueue) -> None:
    """A batch of envelopes may be any iterable."""
    queue = new_queue("a")
    msgs: Iterable[Envelope[bytes]] = make([Envelope(msg, {"number": msg.decode()}) for msg in numbered(3)])
    queue.publisher().send_many(msgs)
    assert headers_of(queue.subscriber()) == [{"number": str(number)} for number in range(3)]


@pytest.mark.capability("large_batches")
def test_a_large_batch_with_headers(new_queue: NewQueue) -> None:
    """Of a large batch, each message has its headers, also if only some have any."""
    queue = new_queue("a")
    msgs = [Envelope(msg, {"number": msg.decode()}) if int(msg) % 3 else msg for msg in numbered(3000)]
    queue.publisher().send_many(msgs)
    expected = [{"number": str(number)} if number % 3 else {} for number in range(3000)]
    assert headers_of(queue.subscriber()) == expected


@pytest.mark.capability("durability")
def test_headers_with_autosync(new_queue: NewQueue) -> None:
    """With ``autosync`` each message of a batch has its headers."""
    queue = new_queue("a")
    queue.publisher(autosync=True).send_many([Envelope(b"1", TRACE), b"2", Envelope(b"3", OTHERS)])
    assert headers_of(queue.subscriber()) == [TRACE, {}, OTHERS]


def test_headers_are_those_at_the_time_of_sending(new_queue: NewQueue) -> None:
    """What a program does with its mapping after the send changes no message; what arrives is a mapping of its own."""
    queue, headers = new_queue("a", "b"), dict(TRACE)
    queue.publisher().send(b"x", headers=headers)
    headers.clear()
    for identifier in "ab":
        assert headers_of(queue.subscriber(identifier)) == [TRACE]


def test_plain_messages_of_envelopes(new_queue: NewQueue) -> None:
    """What receives plain messages receives those of envelopes without their headers."""
    queue = new_queue("a")
    queue.publisher().send_many([Envelope(msg, TRACE) for msg in numbered(4)])
    subscriber = queue.subscriber()
    assert subscriber.front() == b"0" == received(subscriber)
    subscriber.pop()
    with subscriber.receive_many(1, timeout=0) as msgs:
        assert msgs == [b"2"]
    assert drained(subscriber) == [b"3"]


# Mistakes


@pytest.mark.parametrize("enveloped", [False, True])
@pytest.mark.parametrize(
    "name, kind",
    [*((name, errors.ArgumentError) for name in WRONG), *((name, errors.ArgumentTypeError) for name in OF_WRONG_TYPE)])
def test_invalid_headers(name: str, kind: type, enveloped: bool, new_queue: NewQueue) -> None:
    """Headers that cannot be sent are refused, alone and in a batch, of which nothing is sent."""
    queue, headers = new_queue("a"), {**WRONG, **OF_WRONG_TYPE}[name]
    publisher = queue.publisher()
    with pytest.raises(kind):
        if enveloped:
            publisher.send(Envelope(b"x", headers))
        else:
            publisher.send(b"x", headers=headers)
    with pytest.raises(kind, match="Message 1 of the batch"):
        publisher.send_many([b"x", Envelope(b"x", headers)])
    assert queue.subscriber().front() is None


def test_headers_inside_and_beside(new_queue: NewQueue) -> None:
    """Headers both in an envelope and beside it are refused; the envelope may have something else."""
    queue = new_queue("a")
    publisher = queue.publisher()
    with pytest.raises(errors.ArgumentTypeError, match="headers"):
        publisher.send(Envelope(b"x", TRACE), headers=OTHERS)
    publisher.send(Envelope(b"x"), headers=OTHERS)
    assert headers_of(queue.subscriber()) == [OTHERS]


@pytest.mark.parametrize("wrong", [Envelope("text"), Envelope(None), Envelope(Envelope(b"x"))])
def test_envelopes_of_what_is_no_message(wrong: Any, new_queue: NewQueue) -> None:
    """An envelope of what cannot be sent is refused as that is, alone and in a batch, of which nothing is sent."""
    queue = new_queue("a")
    with pytest.raises(errors.ArgumentTypeError):
        queue.publisher().send(wrong)
    with pytest.raises(errors.ArgumentTypeError, match="Message 1"):
        queue.publisher().send_many([b"x", wrong])
    assert queue.subscriber().front() is None


@pytest.mark.capability("high_water_mark")
def test_headers_count_as_bytes(new_queue: NewQueue) -> None:
    """Headers count toward the size of a message."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=50_000))
    headers = {"a": "x" * 30_000}
    queue.publisher().send(b"", headers=headers)
    with pytest.raises(errors.MessageTooLargeError):
        queue.publisher().send(bytes(30_000), headers=headers)


# Wherever a message goes


@pytest.mark.capability("delayed")
@pytest.mark.parametrize("msg", [b"x", LONG])
@pytest.mark.parametrize("delay_s", [0, 1])
def test_headers_of_delayed_messages(delay_s: float, msg: bytes, new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message arrives with its headers, by argument and in an envelope, beside one without."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send_later(msg, delay_s=delay_s, headers=TRACE)
    publisher.send_later(b"without", delay_s=delay_s)
    publisher.send_later(Envelope(msg, OTHERS), delay_s=delay_s)
    pass_time(delay_s + 0.1)
    assert [(one.message, one.headers) for one in queue.subscriber().deliveries(timeout=0)] \
        == [(msg, TRACE), (b"without", {}), (msg, OTHERS)]


@pytest.mark.capability("delayed")
def test_a_cancelled_message_with_headers(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message with headers can be cancelled, and nothing of it arrives."""
    queue = new_queue("a")
    message = queue.publisher().send_later(LONG, delay_s=1, headers=TRACE)
    queue.publisher().send_later(b"x", delay_s=1)
    assert queue.publisher().cancel(message)
    pass_time(1.1)
    assert headers_of(queue.subscriber()) == [{}]


@pytest.mark.capability("dead_letters")
@pytest.mark.parametrize("msg", [b"x", LONG])
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.capability("shared"), id="shared")])
def test_headers_of_dead_letters(shared: bool, msg: bytes, new_queue: NewQueue) -> None:
    """A dead letter has its headers; once it is requeued, it arrives with them, and may die again."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=shared, max_deliveries=1)
    queue.publisher().send_many([Envelope(msg, TRACE), b"without"])
    for _ in range(2):
        assert failed(queue.subscriber()) == msg
        letter, = queue.control.dead_letters("a")
        assert (letter.payload, letter.headers) == (msg, TRACE)
        queue.control.requeue_dead_letters("a")
    assert headers_of(queue.subscriber()) == [TRACE, {}]


@pytest.mark.capability("history", "retention")
def test_headers_in_the_history(new_queue: NewQueue) -> None:
    """The history has the headers of each message, also of those that all have acknowledged."""
    queue = new_queue("a", retention_s=60)
    queue.publisher().send_many([Envelope(b"0", TRACE), b"1", Envelope(LONG, OTHERS)])
    assert received(queue.subscriber()) == b"0"
    assert [one.headers for one in queue.control.history()] == [TRACE, {}, OTHERS]


@pytest.mark.capability("replay", "retention")
def test_headers_of_replayed_messages(new_queue: NewQueue) -> None:
    """A message that is received again has its headers again, for a new subscriber as well."""
    queue = new_queue("a", retention_s=60)
    queue.publisher().send_many([Envelope(b"0", TRACE), b"1"])
    assert headers_of(queue.subscriber()) == [TRACE, {}]
    queue.control.rewind("a", "earliest")
    queue.control.add_subscriber("b", start="earliest")
    for identifier in "ab":
        assert headers_of(queue.subscriber(identifier)) == [TRACE, {}]


@pytest.mark.capability("high_water_mark")
@pytest.mark.parametrize(
    "strategy", [Strategy.prune_first,
                 pytest.param(Strategy.prune_last, marks=pytest.mark.capability("prune_last"))])
def test_dropped_messages_leave_no_headers(strategy: Strategy, new_queue: NewQueue) -> None:
    """No message has the headers of one that was dropped."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=4), strategy=strategy)
    queue.publisher().send_many([Envelope(msg, {"number": msg.decode()}) for msg in numbered(20)])
    queue.publisher().send_many([b"without"] * 2)
    found = [(one.message, one.headers) for one in queue.subscriber().deliveries(timeout=0)]
    expected = [({} if msg == b"without" else {"number": msg.decode()}) for msg, _ in found]
    assert found and [headers for _, headers in found] == expected


@pytest.mark.capability("persistent")
def test_headers_are_persistent(new_queue: NewQueue) -> None:
    """Messages have their headers when the queue is opened again."""
    queue: Queue = new_queue("a")
    queue.publisher().send_many([Envelope(LONG, TRACE), b"x"])
    queue.environment.close()
    with queue.opened() as environment:
        assert headers_of(environment.new_subscriber("a")) == [TRACE, {}]


@pytest.mark.capability("backup", "dead_letters", "delayed")
def test_a_backup_has_the_headers(new_queue: NewQueue, tmp_path: Any, pass_time: PassTime) -> None:
    """A backup has the headers of messages, dead letters and delayed messages."""
    queue = new_queue("b")
    queue.control.add_subscriber("a", max_deliveries=1)
    queue.publisher().send(b"x", headers=TRACE)
    queue.publisher().send_later(b"later", delay_s=1, headers=OTHERS)
    failed(queue.subscriber())
    queue.control.backup(tmp_path / "copy")
    pass_time(1.1)
    with queue.engine.open(tmp_path / "copy") as environment:
        assert headers_of(environment.new_subscriber("b")) == [TRACE, OTHERS]
        assert [letter.headers for letter in environment.new_control().dead_letters("a")] == [TRACE]
