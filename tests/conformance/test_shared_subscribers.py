"""Shared subscribers: each message goes to one worker at a time, until one of them acknowledges it."""

import contextlib
import datetime
from typing import Any, List, Type

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.queues import Failed, NewQueue, PassTime, Queue, drained, failed, held, numbered, received, start

pytestmark = [pytest.mark.capability("shared"), pytest.mark.both_forms]

LEASE_S = 2.0


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue with a shared subscriber, whose lease can be waited for and whose retries come at once."""
    queue = new_queue()
    share(queue)
    return queue


def share(queue: Queue, **settings: Any) -> None:
    """Set how messages are handed out to the workers."""
    queue.control.add_subscriber("a", shared=True, **{"lease_s": LEASE_S, "retry_delay_s": 0, **settings})


# Handing out


def test_each_message_goes_to_one_worker(queue: Queue) -> None:
    """What one worker holds, no other one gets; it gets what is behind that."""
    queue.publisher().send_many(numbered(3))
    with queue.subscriber().receive(timeout=0) as first, queue.subscriber().receive(timeout=0) as second:
        assert (first, second) == (b"0", b"1")
        assert received(queue.subscriber()) == b"2"
        assert received(queue.subscriber()) is None


def test_acknowledged_messages_do_not_come_again(queue: Queue, pass_time: PassTime) -> None:
    """A message that a worker has acknowledged comes to no worker again, also after the lease."""
    queue.publisher().send_many(numbered(3))
    worker = queue.subscriber()
    assert received(worker) == b"0"
    with worker.receive_many(timeout=0) as msgs:
        assert msgs == [b"1", b"2"]
    pass_time(LEASE_S + 0.1)
    assert not drained(queue.subscriber())


def test_a_shared_subscriber_is_one_among_others(new_queue: NewQueue) -> None:
    """A shared subscriber and a plain one both get each message."""
    queue = new_queue("plain")
    share(queue)
    queue.publisher().send_many(numbered(4))
    assert [received(queue.subscriber()) for _ in range(4)] == numbered(4)
    assert drained(queue.subscriber("plain")) == numbered(4)


def test_the_first_worker_may_get_all(queue: Queue) -> None:
    """``receive_many`` claims what is there up to its maximum, and nothing is left for others."""
    queue.publisher().send_many(numbered(5))
    with queue.subscriber().receive_many(max_messages=4, timeout=0) as msgs:
        assert msgs == numbered(4)
        assert received(queue.subscriber()) == b"4"
        assert received(queue.subscriber()) is None


def test_a_loop_of_a_worker(queue: Queue) -> None:
    """Loops of several workers return each message once together."""
    queue.publisher().send_many(numbered(10))
    one, another, seen = queue.subscriber().messages(timeout=0), queue.subscriber().messages(timeout=0), []
    for _ in range(5):
        seen += [next(one), next(another)]
    assert (next(one, None), next(another, None)) == (None, None)
    assert sorted(seen) == numbered(10)


def test_workers_in_threads(queue: Queue) -> None:
    """However many workers receive at the same time, each message is handed out once."""
    queue.publisher().send_many(numbered(200))
    working = [start(lambda: list(queue.environment.new_subscriber("a").messages(timeout=0))) for _ in range(4)]
    assert sorted(msg for worker in working for msg in worker.result(60)) == sorted(numbered(200))


@pytest.mark.parametrize("method", ["front", "pop", "receive_to_top"])
def test_methods_for_one_reader(method: str, queue: Queue) -> None:
    """For a worker, methods that make sense for one reader only raise SubscriberKindError, a TypeError."""
    queue.publisher().send(b"x")
    with pytest.raises(errors.SubscriberKindError) as raised:
        found = getattr(queue.subscriber(), method)()
        with found:
            pass
    assert isinstance(raised.value, TypeError)
    assert received(queue.subscriber()) == b"x"


@pytest.mark.capability("large_batches")
def test_a_claim_is_bounded(queue: Queue) -> None:
    """A worker is handed 10,000 messages at most, however many it asks for."""
    queue.publisher().send_many([b""] * 10_001)
    for expected in (10_000, 1, 0):
        with queue.subscriber().receive_many(max_messages=10**6, timeout=0) as msgs:
            assert len(msgs) == expected


# Failing


def test_a_block_that_raises_gives_its_message_back(queue: Queue) -> None:
    """A message whose block raised comes to another worker before those that were not handed out yet."""
    queue.publisher().send_many(numbered(2))
    assert failed(queue.subscriber()) == b"0"
    assert drained(queue.subscriber()) == numbered(2)


def test_a_retry_waits(queue: Queue, pass_time: PassTime) -> None:
    """A message whose block raised comes again after the delay, which no other message waits for."""
    share(queue, retry_delay_s=1)
    queue.publisher().send_many(numbered(2))
    assert failed(queue.subscriber()) == b"0"
    assert drained(queue.subscriber()) == [b"1"]
    pass_time(1.1)
    assert received(queue.subscriber()) == b"0"


@pytest.mark.capability("clock", "dead_letters")
def test_retries_wait_twice_as_long_each_time(queue: Queue, pass_time: PassTime) -> None:
    """The delay doubles with each failure, up to its maximum."""
    share(queue, retry_delay_s=10, retry_delay_max_s=35, max_deliveries=9)
    queue.publisher().send(b"x")
    assert failed(queue.subscriber()) == b"x"
    for delay_s in (10, 20, 35, 35):
        pass_time(delay_s - 1)
        assert received(queue.subscriber()) is None
        pass_time(1.1)
        assert failed(queue.subscriber()) == b"x"


def test_what_fails_in_a_batch_comes_again_alone(queue: Queue) -> None:
    """All messages of a batch whose block raised come again, each alone."""
    queue.publisher().send_many(numbered(3))
    with pytest.raises(Failed), queue.subscriber().receive_many(timeout=0):
        raise Failed
    for msg in numbered(3):
        with queue.subscriber().receive_many(timeout=0) as msgs:
            assert msgs == [msg]
    assert not drained(queue.subscriber())


@pytest.mark.parametrize("stopped_first", [False, True])
def test_a_failed_message_is_not_batched_with_returned_ones(stopped_first: bool, queue: Queue) -> None:
    """A failed message never comes in a batch with those that a stopped worker gave back."""
    queue.publisher().send_many([b"bad", b"1", b"2"])
    bad, others = queue.subscriber().receive_many(1, timeout=0), queue.subscriber().receive_many(2, timeout=0)
    # pylint: disable=unnecessary-dunder-call  # the blocks end in either order
    assert (bad.__enter__(), others.__enter__()) == ([b"bad"], [b"1", b"2"])
    for block, error in [(bad, Failed()), (others, KeyboardInterrupt())][::-1 if stopped_first else 1]:
        block.__exit__(type(error), error, None)
    batches: List[List[bytes]] = []
    while len(batches) < 2:
        with queue.subscriber().receive_many(timeout=0) as msgs:
            batches.append(msgs)
    assert sorted(batches) == [[b"1", b"2"], [b"bad"]]


@pytest.mark.capability("dead_letters")
def test_a_failing_message_does_not_fail_its_batch(queue: Queue) -> None:
    """Of a batch in which one message always fails, all others are acknowledged in the end."""
    share(queue, max_deliveries=3)
    queue.publisher().send_many([b"1", b"bad", b"3"])
    done: List[bytes] = []
    for _ in range(8):
        with contextlib.suppress(Failed), queue.subscriber().receive_many(timeout=0) as msgs:
            if b"bad" in msgs:
                raise Failed
            done += msgs
    assert sorted(done) == [b"1", b"3"]
    assert [letter.payload for letter in queue.control.dead_letters("a")] == [b"bad"]


@pytest.mark.capability("dead_letters")
def test_a_last_try_is_alone(queue: Queue) -> None:
    """With ``max_deliveries=1`` each message is handed out alone, in a batch and in a loop."""
    share(queue, max_deliveries=1)
    queue.publisher().send_many(numbered(4))
    with pytest.raises(Failed), queue.subscriber().receive_many(timeout=0) as msgs:
        assert msgs == [b"0"]
        raise Failed
    for msg in queue.subscriber().messages(timeout=0, acknowledge_every=10):
        if msg == b"2":
            break
    assert [letter.payload for letter in queue.control.dead_letters("a")] == [b"0", b"2"]
    assert drained(queue.subscriber()) == [b"3"]


@pytest.mark.capability("dead_letters")
def test_a_loop_that_is_left(queue: Queue) -> None:
    """A loop that is left gives back the current message as failed, and those not yet begun as never handed out."""
    share(queue, max_deliveries=2)
    queue.publisher().send_many(numbered(6))
    for msg in queue.subscriber().messages(timeout=0, acknowledge_every=5):
        if msg == b"2":
            share(queue, max_deliveries=1)
            break
    letter, = queue.control.dead_letters("a")
    assert (letter.payload, letter.deliveries) == (b"2", 1)
    assert "loop" in letter.error_text
    share(queue, max_deliveries=2)
    with queue.subscriber().receive_many(timeout=0) as msgs:
        assert msgs[:2] == [b"3", b"4"], "together, so neither of them has failed"


@pytest.mark.capability("dead_letters")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_the_end_of_a_worker_is_no_failure(kind: Type[BaseException], queue: Queue) -> None:
    """KeyboardInterrupt and SystemExit give messages back at once, and uncounted."""
    share(queue, max_deliveries=1, retry_delay_s=60)
    queue.publisher().send(b"x")
    for _ in range(2):
        with pytest.raises(kind), queue.subscriber().receive(timeout=0) as msg:
            assert msg == b"x"
            raise kind
    assert received(queue.subscriber()) == b"x"


# Leases


def test_a_message_comes_again_when_its_lease_has_ended(queue: Queue, pass_time: PassTime) -> None:
    """What a worker holds comes to another one when the lease has ended, and not before."""
    queue.publisher().send(b"x")
    assert held(queue.subscriber()) == [b"x"]
    pass_time(LEASE_S / 2)
    assert received(queue.subscriber()) is None
    pass_time(LEASE_S / 2 + 0.1)
    assert received(queue.subscriber()) == b"x"


def test_an_acknowledgement_of_what_is_another_workers(queue: Queue, pass_time: PassTime) -> None:
    """A block that ends after another worker was given its message raises LeaseLostError; the other one keeps it."""
    queue.publisher().send(b"x")
    with pytest.raises(errors.LeaseLostError), queue.subscriber().receive(timeout=0):
        pass_time(LEASE_S + 0.1)
        assert held(queue.subscriber()) == [b"x"]
    assert received(queue.subscriber()) is None


def test_an_acknowledgement_that_is_late(queue: Queue, pass_time: PassTime) -> None:
    """An acknowledgement after the lease counts as long as no other worker was given the message."""
    queue.publisher().send(b"x")
    with queue.subscriber().receive(timeout=0):
        pass_time(LEASE_S + 0.1)
    assert received(queue.subscriber()) is None
    pass_time(LEASE_S + 0.1)
    assert received(queue.subscriber()) is None


def test_a_batch_of_which_one_message_is_lost(queue: Queue, pass_time: PassTime) -> None:
    """Of a batch of which another worker has one message, the others are acknowledged all the same."""
    queue.publisher().send_many(numbered(3))
    with pytest.raises(errors.LeaseLostError), queue.subscriber().receive_many(timeout=0):
        pass_time(LEASE_S + 0.1)
        assert held(queue.subscriber()) == [b"0"]
    pass_time(LEASE_S + 0.1)
    assert drained(queue.subscriber()) == [b"0"]


def test_an_extended_lease(queue: Queue, pass_time: PassTime) -> None:
    """``extend_lease`` has the lease of all messages that the object holds begin again."""
    queue.publisher().send_many(numbered(2))
    worker = queue.subscriber()
    with worker.receive(timeout=0), worker.receive(timeout=0):
        for _ in range(3):
            pass_time(LEASE_S * 0.75)
            worker.extend_lease()
        assert received(queue.subscriber()) is None
    assert received(queue.subscriber()) is None


def test_a_lease_is_extended_for_its_object_only(queue: Queue, pass_time: PassTime) -> None:
    """``extend_lease`` changes nothing for what another object holds."""
    queue.publisher().send_many(numbered(2))
    one, another = queue.subscriber(), queue.subscriber()
    assert held(one) == [b"0"] and held(another) == [b"1"]
    pass_time(LEASE_S * 0.75)
    another.extend_lease()
    pass_time(LEASE_S * 0.5)
    assert drained(queue.subscriber()) == [b"0"]


def test_extending_a_lease_that_is_lost(queue: Queue, pass_time: PassTime) -> None:
    """``extend_lease`` raises LeaseLostError when another worker was given a message; with nothing it does nothing."""
    queue.publisher().send(b"x")
    worker = queue.subscriber()
    worker.extend_lease()
    assert held(worker) == [b"x"]
    pass_time(LEASE_S + 0.1)
    assert held(queue.subscriber()) == [b"x"]
    with pytest.raises(errors.LeaseLostError):
        worker.extend_lease()


def test_a_plain_subscriber_has_no_lease(new_queue: NewQueue) -> None:
    """``extend_lease`` of a plain subscriber raises SubscriberKindError."""
    with pytest.raises(errors.SubscriberKindError):
        new_queue("a").subscriber().extend_lease()


@pytest.mark.capability("clock")
def test_a_loop_looks_again_after_the_lease(queue: Queue, pass_time: PassTime) -> None:
    """A loop returns no message of its batch whose lease has ended meanwhile without claiming it anew."""
    queue.publisher().send_many(numbered(2))
    messages = queue.subscriber().messages(timeout=0, acknowledge_every=2)
    assert next(messages) == b"0"
    pass_time(LEASE_S + 0.1)
    assert [held(queue.subscriber()), held(queue.subscriber())] == [[b"0"], [b"1"]]
    with pytest.raises(errors.LeaseLostError):
        next(messages)


@pytest.mark.capability("expiry")
def test_a_message_that_expires_at_a_worker(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A worker may acknowledge a message that has expired meanwhile; otherwise it is forgotten."""
    queue = new_queue(high_watermark=HighWaterMark(message_timeout=1))
    share(queue)
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"0" and held(queue.subscriber()) == [b"1"]
        pass_time(1.1)
    pass_time(LEASE_S + 0.1)
    queue.publisher().send(b"2")
    assert drained(queue.subscriber()) == [b"2"]


