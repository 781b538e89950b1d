"""Giving back: a program that cannot handle what it received returns it as if it had not been received."""

from typing import Any

import pytest

from tests.conformance.queues import NewQueue, Queue, drained, numbered

SHARED = pytest.param({
    "shared": True,
    "retry_delay_s": 60,
    "max_deliveries": 1
},
                      marks=pytest.mark.capability("shared"),
                      id="shared")
SETTINGS = pytest.mark.parametrize("settings", [
    pytest.param({}, id="plain"),
    pytest.param({"max_deliveries": 1}, marks=pytest.mark.capability("dead_letters"), id="limited"), SHARED
])


def subscribed(new_queue: NewQueue, settings: Any) -> Queue:
    """Set up a queue with messages for a subscriber."""
    queue = new_queue()
    queue.control.add_subscriber("a", **settings)
    queue.publisher().send_many(numbered(3))
    return queue


@SETTINGS
def test_what_is_given_back_is_delivered_again(settings: Any, new_queue: NewQueue) -> None:
    """Messages that are given back are delivered again at once, and uncounted; the end of the block does nothing."""
    queue = subscribed(new_queue, settings)
    subscriber = queue.environment.new_subscriber("a")
    for _ in range(3):
        receipt = subscriber.receive_deliveries(timeout=0)
        with receipt as found:
            assert found[0].message == b"0" and found[0].delivery_count == 1
            receipt.give_back()
    assert drained(queue.subscriber()) == numbered(3)


@pytest.mark.parametrize("settings", [{}, pytest.param({"shared": True}, marks=SHARED.marks, id="shared")])
def test_finished_messages_are_acknowledged(settings: Any, new_queue: NewQueue) -> None:
    """The first messages of a batch can be acknowledged when the others are given back."""
    queue = subscribed(new_queue, settings)
    receipt = queue.environment.new_subscriber("a").receive_many(timeout=0)
    with pytest.raises(ZeroDivisionError), receipt:
        receipt.give_back(finished=2)
        raise ZeroDivisionError
    assert drained(queue.subscriber()) == [b"2"]


@SETTINGS
def test_giving_nothing_back(settings: Any, new_queue: NewQueue) -> None:
    """Giving back twice, or where nothing was received, does nothing."""
    queue = subscribed(new_queue, settings)
    receipt = queue.environment.new_subscriber("a").receive(timeout=0)
    receipt.give_back()
    with receipt:
        receipt.give_back()
        receipt.give_back(1)
    assert drained(queue.subscriber()) == numbered(3)
