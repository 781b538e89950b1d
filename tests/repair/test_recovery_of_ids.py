"""A recovered queue brings back nothing that was deleted for everybody, and assigns no id again."""

import contextlib
import datetime
from typing import Callable, List

import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, recovery
from persipubsub.lmdb_engine.rules import message_log
from tests.damages import Raw

MakeEnvironment = Callable[..., Environment]
RETENTION_S = 400


def overflow(control: Control) -> None:
    """Reach the mark, so that the oldest messages are dropped."""
    control.set_hwm(HighWaterMark(RETENTION_S, 15))
    with persipubsub.new_environment(control.status().path) as environment:
        environment.new_publisher().send(b"over the mark")


def rewind_and_clear(control: Control) -> None:
    """Clear the queue after a subscriber went back to the beginning."""
    control.rewind("a", "earliest")
    control.clear_messages()


@pytest.mark.parametrize("let_go", [
    Control.clear_messages, Control.clear_all_subscribers, overflow, rewind_and_clear,
    lambda control: control.prune_all_messages_for("a"), lambda control: control.set_retention(0),
    lambda control: control.remove_subscriber("a")
])
@pytest.mark.parametrize("retention_s", [0, RETENTION_S])
def test_what_was_deleted_is_not_recovered(let_go: Callable[[Control], object], retention_s: float,
                                           new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was dropped, but is still to be deleted from the file, does not come back."""
    monkeypatch.setattr(message_log, "DELETIONS_MAX", 3)
    hwm = HighWaterMark(RETENTION_S, 60)
    with new_environment("a", durability=Durability.PROCESS_CRASH, retention_s=retention_s,
                         high_watermark=hwm) as environment:
        control, publisher = environment.new_control(), environment.new_publisher()
        publisher.send_many([b"taken"] * 20)
        with environment.new_subscriber("a").receive_many(timeout=0) as messages:
            assert len(messages) == 20
        publisher.send_many([b"awaited"] * 20)
        let_go(control)
        before, history = control.status(), ids_of(control)
    recovery.recover(environment.path)
    with persipubsub.new_environment(environment.path) as environment:
        control = environment.new_control()
        after = control.status()
        assert (after.messages, after.next_id, ids_of(control)) == (before.messages, before.next_id, history)
        for identifier in after.subscribers:
            control.rewind(identifier, "earliest")
            assert control.status().subscribers[identifier].pending == len(history)
        assert control.check() == ()


def ids_of(control: Control) -> List[int]:
    """Return the ids of all messages that are there."""
    return [message.id for message in control.history()]


def die(environment: Environment) -> None:
    """Have a message become a dead letter."""
    environment.new_control().add_subscriber("workers", shared=True, max_deliveries=1)
    environment.new_publisher().send(b"poison")
    with contextlib.suppress(ValueError), environment.new_subscriber("workers").receive(timeout=0) as message:
        raise ValueError(message)


def hold(environment: Environment) -> None:
    """Have a worker close the queue while it holds a message."""
    environment.new_control().add_subscriber("workers", shared=True)
    environment.new_publisher().send(b"held")
    block = environment.new_subscriber("workers").receive(timeout=0)
    block.__enter__()  # pylint: disable=unnecessary-dunder-call  # the block is left open on purpose


def take(environment: Environment) -> None:
    """Acknowledge all messages, so that only the subscriber's cursor shows their ids."""
    environment.new_control().add_subscriber("a")
    environment.new_publisher().send_many([b"taken"] * 20)
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        assert len(messages) == 20
    environment.new_control().prune_dangling_messages()  # small ones wait for others, with their ids


def clear(environment: Environment) -> None:
    """Clear a queue whose messages are deleted later, so that only the header shows their ids."""
    environment.new_control(retention_s=RETENTION_S).add_subscriber("a")
    environment.new_publisher().send_many([b"cleared"] * 20)
    environment.new_control().clear_messages()


def send_once(environment: Environment) -> None:
    """Send a message to nobody, so that only its deduplication id shows its id."""
    environment.new_publisher().send(b"once", deduplication_id="once")


#: The sub-databases with records that name messages. The header does, too, where messages are deleted later.
NAMING = ("data_db", "meta_db", "pending_db", "subscriber_db", "index_db", "due_db", "letter_db", "dead_letter_db",
          "once_db", "once_order_db")


@pytest.mark.damages_queues
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("work, left", [(take, "subscriber_db"), (take, "pending_db"), (take, "meta_db"),
                                        (hold, "data_db"), (hold, "index_db"), (die, "letter_db"),
                                        (die, "dead_letter_db"), (send_once, "once_order_db"), (clear, "queue_db")])
def test_no_id_is_assigned_twice(work: Callable[[Environment], None], left: str, new_environment: MakeEnvironment,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all other records are lost, one that names an id keeps that id from being reused."""
    if left == "queue_db":
        monkeypatch.setattr(message_log, "DELETIONS_MAX", 3)
    with new_environment() as environment:
        work(environment)
        next_id = environment.new_control().status().next_id
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        for name in NAMING:
            for key, _ in raw.all(name) if name != left else ():
                raw.delete(name, key)
    recovery.recover(environment.path)
    with persipubsub.new_environment(environment.path) as environment:
        assert environment.new_publisher().send(b"next") >= next_id
        assert environment.new_control().check() == ()


def test_no_number_of_a_delayed_message_is_assigned_twice(new_environment: MakeEnvironment) -> None:
    """After a recovery, a handle of an old delayed message cancels no other one."""
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    with new_environment("a") as environment:
        publisher = environment.new_publisher()
        gone = publisher.send_later(b"cancelled", at=at)
        assert publisher.cancel(gone)
    recovery.recover(environment.path)
    with persipubsub.new_environment(environment.path) as environment:
        publisher = environment.new_publisher()
        publisher.send_later(b"another", at=at)
        assert not publisher.cancel(gone)
        assert environment.new_control().status().delayed == 1
