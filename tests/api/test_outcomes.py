"""What a block decides about its message: acknowledge, retry or reject; and how many times a message was delivered."""

import asyncio
import datetime
import time
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional

import pytest

import persipubsub
from persipubsub import (Control, Delivery, Durability, Environment, HighWaterMark, Publisher, Reject, Retry,
                         Subscriber, clock, errors)
from persipubsub.dead_letters import DeadLetter
from tests.children import status_of
from tests.concurrency import WAIT_S, Task, drained
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]

#: How each kind of subscriber is added.
KINDS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "limited": {
        "max_deliveries": 3
    },
    "shared": {
        "shared": True,
        "max_deliveries": 3,
        "retry_delay_s": 0,
        "lease_s": 1000
    }
}
WITH_DEAD_LETTERS = ["limited", "shared"]


class Failed(Exception):
    """Raised in a block."""


class Queue(NamedTuple):
    """A queue with the subscriber "a" of some kind, which awaits the messages 1, 2 and 3."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber

    def dead(self) -> List[DeadLetter]:
        """List the dead letters."""
        return list(self.control.dead_letters("a"))

    def other(self) -> Subscriber:
        """Make one more object of the subscriber."""
        return self.environment.new_subscriber("a")


@pytest.fixture(name="new_queue")
def new_queue_fixture(new_environment: MakeEnvironment, time_limit: None) -> Callable[[str], Queue]:
    """Return a function that sets up a queue with a subscriber of a kind."""
    del time_limit

    def make(kind: str) -> Queue:
        environment = new_environment(durability=Durability.PROCESS_CRASH)
        control = environment.new_control()
        control.add_subscriber("a", **KINDS[kind])
        publisher = environment.new_publisher()
        publisher.send_many([b"1", b"2", b"3"])
        return Queue(environment, control, publisher, environment.new_subscriber("a"))

    return make


@pytest.fixture(name="queue", params=KINDS)
def queue_fixture(request: pytest.FixtureRequest, new_queue: Callable[[str], Queue]) -> Queue:
    """Set up a queue, once with each kind of subscriber."""
    return new_queue(request.param)


@pytest.fixture(name="burying", params=WITH_DEAD_LETTERS)
def burying_fixture(request: pytest.FixtureRequest, new_queue: Callable[[str], Queue]) -> Queue:
    """Set up a queue, once with each kind of subscriber that has dead letters."""
    return new_queue(request.param)


@pytest.fixture(name="move")
def move_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets time pass; otherwise it stands still."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)

    def move(seconds: float) -> None:
        nonlocal now_us
        now_us += round(seconds * 1e6)

    return move


def received(subscriber: Subscriber, timeout: Optional[float] = 0) -> Optional[bytes]:
    """Receive and acknowledge a message."""
    with subscriber.receive(timeout=timeout) as msg:
        return msg


def ended_by(subscriber: Subscriber, outcome: BaseException) -> Optional[Delivery[bytes]]:
    """Receive a message in a block that raises an exception, and return its delivery."""
    found = None
    try:
        with subscriber.receive_delivery(timeout=0) as found:
            raise outcome
    except Failed:
        pass
    return found


Receive = Callable[[Subscriber], ContextManager[Any]]

RECEIVES: List[Receive] = [
    lambda subscriber: subscriber.receive(timeout=0), lambda subscriber: subscriber.receive_delivery(timeout=0),
    lambda subscriber: subscriber.receive_many(timeout=0), lambda subscriber: subscriber.receive_deliveries(timeout=0)
]
NAMES = ["receive", "receive_delivery", "receive_many", "receive_deliveries"]
EVERY_RECEIVE = pytest.mark.parametrize("receive", RECEIVES, ids=NAMES)

# Retry


@EVERY_RECEIVE
@pytest.mark.parametrize("outcome", [Retry, Retry(), Retry(0)], ids=["class", "None", "0"])
def test_a_retried_message_comes_again(outcome: Any, receive: Receive, queue: Queue) -> None:
    """A block that raises Retry ends without an exception, acknowledges nothing, and its messages come again."""
    with receive(queue.subscriber) as found:
        raise outcome
    assert found and not queue.dead()
    assert sorted(drained(queue.subscriber)) == [b"1", b"2", b"3"]
    assert queue.control.status().subscribers["a"].pending == 0


@pytest.mark.parametrize("kind", ["plain", "limited"])
def test_a_plain_subscriber_waits_with_what_follows(kind: str, new_queue: Callable[[str], Queue],
                                                    move: Callable[[float], None]) -> None:
    """Until the delay has passed, nothing is received; then the message comes first, and the others in their order."""
    queue = new_queue(kind)
    assert ended_by(queue.subscriber, Retry(10))
    for _ in range(2):
        assert received(queue.subscriber) is None
        with queue.subscriber.receive_many(timeout=0) as msgs:
            assert msgs == []
        with queue.subscriber.receive_to_top(timeout=0) as msg:
            assert msg is None
        move(4.9)
    assert queue.subscriber.front() == b"1"
    move(0.3)
    assert drained(queue.subscriber) == [b"1", b"2", b"3"]


def test_a_worker_goes_on_with_others(new_queue: Callable[[str], Queue], move: Callable[[float], None]) -> None:
    """A shared subscriber delivers other messages meanwhile, and the one that is retried after its delay."""
    queue = new_queue("shared")
    assert ended_by(queue.subscriber, Retry(10))
    assert drained(queue.subscriber) == [b"2", b"3"]
    move(9.9)
    assert received(queue.other()) is None
    move(0.2)
    assert received(queue.other()) == b"1"


def test_no_delay_is_that_of_a_shared_subscriber(new_queue: Callable[[str], Queue], move: Callable[[float],
                                                                                                   None]) -> None:
    """Without a delay, Retry waits as long as any failure of a shared subscriber; a delay of 0 does not wait."""
    queue = new_queue("shared")
    queue.control.add_subscriber("a", retry_delay_s=10)
    assert drained(queue.subscriber) and queue.publisher.send(b"4")
    assert ended_by(queue.subscriber, Retry())
    move(9.9)
    assert received(queue.subscriber) is None
    move(0.2)
    assert ended_by(queue.subscriber, Retry(0))
    assert received(queue.subscriber) == b"4"


def test_a_wait_ends_when_the_delay_has_passed(queue: Queue) -> None:
    """A receive that waits gets the message once its delay has passed, though nothing is sent and nobody wakes it."""
    drained(queue.subscriber)
    queue.publisher.send(b"4")
    start = time.monotonic()
    assert ended_by(queue.subscriber, Retry(0.3))
    assert received(queue.subscriber, None) == b"4"
    assert 0.3 <= time.monotonic() - start < WAIT_S


def test_retries_are_counted(burying: Queue) -> None:
    """A message that is retried as often as its subscriber allows becomes a dead letter, and nothing waits for it."""
    for count in (1, 2, 3):
        found = ended_by(burying.subscriber, Retry(1000 if count == 3 else 0))
        assert found is not None and (found.message, found.delivery_count) == (b"1", count)
    assert [(letter.payload, letter.deliveries, letter.reason) for letter in burying.dead()] == [(b"1", 3, "raised")]
    assert burying.dead()[0].error_type == "persipubsub.message.Retry"
    assert drained(burying.subscriber) == [b"2", b"3"]


@pytest.mark.parametrize("kind", ["plain", "limited"])
def test_a_retried_message_that_is_deleted_holds_nobody_up(kind: str, new_queue: Callable[[str], Queue]) -> None:
    """A subscriber does not wait for a message that was acknowledged elsewhere, skipped or cleared meanwhile."""
    queue = new_queue(kind)
    for number, take in enumerate(
        (lambda: queue.other().pop(), lambda: queue.control.prune_all_messages_for("a"), queue.control.clear_messages)):
        assert ended_by(queue.subscriber, Retry(1000))
        assert received(queue.subscriber) is None
        take()
        queue.publisher.send_many([b"%d" % number, b"more"])
        assert received(queue.subscriber) == (b"2" if not number else b"%d" % number)


def test_a_moved_back_subscriber_receives_what_is_before(new_queue: Callable[[str], Queue]) -> None:
    """Messages before the one that is retried are received at once when the subscriber is moved back to them."""
    queue = new_queue("plain")
    queue.control.set_retention(1000)
    assert received(queue.subscriber) == b"1"
    assert ended_by(queue.subscriber, Retry(1000))
    assert received(queue.subscriber) is None
    queue.control.rewind("a", "earliest")
    assert received(queue.subscriber) == b"1"


@pytest.mark.parametrize("kind", ["plain", "limited"])
def test_retrying_the_latest_message(kind: str, new_queue: Callable[[str], Queue], move: Callable[[float],
                                                                                                  None]) -> None:
    """A block of receive_to_top that raises Retry acknowledges nothing; the subscriber waits, then gets the latest."""
    queue = new_queue(kind)
    with queue.subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"3"
        raise Retry(10)
    queue.publisher.send(b"4")
    with queue.subscriber.receive_to_top(timeout=0) as msg:
        assert msg is None
    move(10)
    with queue.subscriber.receive_to_top(timeout=0) as msg:
        assert msg == b"4"
    assert not drained(queue.subscriber)


def test_an_outcome_without_a_message(queue: Queue) -> None:
    """Retry and Reject in a block that received nothing are swallowed as well, and change nothing."""
    drained(queue.subscriber)
    before = queue.control.status()
    for outcome in (Retry(5), Reject("no")):
        with queue.subscriber.receive(timeout=0) as msg:
            raise outcome
        with queue.subscriber.receive_many(timeout=0) as msgs:
            raise outcome
        assert msg is None and msgs == []
    assert queue.control.status().subscribers == before.subscribers
    queue.publisher.send(b"4")
    assert received(queue.subscriber) == b"4"


# Reject


@EVERY_RECEIVE
def test_rejected_messages_are_dead_letters_at_once(receive: Receive, burying: Queue) -> None:
    """A block that raises Reject ends without an exception; all its messages are dead letters, with the reason."""
    with receive(burying.subscriber):
        raise Reject("it is not for us")
    dead = burying.dead()
    assert [letter.payload for letter in dead] in ([b"1"], [b"1", b"2", b"3"])
    for letter in dead:
        assert (letter.reason, letter.deliveries) == ("rejected", 1)
        assert (letter.error_type, letter.error_text) == ("persipubsub.message.Reject", "it is not for us")
    assert [letter.payload for letter in dead] + drained(burying.subscriber) == [b"1", b"2", b"3"]


def test_without_dead_letters_nothing_is_rejected(new_queue: Callable[[str], Queue]) -> None:
    """A subscriber that has no dead letters raises SubscriberKindError, which says what to set; the message stays."""
    queue = new_queue("plain")
    with pytest.raises(errors.SubscriberKindError, match="'a'.*max_deliveries.*Control.add_subscriber") as raised:
        with queue.subscriber.receive(timeout=0):
            raise Reject("no")
    assert isinstance(raised.value.__context__, Reject)
    with pytest.raises(errors.SubscriberKindError), queue.subscriber.receive_many(timeout=0):
        raise Reject("no")
    assert drained(queue.subscriber) == [b"1", b"2", b"3"]


def test_rejecting_the_latest_message(new_queue: Callable[[str], Queue]) -> None:
    """A block of receive_to_top may reject the only message that is pending, and no other."""
    queue = new_queue("limited")
    with pytest.raises(errors.SubscriberKindError, match="receive_to_top"):
        with queue.subscriber.receive_to_top(timeout=0):
            raise Reject("no")
    assert not queue.dead() and received(queue.subscriber) == b"1" and received(queue.subscriber) == b"2"
    with queue.subscriber.receive_to_top(timeout=0):
        raise Reject("no")
    assert [letter.payload for letter in queue.dead()] == [b"3"]


@pytest.mark.parametrize("reason, text", [("", ""), ("x" * 2000, "x" * 1000), ("a\0b\n\xe9", "a\0b\n\xe9"),
                                          ("\ud800", "\\ud800")])
def test_the_reason_is_kept(reason: str, text: str, burying: Queue) -> None:
    """The reason of a rejection is the text of the dead letter, up to 1,000 characters, whatever they are."""
    assert ended_by(burying.subscriber, Reject(reason))
    assert [letter.error_text for letter in burying.dead()] == [text]
    assert all("raise" in letter.error_traceback for letter in burying.dead())


def test_a_rejected_message_after_failures(burying: Queue) -> None:
    """A rejected message counts the deliveries before it; once requeued, it can be rejected and acknowledged again."""
    assert ended_by(burying.subscriber, Failed())
    assert ended_by(burying.subscriber, Reject("first"))
    assert [(letter.deliveries, letter.error_text) for letter in burying.dead()] == [(2, "first")]
    assert burying.control.requeue_dead_letters("a") == 1
    requeued = ended_by(burying.subscriber, Reject("second"))
    assert requeued is not None and (requeued.id, requeued.delivery_count) == (1, 1)
    assert [(letter.deliveries, letter.error_text) for letter in burying.dead()] == [(1, "second")]
    assert burying.control.requeue_dead_letters("a") == 1
    assert sorted(drained(burying.subscriber)) == [b"1", b"2", b"3"] and not burying.dead()


def test_rejecting_what_is_deleted_meanwhile(burying: Queue) -> None:
    """To reject or to retry a message that was cleared, skipped or acknowledged meanwhile changes nothing."""
    for outcome in (Reject("no"), Retry(0)):
        for take in (burying.control.clear_messages, lambda: burying.control.prune_all_messages_for("a")):
            burying.publisher.send_many([b"4", b"5"])
            with burying.subscriber.receive(timeout=0):
                take()
                raise outcome
            assert burying.control.check() == ()
            assert not burying.dead() and not drained(burying.subscriber)
    assert burying.publisher.send(b"6") and ended_by(burying.subscriber, Reject("no"))
    assert [letter.payload for letter in burying.dead()] == [b"6"]


def test_rejecting_as_a_subscriber_that_was_removed(burying: Queue) -> None:
    """A block whose subscriber is removed meanwhile may raise Retry or Reject."""
    with burying.subscriber.receive(timeout=0):
        burying.control.remove_subscriber("a")
        raise Reject("no")
    burying.control.add_subscriber("a", max_deliveries=2)
    subscriber = burying.other()
    burying.publisher.send(b"4")
    with subscriber.receive(timeout=0):
        burying.control.remove_subscriber("a")
        raise Retry(0)
    assert burying.control.status().messages == 0


# Other exceptions


@EVERY_RECEIVE
@pytest.mark.parametrize("kind", [Failed, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_any_other_exception_leaves_the_block(kind: Callable[[], BaseException], receive: Receive,
                                              queue: Queue) -> None:
    """Any other exception leaves the block as it was raised, and the messages come again."""
    error = kind()
    with pytest.raises(BaseException) as raised, receive(queue.subscriber):
        raise error
    assert raised.value is error
    assert sorted(drained(queue.subscriber)) == [b"1", b"2", b"3"] and not queue.dead()


def test_own_kinds_of_outcomes(burying: Queue) -> None:
    """A program's own subclasses of Retry and Reject are what they are derived from, also if they have a cause."""

    class Busy(Retry):
        """A retry of a program's own."""

        def __init__(self) -> None:
            super().__init__(delay_s=0)

    class Unknown(Reject):
        """A rejection of a program's own."""

    assert ended_by(burying.subscriber, Busy())
    with burying.subscriber.receive(timeout=0):
        raise Unknown("what is it?") from Failed()
    assert [letter.error_type.rpartition(".")[2] for letter in burying.dead()] == ["Unknown"]