@pytest.mark.capability("clearing")
def test_pruning_what_workers_hold(queue: Queue) -> None:
    """``prune_all_messages_for`` skips also what workers hold: they get LeaseLostError."""
    queue.publisher().send_many(numbered(3))
    with pytest.raises(errors.LeaseLostError), queue.subscriber().receive(timeout=0):
        assert queue.control.prune_all_messages_for("a") == 3
    assert received(queue.subscriber()) is None


@pytest.mark.capability("replay", "retention")
def test_rewinding_what_workers_hold(new_queue: NewQueue) -> None:
    """Workers lose their leases on messages from the new cursor on, which are handed out again; others keep theirs."""
    queue = new_queue(retention_s=100)
    share(queue)
    second = list(queue.publisher().send_many(numbered(4)))[1]
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"0"
        with pytest.raises(errors.LeaseLostError), queue.subscriber().receive_many(2, timeout=0):
            assert queue.control.rewind("a", second) == 4
        assert drained(queue.subscriber()) == numbered(3, 1)


@pytest.mark.capability("replay")
def test_a_shared_subscriber_may_begin_in_the_past(new_queue: NewQueue) -> None:
    """A new shared subscriber gets what is stored, if it begins with the earliest message."""
    queue = new_queue("plain")
    queue.publisher().send(b"x")
    queue.control.add_subscriber("a", start="earliest", shared=True)
    since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    queue.control.add_subscriber("b", start=since, shared=True)
    assert received(queue.subscriber("a")) == received(queue.subscriber("b")) == b"x"


