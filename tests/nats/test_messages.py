"""Headers, deliveries and outcomes of messages on a cluster."""

import asyncio
import datetime
import itertools
import time
from typing import Any, Iterator

import pytest

import persipubsub
from persipubsub import Envelope, Reject, Retry, errors
from persipubsub.nats_engine import state
from tests.conformance.queues import drained, eventually, received, start, warnings_of

HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Nats-Msg-Id": "\N{SNOWMAN} \n:x"}


@pytest.fixture(name="environment")
def environment_fixture(location: str) -> Iterator[persipubsub.Environment]:
    """Set up a queue with a plain subscriber, one that limits its deliveries, and a shared one."""
    with persipubsub.new_environment(location) as environment:
        control = environment.new_control(["plain"])
        control.add_subscriber("limited", max_deliveries=2)
        control.add_subscriber("shared", shared=True, max_deliveries=2, retry_delay_s=0)
        yield environment


KINDS = pytest.mark.parametrize("name", ["plain", "limited", "shared"])


@KINDS
def test_headers_arrive(name: str, environment: persipubsub.Environment) -> None:
    """Headers arrive as they were sent, alone, in a batch and delayed, whatever names and texts they have."""
    publisher = environment.new_publisher()
    publisher.send(b"1", headers=HEADERS)
    publisher.send_many([b"2", Envelope(b"3", headers=HEADERS)])
    publisher.send_later(b"4", delay_s=0.1, headers=HEADERS)
    with environment.new_subscriber(name) as subscriber:
        found = {delivery.message: delivery.headers for delivery in subscriber.deliveries(timeout=1)}
    assert found == {b"1": HEADERS, b"2": {}, b"3": HEADERS, b"4": HEADERS}
    history = {message.payload: message.headers for message in environment.new_control().history()}
    assert history == found


@KINDS
def test_what_a_delivery_says(name: str, environment: persipubsub.Environment) -> None:
    """A delivery has the message id, the time of sending, and how often it was delivered."""
    message_id = environment.new_publisher().send(b"x")
    subscriber, now = environment.new_subscriber(name), datetime.datetime.now(datetime.timezone.utc)
    for count in (1, 2):
        with pytest.raises(ValueError), subscriber.receive_delivery(timeout=1) as delivery:
            assert delivery is not None
            assert (delivery.message, delivery.id, delivery.delivery_count) == (b"x", message_id, count)
            assert abs(delivery.sent_at - now) < datetime.timedelta(seconds=2)
            raise ValueError("no")


@pytest.mark.parametrize("name", ["limited", "shared"])
def test_rejecting(name: str, environment: persipubsub.Environment) -> None:
    """A rejected message is a dead letter at once, with its headers, and keeps them when it is requeued."""
    message_id = environment.new_publisher().send(b"bad", headers=HEADERS)
    subscriber, control = environment.new_subscriber(name), environment.new_control()
    with subscriber.receive(timeout=1):
        raise Reject("no such order")
    letter, = control.dead_letters(name)
    assert (letter.id, letter.reason, letter.headers, letter.error_text) == (message_id, "rejected", HEADERS,
                                                                             "no such order")
    assert control.requeue_dead_letters(name) == 1
    with subscriber.receive_delivery(timeout=1) as delivery:
        assert delivery is not None and delivery.id == message_id and delivery.headers == HEADERS
        assert abs(delivery.sent_at.timestamp() - letter.sent_time_s) < 0.001
    assert received(subscriber) is None and not list(control.dead_letters(name))


def test_a_plain_subscriber_cannot_reject(environment: persipubsub.Environment) -> None:
    """A subscriber without dead letters raises SubscriberKindError, and the message stays."""
    environment.new_publisher().send(b"x")
    subscriber = environment.new_subscriber("plain")
    with pytest.raises(errors.SubscriberKindError, match="max_deliveries"), subscriber.receive(timeout=0):
        raise Reject
    assert received(subscriber) == b"x"


@KINDS
def test_a_retry_after_a_delay(name: str, environment: persipubsub.Environment) -> None:
    """A message whose block raised Retry comes again after its delay, and wakes whoever waits."""
    environment.new_publisher().send(b"x")
    subscriber = environment.new_subscriber(name)
    with subscriber.receive(timeout=0):
        raise Retry(0.3)
    begin = time.monotonic()
    assert received(subscriber) is None
    assert received(subscriber, 10) == b"x" and 0.2 < time.monotonic() - begin < 2


@KINDS
def test_stopping(name: str, environment: persipubsub.Environment) -> None:
    """A stop ends a wait at once, with nothing."""
    subscriber = environment.new_subscriber(name)
    waiting: Any = start(lambda: received(subscriber, None))
    time.sleep(0.1)
    begin = time.monotonic()
    subscriber.stop()
    assert waiting.result(5) is None and time.monotonic() - begin < 0.5


def test_another_reader(environment: persipubsub.Environment, location: str, caplog: pytest.LogCaptureFixture) -> None:
    """A second process that reads as the same plain subscriber is a warning; after the first has closed, it is none."""
    first = environment.new_subscriber("plain")
    with persipubsub.new_environment(location.replace("127.0.0.1", "localhost")) as other:  # as another process does
        with other.new_subscriber("plain"):
            assert len(warnings_of(caplog)) == 1 and "'plain'" in warnings_of(caplog)[0]
        first.close()
        with other.new_subscriber("plain"):
            assert len(warnings_of(caplog)) == 1


def test_the_order_of_sends_that_begin_together(environment: persipubsub.Environment,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that send at the same time send in their order, though the first one has to ask for the settings."""
    subscriber = environment.new_subscriber("plain")

    async def send() -> "list[int]":
        publisher = environment.new_async_publisher()
        await publisher.send(b"0")
        fresh = itertools.chain([False], itertools.repeat(True))
        monkeypatch.setattr(state.Cell, "is_fresh", property(lambda _: next(fresh)))
        return await asyncio.gather(*(publisher.send(b"%d" % number) for number in range(1, 20)))

    ids = asyncio.run(send())
    assert ids == sorted(ids)
    assert drained(subscriber) == [b"%d" % number for number in range(20)]


def test_a_message_over_the_limit_of_the_servers(environment: persipubsub.Environment) -> None:
    """A message over max_payload raises MessageTooLargeError, and the connection goes on; the largest one arrives."""
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("limited")
    largest = 2**20 - 16 * 1024
    for size in (2**20, 2**20 - 1, largest + 1):
        with pytest.raises(errors.MessageTooLargeError, match="max_payload"):
            publisher.send(bytes(size))
    publisher.send(bytes(largest))
    with subscriber.receive(timeout=0):
        raise Reject("x" * 2000)
    letter, = environment.new_control().dead_letters("limited")
    assert len(letter.payload) == largest
    publisher.send_many([bytes(largest)] * 3)
    assert [len(msg) for msg in drained(environment.new_subscriber("plain"))] == [largest] * 4


def test_the_server_deletes_later(environment: persipubsub.Environment) -> None:
    """Deduplication ids are remembered while the server has the message, so it deletes them after the window."""
    publisher, control = environment.new_publisher(), environment.new_control()
    publisher.send(b"x", deduplication_id="id")
    for name in ("plain", "limited", "shared"):
        drained(environment.new_subscriber(name))
    assert control.status().messages == 0 and not list(control.history())
    eventually(lambda: control.status().messages == 0)
    assert publisher.send(b"x", deduplication_id="id") == 1
