"""Dead letters: what failed as often as its subscriber allows stops nobody, and is kept until somebody decides."""

import contextlib
import time
from typing import Any, List

import pytest

from persipubsub import HighWaterMark, errors
from persipubsub.dead_letters import DeadLetter
from tests.conformance.queues import (Failed, NewQueue, PassTime, Queue, drained, failed, held, numbered, received,
                                      warnings_of)

pytestmark = [pytest.mark.capability("dead_letters"), pytest.mark.both_forms]

KINDS = pytest.mark.parametrize("shared",
                                [False, pytest.param(True, marks=pytest.mark.capability("shared"), id="shared")])


def limit(queue: Queue, shared: bool, **settings: Any) -> None:
    """Limit the deliveries of a subscriber."""
    if shared:
        settings = {"shared": True, "lease_s": 2, "retry_delay_s": 0, **settings}
    queue.control.add_subscriber("a", **{"max_deliveries": 1, **settings})


def letters(queue: Queue) -> List[DeadLetter]:
    """Return the dead letters."""
    return list(queue.control.dead_letters("a"))


def payloads(queue: Queue) -> List[bytes]:
    """Return the messages that are dead letters."""
    return [letter.payload for letter in letters(queue)]


@KINDS
def test_a_message_that_always_fails_stops_nobody(shared: bool, new_queue: NewQueue) -> None:
    """A message whose blocks raised ``max_deliveries`` times does not come again; those behind it come."""
    queue = new_queue("other")
    limit(queue, shared, max_deliveries=3)
    queue.publisher().send_many([b"bad", b"good"])
    assert [failed(queue.subscriber()) for _ in range(3)] == [b"bad"] * 3
    assert payloads(queue) == [b"bad"]
    assert drained(queue.subscriber()) == [b"good"]
    assert drained(queue.subscriber("other")) == [b"bad", b"good"]


@KINDS
def test_what_a_dead_letter_says(shared: bool, new_queue: NewQueue) -> None:
    """A dead letter has its message, its id, how often it was handed out, the last exception, and the two times."""
    queue, before = new_queue(), time.time()
    limit(queue, shared, max_deliveries=2)
    message_id = queue.publisher().send(b"bad")
    for text in ("first", "last"):
        with pytest.raises(Failed), queue.subscriber().receive(timeout=0):
            raise Failed(text)
    letter, = letters(queue)
    assert (letter.id, letter.payload, letter.deliveries, letter.reason) == (message_id, b"bad", 2, "raised")
    assert letter.error_type.endswith("Failed") and letter.error_text == "last"
    assert before - 1 < letter.sent_time_s <= letter.died_time_s < time.time() + 1


def test_the_name_of_a_builtin_exception(new_queue: NewQueue) -> None:
    """The class of a builtin exception is shown without a module."""
    queue = new_queue()
    limit(queue, False)
    queue.publisher().send(b"bad")
    with pytest.raises(ValueError), queue.subscriber().receive(timeout=0):
        raise ValueError("This is no picture.")
    letter, = letters(queue)
    assert (letter.error_type, letter.error_text) == ("ValueError", "This is no picture.")
    assert "test_dead_letters.py" in letter.error_traceback and "no picture" in letter.error_traceback


def test_the_text_of_an_exception_is_bounded(new_queue: NewQueue) -> None:
    """Of a long text of an exception a thousand characters are kept."""
    queue = new_queue()
    limit(queue, False)
    queue.publisher().send(b"bad")
    with pytest.raises(Failed), queue.subscriber().receive(timeout=0):
        raise Failed("x" * 5000)
    assert letters(queue)[0].error_text.startswith("x" * 900)
    assert len(letters(queue)[0].error_text) <= 1000


