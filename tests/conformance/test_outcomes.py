"""Retry and Reject: what a block raises to have its messages delivered again, or made dead letters at once."""

import contextlib
import pickle
import time
from typing import Any, List, Type, Union

import pytest

from persipubsub import HighWaterMark, Reject, Retry, Strategy, errors
from tests.conformance.forms import AnySubscriber
from tests.conformance.queues import Failed, NewQueue, PassTime, Queue, drained, failed, held, numbered, received, start

pytestmark = pytest.mark.both_forms

LIMITED = pytest.param("limited", marks=pytest.mark.capability("dead_letters"))
SHARED = pytest.param("shared", marks=pytest.mark.capability("shared", "dead_letters"))
KINDS = pytest.mark.parametrize("kind", ["plain", LIMITED, SHARED])
WITH_DEAD_LETTERS = pytest.mark.parametrize("kind", [LIMITED, SHARED])
#: The delay of a retry, which can be waited for.
DELAY_S = 1.0


def settle(queue: Queue, kind: str, **settings: Any) -> None:
    """Add a subscriber of a kind, with three deliveries if they are limited."""
    if kind == "shared":
        settings = {"shared": True, "lease_s": 60, "retry_delay_s": 60, **settings}
    if kind != "plain":
        settings = {"max_deliveries": 3, **settings}
    queue.control.add_subscriber("a", **settings)


def ended(subscriber: AnySubscriber, outcome: Union[Retry, Reject], max_messages: int = 1) -> List[bytes]:
    """Receive messages in a block that raises an outcome, which the block swallows."""
    msgs: List[bytes] = []
    with subscriber.receive_many(max_messages, timeout=0) as msgs:
        raise outcome
    return msgs


def payloads(queue: Queue) -> List[bytes]:
    """Return the messages that are dead letters."""
    return [letter.payload for letter in queue.control.dead_letters("a")]


# Both


@KINDS
@pytest.mark.parametrize("outcome", [Retry, Retry(5), Reject, Reject("reason")])
@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_delivery", "receive_deliveries"])
def test_a_block_without_a_message(way: str, outcome: Any, kind: str, new_queue: NewQueue) -> None:
    """A block that received nothing swallows an outcome, which has no effect."""
    queue = new_queue()
    settle(queue, kind)
    subscriber = queue.subscriber()
    with getattr(subscriber, way)(timeout=0):
        raise outcome
    queue.publisher().send(b"x")
    assert received(subscriber) == b"x"


@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_delivery", "receive_deliveries", "receive_to_top"])
def test_every_way_to_receive_swallows_a_retry(way: str, new_queue: NewQueue) -> None:
    """Each way to receive a block swallows Retry, and the message is delivered again."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    for _ in range(3):
        with getattr(subscriber, way)(timeout=0) as found:
            assert found
            raise Retry
    assert received(subscriber) == b"x"


@WITH_DEAD_LETTERS
@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_delivery", "receive_deliveries"])
def test_every_way_to_receive_swallows_a_rejection(way: str, kind: str, new_queue: NewQueue) -> None:
    """Each way to receive a block swallows Reject, and the message is a dead letter."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send(b"x")
    with getattr(queue.subscriber(), way)(timeout=0) as found:
        assert found
        raise Reject
    assert payloads(queue) == [b"x"]


@pytest.mark.parametrize("outcome", [Retry(), Retry(1.5), Reject(), Reject("reason")])
def test_outcomes_are_values(outcome: Any, new_queue: NewQueue) -> None:
    """An outcome can be pickled, as between the processes of a pool, and has what it was made with."""
    del new_queue
    copied = pickle.loads(pickle.dumps(outcome))
    assert type(copied) is type(outcome) and str(copied) == str(outcome) and vars(copied) == vars(outcome)
    assert isinstance(outcome, errors.PersipubsubError)


@pytest.mark.parametrize("delay_s, kind", [(-1, errors.ArgumentError), (10**9 + 1, errors.ArgumentError),
                                           (float("nan"), errors.ArgumentError), ("1", errors.ArgumentTypeError),
                                           (True, errors.ArgumentTypeError)])