def test_the_inner_block_decides(queue: Queue) -> None:
    """Of two blocks, the inner one swallows what is raised in it; the outer one acknowledges."""
    queue.control.add_subscriber("b", max_deliveries=2)
    queue.publisher.send(b"4")
    with queue.subscriber.receive(timeout=0) as outer:
        with queue.environment.new_subscriber("b").receive(timeout=0):
            raise Reject("no")
    assert outer == b"1" and received(queue.subscriber) == b"2"
    assert [letter.payload for letter in queue.control.dead_letters("b")] == [b"4"]


# How many times it was delivered


def test_deliveries_are_counted(queue: Queue) -> None:
    """Each delivery of a message counts, however the ones before it failed; another message begins with one."""
    for count, outcome in enumerate((Failed(), Retry(0)), 1):
        found = ended_by(queue.subscriber, outcome)
        assert found is not None and (found.id, found.delivery_count) == (1, count)
    with queue.subscriber.receive_delivery(timeout=0) as delivery:
        assert delivery is not None and (delivery.id, delivery.delivery_count) == (1, 3)
    with queue.subscriber.receive_delivery(timeout=0) as delivery:
        assert delivery is not None and (delivery.id, delivery.delivery_count) == (2, 1)


def test_looking_counts_nothing(queue: Queue) -> None:
    """To look at a message counts no delivery, and shows the count of the next one."""
    if queue.subscriber.__class__ is not Subscriber:
        with pytest.raises(errors.SubscriberKindError):
            queue.subscriber.front_delivery()
        return
    for count in (1, 2):
        for _ in range(2):
            looked = queue.subscriber.front_delivery()
            assert looked is not None and (looked.message, looked.delivery_count) == (b"1", count)
        ended_by(queue.subscriber, Failed())


