"""Durability and copies: what is set, and what a backup holds. What a disk has of it, other tests show."""

import pathlib
from typing import Any

import pytest

from persipubsub import Durability, errors
from tests.conformance.queues import NewQueue, drained, numbered, received

pytestmark = pytest.mark.both_forms

DURABILITY = pytest.mark.capability("durability")
BACKUP = pytest.mark.capability("backup")


@DURABILITY
@pytest.mark.parametrize("durability", Durability)
def test_messages_of_either_durability(durability: Durability, new_queue: NewQueue) -> None:
    """A queue of either durability delivers what is sent, also when it is opened again."""
    queue = new_queue("a", durability=durability)
    queue.publisher().send(b"0")
    queue.publisher().send_many(numbered(2, 1))
    assert received(queue.subscriber()) == b"0"
    queue.environment.close()
    with queue.opened() as environment:
        assert drained(environment.new_subscriber("a")) == numbered(2, 1)


@DURABILITY
@pytest.mark.capability("status")
def test_a_change_of_durability(new_queue: NewQueue) -> None:
    """The durability may change at any time, under open publishers and subscribers, and loses nothing."""
    queue = new_queue("a", durability=Durability.POWER_LOSS)
    publisher, subscriber = queue.publisher(), queue.subscriber()
    for number, durability in enumerate([*Durability, *Durability]):
        queue.environment.new_control(durability=durability)
        assert queue.control.status().durability == durability
        publisher.send(b"%d" % number)
    assert drained(subscriber) == numbered(4)


@DURABILITY
@pytest.mark.capability("status", "persistent")
def test_a_queue_keeps_its_durability(new_queue: NewQueue) -> None:
    """The durability belongs to the queue: whoever opens it later finds it."""
    queue = new_queue("a", durability=Durability.PROCESS_CRASH)
    queue.environment.close()
    with queue.opened() as environment:
        assert environment.new_control(["b"]).status().durability == Durability.PROCESS_CRASH


@DURABILITY
def test_a_batch_with_autosync(new_queue: NewQueue) -> None:
    """With ``autosync`` a batch is all there, in its order, with rising ids."""
    queue = new_queue("a")
    ids = list(queue.publisher(autosync=True).send_many(numbered(5)))
    assert len(ids) == 5 and ids == sorted(ids)
    assert drained(queue.subscriber()) == numbered(5)


@BACKUP
@pytest.mark.capability("persistent", "status")
def test_a_backup(new_queue: NewQueue, tmp_path: pathlib.Path) -> None:
    """A backup is a queue with the same messages, subscribers and settings, and from then on one of its own."""
    queue = new_queue("a", "b")
    queue.publisher().send_many(numbered(3))
    assert received(queue.subscriber("a")) == b"0"
    queue.control.backup(tmp_path / "copy")
    queue.publisher().send(b"behind")
    with queue.engine.open(tmp_path / "copy") as copy:
        control = copy.new_control(create=False)
        assert control.check() == ()
        assert control.status().high_watermark == queue.control.status().high_watermark
        assert drained(copy.new_subscriber("a")) == numbered(2, 1)
        assert drained(copy.new_subscriber("b")) == numbered(3)
    assert drained(queue.subscriber("a")) == [*numbered(2, 1), b"behind"]


@BACKUP
@pytest.mark.capability("delayed", "shared", "dead_letters", "persistent", "clock")
def test_a_backup_has_everything(new_queue: NewQueue, tmp_path: pathlib.Path, pass_time: Any) -> None:
    """A backup has the leases, the dead letters and the delayed messages of its queue."""
    queue = new_queue()
    queue.control.add_subscriber("a", shared=True, max_deliveries=1, lease_s=60)
    queue.publisher().send_many([b"bad", b"held"])
    queue.publisher().send_later(b"later", delay_s=30)
    with pytest.raises(ValueError), queue.subscriber().receive(timeout=0):
        raise ValueError
    with queue.subscriber().receive(timeout=0) as msg:
        assert msg == b"held"
        queue.control.backup(tmp_path / "copy")
    with queue.engine.open(tmp_path / "copy") as copy:
        assert [letter.payload for letter in copy.new_control().dead_letters("a")] == [b"bad"]
        assert not drained(copy.new_subscriber("a"))
        pass_time(31)
        assert drained(copy.new_subscriber("a")) == [b"later"]


@BACKUP
@pytest.mark.parametrize("wrong, kind", [(5, errors.ArgumentTypeError), (None, errors.ArgumentTypeError),
                                         (b"x", errors.ArgumentTypeError), ("", errors.ArgumentError),
                                         ("a\0b", errors.ArgumentError)])
def test_invalid_backup_paths(wrong: Any, kind: type, new_queue: NewQueue) -> None:
    """A backup target must be a path."""
    with pytest.raises(kind, match="path"):
        new_queue("a").control.backup(wrong)


@BACKUP
def test_a_backup_overwrites_nothing(new_queue: NewQueue, tmp_path: pathlib.Path) -> None:
    """A backup to where something is raises PathError, which is an OSError, and changes nothing."""
    queue = new_queue("a")
    (tmp_path / "mine").write_text("something", encoding="utf-8")
    with pytest.raises(errors.PathError) as raised:
        queue.control.backup(tmp_path)
    assert isinstance(raised.value, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
