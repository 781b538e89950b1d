"""Headers of messages: they arrive as they were sent, go wherever their message goes, and are deleted with it."""

import asyncio
import collections
import itertools
import pathlib
import pickle
import shutil
import tempfile
import types
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

import hypothesis
import lmdb
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import (Control, Delivery, Durability, Envelope, Environment, HighWaterMark, Publisher, Reject, Retry,
                         Strategy, Subscriber, clock, compaction, errors, recovery)
from persipubsub.delayed import DelayedMessage
from tests.concurrency import process, told

MakeEnvironment = Callable[..., Environment]
Headers = Dict[str, str]

MIB = 1024**2
#: The largest payload of one part.
PART_BYTES = 65_520
#: Whatever a text may contain, and names with every character that is special in JSON.
HEADERS: Headers = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "empty": "",
    "text": "\0\n\"\\\x7f\xe9\u2028\U0001f600",
    "\"'\\{}!~": "[]",
    "n" * 255: "long name"
}


class Queue(NamedTuple):
    """A queue with the subscriber "a", which has dead letters, and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber

    def received(self) -> List[Headers]:
        """Receive and acknowledge everything that is there; return the headers."""
        return [dict(delivery.headers) for delivery in self.subscriber.deliveries(timeout=0)]


@pytest.fixture(name="queue")
def queue_fixture(new_environment: MakeEnvironment) -> Queue:
    """Set up a queue that does not wait for the disk."""
    return opened(new_environment(durability=Durability.PROCESS_CRASH))


def opened(environment: Environment) -> Queue:
    """Open a queue, and add the subscriber."""
    control = environment.new_control()
    control.add_subscriber("a", max_deliveries=2)
    return Queue(environment, control, environment.new_publisher(), environment.new_subscriber("a"))


class Size(NamedTuple):
    """How much a sub-database has."""

    records: int
    pages: int


def sizes(path: pathlib.Path) -> Dict[str, Size]:
    """Return what the sub-databases have in which headers are stored, and that of the messages, as LMDB counts it."""
    names = ("data_db", "chunk_db", "letter_db", "delayed_db")
    with tempfile.TemporaryDirectory() as directory:
        # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
        shutil.copyfile(path / "data.mdb", pathlib.Path(directory) / "data.mdb")
        with lmdb.Environment(directory, readonly=True, lock=False, max_dbs=32) as raw:
            databases = {name: raw.open_db(name.encode(), create=False) for name in names}
            with raw.begin() as txn:
                stats = {name: txn.stat(database) for name, database in databases.items()}
    return {
        name: Size(stat["entries"], stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
        for name, stat in stats.items()
    }


NOTHING = dict.fromkeys(("data_db", "chunk_db", "letter_db", "delayed_db"), Size(0, 0))


def left(queue: Queue) -> Dict[str, Size]:
    """Return what the sub-databases have once everything is deleted that may be."""
    assert queue.control.check() == ()
    queue.control.prune_dangling_messages()
    return sizes(queue.environment.path)


@pytest.fixture(name="moved")
def moved_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets time pass; otherwise it stands still."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)

    def move(seconds: float) -> None:
        nonlocal now_us
        now_us += round(seconds * 1e6)

    return move


# How they are sent


def send(publisher: Publisher, headers: Headers) -> None:
    """Send a message with headers beside it."""
    publisher.send(b"x", headers=headers)


def send_envelope(publisher: Publisher, headers: Headers) -> None:
    """Send an envelope."""
    publisher.send(Envelope(b"x", headers))


def send_envelopes(publisher: Publisher, headers: Headers) -> None:
    """Send an envelope in a batch."""
    publisher.send_many([Envelope(b"x", headers)])


def send_deduplicated(publisher: Publisher, headers: Headers) -> None:
    """Send a message with headers and a deduplication id, twice; the second one is not stored."""
    for value in (headers, {"not": "stored"}):
        publisher.send(Envelope(b"x", value), "an id")


def send_envelopes_deduplicated(publisher: Publisher, headers: Headers) -> None:
    """Send a batch whose messages have one deduplication id; the first one is stored."""
    publisher.send_many([Envelope(b"x", headers, "an id"), Envelope(b"y", {"not": "stored"}, "an id")])


def send_now(publisher: Publisher, headers: Headers) -> None:
    """Send a message that is due at once."""
    publisher.send_later(b"x", delay_s=0, headers=headers)


SENDS = [send, send_envelope, send_envelopes, send_deduplicated, send_envelopes_deduplicated, send_now]


@pytest.mark.parametrize("sends", SENDS)
def test_however_it_is_sent(sends: Callable[[Publisher, Headers], None], queue: Queue) -> None:
    """Headers arrive as they were sent, however the message is sent; the message is what it would be without."""
    sends(queue.publisher, HEADERS)
    assert queue.subscriber.front() == b"x"
    assert queue.received() == [HEADERS]


def test_sent_by_a_task(queue: Queue) -> None:
    """Tasks send headers in the same ways."""

    async def main() -> None:
        publisher = queue.environment.new_async_publisher()
        await publisher.send(b"1", headers=HEADERS)
        await publisher.send(Envelope(b"2", HEADERS))
        assert await publisher.send_many([Envelope(b"3", HEADERS), b"4"]) == range(3, 5)
        await publisher.send_later(b"5", delay_s=0, headers=HEADERS)
        await publisher.send_later(Envelope(b"6", HEADERS), delay_s=0)

    asyncio.run(main())
    assert queue.received() == [HEADERS, HEADERS, HEADERS, {}, HEADERS, HEADERS]


@pytest.mark.parametrize("autosync", [False, True])
@pytest.mark.parametrize("payload_bytes", [0, 1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES - 8, MIB])
def test_batches_of_which_some_have_headers(payload_bytes: int, autosync: bool, queue: Queue) -> None:
    """Each message of a batch arrives with its own headers, whatever its size, and whichever messages have some."""
    batch = [(b"%d" % number * payload_bytes)[:payload_bytes] for number in range(6)]
    expected = [HEADERS, {}, {"a": "1"}, {}, {}, {"b": "2"}]
    publisher = queue.environment.new_publisher(autosync)
    publisher.send_many([Envelope(msg, headers) if headers else msg for msg, headers in zip(batch, expected)])
    publisher.send_many(batch)
    with queue.subscriber.receive_deliveries(timeout=0) as deliveries:
        assert [delivery.message for delivery in deliveries] == batch * 2
        assert [delivery.headers for delivery in deliveries] == expected + [{}] * 6
    assert left(queue) == NOTHING


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7e, exclude_characters=":"), min_size=1, max_size=20)


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(batch=st.lists(st.one_of(st.none(), st.dictionaries(NAMES, TEXTS, max_size=5)), min_size=1))
def test_any_text_arrives(batch: List[Optional[Headers]], queue: Queue) -> None:
    """Any text that is Unicode arrives, in any message of a batch, in the order of its names."""
    queue.publisher.send_many([Envelope(b"x", headers) for headers in batch])
    found = queue.received()
    assert [list(headers.items()) for headers in found] == [list((headers or {}).items()) for headers in batch]


def test_no_headers_cost_no_record(queue: Queue) -> None:
    """None and no headers are the same, and store nothing beside the message."""
    queue.publisher.send(b"1", headers={})
    queue.publisher.send_many([Envelope(b"2"), Envelope(b"3", {}), b"4"])
    assert sizes(queue.environment.path)["chunk_db"] == Size(0, 0)
    assert queue.received() == [{}, {}, {}, {}]


def test_any_mapping_is_copied(queue: Queue) -> None:
    """Any mapping may be sent, and what becomes of it afterwards does not matter."""

    class Text(str):
        """A text of a program's own."""

    headers = {"a": "1"}
    mappings: List[Mapping[str, str]] = [
        headers, types.MappingProxyType(headers),
        collections.ChainMap(headers), {
            Text("a"): Text("1")
        }
    ]
    for mapping in mappings:
        queue.publisher.send(b"x", headers=mapping)
    delayed = queue.publisher.send_later(Envelope(b"x", headers), delay_s=0)
    headers["a"] = "2"
    assert delayed.number and queue.received() == [{"a": "1"}] * 5