@pytest.mark.parametrize("kind, count", [("plain", 1), ("limited", 2), ("shared", 2)])
def test_who_knows_the_count(kind: str, count: int, new_queue: Callable[[str], Queue]) -> None:
    """A shared or limited subscriber stores its counts; of a plain one, each object has its own."""
    queue = new_queue(kind)
    assert ended_by(queue.subscriber, Failed())
    with queue.other().receive_delivery(timeout=0) as delivery:
        assert delivery is not None and (delivery.id, delivery.delivery_count) == (1, count)


@pytest.mark.parametrize("kind", ["plain", "limited"])
def test_each_message_of_a_batch_counts(kind: str, new_queue: Callable[[str], Queue]) -> None:
    """Of a batch that failed, each message was delivered, also if they come again one by one."""
    queue = new_queue(kind)
    with pytest.raises(Failed), queue.subscriber.receive_many(timeout=0):
        raise Failed
    assert ended_by(queue.subscriber, Failed())
    found = list(queue.subscriber.deliveries(timeout=0))
    assert [(delivery.id, delivery.delivery_count) for delivery in found] == [(1, 3), (2, 2), (3, 2)]


def test_a_batch_of_a_worker_comes_again_one_by_one(new_queue: Callable[[str], Queue]) -> None:
    """Of a batch that a worker failed, each message was delivered once."""
    queue = new_queue("shared")
    with pytest.raises(Failed), queue.subscriber.receive_many(timeout=0):
        raise Failed
    found = list(queue.other().deliveries(timeout=0, acknowledge_every=5))
    assert [(delivery.id, delivery.delivery_count) for delivery in found] == [(1, 2), (2, 2), (3, 2)]