def test_invalid_delays(delay_s: Any, kind: Type[Exception], new_queue: NewQueue) -> None:
    """A wrong delay raises where Retry is made, so the message is kept as after any other error."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    with pytest.raises(kind, match="delay_s"), queue.subscriber().receive(timeout=0):
        raise Retry(delay_s)
    assert received(queue.subscriber()) == b"x"


@KINDS
def test_an_outcome_within_another_exception(kind: str, new_queue: NewQueue) -> None:
    """An exception that an outcome caused is an error like any other: the block does not swallow it."""
    queue = new_queue()
    settle(queue, kind, **({"retry_delay_s": 0} if kind == "shared" else {}))
    queue.publisher().send(b"x")
    with pytest.raises(Failed), queue.subscriber().receive(timeout=0):
        try:
            raise Reject
        except Reject as error:
            raise Failed from error
    assert received(queue.subscriber()) == b"x"


# Retry


def test_a_retry_of_a_plain_subscriber(new_queue: NewQueue) -> None:
    """Without a delay, a plain subscriber receives the message again at once, before those after it."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    assert [ended(subscriber, Retry()) for _ in range(5)] == [[b"0"]] * 5
    assert drained(subscriber) == numbered(2)


def test_a_delayed_retry_of_a_plain_subscriber(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A plain subscriber waits for the delay, with all that follows; then it receives them in order."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    assert ended(subscriber, Retry(DELAY_S)) == [b"0"]
    queue.publisher().send(b"2")
    assert received(subscriber) is None and not drained(subscriber)
    with subscriber.receive_many(timeout=0) as msgs, subscriber.receive_deliveries(timeout=0) as found, \
            subscriber.receive_to_top(timeout=0) as latest:
        assert not msgs and not found and latest is None
    pass_time(DELAY_S + 0.1)
    assert drained(subscriber) == numbered(3)


@pytest.mark.parametrize("kind", ["plain", LIMITED])
def test_a_delay_is_of_one_subscriber(kind: str, new_queue: NewQueue) -> None:
    """While one subscriber waits to retry, others receive the messages."""
    queue = new_queue("other")
    settle(queue, kind)
    queue.publisher().send(b"x")
    assert ended(queue.subscriber(), Retry(60)) == [b"x"]
    assert received(queue.subscriber("other")) == b"x"


@pytest.mark.capability("shared", "dead_letters")
def test_a_retry_of_a_worker(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A worker's message is delivered again after the delay of the Retry; other messages are delivered meanwhile."""
    queue = new_queue()
    settle(queue, "shared")
    queue.publisher().send_many(numbered(3))
    worker = queue.subscriber()
    assert ended(worker, Retry(DELAY_S)) == [b"0"]
    assert ended(worker, Retry(0)) == [b"1"]
    assert received(queue.subscriber()) == b"1"
    assert drained(worker) == [b"2"]
    pass_time(DELAY_S + 0.1)
    assert received(queue.subscriber()) == b"0"


@pytest.mark.capability("shared", "dead_letters")
def test_a_retry_without_a_delay_of_a_worker(new_queue: NewQueue, pass_time: PassTime) -> None:
    """Without a delay, a worker's message is delivered again after the delay of the subscriber."""
    queue = new_queue()
    settle(queue, "shared", retry_delay_s=DELAY_S)
    queue.publisher().send(b"x")
    assert ended(queue.subscriber(), Retry()) == [b"x"]
    assert received(queue.subscriber()) is None
    pass_time(DELAY_S + 0.1)
    assert received(queue.subscriber()) == b"x"


@WITH_DEAD_LETTERS
def test_a_retry_counts(kind: str, new_queue: NewQueue) -> None:
    """A message that is retried as often as it may be delivered becomes a dead letter, as after other failures."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    for count in range(1, 4):
        with subscriber.receive_delivery(timeout=0) as delivery:
            assert delivery is not None and delivery.delivery_count == count
            raise Retry(0)
    letter, = queue.control.dead_letters("a")
    assert (letter.payload, letter.deliveries, letter.reason) == (b"x", 3, "raised")
    assert letter.error_type.endswith("Retry")
    assert received(subscriber) is None


@KINDS
def test_a_retry_of_a_batch(kind: str, new_queue: NewQueue) -> None:
    """Retry in the block of a batch has all of its messages delivered again."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    assert ended(subscriber, Retry(0), max_messages=2) == numbered(2)
    assert sorted(drained(subscriber)) == numbered(3)


@KINDS
def test_a_delayed_retry_of_a_batch(kind: str, new_queue: NewQueue, pass_time: PassTime) -> None:
    """The messages of a batch are delivered again after the delay."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    assert ended(subscriber, Retry(DELAY_S), max_messages=2) == numbered(2)
    assert received(subscriber) is None
    pass_time(DELAY_S + 0.1)
    assert sorted(drained(subscriber)) == numbered(2)


@KINDS
def test_the_end_of_a_delay_ends_a_wait(kind: str, new_queue: NewQueue) -> None:
    """A subscriber that waits receives a retried message when its delay is over, though nobody sends."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send(b"x")
    subscriber, begin = queue.subscriber(), time.monotonic()
    assert ended(subscriber, Retry(0.1)) == [b"x"]
    assert received(subscriber, 60) == b"x"
    assert 0.09 < time.monotonic() - begin < 5


def test_front_during_a_delay(new_queue: NewQueue) -> None:
    """While a plain subscriber waits to retry, ``front`` shows the message, and ``pop`` acknowledges it."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    ended(subscriber, Retry(60))
    assert subscriber.front() == b"0"
    subscriber.pop()
    assert subscriber.front() == b"1"


@pytest.mark.capability("shared")
def test_a_retry_wakes_a_worker(new_queue: NewQueue) -> None:
    """A worker that waits receives what another one retries at once."""
    queue = new_queue()
    settle(queue, "shared")
    queue.publisher().send(b"x")
    block = queue.environment.new_subscriber("a").receive(timeout=0)
    assert block.__enter__() == b"x"  # pylint: disable=unnecessary-dunder-call  # it ends in another thread
    retrying = start(lambda: block.__exit__(Retry, Retry(0), None), 0.05)
    assert received(queue.subscriber(), 60) == b"x"
    assert retrying.result(60)


# Reject


@WITH_DEAD_LETTERS
def test_a_rejected_message(kind: str, new_queue: NewQueue) -> None:
    """A rejected message is a dead letter at once, with the reason; other subscribers receive it as before."""
    queue = new_queue("other")
    settle(queue, kind)
    message_id = queue.publisher().send(b"bad", headers={"name": "text"})
    queue.publisher().send(b"good")
    subscriber = queue.subscriber()
    assert ended(subscriber, Reject("no order")) == [b"bad"]
    letter, = queue.control.dead_letters("a")
    assert (letter.id, letter.payload, letter.deliveries, letter.reason) == (message_id, b"bad", 1, "rejected")
    assert letter.error_type.endswith("Reject") and letter.error_text == "no order"
    assert letter.headers == {"name": "text"}
    assert drained(subscriber) == [b"good"]
    assert drained(queue.subscriber("other")) == [b"bad", b"good"]


@WITH_DEAD_LETTERS
def test_a_rejected_batch(kind: str, new_queue: NewQueue) -> None:
    """Reject in the block of a batch makes each of its messages a dead letter, and no other one."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send_many(numbered(4))
    subscriber = queue.subscriber()
    assert ended(subscriber, Reject(), max_messages=3) == numbered(3)
    assert payloads(queue) == numbered(3)
    assert drained(subscriber) == [b"3"]


@WITH_DEAD_LETTERS
def test_a_rejection_after_failures(kind: str, new_queue: NewQueue) -> None:
    """A message may be rejected after it has failed; the dead letter counts all deliveries."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    ended(subscriber, Retry(0))
    assert ended(subscriber, Reject()) == [b"x"]
    letter, = queue.control.dead_letters("a")
    assert (letter.deliveries, letter.reason) == (2, "rejected")


@WITH_DEAD_LETTERS
def test_a_rejected_message_is_requeued(kind: str, new_queue: NewQueue) -> None:
    """A rejected message can be requeued, and rejected again."""
    queue = new_queue()
    settle(queue, kind)
    queue.publisher().send(b"x")
    subscriber = queue.subscriber()
    for _ in range(3):
        assert ended(subscriber, Reject()) == [b"x"]
        assert queue.control.requeue_dead_letters("a") == 1
    assert drained(subscriber) == [b"x"]
    assert not payloads(queue)


@pytest.mark.capability("dead_letters")
@pytest.mark.parametrize("max_messages", [1, 2])
def test_a_rejection_without_dead_letters(max_messages: int, new_queue: NewQueue) -> None:
    """Reject raises SubscriberKindError where the subscriber has no dead letters; the messages are kept."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    with pytest.raises(errors.SubscriberKindError, match="max_deliveries"):
        ended(queue.subscriber(), Reject(), max_messages)
    assert drained(queue.subscriber()) == numbered(2)


@pytest.mark.capability("dead_letters")
def test_a_rejection_of_the_latest_message(new_queue: NewQueue) -> None:
    """``receive_to_top`` cannot reject a message that skips others: SubscriberKindError, and all are kept."""
    queue = new_queue()
    settle(queue, "limited")
    queue.publisher().send_many(numbered(2))
    subscriber = queue.subscriber()
    with pytest.raises(errors.SubscriberKindError), subscriber.receive_to_top(timeout=0):
        raise Reject
    assert received(subscriber) == b"0"
    with subscriber.receive_to_top(timeout=0):
        raise Reject
    assert payloads(queue) == [b"1"]


@pytest.mark.capability("dead_letters", "prune_last")
def test_a_rejection_of_the_only_message(new_queue: NewQueue) -> None:
    """``receive_to_top`` can reject the only message, though others before it were dropped."""
    mark = HighWaterMark(max_messages=1)
    queue = new_queue(high_watermark=mark, strategy=Strategy.prune_last)
    settle(queue, "limited")
    queue.publisher().send_many(numbered(3))
    with queue.subscriber().receive_to_top(timeout=0) as msg:
        assert msg == b"2"
        raise Reject
    assert payloads(queue) == [b"2"]


@pytest.mark.capability("dead_letters")
def test_a_rejection_of_a_reader_that_was_overtaken(new_queue: NewQueue) -> None:
    """A message that another reader has acknowledged meanwhile does not become a dead letter."""
    queue = new_queue()
    settle(queue, "limited")
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive(timeout=0):
        assert received(queue.subscriber()) == b"0"
        raise Reject
    assert not payloads(queue)
    assert drained(queue.subscriber()) == [b"1"]


@pytest.mark.capability("shared", "dead_letters")
def test_a_rejection_after_the_lease(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A worker rejects only what it still holds: what another worker was given stays there."""
    queue = new_queue()
    settle(queue, "shared", lease_s=1)
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive_many(2, timeout=0):
        pass_time(1.1)
        assert held(queue.subscriber()) == [b"0"]
        raise Reject
    assert payloads(queue) == [b"1"]


@WITH_DEAD_LETTERS
def test_rejected_messages_are_bounded(kind: str, new_queue: NewQueue) -> None:
    """Of more rejected messages than ``dead_letters_max``, the oldest are deleted."""
    queue = new_queue()
    settle(queue, kind, dead_letters_max=2)
    queue.publisher().send_many(numbered(3))
    ended(queue.subscriber(), Reject(), max_messages=3)
    assert payloads(queue) == numbered(2, 1)


@WITH_DEAD_LETTERS
def test_outcomes_beside_failures(kind: str, new_queue: NewQueue) -> None:
    """Messages end as their blocks say, each by itself: acknowledged, retried, rejected, or failed."""
    queue = new_queue()
    settle(queue, kind, **({"retry_delay_s": 0} if kind == "shared" else {}))
    queue.publisher().send_many([b"good", b"retry", b"bad", b"fail"])
    subscriber, done = queue.subscriber(), list[bytes]()
    for _ in range(20):
        with contextlib.suppress(Failed), subscriber.receive_delivery(timeout=0) as found:
            if found is None:
                break
            if found.message == b"retry" and found.delivery_count < 3:
                raise Retry(0)
            if found.message == b"bad":
                raise Reject
            if found.message == b"fail":
                raise Failed
            done.append(found.message)
    assert sorted(done) == [b"good", b"retry"]
    assert {letter.payload: letter.deliveries for letter in queue.control.dead_letters("a")} == {b"bad": 1, b"fail": 3}
    assert failed(queue.subscriber("a")) is None
