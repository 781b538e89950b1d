"""Processes: any number of them use one queue, at any time one may die or fork, and nothing is lost."""

import asyncio
import functools
import pickle
from typing import Any, Callable

import pytest

from persipubsub import errors
from tests.conformance import children
from tests.conformance.children import Child, forked
from tests.conformance.engines import Engine, Location
from tests.conformance.forms import Form
from tests.conformance.queues import NewQueue, Queue, drained, numbered, received

PROCESSES = pytest.mark.capability("processes")
FORKS = pytest.mark.capability("forks")


@pytest.fixture(name="queue")
def queue_fixture(new_queue: NewQueue) -> Queue:
    """Set up a queue with two subscribers."""
    return new_queue("a", "b")


def child(queue: Queue, function: Callable[..., None], *args: Any) -> Child:
    """Run a function of children.py in a process of its own."""
    return Child(function, queue.engine.name, queue.location, *args)


# Processes


@PROCESSES
def test_publishers_and_subscribers_in_processes(queue: Queue) -> None:
    """Subscribers in processes get every message of publishers in processes, all in one order."""
    receiving = [child(queue, children.receive, name, 40) for name in ("a", "b")]
    sending = [child(queue, children.send, name, 20) for name in ("one", "other")]
    for one in receiving:
        assert one.says() == "ready"
    first, second = (one.says() for one in receiving)
    assert first == second and len(set(first)) == 40
    for name in (b"one", b"other"):
        mine = [msg for msg in first if msg.startswith(name)]
        assert mine == [name + b":%d" % number for number in range(20)]
    for one in (*receiving, *sending):
        one.join()


@PROCESSES
def test_a_message_wakes_another_process(queue: Queue) -> None:
    """A process that waits gets what this one sends; what it sends, this one gets."""
    waiting = child(queue, children.receive, "a", 1)
    assert waiting.says() == "ready"
    queue.publisher().send(b"there")
    assert waiting.says() == [b"there"]
    waiting.join()
    assert received(queue.subscriber("b")) == b"there"
    child(queue, children.send, "back", 1).join()
    assert received(queue.subscriber("b")) == b"back:0"


@PROCESSES
def test_a_publisher_that_is_killed(queue: Queue) -> None:
    """What a send returned for is there though its process was killed; a batch is there wholly or not at all."""
    killed = child(queue, children.send_batches, 10)
    told = 0
    while told < 50:
        told = killed.says()
    killed.kill()
    msgs = drained(queue.subscriber())
    assert len(msgs) >= told and len(msgs) % 10 == 0 and msgs == numbered(len(msgs))
    queue.publisher().send(b"next")
    assert drained(queue.subscriber()) == [b"next"]


@PROCESSES
def test_a_subscriber_that_is_killed_in_its_block(queue: Queue) -> None:
    """A message whose process was killed in its block comes again, and those that it had acknowledged do not."""
    queue.publisher().send_many(numbered(5))
    killed = child(queue, children.hold, "a", 2)
    assert killed.says() == b"2"
    killed.kill()
    assert drained(queue.subscriber()) == numbered(3, 2)