@pytest.mark.parametrize("acknowledge_every", [1, 2, 10])
def test_leaving_a_loop_counts(acknowledge_every: int, queue: Queue) -> None:
    """The message whose iteration is left by an exception or a break was delivered; those after it were not."""
    for delivery in queue.subscriber.deliveries(timeout=0, acknowledge_every=acknowledge_every):
        if delivery.id == 2:
            break
    with pytest.raises(Failed):
        for delivery in queue.subscriber.deliveries(timeout=0, acknowledge_every=acknowledge_every):
            assert (delivery.id, delivery.delivery_count) in ((2, 2), (3, 1))
            if delivery.id == 2:
                raise Failed
    found = {delivery.id: delivery.delivery_count for delivery in queue.subscriber.deliveries(timeout=0)}
    assert found.pop(3, 1) == 1 and found == {2: 3}  # a worker may have received the last one first


def test_an_interrupt_is_no_failure(new_queue: Callable[[str], Queue]) -> None:
    """Ctrl-C in a block of a plain subscriber is not counted: it was not the message that failed."""
    for kind in ("plain", "limited"):
        queue = new_queue(kind)
        with pytest.raises(KeyboardInterrupt), queue.subscriber.receive(timeout=0):
            raise KeyboardInterrupt
        with queue.subscriber.receive_delivery(timeout=0) as delivery:
            assert delivery is not None and delivery.delivery_count == 1
        queue.control.clear_all_subscribers()