@pytest.mark.capability("shared")
def test_the_leases_that_ran_out(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A message that workers held for longer than the lease, as often as allowed, is a dead letter at the next look."""
    queue = new_queue()
    limit(queue, True, max_deliveries=2)
    queue.publisher().send_many(numbered(2))
    for _ in range(2):
        assert held(queue.subscriber()) == [b"0"]
        pass_time(2.1)
    assert received(queue.subscriber()) == b"1"
    letter, = letters(queue)
    assert (letter.payload, letter.reason, letter.deliveries) == (b"0", "lease ran out", 2)


def test_a_plain_subscriber_has_no_limit(new_queue: NewQueue) -> None:
    """By default a plain subscriber gets a message again and again."""
    queue = new_queue("a")
    queue.publisher().send(b"bad")
    assert [failed(queue.subscriber()) for _ in range(30)] == [b"bad"] * 30
    assert not letters(queue)


def test_a_plain_subscriber_keeps_its_order(new_queue: NewQueue) -> None:
    """A message of a plain subscriber comes again at once, before those behind it."""
    queue = new_queue()
    limit(queue, False, max_deliveries=3)
    queue.publisher().send_many(numbered(2))
    assert failed(queue.subscriber()) == b"0"
    assert drained(queue.subscriber()) == numbered(2)
    assert not letters(queue)


def test_only_failures_of_a_plain_subscriber_count(new_queue: NewQueue) -> None:
    """Looks, blocks that never end, and KeyboardInterrupt are no failures of a plain subscriber."""
    queue = new_queue()
    limit(queue, False)
    queue.publisher().send(b"x")
    for _ in range(3):
        queue.subscriber().front()
        held(queue.subscriber())
        with pytest.raises(KeyboardInterrupt), queue.subscriber().receive(timeout=0):
            raise KeyboardInterrupt
    assert received(queue.subscriber()) == b"x"


def test_a_batch_of_a_plain_subscriber(new_queue: NewQueue) -> None:
    """Messages that failed in a batch come again alone, so only the one to blame becomes a dead letter."""
    queue = new_queue()
    limit(queue, False, max_deliveries=2)
    queue.publisher().send_many([b"1", b"bad", b"3"])
    done: List[bytes] = []
    for _ in range(6):
        with contextlib.suppress(Failed), queue.subscriber().receive_many(timeout=0) as msgs:
            if b"bad" in msgs:
                raise Failed
            done += msgs
    assert done == [b"1", b"3"] and payloads(queue) == [b"bad"]


@KINDS
def test_dead_letters_stand_in_the_order_of_sending(shared: bool, new_queue: NewQueue) -> None:
    """Dead letters are listed in the order in which they were sent."""
    queue = new_queue()
    limit(queue, shared)
    queue.publisher().send_many(numbered(12))
    while failed_or_nothing(queue) is not None:
        pass
    assert payloads(queue) == numbered(12)


def failed_or_nothing(queue: Queue) -> object:
    """Receive a message in a block that raises, if there is one."""
    with contextlib.suppress(Failed), queue.subscriber().receive(timeout=0) as msg:
        if msg is None:
            return None
        raise Failed
    return True


@KINDS
def test_requeued_messages(shared: bool, new_queue: NewQueue) -> None:
    """A requeued dead letter comes to its subscriber only, as if for the first time, before what is new there."""
    queue = new_queue("other")
    limit(queue, shared, max_deliveries=2)
    queue.publisher().send_many([b"bad", b"new"])
    failed(queue.subscriber())
    failed(queue.subscriber())
    drained(queue.subscriber("other"))
    assert queue.control.requeue_dead_letters("a") == 1
    assert not letters(queue)
    assert failed(queue.subscriber()) == b"bad"
    assert drained(queue.subscriber()) == [b"bad", b"new"]
    assert not drained(queue.subscriber("other"))


@KINDS
def test_a_requeued_message_may_die_again(shared: bool, new_queue: NewQueue) -> None:
    """A requeued message that fails as often as allowed is a dead letter again, of the same id."""
    queue = new_queue()
    limit(queue, shared)
    message_id = queue.publisher().send(b"bad")
    for _ in range(3):
        assert failed(queue.subscriber()) == b"bad"
        assert [(letter.id, letter.payload, letter.deliveries)
                for letter in letters(queue)] == [(message_id, b"bad", 1)]
        assert queue.control.requeue_dead_letters("a") == 1


@KINDS
@pytest.mark.parametrize("change", ["requeue_dead_letters", "discard_dead_letters"])
def test_some_dead_letters_change(change: str, shared: bool, new_queue: NewQueue) -> None:
    """Requeuing and discarding take ids, or all without any; they return how many there were, and ignore others."""
    queue = new_queue()
    limit(queue, shared)
    ids = list(queue.publisher().send_many(numbered(4)))
    for _ in range(4):
        failed(queue.subscriber())
    act = getattr(queue.control, change)
    assert act("a", [ids[1], ids[3], ids[3], 10**6]) == 2
    assert payloads(queue) == [b"0", b"2"]
    assert act("a", []) == 0
    assert act("a") == 2
    assert act("a") == 0
    assert sorted(drained(queue.subscriber())) == (numbered(4) if change == "requeue_dead_letters" else [])


@KINDS
def test_dead_letters_are_bounded(shared: bool, new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Of more dead letters than ``dead_letters_max`` the oldest are deleted, with a warning."""
    queue = new_queue()
    limit(queue, shared, dead_letters_max=2)
    queue.publisher().send_many(numbered(4))
    for _ in range(2):
        failed(queue.subscriber())
    assert not warnings_of(caplog)
    for _ in range(2):
        failed(queue.subscriber())
    assert payloads(queue) == [b"2", b"3"]
    assert len(warnings_of(caplog)) == 2
    limit(queue, shared, dead_letters_max=1)
    assert payloads(queue) == [b"3"]


@pytest.mark.capability("clearing", "expiry", "high_water_mark", "clock")
@KINDS
def test_dead_letters_are_outside_the_log(shared: bool, new_queue: NewQueue, pass_time: PassTime) -> None:
    """Neither the message timeout, nor the high-water mark, nor clearing deletes dead letters or requeued ones."""
    queue = new_queue(high_watermark=HighWaterMark(message_timeout=60, max_messages=2))
    limit(queue, shared)
    queue.publisher().send_many([b"requeued", b"dead"])
    failed(queue.subscriber())
    failed(queue.subscriber())
    queue.control.requeue_dead_letters("a", [1])
    pass_time(61)
    queue.publisher().send_many(numbered(5))
    queue.control.clear_messages()
    assert payloads(queue) == [b"dead"]
    assert drained(queue.subscriber()) == [b"requeued"]


@pytest.mark.capability("status")
@KINDS
def test_dead_letters_are_counted(shared: bool, new_queue: NewQueue) -> None:
    """The status counts dead letters, which are pending no more, and requeued ones, which are in flight."""
    queue = new_queue()
    limit(queue, shared)
    queue.publisher().send_many(numbered(2))
    failed(queue.subscriber())
    status = queue.status_of()
    assert (status.pending, status.dead_letters, status.in_flight) == (1, 1, 0)
    queue.control.requeue_dead_letters("a")
    status = queue.status_of()
    assert (status.pending, status.dead_letters, status.in_flight) == (2, 0, 1)


@KINDS
def test_dead_letters_of_a_removed_subscriber(shared: bool, new_queue: NewQueue,
                                              caplog: pytest.LogCaptureFixture) -> None:
    """The dead letters of a subscriber that is removed are deleted, with a warning."""
    queue = new_queue()
    limit(queue, shared)
    queue.publisher().send(b"bad")
    failed(queue.subscriber())
    queue.control.remove_subscriber("a")
    assert len(warnings_of(caplog)) == 1
    limit(queue, shared)
    assert not letters(queue)


@pytest.mark.capability("shared")
def test_another_kind_with_dead_letters(new_queue: NewQueue) -> None:
    """A subscriber with dead letters cannot become one of the other kind until they are discarded."""
    queue = new_queue()
    limit(queue, False)
    queue.publisher().send(b"bad")
    failed(queue.subscriber())
    with pytest.raises(errors.ArgumentError):
        queue.control.add_subscriber("a", shared=True)
    queue.control.discard_dead_letters("a")
    queue.control.add_subscriber("a", shared=True)


@pytest.mark.parametrize("method", ["dead_letters", "requeue_dead_letters", "discard_dead_letters"])
def test_dead_letters_of_an_unknown_subscriber(method: str, new_queue: NewQueue) -> None:
    """There are no dead letters of an unknown subscriber: UnknownSubscriberError."""
    with pytest.raises(errors.UnknownSubscriberError):
        getattr(new_queue("a").control, method)("b")


def test_a_control_that_is_closed_while_it_lists(new_queue: NewQueue) -> None:
    """A loop over dead letters raises ClosedError after its control was closed."""
    queue = new_queue()
    limit(queue, False)
    queue.publisher().send(b"bad")
    failed(queue.subscriber())
    found = queue.control.dead_letters("a")
    assert next(found).payload == b"bad"
    queue.control.close()
    with pytest.raises(errors.ClosedError):
        next(found)


@pytest.mark.capability("persistent")
@KINDS
def test_dead_letters_are_persistent(shared: bool, new_queue: NewQueue) -> None:
    """Dead letters are there when the queue is opened again."""
    queue = new_queue()
    limit(queue, shared)
    queue.publisher().send(b"bad")
    failed(queue.subscriber())
    queue.environment.close()
    with queue.opened() as environment:
        assert [letter.payload for letter in environment.new_control().dead_letters("a")] == [b"bad"]