def test_a_kind_of_envelope_is_an_envelope(queue: Queue) -> None:
    """A program's own subclass of Envelope may stand wherever an Envelope may."""

    class Order(Envelope[bytes]):
        """An envelope of a program's own."""

    queue.publisher.send(Order(b"1", {"a": "1"}))
    queue.publisher.send_many([Order(b"2", {"a": "2"})])
    queue.publisher.send_many([b"3", Order(b"4", {"a": "4"})])
    queue.publisher.send_later(Order(b"5", {"a": "5"}), delay_s=0)
    assert queue.received() == [{"a": "1"}, {"a": "2"}, {}, {"a": "4"}, {"a": "5"}]


# Their limits


def test_the_most_headers(queue: Queue) -> None:
    """64 headers, a name of 255 characters, and 64 KiB as JSON arrive, also delayed and as a dead letter."""
    many = {f"{number:0255}": "x" for number in range(64)}
    large = {"a": "x" * (64 * 1024 - len('{"a":""}'))}
    for headers in (many, large):
        queue.publisher.send(b"x", headers=headers)
        queue.publisher.send_later(b"y", delay_s=0, headers=headers)
        with queue.subscriber.receive_many(timeout=0):
            raise Reject("no")
        assert [letter.headers for letter in queue.control.dead_letters("a")] == [headers, headers]
        assert queue.control.check() == ()
        assert queue.control.discard_dead_letters("a") == 2
    with pytest.raises(errors.ArgumentError, match="at most 65536 bytes"):
        queue.publisher.send(b"x", headers={"a": large["a"] + "x"})
    assert left(queue) == NOTHING