def test_what_a_delivery_says(queue: Queue, move: Callable[[float], None]) -> None:
    """A delivery has its message, its id, when it was sent in UTC, and no headers if it has none; it is a value."""
    with queue.subscriber.receive_delivery(timeout=0) as first:
        assert first is not None
    now = datetime.datetime.now(datetime.timezone.utc)
    assert first.sent_at.tzinfo is datetime.timezone.utc
    assert abs(now - first.sent_at) < datetime.timedelta(seconds=WAIT_S)
    move(100)
    queue.publisher.send(b"4")
    *_, last = queue.subscriber.deliveries(timeout=0)
    assert (last.message, last.id, last.delivery_count, last.headers) == (b"4", 4, 1, {})
    assert 99 < (last.sent_at - first.sent_at).total_seconds() < 101
    with pytest.raises(AttributeError):
        last.id = 5  # type: ignore[misc]  # the mistake


def test_the_time_of_a_delayed_message(queue: Queue, move: Callable[[float], None]) -> None:
    """A delayed message was sent when it was due."""
    drained(queue.subscriber)
    queue.publisher.send(b"now")
    queue.publisher.send_later(b"later", delay_s=50)
    move(50)
    now, later = queue.subscriber.deliveries(timeout=0)
    assert 49 < (later.sent_at - now.sent_at).total_seconds() < 51


