"""Waiting for room: a send with a timeout waits until a queue that refuses messages has room again."""

import asyncio
import functools
import time
from typing import Any, Callable, List

import pytest

from persipubsub import HighWaterMark, Strategy, errors
from tests.conformance import children
from tests.conformance.children import Child
from tests.conformance.forms import WAIT_S, AnyPublisher
from tests.conformance.queues import NewQueue, Queue, drained, numbered, received, start

pytestmark = pytest.mark.capability("refuse")

#: The delay between the beginning of a wait and what ends it.
LATER_S = 0.05
#: The longest that a wait takes after what ends it, on a busy machine.
SOON_S = 5

Send = Callable[[AnyPublisher, Any], Any]
SENDS = pytest.mark.parametrize("send", [
    pytest.param(lambda publisher, timeout: publisher.send(b"late", timeout=timeout), id="send"),
    pytest.param(lambda publisher, timeout: publisher.send(b"late", "id", {"name": "text"}, timeout),
                 id="with everything",
                 marks=pytest.mark.capability("deduplication")),
    pytest.param(lambda publisher, timeout: publisher.send_many([b"late"], timeout=timeout), id="send_many"),
    pytest.param(lambda publisher, timeout: publisher.send_later(b"late", delay_s=0, timeout=timeout),
                 id="send_later",
                 marks=pytest.mark.capability("delayed")),
])


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue that is full and refuses messages."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=2), strategy=Strategy.refuse)
    queue.publisher().send_many(numbered(2))
    return queue


def receive(queue: Queue) -> Any:
    """Receive and acknowledge a message in whatever thread."""
    with queue.environment.new_subscriber("a").receive(timeout=WAIT_S) as msg:
        return msg


@pytest.mark.both_forms
@SENDS
def test_a_timeout_ends_a_wait(send: Send, queue: Queue) -> None:
    """A wait without room ends with QueueFullError, and not before its timeout; nothing is sent."""
    begin = time.monotonic()
    with pytest.raises(errors.QueueFullError):
        send(queue.publisher(), 0.05)
    assert time.monotonic() - begin >= 0.05
    assert drained(queue.subscriber()) == numbered(2)


@pytest.mark.both_forms
@pytest.mark.parametrize("timeout", [60, None, 1e300])
@SENDS
def test_an_acknowledgement_ends_a_wait(send: Send, timeout: Any, queue: Queue) -> None:
    """However long a sender would wait, it sends once a message is acknowledged."""
    receiving, begin = start(lambda: receive(queue), LATER_S), time.monotonic()
    send(queue.publisher(), timeout)
    assert LATER_S * 0.9 < time.monotonic() - begin < SOON_S
    assert receiving.result(WAIT_S) == b"0"
    assert drained(queue.subscriber()) == [b"1", b"late"]


@pytest.mark.both_forms
def test_with_room_nothing_waits(queue: Queue) -> None:
    """A send that finds room returns at once, whatever its timeout."""
    assert len(drained(queue.subscriber())) == 2
    assert queue.publisher().send(b"x", timeout=None) == 3
    assert list(queue.publisher().send_many([b"y"], timeout=None)) == [4]


@pytest.mark.both_forms
def test_a_batch_waits_for_all_its_room(queue: Queue) -> None:
    """A batch waits until all of it fits."""
    receiving = start(lambda: [receive(queue), receive(queue)], LATER_S)
    queue.publisher().send_many(numbered(2, 2), timeout=60)
    assert receiving.result(WAIT_S) == [b"0", b"1"]
    assert drained(queue.subscriber()) == numbered(2, 2)


#: What makes room, beside an acknowledgement.
CHANGES = {
    "set_hwm": lambda queue: queue.control.set_hwm(max_messages=3),
    "a limit is removed": lambda queue: queue.control.set_hwm(max_messages=None),
    "set_strategy": lambda queue: queue.control.set_strategy(Strategy.prune_first),
    "remove_subscriber": lambda queue: queue.control.remove_subscriber("a"),
    "clear_messages": lambda queue: queue.control.clear_messages(),
    "prune_all_messages_for": lambda queue: queue.control.prune_all_messages_for("a"),
}


