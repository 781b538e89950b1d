"""Closing: what is closed raises ClosedError, what is not goes on, and nothing is lost."""

import functools
from typing import Any, Callable, Dict

import pytest

from persipubsub import Environment, errors
from tests.conformance.queues import NewQueue, Queue, drained, numbered, received

#: How to make something that can be used, and then what uses it.
USES: Dict[str, Callable[[Queue], Callable[[], Any]]] = {
    "send": lambda queue: functools.partial(queue.publisher().send, b"x"),
    "send_many": lambda queue: functools.partial(queue.publisher().send_many, [b"x"]),
    "receive": lambda queue: functools.partial(received, queue.subscriber()),
    "messages": lambda queue: functools.partial(drained, queue.subscriber()),
    "front": lambda queue: queue.subscriber().front,
    "pop": lambda queue: queue.subscriber().pop,
    "new_control": lambda queue: queue.environment.new_control,
    "new_publisher": lambda queue: queue.publisher,
    "new_subscriber": lambda queue: queue.subscriber,
    "add_subscriber": lambda queue: functools.partial(queue.control.add_subscriber, "b"),
    "remove_subscriber": lambda queue: functools.partial(queue.control.remove_subscriber, "a"),
}


@pytest.mark.both_forms
@pytest.mark.parametrize("use", USES)
def test_a_closed_environment(use: str, new_queue: NewQueue) -> None:
    """Nothing that a closed Environment has made can be used, and it makes nothing more."""
    queue = new_queue("a")
    queue.publisher().send(b"x")
    call = USES[use](queue)
    queue.environment.close()
    with pytest.raises(errors.ClosedError):
        call()


@pytest.mark.both_forms
def test_a_closed_endpoint(new_queue: NewQueue) -> None:
    """A closed publisher or subscriber cannot be used; others, also of the same name, go on."""
    queue = new_queue("a")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    publisher.send(b"x")
    publisher.close()
    subscriber.close()
    for call in (lambda: publisher.send(b"x"), subscriber.front, subscriber.pop, lambda: received(subscriber),
                 lambda: drained(subscriber)):
        with pytest.raises(errors.ClosedError):
            call()
    queue.publisher().send(b"y")
    assert drained(queue.subscriber()) == [b"x", b"y"]


@pytest.mark.both_forms
def test_closing_again(new_queue: NewQueue) -> None:
    """Everything may be closed more than once, in any order."""
    queue = new_queue("a")
    publisher, subscriber = queue.publisher(), queue.subscriber()
    for _ in range(2):
        subscriber.close()
        queue.environment.close()
        queue.control.close()
        publisher.close()


def test_what_is_closed_says_so(new_queue: NewQueue) -> None:
    """Environments and Controls know whether they are closed, and all objects show it."""
    queue = new_queue("a")
    made = [queue.environment, queue.control, queue.environment.new_publisher(), queue.environment.new_subscriber("a")]
    assert not queue.environment.closed and not queue.control.closed
    assert not any("closed" in repr(one) for one in made)
    queue.environment.close()
    assert queue.environment.closed and queue.control.closed
    assert all("closed" in repr(one) for one in made)


def test_context_managers(new_queue: NewQueue) -> None:
    """Each object is a context manager that returns itself, and is closed at the end of the block."""
    queue = new_queue("a")
    with queue.opened() as environment:
        with environment.new_control() as control, environment.new_publisher() as publisher, \
                environment.new_subscriber("a") as subscriber:
            publisher.send(b"x")
            assert subscriber.front() == b"x" and not control.closed
        for call in (control.is_initialized, lambda: publisher.send(b"x"), subscriber.front):
            with pytest.raises(errors.ClosedError):
                call()
    with pytest.raises(errors.ClosedError):
        environment.new_publisher()


def test_environments_of_one_queue(new_queue: NewQueue) -> None:
    """Several Environments of one queue work beside each other; the end of one ends nothing of the others."""
    queue = new_queue("a")
    one, another = queue.opened(), queue.opened()
    publisher, subscriber = one.new_publisher(), another.new_subscriber("a")
    publisher.send(b"1")
    queue.environment.close()
    publisher.send(b"2")
    assert drained(subscriber) == [b"1", b"2"]
    one.close()
    another.new_publisher().send(b"3")
    assert drained(subscriber) == [b"3"]


@pytest.mark.parametrize("acknowledge_every", [1, 10])
def test_closing_a_subscriber_in_a_loop(acknowledge_every: int, new_queue: NewQueue) -> None:
    """A subscriber that is closed within its loop has acknowledged the messages whose iteration had ended."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(4))
    subscriber = queue.subscriber()
    with pytest.raises(errors.ClosedError):
        for msg in subscriber.messages(timeout=0, acknowledge_every=acknowledge_every):
            if msg == b"2":
                subscriber.close()
                raise errors.ClosedError("as the next turn would")
    assert drained(queue.subscriber()) == [b"2", b"3"]


@pytest.mark.capability("persistent")
@pytest.mark.both_forms
def test_a_queue_outlives_its_environments(new_queue: NewQueue) -> None:
    """A queue that is opened again has its subscribers, cursors and messages, and continues its ids."""
    queue = new_queue("a", "b")
    ids = list(queue.publisher().send_many(numbered(3)))
    assert received(queue.subscriber("a")) == b"0"
    queue.environment.close()
    with queue.opened() as environment:
        assert environment.new_publisher().send(b"3") == ids[-1] + 1
        assert drained(environment.new_subscriber("a")) == numbered(3, 1)
        assert drained(environment.new_subscriber("b")) == numbered(4)


@pytest.mark.capability("persistent")
def test_an_empty_queue_continues_its_ids(new_queue: NewQueue) -> None:
    """A queue that is empty when it is opened again assigns no id twice."""
    queue = new_queue("a")
    first = queue.publisher().send(b"x")
    drained(queue.subscriber())
    queue.environment.close()
    with queue.opened() as environment:
        assert environment.new_publisher().send(b"x") > first


@pytest.mark.capability("create")
def test_an_environment_touches_nothing(new_environment: Callable[[], Environment]) -> None:
    """Making and closing an Environment sets up no queue."""
    environment = new_environment()
    environment.close()
    assert environment.closed