# Tasks


async def task_ended_by(subscriber: Any, outcome: BaseException) -> Optional[Delivery[bytes]]:
    """Receive a message as a task, in a block that raises an exception, and return its delivery."""
    found = None
    try:
        async with subscriber.receive_delivery(timeout=0) as found:
            raise outcome
    except Failed:
        pass
    return found


def test_outcomes_of_tasks(queue: Queue) -> None:
    """Blocks of tasks retry, fail and count as those of threads do."""

    async def main() -> None:
        subscriber = queue.environment.new_async_subscriber("a")
        for count, outcome in enumerate((Failed(), Retry(0)), 1):
            found = await task_ended_by(subscriber, outcome)
            assert found is not None and (found.id, found.delivery_count) == (1, count)
        start = time.monotonic()
        async with subscriber.receive_many(max_messages=1, timeout=0):
            raise Retry
        found_ids = [delivery.id async for delivery in subscriber.deliveries(timeout=0)]
        assert found_ids == ([1, 2, 3] if queue.subscriber.__class__ is Subscriber and not queue.dead() else [2, 3])
        await queue.environment.new_async_publisher().send(b"4")
        start = time.monotonic()
        assert await task_ended_by(subscriber, Retry(0.3))
        async with subscriber.receive(timeout=None) as msg:
            assert msg == b"4" and time.monotonic() - start >= 0.3
        async with subscriber.receive(timeout=0) as msg:
            raise Reject("nothing was received")

    asyncio.run(main())


def test_rejections_of_tasks(burying: Queue) -> None:
    """Blocks of tasks reject as those of threads do; and where nothing can be rejected, they raise."""

    async def main() -> None:
        subscriber = burying.environment.new_async_subscriber("a")
        assert await task_ended_by(subscriber, Reject("no"))
        async with subscriber.receive_deliveries(timeout=0) as deliveries:
            assert [delivery.message for delivery in deliveries] == [b"2", b"3"]
            raise Reject("no")
        burying.control.add_subscriber("plain")
        burying.publisher.send(b"4")
        with pytest.raises(errors.SubscriberKindError, match="max_deliveries"):
            await task_ended_by(burying.environment.new_async_subscriber("plain"), Reject("no"))

    asyncio.run(main())
    assert [letter.payload for letter in burying.dead()] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("kind", ["plain", "limited"])
def test_a_task_of_a_plain_subscriber_waits_with_what_follows(kind: str, new_queue: Callable[[str], Queue],
                                                              move: Callable[[float], None]) -> None:
    """Until the delay has passed, tasks receive nothing either, in no way."""
    queue = new_queue(kind)

    async def main() -> None:
        subscriber = queue.environment.new_async_subscriber("a")
        assert await task_ended_by(subscriber, Retry(10))
        async with subscriber.receive(timeout=0) as msg:
            assert msg is None
        async with subscriber.receive_to_top(timeout=0) as msg:
            assert msg is None
        assert not [msg async for msg in subscriber.messages(timeout=0)]
        move(10)
        assert [msg async for msg in subscriber.messages(timeout=0)] == [b"1", b"2", b"3"]

    asyncio.run(main())


def test_a_cancelled_block_is_no_failure(new_queue: Callable[[str], Queue]) -> None:
    """The cancellation of a task in its block is not counted as a failure of the message."""
    for kind in ("plain", "limited"):
        queue = new_queue(kind)

        async def main(queue: Queue = queue) -> Optional[Delivery[bytes]]:
            subscriber, inside = queue.environment.new_async_subscriber("a"), asyncio.Event()

            async def hang() -> None:
                async with subscriber.receive(timeout=0):
                    inside.set()
                    await asyncio.sleep(WAIT_S)

            task = asyncio.ensure_future(hang())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await subscriber.front_delivery()

        delivery = asyncio.run(main())
        assert delivery is not None and (delivery.message, delivery.delivery_count) == (b"1", 1)
        queue.control.clear_all_subscribers()


