"""One name is one reader: a plain subscriber that two processes have open is a warning."""

from typing import List

import pytest

from tests.conformance import children
from tests.conformance.children import Child
from tests.conformance.queues import NewQueue, Queue, numbered, warnings_of

pytestmark = [pytest.mark.capability("processes"), pytest.mark.both_forms]


def reading(queue: Queue, identifier: str = "a") -> Child:
    """Have another process read as a subscriber, until it is killed."""
    child = Child(children.hold, queue.engine.name, queue.location, identifier, 0)
    assert child.says() == b"0"
    return child


def one_reader_warnings(caplog: pytest.LogCaptureFixture) -> List[str]:
    """Return the warnings about two readers."""
    return [warning for warning in warnings_of(caplog) if "One name is one reader" in warning]


def test_a_second_process_is_a_warning(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Opening a plain subscriber that another process has open is a warning with its name, once in a process."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(2))
    child, opened = reading(queue), []
    for _ in range(3):
        opened.append(queue.subscriber())
    warning, = one_reader_warnings(caplog)
    assert "'a'" in warning and "shared=True" in warning
    child.kill()


def test_readers_of_one_process_are_none(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """One process may open a plain subscriber as often as it likes."""
    queue = new_queue("a")
    opened = [*(queue.subscriber() for _ in range(3)), queue.opened().new_subscriber("a")]
    assert not any(one.stopped for one in opened)
    assert not one_reader_warnings(caplog)


def test_subscribers_of_other_names_are_none(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Processes that have different subscribers open are no warning."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(1))
    child, opened = reading(queue, "b"), queue.subscriber()
    assert not one_reader_warnings(caplog) and not opened.stopped
    child.kill()


@pytest.mark.capability("shared")
def test_workers_are_none(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """Any number of processes may open a shared subscriber."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True)
    queue.publisher().send_many(numbered(1))
    child, opened = reading(queue), queue.subscriber()
    assert not one_reader_warnings(caplog) and not opened.stopped
    child.kill()


def test_a_process_that_has_ended_is_none(new_queue: NewQueue, caplog: pytest.LogCaptureFixture) -> None:
    """A process that was killed, or that closed its subscriber, is no other reader."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(1))
    reading(queue).kill()
    first = queue.subscriber()
    assert not one_reader_warnings(caplog)
    first.close()
    child = Child(children.count_warnings, queue.engine.name, queue.location, "a")
    assert child.says() == 0
    child.join()
