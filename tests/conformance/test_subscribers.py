"""Subscribers: each gets everything that was sent since it was added. Every engine can do this."""

import pytest

from persipubsub import errors
from tests.conformance.queues import NewQueue, drained, failed, numbered, received

pytestmark = pytest.mark.both_forms


def test_every_subscriber_gets_every_message(new_queue: NewQueue) -> None:
    """Each subscriber gets all messages, in the same order, and each of them once."""
    queue = new_queue("a", "b", "c")
    queue.publisher().send_many(numbered(3))
    for identifier in ("a", "b", "c"):
        assert drained(queue.subscriber(identifier)) == numbered(3)


def test_each_subscriber_goes_at_its_own_pace(new_queue: NewQueue) -> None:
    """What one subscriber acknowledges, or fails at, changes nothing for the others."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(3))
    assert received(queue.subscriber("a")) == b"0"
    assert failed(queue.subscriber("b")) == b"0"
    queue.publisher().send(b"3")
    assert drained(queue.subscriber("a")) == numbered(3, 1)
    assert drained(queue.subscriber("b")) == numbered(4)


def test_many_subscribers(new_queue: NewQueue) -> None:
    """A hundred subscribers get each message."""
    identifiers = [f"subscriber {number}" for number in range(100)]
    queue = new_queue(*identifiers)
    queue.publisher().send_many(numbered(2))
    assert all(drained(queue.subscriber(identifier)) == numbered(2) for identifier in identifiers)


def test_a_subscriber_begins_when_it_is_added(new_queue: NewQueue) -> None:
    """A new subscriber gets what is sent from then on, and nothing that was sent before."""
    queue = new_queue("a")
    queue.publisher().send(b"before")
    queue.control.add_subscriber("b")
    queue.publisher().send(b"behind")
    assert drained(queue.subscriber("b")) == [b"behind"]
    assert drained(queue.subscriber("a")) == [b"before", b"behind"]


def test_adding_a_subscriber_again(new_queue: NewQueue) -> None:
    """To add a subscriber that is there changes nothing for it, nor for what has it open."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    subscriber = queue.subscriber()
    assert received(subscriber) == b"0"
    queue.control.add_subscriber("a")
    queue.environment.new_control(["a"])
    assert drained(subscriber) == numbered(2, 1)


def test_new_control_removes_no_subscriber(new_queue: NewQueue) -> None:
    """``new_control`` adds the subscribers that it names, and removes none."""
    queue = new_queue("a")
    queue.environment.new_control(["b"])
    queue.environment.new_control()
    queue.publisher().send(b"x")
    assert drained(queue.subscriber("a")) == drained(queue.subscriber("b")) == [b"x"]


def test_a_queue_without_subscribers_stores_nothing(new_queue: NewQueue) -> None:
    """What is sent while there is no subscriber is for nobody, and has an id all the same."""
    queue = new_queue()
    first = queue.publisher().send(b"for nobody")
    queue.control.add_subscriber("a")
    assert queue.subscriber().front() is None
    assert queue.publisher().send(b"x") > first


def test_a_subscriber_continues_where_it_left_off(new_queue: NewQueue) -> None:
    """A subscriber that is closed and made again gets the next message."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    for msg in numbered(3):
        subscriber = queue.subscriber()
        assert received(subscriber) == msg
        subscriber.close()


def test_an_unknown_subscriber(new_queue: NewQueue) -> None:
    """There is no subscriber of an unknown name: the error is a LookupError, and names those that there are."""
    queue = new_queue("billing")
    with pytest.raises(errors.UnknownSubscriberError, match="'billing'") as raised:
        queue.subscriber("biling")
    assert isinstance(raised.value, LookupError)


def test_names_differ_in_case(new_queue: NewQueue) -> None:
    """Two names that differ in case are two subscribers."""
    queue = new_queue("a", "A")
    queue.publisher().send(b"x")
    assert received(queue.subscriber("a")) == b"x"
    assert received(queue.subscriber("A")) == b"x"


NAMES = [
    "data_db", ".", "..", "a/b", "a.b", "a b", "*", ">", "$", "'", "\n", "\N{SNOWMAN}", "x" * 255, "\N{SNOWMAN}" * 85
]


def test_names(new_queue: NewQueue) -> None:
    """Any name of 1 to 255 bytes of UTF-8 without NUL is the name of a subscriber like others."""
    queue = new_queue("a", *NAMES)
    queue.publisher().send(b"x")
    for identifier in ["a", *NAMES]:
        assert queue.subscriber(identifier).identifier == identifier
        assert drained(queue.subscriber(identifier)) == [b"x"]


def test_a_removed_subscriber(new_queue: NewQueue) -> None:
    """A removed subscriber can neither be opened nor used where it is open; the others go on."""
    queue = new_queue("a", "b")
    queue.publisher().send(b"x")
    subscriber = queue.subscriber("a")
    queue.control.remove_subscriber("a")
    for use in (subscriber.front, subscriber.pop, lambda: received(subscriber), lambda: drained(subscriber),
                lambda: queue.subscriber("a")):
        with pytest.raises(errors.UnknownSubscriberError):
            use()
    assert drained(queue.subscriber("b")) == [b"x"]


def test_a_subscriber_that_is_added_again_is_a_new_one(new_queue: NewQueue) -> None:
    """One that was removed and added again gets what is sent from then on; what had the old one open stays without."""
    queue = new_queue("a", "b")
    old = queue.subscriber("a")
    queue.publisher().send(b"before")
    queue.control.remove_subscriber("a")
    queue.control.add_subscriber("a")
    queue.publisher().send(b"behind")
    with pytest.raises(errors.UnknownSubscriberError):
        old.front()
    assert drained(queue.subscriber("a")) == [b"behind"]


def test_removing_a_subscriber_that_is_not_there(new_queue: NewQueue) -> None:
    """To remove a subscriber that is not there is an error, and changes nothing for the others."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    with pytest.raises(errors.UnknownSubscriberError):
        queue.control.remove_subscriber("b")
    assert drained(queue.subscriber("a")) == [b"x"]


def test_removing_the_last_subscriber(new_queue: NewQueue) -> None:
    """Removing the last subscriber deletes all messages; publishers go on, and the next subscriber begins anew."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send(b"before")
    queue.control.remove_subscriber("a")
    publisher.send(b"for nobody")
    queue.control.add_subscriber("a")
    publisher.send(b"behind")
    assert drained(queue.subscriber("a")) == [b"behind"]