# Forks


@pytest.mark.usefixtures("patient_forks")
def test_a_fork_in_a_block(queue: Queue) -> None:
    """A child that ends its parent's block by Retry or Reject leaves alone what only its parent holds."""
    is_shared = queue.subscriber.__class__ is not Subscriber

    def child(outcome: Exception) -> None:
        """End the block that the parent has begun."""
        receipt.__exit__(type(outcome), outcome, None)

    receipt = queue.subscriber.receive(timeout=0)
    with receipt as msg:
        assert msg == b"1"
        assert status_of(fork(lambda: child(Retry(1000)))) == 0
        assert status_of(fork(lambda: child(Retry(0)))) == 0
        if is_shared:
            assert status_of(fork(lambda: child(Reject("no")))) == 0
    assert not queue.dead() and drained(queue.subscriber) == [b"2", b"3"]
    assert queue.control.status().subscribers["a"].taken == 3


@pytest.mark.usefixtures("patient_forks")
def test_outcomes_in_a_child(burying: Queue) -> None:
    """A forked child retries and rejects what it receives itself; the parent sees the count and the dead letter."""

    def child() -> None:
        found = ended_by(burying.subscriber, Retry(0))
        assert found is not None and found.delivery_count == 1
        found = ended_by(burying.other(), Failed())
        assert found is not None and found.delivery_count == 2
        assert ended_by(burying.subscriber, Reject("by the child"))

    assert status_of(fork(child)) == 0
    assert [(letter.deliveries, letter.error_text) for letter in burying.dead()] == [(3, "by the child")]
    assert drained(burying.subscriber) == [b"2", b"3"]


# Threads


def test_threads_retry_and_reject_at_the_same_time(burying: Queue) -> None:
    """Whatever many workers decide at the same time, each message is acknowledged once or is a dead letter."""
    burying.control.add_subscriber("w", shared=True, max_deliveries=50, retry_delay_s=0, dead_letters_max=1000)
    burying.publisher.send_many(b"%d" % number for number in range(200))

    def work() -> Iterator[bytes]:
        subscriber = burying.environment.new_subscriber("w")
        while True:
            with subscriber.receive_delivery(timeout=0) as delivery:
                if delivery is None:
                    return
                if int(delivery.message) % 3 == 0:
                    raise Reject("no")
                if delivery.delivery_count < 3:
                    raise Retry(0)
                yield delivery.message

    tasks = [Task(lambda: list(work())) for _ in range(4)]
    found = [msg for task in tasks for msg in task.result()] + list(work())
    assert sorted(map(int, found)) == [number for number in range(200) if number % 3]
    dead = sorted(int(letter.payload) for letter in burying.control.dead_letters("w"))
    assert dead == [number for number in range(200) if number % 3 == 0]


def test_a_refused_retry_changes_nothing(queue: Queue) -> None:
    """A mistake in the arguments of Retry or Reject is an exception like any other: the message comes again."""
    with pytest.raises(errors.ArgumentError), queue.subscriber.receive(timeout=0):
        raise Retry(-1)
    with pytest.raises(errors.ArgumentTypeError), queue.subscriber.receive(timeout=0):
        raise Reject(5)  # type: ignore[arg-type]  # the mistake
    assert sorted(drained(queue.subscriber)) == [b"1", b"2", b"3"]


def test_expired_messages_are_not_retried(queue: Queue, move: Callable[[float], None]) -> None:
    """A message that expires before its delay has passed does not come again, and holds nobody up."""
    queue.control.set_hwm(HighWaterMark(message_timeout=60))
    assert ended_by(queue.subscriber, Retry(1000))
    move(61)
    queue.publisher.send(b"new")
    assert drained(queue.subscriber) == [b"new"]


def test_the_names_are_public() -> None:
    """Programs import outcomes and envelopes from the package."""
    assert (persipubsub.Retry, persipubsub.Reject, persipubsub.Delivery) == (Retry, Reject, Delivery)
