"""Queues that refuse messages at their high-water mark, on a cluster."""

import time
from typing import Any, Iterator, List

import pytest

import persipubsub
from persipubsub import HighWaterMark, Strategy, errors
from tests.conformance.queues import drained, eventually, numbered, received, start
from tests.nats.servers import Servers

MARK = 20


@pytest.fixture(name="environments")
def environments_fixture(location: str, node: Servers) -> Iterator[List[persipubsub.Environment]]:
    """Open a queue that refuses messages twice, as two processes do: over two connections."""
    again = location.replace("127.0.0.1", "localhost", 1)
    environments = [persipubsub.new_environment(one) for one in (location, again)]
    environments[0].new_control(["a"], strategy=Strategy.refuse, high_watermark=HighWaterMark(max_messages=MARK))
    yield environments
    for environment in environments:
        environment.close()
    assert node.nodes[0].is_running()


def test_a_full_queue_refuses(environments: List[persipubsub.Environment]) -> None:
    """At the mark a send raises QueueFullError and stores nothing; below it, it succeeds."""
    publisher, subscriber = environments[0].new_publisher(), environments[1].new_subscriber("a")
    publisher.send_many(numbered(MARK - 1))
    with pytest.raises(errors.QueueFullError, match=f"max_messages={MARK}"):
        publisher.send_many([b"x", b"y"])
    publisher.send(b"%d" % (MARK - 1))
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"x")
    assert received(subscriber) == b"0"
    publisher.send(b"%d" % MARK)
    assert drained(subscriber) == numbered(MARK, 1)


def test_a_batch_that_never_fits(environments: List[persipubsub.Environment]) -> None:
    """A batch of more messages than the mark is refused at once, even if its sender would wait."""
    with pytest.raises(errors.BatchTooLargeError):
        environments[0].new_publisher().send_many(numbered(MARK + 1), timeout=None)


def test_a_sender_waits_for_room(environments: List[persipubsub.Environment]) -> None:
    """A sender that waits is woken when a subscriber acknowledges, over whichever connection."""
    publisher, subscriber = environments[0].new_publisher(), environments[1].new_subscriber("a")
    publisher.send_many(numbered(MARK))
    waiting = start(lambda: publisher.send(b"x", timeout=60))
    time.sleep(0.2)
    assert not waiting.done()
    begin = time.monotonic()
    received(subscriber)
    assert waiting.result(10) > 0 and time.monotonic() - begin < 0.9


def test_senders_at_the_same_time(environments: List[persipubsub.Environment]) -> None:
    """However many senders send at the same time, the queue has exactly as many messages as the mark."""

    def send(environment: persipubsub.Environment) -> int:
        publisher, count = environment.new_publisher(), 0
        for _ in range(10):
            try:
                publisher.send(b"x")
                count += 1
            except errors.QueueFullError:
                pass
        return count

    sending = [start(lambda one=one: send(one)) for one in environments * 3]  # type: ignore[misc]
    assert sum(one.result(60) for one in sending) == MARK
    assert len(drained(environments[0].new_subscriber("a"))) == MARK


def test_a_due_message_is_not_refused(environments: List[persipubsub.Environment]) -> None:
    """A delayed message that is due joins a full queue."""
    publisher, subscriber = environments[0].new_publisher(), environments[0].new_subscriber("a")
    publisher.send_later(b"later", delay_s=0.3)
    publisher.send_many(numbered(MARK))
    control = environments[0].new_control()
    eventually(lambda: control.status().messages == MARK + 1)
    assert drained(subscriber) == [*numbered(MARK), b"later"]


def test_retained_messages_give_way(environments: List[persipubsub.Environment]) -> None:
    """Messages that are only retained do not count to the mark."""
    environments[0].new_control().set_retention(100)
    publisher: Any = environments[0].new_publisher()
    for _ in range(3):
        publisher.send_many(numbered(MARK))
        assert drained(environments[1].new_subscriber("a")) == numbered(MARK)


def test_bytes(environments: List[persipubsub.Environment]) -> None:
    """The mark for bytes refuses, too."""
    environments[0].new_control().set_hwm(max_messages=None, hwm_db_size=100_000)
    publisher = environments[0].new_publisher()
    for _ in range(4):
        publisher.send(bytes(20_000))
    with pytest.raises(errors.QueueFullError, match="hwm_db_size=100000"):
        publisher.send(bytes(30_000))
    publisher.send(bytes(10_000))