# Changing


@pytest.mark.capability("status")
def test_counts(queue: Queue) -> None:
    """What workers hold or what waits for a retry is in flight and pending; what is acknowledged counts as taken."""
    share(queue, retry_delay_s=60)
    queue.publisher().send_many(numbered(4))
    with queue.subscriber().receive(timeout=0):
        failed(queue.subscriber())
        assert received(queue.subscriber()) == b"2"
        status = queue.status_of()
        assert (status.pending, status.in_flight, status.taken) == (3, 2, 1)
    status = queue.status_of()
    assert (status.pending, status.in_flight, status.taken) == (2, 1, 2)


@pytest.mark.capability("status")
def test_what_is_behind_a_message_in_flight_stays(queue: Queue) -> None:
    """The cursor of a shared subscriber is the first message that nobody has acknowledged: the queue keeps the rest."""
    queue.publisher().send_many(numbered(3))
    with queue.subscriber().receive(timeout=0):
        assert len(drained(queue.subscriber())) == 2
        assert queue.control.status().messages == 3
    assert queue.control.status().messages == 0


@pytest.mark.capability("status", "dead_letters")
def test_settings(new_queue: NewQueue) -> None:
    """What is set is stored, what is left out is the default first, and then stays as it is."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True)
    policy = queue.status_of().policy
    assert policy is not None
    assert policy.settings() == {
        "shared": True,
        "lease_s": 30,
        "max_deliveries": 5,
        "retry_delay_s": 1,
        "retry_delay_max_s": 60,
        "dead_letters_max": 10_000
    }
    queue.control.add_subscriber("a", lease_s=7.5, max_deliveries=3)
    queue.control.add_subscriber("a")
    changed = queue.status_of().policy
    assert changed is not None
    assert changed.settings() == {**policy.settings(), "lease_s": 7.5, "max_deliveries": 3}


def test_a_change_holds_for_what_is_claimed_from_then_on(queue: Queue, pass_time: PassTime) -> None:
    """A longer lease holds for the next claim of whoever is open, and not for what a worker holds already."""
    queue.publisher().send_many(numbered(2))
    worker = queue.subscriber()
    assert held(worker) == [b"0"]
    share(queue, lease_s=10 * LEASE_S)
    assert held(worker) == [b"1"]
    pass_time(LEASE_S + 0.1)
    assert drained(queue.subscriber()) == [b"0"]


def test_another_kind_keeps_its_cursor(new_queue: NewQueue) -> None:
    """A plain subscriber that becomes shared, and the reverse, keeps its cursor; it is opened anew."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    plain = queue.subscriber()
    assert received(plain) == b"0"
    share(queue)
    with pytest.raises(errors.UnknownSubscriberError):
        plain.front()
    worker = queue.subscriber()
    assert received(worker) == b"1"
    queue.control.add_subscriber("a", shared=False)
    with pytest.raises(errors.UnknownSubscriberError):
        received(worker)
    assert queue.subscriber().front() == b"2"


def test_another_kind_with_messages_in_flight(queue: Queue) -> None:
    """A shared subscriber whose workers hold messages cannot become a plain one, and nothing changes."""
    queue.publisher().send_many(numbered(2))
    with queue.subscriber().receive(timeout=0):
        with pytest.raises(errors.ArgumentError):
            queue.control.add_subscriber("a", shared=False)
        assert received(queue.subscriber()) == b"1"


def test_removing_a_shared_subscriber(queue: Queue) -> None:
    """A worker that holds messages of a subscriber that is removed ends its block, and nothing of it stays."""
    queue.publisher().send_many(numbered(2))
    with contextlib.suppress(errors.UnknownSubscriberError, errors.LeaseLostError), \
            queue.subscriber().receive(timeout=0):
        queue.control.remove_subscriber("a")
    share(queue)
    assert received(queue.subscriber()) is None
