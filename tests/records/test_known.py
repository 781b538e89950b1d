"""Test that what one transaction knows is used by the next one only if nobody has committed in between."""

import pathlib
import subprocess
import sys
from typing import Callable, Dict

import pytest

from persipubsub import Durability, Environment, HighWaterMark, errors
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records.transaction import Transaction
from tests.children import unmeasured

MakeEnvironment = Callable[..., Environment]

pytestmark = pytest.mark.slow  # starts many processes

#: What another process does, each of which makes something untrue that this process knows.
CHANGES: Dict[str, str] = {
    "sends": "env.new_publisher().send(b'other')",
    "clears": "env.new_control().clear_messages()",
    "lowers the limit": "env.new_control().set_hwm(max_messages=1)",
    "acknowledges": "env.new_subscriber('a').pop()",
    "rewinds": "env.new_control().rewind('a', 'earliest')",
    "removes the subscriber": "env.new_control().remove_subscriber('a')",
}


def elsewhere(path: pathlib.Path, change: str) -> None:
    """Change the queue in another process."""
    program = f"import sys, persipubsub\nwith persipubsub.new_environment(sys.argv[1]) as env:\n    {change}"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=unmeasured())


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue of which this process knows everything, and has read messages ahead."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH, retention_s=100)
    environment.new_publisher().send_many([b"%d" % number for number in range(1, 9)])
    for _ in range(3):
        environment.new_subscriber("a").pop()
    environment.new_publisher().send(b"9")
    return environment


@pytest.mark.parametrize("change, then", [("sends", (b"4", 11)), ("clears", (b"mine", 10)),
                                          ("lowers the limit", (b"mine", 10)), ("acknowledges", (b"5", 10)),
                                          ("rewinds", (b"1", 10))])
@pytest.mark.parametrize("writes_nothing_before", [False, True])
def test_a_commit_of_another_process_is_seen(change: str, then: object, writes_nothing_before: bool,
                                             environment: Environment) -> None:
    """After any commit of another process, a send and a look do what they would do in a new process."""
    if writes_nothing_before:
        # LMDB gives such a commit no number of its own: the next one has the number that it would have had.
        held = open_queues.acquire(environment.path)
        held._writer.run(lambda txn: None)  # pylint: disable=protected-access  # no operation writes nothing
        open_queues.release(held)
    elsewhere(environment.path, CHANGES[change])
    sent = environment.new_publisher().send(b"mine")
    assert (environment.new_subscriber("a").front(), sent) == then


def test_a_subscriber_that_another_process_removed(environment: Environment) -> None:
    """A subscriber that is known is unknown once another process has removed it."""
    subscriber = environment.new_subscriber("a")
    assert subscriber.front() == b"4"
    elsewhere(environment.path, CHANGES["removes the subscriber"])
    with pytest.raises(errors.UnknownSubscriberError):
        subscriber.front()


def test_a_transaction_that_failed_teaches_nothing(environment: Environment) -> None:
    """What a transaction has changed before it failed is not known afterwards."""
    held = open_queues.acquire(environment.path)

    def fail(txn: Transaction) -> None:
        txn.put_header(txn.header._replace(max_messages=1))
        txn.append(txn.next_id(), [b"lost"], 4)
        txn.move_cursor(4, 9)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        held.change(fail)
    open_queues.release(held)
    assert environment.new_publisher().send(b"mine") == 10
    assert environment.new_control(create=False).status().high_watermark == HighWaterMark(None, None, None)
    assert environment.new_subscriber("a").front() == b"4"