# How they arrive


def test_however_it_is_received(queue: Queue) -> None:
    """Every way to receive deliveries gives the headers, and each delivery its own; plain messages stay plain."""
    for _ in range(5):
        queue.publisher.send(b"x", headers=HEADERS)
    subscriber, found = queue.subscriber, []
    looked = subscriber.front_delivery()
    assert looked is not None and looked.headers == HEADERS
    looked.headers["a"] = "b"  # type: ignore[index]  # to show that it is not shared with others
    with subscriber.receive(timeout=0) as msg:
        assert msg == b"x"
    with subscriber.receive_delivery(timeout=0) as delivery:
        found.append(delivery)
    with subscriber.receive_deliveries(2, timeout=0) as deliveries:
        found += deliveries
    found += subscriber.deliveries(timeout=0, acknowledge_every=3)
    assert [delivery and delivery.headers for delivery in found] == [HEADERS] * 4
    assert [delivery and delivery.id for delivery in found] == [2, 3, 4, 5]
    with subscriber.receive_delivery(timeout=0) as delivery:
        assert delivery is None
    with subscriber.receive_deliveries(timeout=0) as deliveries:
        assert deliveries == []
    assert subscriber.front_delivery() is None


def test_received_by_a_task(queue: Queue) -> None:
    """Tasks receive headers in the same ways."""
    for _ in range(4):
        queue.publisher.send(b"x", headers=HEADERS)

    async def main() -> List[Any]:
        subscriber = queue.environment.new_async_subscriber("a")
        found: List[Any] = [await subscriber.front_delivery()]
        async with subscriber.receive(timeout=0) as msg:
            assert msg == b"x"
        async with subscriber.receive_delivery(timeout=0) as delivery:
            found.append(delivery)
        async with subscriber.receive_deliveries(1, timeout=0) as deliveries:
            found += deliveries
        async for delivery in subscriber.deliveries(timeout=0):
            found.append(delivery)
        async with subscriber.receive_delivery(timeout=0) as delivery:
            assert delivery is None
        return found

    found = asyncio.run(main())
    assert [delivery.headers for delivery in found] == [HEADERS] * 4
    assert [delivery.id for delivery in found] == [1, 2, 3, 4]


