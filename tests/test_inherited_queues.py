"""What a forked child may do with the queues that it inherits."""

import os
import threading
import traceback
from typing import Callable

import pytest

import persipubsub
from persipubsub import Durability, HighWaterMark, errors
from persipubsub.handle import Handle

MakeEnvironment = Callable[..., persipubsub.Environment]

WAIT_S = 30


def status_of_child(work: Callable[[], None]) -> int:
    """Fork; give the exit status of the child, which is 0 if the work raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # pylint: disable=broad-exception-caught  # whatever it is, the child must not go on
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("durability", Durability)
def test_children_use_what_they_inherit(durability: Durability, new_environment: MakeEnvironment) -> None:
    """While threads write, read and wait, each of 100 children sends and receives with inherited and fresh objects."""
    environment = new_environment("a", "b", "idle", durability=durability, high_watermark=HighWaterMark(10**6, 10**6))
    publisher, inherited = environment.new_publisher(), environment.new_subscriber("a")
    stop = threading.Event()
    sent = []

    def write() -> None:
        while not stop.is_set():
            sent.append(publisher.send(b"parent"))

    def look() -> None:
        subscriber = environment.new_subscriber("b")
        while not stop.is_set():
            subscriber.front()

    def wait() -> None:
        environment.new_subscriber("idle").receive_to_top(timeout=0.01)

    def use() -> None:
        publisher.send(b"child")
        with inherited.receive(timeout=WAIT_S) as message:
            assert message is not None
        with persipubsub.new_environment(environment.path) as fresh:
            fresh.new_publisher().send(b"child")
            with fresh.new_subscriber("b").receive(timeout=WAIT_S) as message:
                assert message is not None

    threads = [threading.Thread(target=target) for target in (write, write, look, wait)]
    for thread in threads:
        thread.start()
    try:
        assert [status_of_child(use) for _ in range(100)] == [0] * 100
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    with environment.new_subscriber("idle").receive_many(10**6, timeout=0) as messages:
        assert messages.count(b"child") == 200
        assert messages.count(b"parent") == len(sent) == len(set(sent))


@pytest.mark.parametrize("start", [Handle.read, Handle.change])
def test_a_child_forked_in_a_transaction_is_told(start: Callable[..., None], new_environment: MakeEnvironment) -> None:
    """Where another thread is in a transaction, the fork goes on, the child gets ForkError, and the parent nothing."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    inside, leave = threading.Event(), threading.Event()

    def stay(_txn: object) -> None:
        inside.set()
        assert leave.wait(WAIT_S)

    def use() -> None:
        with pytest.raises(errors.ForkError, match="spawn"):
            publisher.send(b"child")
        with pytest.raises(errors.ForkError, match="spawn"):
            persipubsub.new_environment(environment.path).new_publisher().send(b"child")

    handle = environment.new_control()._handle  # pylint: disable=protected-access  # to hold a transaction open
    thread = threading.Thread(target=start, args=(handle, stay))
    thread.start()
    assert inside.wait(WAIT_S)
    try:
        assert status_of_child(use) == 0
    finally:
        leave.set()
        thread.join()
    assert publisher.send(b"parent") == 1