@PROCESSES
@pytest.mark.capability("shared")
def test_a_worker_that_is_killed(new_queue: NewQueue) -> None:
    """The message of a worker that was killed comes to one that waits when its lease has ended, and no other does."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True, lease_s=0.5)
    queue.publisher().send_many(numbered(3))
    killed = child(queue, children.hold, "a", 1)
    assert killed.says() == b"1"
    killed.kill()
    assert received(queue.subscriber()) == b"2"
    assert received(queue.subscriber(), timeout=60) == b"1"


@PROCESSES
def test_what_went_through_pickle(queue: Queue) -> None:
    """An Environment, a Control, a Publisher and a Subscriber can be passed to another process, which uses them."""
    environment = queue.environment
    made = [environment, queue.control, environment.new_publisher(), environment.new_subscriber("a")]
    using = child(queue, children.use, made)
    assert using.says() == b"x"
    assert using.says() == b"x"
    using.join()
    assert drained(queue.subscriber("b")) == [b"x"]


@PROCESSES
def test_what_went_through_pickle_is_open(queue: Queue) -> None:
    """What was closed, or is closed later, closes nothing of what went through pickle."""
    publisher = queue.environment.new_publisher()
    copy = pickle.loads(pickle.dumps(publisher))
    publisher.close()
    with copy:
        copy.send(b"x")
    assert received(queue.subscriber()) == b"x"


@PROCESSES
def test_two_processes_set_up_a_queue(engine: Engine, form: Form, new_location: Callable[[], Location]) -> None:
    """Processes that set up a queue at the same moment make one, with the subscribers of all."""
    location = new_location()
    setting_up = [Child(children.set_up, engine.name, location, f"subscriber {number}") for number in range(3)]
    for one in setting_up:
        assert one.says() == "done"
        one.join()
    queue = Queue(engine, location, form)
    queue.publisher().send(b"x")
    assert [received(queue.subscriber(f"subscriber {number}")) for number in range(3)] == [b"x"] * 3
    queue.close()


@PROCESSES
def test_a_change_holds_in_other_processes(queue: Queue) -> None:
    """A subscriber that this process removes ends the wait of another process."""
    waiting = child(queue, children.receive, "a", 1)
    assert waiting.says() == "ready"
    queue.control.remove_subscriber("a")
    with pytest.raises(EOFError):
        waiting.says()


# Forks


@FORKS
def test_a_child_uses_what_it_inherited(queue: Queue) -> None:
    """A forked child sends and receives with what its parent has open, and so does the parent afterwards."""
    publisher, subscriber = queue.environment.new_publisher(), queue.environment.new_subscriber("a")
    publisher.send(b"1")

    def use() -> None:
        publisher.send(b"2")
        assert received(subscriber) == b"1"
        queue.control.add_subscriber("c")

    forked(use)
    publisher.send(b"3")
    assert drained(subscriber) == [b"2", b"3"]
    assert drained(queue.environment.new_subscriber("c")) == [b"3"]


@FORKS
def test_a_child_opens_the_queue(queue: Queue) -> None:
    """A forked child may open the queue that its parent has open."""

    def use() -> None:
        with queue.engine.open(queue.location) as environment:
            environment.new_publisher().send(b"x")

    forked(use)
    assert received(queue.subscriber()) == b"x"


@FORKS
def test_a_child_closes_what_it_inherited(queue: Queue) -> None:
    """What a forked child closes stays open in its parent."""
    publisher = queue.environment.new_publisher()
    forked(queue.environment.close)
    publisher.send(b"x")
    assert received(queue.subscriber()) == b"x"


@FORKS
def test_a_child_of_a_child(queue: Queue) -> None:
    """A child of a forked child uses the queue as well."""
    publisher = queue.environment.new_publisher()

    def use() -> None:
        publisher.send(b"1")
        forked(lambda: publisher.send(b"2"))
        publisher.send(b"3")

    forked(use)
    assert drained(queue.subscriber()) == [b"1", b"2", b"3"]


@FORKS
def test_a_child_in_the_block_of_its_parent(queue: Queue) -> None:
    """A child that is forked in a block of a plain subscriber sends, and its parent acknowledges."""
    publisher = queue.environment.new_publisher()
    publisher.send(b"1")
    with queue.environment.new_subscriber("a").receive(timeout=0) as msg:
        assert msg == b"1"
        forked(lambda: publisher.send(b"2"))
    assert drained(queue.subscriber()) == [b"2"]


@FORKS
@pytest.mark.capability("asyncio")
def test_a_child_has_a_loop_of_its_own(queue: Queue) -> None:
    """A forked child uses the inherited endpoints for tasks in a loop of its own, and its parent goes on."""
    publisher = queue.environment.new_async_publisher()
    asyncio.run(publisher.send(b"1"))
    forked(lambda: asyncio.run(publisher.send(b"2")))
    asyncio.run(publisher.send(b"3"))
    assert drained(queue.subscriber()) == [b"1", b"2", b"3"]


@FORKS
@pytest.mark.capability("shared", "dead_letters")
@pytest.mark.parametrize("raised", [None, ValueError, SystemExit])
def test_what_a_worker_received_before_a_fork(raised: Any, new_queue: NewQueue) -> None:
    """However a child leaves a block of its parent, the message stays the parent's, which acknowledges it."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True, max_deliveries=1, retry_delay_s=0)
    queue.publisher().send(b"x")
    block = queue.environment.new_subscriber("a").receive(timeout=0)

    def leave() -> None:
        if raised is None:
            with pytest.raises(errors.LeaseLostError):
                block.__exit__(None, None, None)
        else:
            block.__exit__(raised, raised(), None)
        assert received(queue.environment.new_subscriber("a")) is None

    with block as msg:
        assert msg == b"x"
        forked(leave)
        assert not list(queue.control.dead_letters("a"))
    assert received(queue.subscriber()) is None and not list(queue.control.dead_letters("a"))


@FORKS
def test_forks_again_and_again(queue: Queue) -> None:
    """What parents and children send in turn arrives once, in its order."""
    publisher = queue.environment.new_publisher()
    for number in range(10):
        publisher.send(b"parent %d" % number)
        forked(functools.partial(publisher.send, b"child %d" % number))
    assert drained(
        queue.subscriber()) == [b"%s %d" % (name, number) for number in range(10) for name in (b"parent", b"child")]
