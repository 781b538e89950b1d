"""Relays between two queues of an engine: each message once and in order, whatever came in between."""

from typing import List

import pytest

from persipubsub import Envelope, errors
from persipubsub.relay import ORIGIN_HEADER, Relay
from tests.concurrency import Task, wait_until
from tests.conformance.queues import NewQueue, Queue, numbered

pytestmark = pytest.mark.capability("relay")


def relay_once(source: Queue, target: Queue, subscriber: str = "a", max_messages: int = 1000) -> int:
    """Bring what is there by a new relay; return how many messages that were."""
    with Relay(source.opened(), target.opened(), subscriber, max_messages) as relay:
        return relay.run(timeout=0)


def arrived(queue: Queue) -> List[bytes]:
    """Receive what has arrived."""
    return list(queue.environment.new_subscriber("a").messages(timeout=0))


@pytest.mark.parametrize("max_messages", [1, 3, 1000])
def test_messages_arrive_once_and_in_order(max_messages: int, new_queue: NewQueue) -> None:
    """What relays bring one after the other is what was sent, in batches of any size, with headers and origins."""
    source, target = new_queue("a"), new_queue("a")
    publisher = source.environment.new_publisher()
    ids: List[int] = []
    for number in range(0, 20, 5):
        ids += publisher.send_many(Envelope(b"%d" % one, {"number": str(one)}) for one in range(number, number + 5))
        assert relay_once(source, target, max_messages=max_messages) == 5
    found = list(target.environment.new_subscriber("a").deliveries(timeout=0))
    assert [one.message for one in found] == numbered(20)
    assert [one.headers["number"] for one in found] == [str(number) for number in range(20)]
    assert [int(one.headers[ORIGIN_HEADER].partition(":")[2]) for one in found] == ids


def test_what_was_brought_is_not_brought_again(new_queue: NewQueue) -> None:
    """A subscriber that goes back brings nothing twice: the target knows what it has."""
    source, target = new_queue("a", retention_s=3600), new_queue("a")
    source.environment.new_publisher().send_many(numbered(5))
    relay_once(source, target)
    source.control.rewind("a", "earliest")
    source.environment.new_publisher().send(b"5")
    relay_once(source, target, max_messages=2)
    assert arrived(target) == numbered(6)


def test_a_relay_that_waits_brings_what_is_sent(new_queue: NewQueue) -> None:
    """A relay wakes up for each message, tells how far it has come, and stops when it is told to."""
    source, target = new_queue("a"), new_queue("a")
    publisher = source.environment.new_publisher()
    with Relay(source.opened(), target.opened(), "a") as relay:
        running = Task(relay.run)
        for message in numbered(5):
            publisher.send(message)
            wait_until(lambda: relay.status().backlog == 0)
        relay.stop()
        assert running.result() == relay.status().relayed == 5
    assert arrived(target) == numbered(5)


def test_two_relays_of_one_subscriber(new_queue: NewQueue) -> None:
    """Two relays that run at the same time bring each message once."""
    source, target = new_queue("a"), new_queue("a")
    with Relay(source.opened(), target.opened(), "a", 3) as one, Relay(source.opened(), target.opened(), "a", 5) as two:
        running = [Task(one.run), Task(two.run)]
        for start in range(0, 100, 10):
            source.environment.new_publisher().send_many(numbered(100)[start:start + 10])
        wait_until(lambda: one.status().backlog == 0)
        one.stop()
        two.stop()
        for task in running:
            task.result()
    assert arrived(target) == numbered(100)


def test_another_target_is_refused(new_queue: NewQueue) -> None:
    """A subscriber that was relayed to one queue is not relayed to another one, until it is added again."""
    source, target, other = new_queue("a"), new_queue("a"), new_queue("a")
    relay_once(source, target)
    with pytest.raises(errors.ReplacedError, match="relayed to another queue before"):
        relay_once(source, other)
    source.control.remove_subscriber("a")
    source.control.add_subscriber("a")
    source.environment.new_publisher().send(b"1")
    relay_once(source, other)
    assert arrived(other) == [b"1"]


def test_a_queue_is_not_relayed_to_itself(new_queue: NewQueue) -> None:
    """A relay whose source is its target raises, since it would never end."""
    queue = new_queue("a")
    with pytest.raises(errors.ArgumentError, match="the same queue"):
        relay_once(queue, queue)
