"""Lost answers: what the server has done without anybody knowing is done once."""

import time
from typing import Any, Callable, Iterator, List

import pytest

import persipubsub
from persipubsub import HighWaterMark, Strategy, errors
from tests.conformance.queues import drained, eventually, numbered, start
from tests.nats.conftest import new_queue
from tests.nats.proxy import Proxy
from tests.nats.servers import Servers


class Lossy:
    """A queue that is used through a proxy, and directly."""

    def __init__(self, node: Servers, **settings: Any) -> None:
        location = new_queue(node)
        self.proxy = Proxy(node.nodes[0].port)
        self.direct = persipubsub.new_environment(location)
        self.control = self.direct.new_control(["a"], **settings)
        self.environment = persipubsub.new_environment(location.replace(str(node.nodes[0].port), str(self.proxy.port)))

    def lose(self, call: Callable[[], Any]) -> Any:
        """Call something whose answer is lost, and return the result of its next try."""
        with self.proxy.losing_answers():
            lost = self.proxy.lost_bytes
            calling = start(call)
            eventually(lambda: self.proxy.lost_bytes > lost)
            time.sleep(0.1)  # so that the answer is complete
            assert not calling.done()
        return calling.result(30)

    def stored(self) -> List[bytes]:
        """Return what is stored."""
        return [message.payload for message in self.control.history()]

    def close(self) -> None:
        """Close everything."""
        self.environment.close()
        self.direct.close()
        self.proxy.close()


@pytest.fixture(name="lossy")
def lossy_fixture(node: Servers) -> Iterator[Lossy]:
    """Set up a queue."""
    made = Lossy(node)
    yield made
    made.close()


def test_a_send(lossy: Lossy) -> None:
    """A message whose confirmation was lost is stored once, and its id is returned."""
    publisher = lossy.environment.new_publisher()
    publisher.send(b"0")
    assert lossy.lose(lambda: publisher.send(b"1")) == 2
    assert publisher.send(b"2") == 3
    assert lossy.stored() == numbered(3)


def test_a_batch(lossy: Lossy) -> None:
    """A batch whose confirmation was lost is stored once, and its ids are returned."""
    publisher = lossy.environment.new_publisher()
    publisher.send(b"0")
    assert lossy.lose(lambda: publisher.send_many(numbered(5, 1))) == range(2, 7)
    assert publisher.send(b"6") == 7
    assert lossy.stored() == numbered(7)


def test_a_batch_with_deduplication_ids(lossy: Lossy) -> None:
    """A batch with deduplication ids whose confirmation was lost is stored once."""
    publisher = lossy.environment.new_publisher()
    batch: List[Any] = [
        persipubsub.Envelope(b"0", deduplication_id="x"), b"1",
        persipubsub.Envelope(b"2", deduplication_id="y")
    ]
    publisher.send(b"before")
    assert list(lossy.lose(lambda: publisher.send_many(batch))) == [2, 3, 4]
    assert lossy.stored() == [b"before", *numbered(3)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_send_to_a_queue_that_refuses(count: int, node: Servers) -> None:
    """A message that just fitted, and whose confirmation was lost, is stored once, and is not refused afterwards."""
    lossy = Lossy(node, strategy=Strategy.refuse, high_watermark=HighWaterMark(max_messages=count + 1))
    publisher = lossy.environment.new_publisher()
    publisher.send(b"0")
    assert list(lossy.lose(lambda: publisher.send_many(numbered(count, 1)))) == list(range(2, 2 + count))
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"one too many")
    assert lossy.stored() == numbered(count + 1)
    lossy.close()


def test_a_delayed_message(lossy: Lossy) -> None:
    """A delayed message whose confirmation was lost is delayed once."""
    publisher = lossy.environment.new_publisher()
    message = lossy.lose(lambda: publisher.send_later(b"x", delay_s=60))
    assert lossy.control.status().delayed == 1
    assert publisher.cancel(message) and not publisher.cancel(message)


def test_an_acknowledgement(lossy: Lossy) -> None:
    """Messages whose acknowledgement was not confirmed count once, and do not come again."""
    lossy.direct.new_publisher().send_many(numbered(3))
    subscriber = lossy.environment.new_subscriber("a")
    block = subscriber.receive_many(2, timeout=0)
    block.__enter__()  # pylint: disable=unnecessary-dunder-call  # its end is another call
    lossy.lose(lambda: block.__exit__(None, None, None))
    assert lossy.control.status().subscribers["a"].taken == 2
    assert drained(subscriber) == [b"2"]


def test_a_claim(lossy: Lossy) -> None:
    """A message whose claim was not confirmed is handed out once, as delivered for the first time."""
    lossy.control.add_subscriber("w", shared=True)
    lossy.direct.new_publisher().send_many(numbered(2))
    worker = lossy.environment.new_subscriber("w")
    block = worker.receive_delivery(timeout=0)
    delivery = lossy.lose(block.__enter__)
    assert (delivery.message, delivery.delivery_count) == (b"0", 1)
    block.__exit__(None, None, None)
    assert drained(worker) == [b"1"]


def test_a_failure(lossy: Lossy) -> None:
    """A failure that was not confirmed counts once, and its message is one dead letter."""
    lossy.control.add_subscriber("b", max_deliveries=2)
    lossy.direct.new_publisher().send(b"x")
    subscriber = lossy.environment.new_subscriber("b")
    for expected in ([], [(b"x", 2)]):
        block, error = subscriber.receive(timeout=0), ValueError("lost")
        block.__enter__()  # pylint: disable=unnecessary-dunder-call  # its end is another call
        lossy.lose(lambda block=block, error=error: block.__exit__(ValueError, error, None))  # type: ignore[misc]
        assert [(letter.payload, letter.deliveries) for letter in lossy.control.dead_letters("b")] == expected


def test_a_wait(lossy: Lossy) -> None:
    """A subscriber that waits while its connection is cut gets the next message soon."""
    subscriber = lossy.environment.new_subscriber("a")
    waiting = start(lambda: next(subscriber.messages(timeout=60)))
    time.sleep(0.2)
    lossy.proxy.cut()
    lossy.direct.new_publisher().send(b"x")
    assert waiting.result(10) == b"x"