def receive_in_a_process(connection: Connection, path: pathlib.Path) -> None:
    """Receive deliveries, and send some back: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        for delivery in environment.new_subscriber("workers").deliveries(timeout=0):
            connection.send(delivery)
        environment.new_publisher().send(b"from there", headers=HEADERS)


def test_through_processes(queue: Queue) -> None:
    """Another process receives headers, here as a worker, and sends some; a Delivery can be pickled."""
    queue.control.add_subscriber("workers", shared=True)
    queue.publisher.send(bytes(MIB), headers=HEADERS)
    sent = queue.subscriber.front_delivery()
    with process(receive_in_a_process, queue.environment.path) as other:
        assert told(other) == sent
    assert queue.received() == [HEADERS, HEADERS]


# Wherever the message goes


def test_retained_messages_keep_them(queue: Queue) -> None:
    """The history shows headers, and a subscriber that is moved back, or begins earlier, receives them again."""
    queue.control.set_retention(3600)
    queue.publisher.send(b"1", headers=HEADERS)
    queue.publisher.send(bytes(MIB), headers={"a": "b"})
    assert queue.received() == [HEADERS, {"a": "b"}]
    assert [message.headers for message in queue.control.history()] == [HEADERS, {"a": "b"}]
    assert queue.control.rewind("a", "earliest") == 2
    assert queue.received() == [HEADERS, {"a": "b"}]
    queue.control.add_subscriber("b", start="earliest")
    with queue.environment.new_subscriber("b").receive_deliveries(timeout=0) as deliveries:
        assert [delivery.headers for delivery in deliveries] == [HEADERS, {"a": "b"}]


@pytest.mark.parametrize("payload_bytes", [1, PART_BYTES - 16, MIB])
@pytest.mark.parametrize("shared", [False, True])
def test_dead_letters_keep_them(shared: bool, payload_bytes: int, queue: Queue, moved: Callable[[float], None]) -> None:
    """A message keeps its headers as a dead letter, requeued, as a dead letter again, and in its last delivery."""
    if shared:
        queue.control.add_subscriber("w", shared=True, max_deliveries=2, retry_delay_s=1)
    name = "w" if shared else "a"
    queue.publisher.send_many([Envelope(bytes(payload_bytes), HEADERS), b"without"])
    subscriber = queue.environment.new_subscriber(name)
    for _ in range(2):
        for count in (1, 2):
            with pytest.raises(ZeroDivisionError), subscriber.receive_delivery(timeout=0) as delivery:
                assert delivery is not None
                assert (delivery.id, delivery.delivery_count, delivery.headers) == (1, count, HEADERS)
                raise ZeroDivisionError
            moved(1)
        assert [(letter.id, letter.headers) for letter in queue.control.dead_letters(name)] == [(1, HEADERS)]
        assert queue.control.requeue_dead_letters(name) == 1
        assert queue.control.check() == ()
    found = list(subscriber.deliveries(timeout=0))
    assert [(delivery.id, delivery.headers) for delivery in found] == [(1, HEADERS), (2, {})]
    if shared:
        queue.control.remove_subscriber("a")
    assert left(queue) == NOTHING


@pytest.mark.parametrize("payload_bytes", [1, PART_BYTES, MIB])
def test_delayed_messages_keep_them(payload_bytes: int, queue: Queue, moved: Callable[[float], None]) -> None:
    """A delayed message keeps its headers until it is due; a cancelled one takes them with it."""
    delayed: List[DelayedMessage] = []
    for number in range(3):
        headers = {"number": str(number)}
        delayed.append(queue.publisher.send_later(Envelope(bytes(payload_bytes), headers), delay_s=60))
    assert queue.control.check() == ()
    assert queue.publisher.cancel(delayed[1]) and not queue.publisher.cancel(delayed[1])
    moved(61)
    assert queue.received() == [{"number": "0"}, {"number": "2"}]
    assert left(queue) == NOTHING


class Kept(NamedTuple):
    """The headers that a queue has: of messages that are awaited, that are dead letters, and that are delayed."""

    awaited: List[Headers]
    dead: List[Headers]
    delayed: List[Headers]


def kept(queue: Queue, moved: Callable[[float], None]) -> Kept:
    """Receive everything from a queue, at last what is delayed."""
    dead = [dict(letter.headers) for letter in queue.control.dead_letters("a")]
    awaited = queue.received()
    moved(1000)
    delayed = queue.received()
    moved(-1000)
    return Kept(awaited, dead, delayed)


EVERYTHING = Kept([HEADERS, {"large": "1"}, {}], [{"dead": "2"}], [{"delayed": "3"}])


def fill(queue: Queue) -> None:
    """Send messages of every kind: of a requeued one comes first."""
    publisher = queue.publisher
    publisher.send_many([Envelope(b"requeued", HEADERS), Envelope(bytes(MIB), {"dead": "2"})])
    with queue.subscriber.receive_many(timeout=0):
        raise Reject("no")
    assert queue.control.requeue_dead_letters("a", [1]) == 1
    publisher.send_many([Envelope(bytes(MIB), {"large": "1"}), b"without"])
    publisher.send_later(Envelope(bytes(MIB), {"delayed": "3"}), delay_s=1000)


@pytest.mark.parametrize("ruin", [False, True])
def test_recovery_keeps_them(ruin: bool, queue: Queue, moved: Callable[[float], None]) -> None:
    """A recovery saves the headers of all messages, also where the root of the file is lost."""
    fill(queue)
    path = queue.environment.path
    queue.environment.close()
    if ruin:
        with open(path / "data.mdb", "r+b") as file:
            file.write(bytes(2 * 4096))  # both pages from which LMDB begins
    recovery.recover(path)
    with persipubsub.new_environment(path) as environment:
        found = kept(opened(environment), moved)
    assert found == EVERYTHING if not ruin else sorted(map(str, found.awaited)) == sorted(map(str, EVERYTHING.awaited))


def test_copies_keep_them(queue: Queue, moved: Callable[[float], None], tmp_path: pathlib.Path) -> None:
    """A backup, and a file that was compacted, have the headers of all messages."""
    fill(queue)
    path = queue.environment.path
    queue.control.backup(tmp_path / "copy")
    queue.environment.close()
    compaction.compact(path)
    for copy in (path, tmp_path / "copy"):
        with persipubsub.new_environment(copy) as environment:
            assert kept(opened(environment), moved) == EVERYTHING
            assert environment.new_control().check() == ()


def test_values_can_be_pickled(queue: Queue) -> None:
    """Envelopes, deliveries and outcomes pickle with all that they have."""
    queue.publisher.send(b"x", headers=HEADERS)
    delivery = queue.subscriber.front_delivery()
    for value in (delivery, Envelope(b"x", HEADERS, "an id"), Envelope(b"x")):
        assert pickle.loads(pickle.dumps(value)) == value
    assert isinstance(delivery, Delivery) and delivery.sent_at.utcoffset() is not None
    for delay_s in (None, 0, 1.5):
        retry = pickle.loads(pickle.dumps(Retry(delay_s)))
        assert isinstance(retry, Retry) and (retry.delay_s, str(retry)) == (delay_s, str(Retry(delay_s)))
    reject = pickle.loads(pickle.dumps(Reject("no")))
    assert isinstance(reject, Reject) and (reject.reason, str(reject)) == ("no", "no")


def test_values_can_be_in_a_set(queue: Queue) -> None:
    """Envelopes, deliveries, stored messages and dead letters are hashable, although their headers are a dict."""
    queue.control.set_retention(1000)
    queue.publisher.send(b"x", headers=HEADERS)
    delivery = queue.subscriber.front_delivery()
    with queue.subscriber.receive(timeout=0):
        raise Reject("no")
    for one, equal in ((delivery, pickle.loads(pickle.dumps(delivery))), (Envelope(b"x",
                                                                                   HEADERS), Envelope(b"x", HEADERS)),
                       (*queue.control.history(), *queue.control.history()), (*queue.control.dead_letters("a"),
                                                                              *queue.control.dead_letters("a"))):
        assert {one} == {equal} and one.headers == HEADERS


# What deletes the message deletes them


def acknowledge(queue: Queue) -> None:
    """Acknowledge all messages one by one, unread."""
    for _ in range(3):
        queue.subscriber.pop()


def acknowledge_together(queue: Queue) -> None:
    """Acknowledge all messages in one commit."""
    with queue.subscriber.receive_many(timeout=0) as msgs:
        assert len(msgs) == 3


def clear(queue: Queue) -> None:
    """Delete all messages."""
    assert queue.control.clear_messages() == 3


def skip(queue: Queue) -> None:
    """Move the subscriber to the end."""
    assert queue.control.prune_all_messages_for("a") == 3


def remove(queue: Queue) -> None:
    """Remove the subscriber."""
    queue.control.remove_subscriber("a")


def remove_all(queue: Queue) -> None:
    """Remove all subscribers, with the messages."""
    queue.control.clear_all_subscribers()


def bury_and_discard(queue: Queue) -> None:
    """Make all messages dead letters, and delete those."""
    with queue.subscriber.receive_many(timeout=0):
        raise Reject("no")
    assert queue.control.discard_dead_letters("a") == 3


def remove_with_dead_letters(queue: Queue) -> None:
    """Make some messages dead letters, requeue one, and remove the subscriber."""
    with queue.subscriber.receive_many(timeout=0):
        raise Reject("no")
    assert queue.control.requeue_dead_letters("a", [1]) == 1
    queue.control.remove_subscriber("a")


DELETIONS = [
    acknowledge, acknowledge_together, clear, skip, remove, remove_all, bury_and_discard, remove_with_dead_letters
]


@pytest.mark.parametrize("deletes", DELETIONS)
@pytest.mark.parametrize("payload_bytes", [1, PART_BYTES, MIB])
def test_no_header_is_left(payload_bytes: int, deletes: Callable[[Queue], None], queue: Queue) -> None:
    """Whatever deletes messages deletes their headers, records and pages."""
    queue.publisher.send_many([Envelope(bytes(payload_bytes), HEADERS)] * 3)
    assert sizes(queue.environment.path)["chunk_db"].records >= 3
    deletes(queue)
    assert left(queue) == NOTHING


def test_expiry_leaves_no_header(queue: Queue, moved: Callable[[float], None]) -> None:
    """Messages that expire take their headers with them."""
    queue.control.set_hwm(message_timeout=60)
    queue.publisher.send_many([Envelope(b"x", HEADERS)] * 3)
    moved(61)
    assert queue.control.prune_dangling_messages() == 3
    assert left(queue) == NOTHING


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
@pytest.mark.parametrize("mark", [HighWaterMark(max_messages=4), HighWaterMark(hwm_db_size=300_000)])
def test_an_overflow_leaves_no_header(mark: HighWaterMark, strategy: Strategy,
                                      new_environment: MakeEnvironment) -> None:
    """Messages that are dropped at the high-water mark take their headers with them; the others keep theirs."""
    queue = opened(new_environment(durability=Durability.PROCESS_CRASH, high_watermark=mark, strategy=strategy))
    for number in range(30):
        queue.publisher.send_many([Envelope(b"%d" % number, {"number": str(number), "large": "x" * 30_000})])
    assert queue.control.check() == ()
    records = sizes(queue.environment.path)
    assert records["chunk_db"].records == records["data_db"].records == queue.control.status().messages < 12
    for delivery in queue.subscriber.deliveries(timeout=0):
        assert delivery.headers["number"].encode() == delivery.message
    assert left(queue) == NOTHING


def test_a_batch_that_overflows_keeps_the_right_headers(new_environment: MakeEnvironment) -> None:
    """Of a batch that exceeds the mark, each message that stays has its own headers."""
    for strategy, mark in itertools.product((Strategy.prune_first, Strategy.prune_last), range(2, 12)):
        queue = opened(
            new_environment(name=f"{strategy.name} {mark}",
                            durability=Durability.PROCESS_CRASH,
                            high_watermark=HighWaterMark(max_messages=mark),
                            strategy=strategy))
        queue.publisher.send(Envelope(b"0", {"number": "0"}))
        queue.publisher.send_many(
            [Envelope(b"%d" % number, {"number": str(number)}) if number % 3 else b"" for number in range(1, 30)])
        with queue.subscriber.receive_deliveries(timeout=0) as found:
            assert 1 <= len(found) <= mark
            for delivery in found:
                assert delivery.headers.get("number", "").encode() == delivery.message


def many_with_headers() -> Iterator[Envelope[bytes]]:
    """Return more messages with headers than one transaction deletes."""
    return (Envelope(b"x", {"a": "b"}) for _ in range(25_000))


def test_a_large_removal_leaves_no_header(queue: Queue) -> None:
    """Of more messages than one transaction deletes, later ones delete the others, with their headers."""
    queue.publisher.send_many(many_with_headers())
    assert queue.control.clear_messages() == 25_000
    assert queue.control.check() == ()
    queue.publisher.send(b"y", headers={"c": "d"})
    assert queue.received() == [{"c": "d"}]
    for _ in range(3):
        queue.control.prune_dangling_messages()
    assert left(queue) == NOTHING