@pytest.mark.both_forms
@pytest.mark.parametrize("change", [
    pytest.param(name, marks=pytest.mark.capability("clearing") if name[:5] in ("clear", "prune") else ())
    for name in CHANGES
])
def test_what_makes_room_ends_a_wait(change: str, queue: Queue) -> None:
    """Whatever makes room ends a wait for it at once."""
    changing, begin = start(lambda: CHANGES[change](queue), LATER_S), time.monotonic()
    assert queue.publisher().send(b"late", timeout=60) == 3
    assert time.monotonic() - begin < SOON_S
    changing.result(WAIT_S)


@pytest.mark.both_forms
@pytest.mark.capability("dead_letters")
def test_a_dead_letter_makes_room(new_queue: NewQueue) -> None:
    """A message that becomes a dead letter leaves its place in the queue to one that waits."""
    queue = new_queue(high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    queue.control.add_subscriber("a", max_deliveries=1)
    queue.publisher().send(b"bad")

    def fail() -> None:
        with queue.environment.new_subscriber("a").receive(timeout=0):
            raise ZeroDivisionError

    failing = start(fail, LATER_S)
    assert queue.publisher().send(b"late", timeout=60) == 2
    with pytest.raises(ZeroDivisionError):
        failing.result(WAIT_S)


@pytest.mark.both_forms
@pytest.mark.capability("expiry")
def test_expiry_ends_a_wait(new_queue: NewQueue) -> None:
    """A sender that waits sends soon after the messages have expired, though nobody receives."""
    mark, begin = HighWaterMark(message_timeout=0.2, max_messages=1), time.monotonic()
    queue = new_queue("a", high_watermark=mark, strategy=Strategy.refuse)
    queue.publisher().send(b"old")
    assert queue.publisher().send(b"late", timeout=60) == 2
    assert 0.15 < time.monotonic() - begin < SOON_S


@pytest.mark.both_forms
def test_a_wait_costs_no_processor_time(queue: Queue) -> None:
    """A sender that waits sleeps."""
    publisher, begin = queue.publisher(), time.process_time()
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"late", timeout=0.5)
    assert time.process_time() - begin < 0.2


@pytest.mark.both_forms
@pytest.mark.parametrize("timeout, kind", [(-1, errors.ArgumentError), (float("nan"), errors.ArgumentError),
                                           ("1", errors.ArgumentTypeError), (True, errors.ArgumentTypeError)])
@SENDS
def test_invalid_timeouts(send: Send, timeout: Any, kind: type, queue: Queue) -> None:
    """A wrong timeout is refused, in a queue with room as well."""
    drained(queue.subscriber())
    with pytest.raises(kind, match="timeout"):
        send(queue.publisher(), timeout)
    assert queue.subscriber().front() is None


# Threads


def test_all_threads_that_wait_send(queue: Queue) -> None:
    """However many threads wait for room, each sends its message once there is room for it."""
    publisher = queue.environment.new_publisher()
    sending = [start(functools.partial(publisher.send, msg, timeout=60)) for msg in numbered(8, 2)]
    msgs = [receive(queue) for _ in range(10)]
    assert msgs[:2] == numbered(2) and sorted(msgs) == numbered(10)
    assert sorted(one.result(WAIT_S) for one in sending) == list(range(3, 11))


@pytest.mark.both_forms
def test_stop_ends_a_wait(queue: Queue) -> None:
    """Stopping a publisher ends its wait at once with QueueFullError; from then on it does not wait."""
    publisher = queue.publisher()
    stopping, begin = start(publisher.stop, LATER_S), time.monotonic()
    for _ in range(2):
        with pytest.raises(errors.QueueFullError):
            publisher.send(b"late", timeout=None)
    assert time.monotonic() - begin < SOON_S
    stopping.result(WAIT_S)
    assert received(queue.subscriber()) == b"0"
    publisher.send(b"with room")
    assert drained(queue.subscriber()) == [b"1", b"with room"]


@pytest.mark.both_forms
def test_stop_of_another_publisher_ends_no_wait(queue: Queue) -> None:
    """Stopping one publisher leaves the waits of others alone."""
    other = queue.environment.new_publisher()
    stopping, receiving = start(other.stop, LATER_S), start(lambda: receive(queue), 3 * LATER_S)
    assert queue.publisher().send(b"late", timeout=60) == 3
    stopping.result(WAIT_S)
    receiving.result(WAIT_S)


@pytest.mark.both_forms
def test_an_environment_that_stops(queue: Queue) -> None:
    """``Environment.stop`` ends the waits of its publishers, and of no other ones."""
    other = start(lambda: queue.opened().new_publisher().send(b"other", timeout=60))
    stopping = start(queue.environment.stop, LATER_S)
    with pytest.raises(errors.QueueFullError):
        queue.publisher().send(b"late", timeout=None)
    stopping.result(WAIT_S)
    assert received(queue.opened().new_subscriber("a")) == b"0"
    assert other.result(WAIT_S) == 3


@pytest.mark.slow
@pytest.mark.both_forms
@pytest.mark.parametrize("what", ["publisher", "environment"])
def test_closing_ends_a_wait(what: str, queue: Queue) -> None:
    """Whoever waits for room gets ClosedError, in about a second, when another thread closes the publisher."""
    publisher = queue.publisher()
    closing = start(publisher.close if what == "publisher" else queue.environment.close, LATER_S)
    begin = time.monotonic()
    with pytest.raises(errors.ClosedError):
        publisher.send(b"late", timeout=None)
    assert time.monotonic() - begin < SOON_S
    closing.result(WAIT_S)


# Processes


@pytest.mark.slow
@pytest.mark.capability("processes")
@pytest.mark.both_forms
def test_another_process_makes_room(queue: Queue) -> None:
    """A sender that waits is woken by an acknowledgement in another process, each time."""
    child = Child(children.receive, queue.engine.name, queue.location, "a", 20)
    assert child.says() == "ready"
    publisher, begin = queue.publisher(), time.monotonic()
    for msg in numbered(18, 2):
        publisher.send(msg, timeout=60)
    assert child.says() == numbered(20)
    child.join()
    assert time.monotonic() - begin < SOON_S


@pytest.mark.slow
@pytest.mark.capability("processes")
def test_another_process_waits_for_room(queue: Queue) -> None:
    """A sender in another process is woken by an acknowledgement here."""
    child = Child(children.send_with_room, queue.engine.name, queue.location, numbered(8, 2))
    msgs: List[Any] = [receive(queue) for _ in range(10)]
    assert msgs == numbered(10)
    assert [child.says() for _ in range(8)] == list(range(3, 11))
    child.join()


# Tasks


@pytest.mark.capability("asyncio")
def test_all_tasks_that_wait_send(queue: Queue) -> None:
    """However many tasks wait for room, each sends its message once there is room; the loop goes on meanwhile."""

    async def main() -> "tuple[List[int], List[Any]]":
        publisher = queue.environment.new_async_publisher()
        subscriber, msgs = queue.environment.new_async_subscriber("a"), list[Any]()
        sending = asyncio.gather(*(publisher.send(msg, timeout=60) for msg in numbered(8, 2)))
        while len(msgs) < 10:
            async with subscriber.receive(timeout=60) as msg:
                msgs.append(msg)
        return await sending, msgs

    ids, msgs = asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert sorted(ids) == list(range(3, 11)) and sorted(msgs) == numbered(10)


@pytest.mark.capability("asyncio")
def test_a_wait_for_room_that_is_cancelled(queue: Queue) -> None:
    """A cancelled wait for room sends nothing, also when there is room later."""

    async def main() -> None:
        publisher = queue.environment.new_async_publisher()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(publisher.send(b"late", timeout=None), LATER_S)
        async with queue.environment.new_async_subscriber("a").receive() as msg:
            assert msg == b"0"
        await asyncio.sleep(LATER_S)

    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert drained(queue.subscriber()) == [b"1"]
