"""Setting a queue up, again and again, and finding none where nobody has set one up."""

from typing import Any, Callable, Dict, List, Optional

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy, errors
from tests.conformance.engines import Engine
from tests.conformance.queues import NewQueue, drained, numbered, received


@pytest.mark.capability("create")
def test_a_queue_that_nobody_has_set_up(new_environment: Callable[[], Environment]) -> None:
    """Without a queue publishers, subscribers, and a Control with ``create=False`` raise NotInitializedError."""
    environment = new_environment()
    for _ in range(2):
        for make in (environment.new_publisher, environment.new_async_publisher,
                     lambda: environment.new_subscriber("a"), lambda: environment.new_async_subscriber("a"),
                     lambda: environment.new_control(create=False)):
            with pytest.raises(errors.NotInitializedError, match=str(environment.location)):
                make()


@pytest.mark.capability("create")
def test_a_queue_that_is_set_up_later(new_environment: Callable[[], Environment]) -> None:
    """An Environment that found no queue uses it once it is set up."""
    environment = new_environment()
    with pytest.raises(errors.NotInitializedError):
        environment.new_publisher()
    environment.new_control(["a"])
    environment.new_publisher().send(b"x")
    assert received(environment.new_subscriber("a")) == b"x"


@pytest.mark.capability("create")
def test_looking_at_a_queue_that_is_there(new_queue: NewQueue) -> None:
    """With ``create=False`` a Control of a queue that is there looks at it and changes it; it is initialized."""
    queue = new_queue("a")
    control = queue.environment.new_control(["b"], create=False)
    assert control.is_initialized() and queue.control.is_initialized()
    queue.publisher().send(b"x")
    assert received(queue.subscriber("b")) == b"x"


def test_setting_up_again_keeps_messages(new_queue: NewQueue) -> None:
    """``new_control`` of a queue that is there leaves its messages and its subscribers as they are."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(3))
    assert received(queue.subscriber()) == b"0"
    queue.environment.new_control(["a", "b"])
    assert drained(queue.subscriber("a")) == numbered(2, 1)
    assert not drained(queue.subscriber("b"))


@pytest.mark.capability("status", "high_water_mark", "prune_last", "retention", "deduplication_max")
@pytest.mark.parametrize("changed", [{
    "high_watermark": HighWaterMark(60, 7, 10**6)
}, {
    "strategy": Strategy.prune_last
}, {
    "retention_s": 20
}, {
    "deduplication_window_s": 30
}, {
    "deduplication_max": 40
}])
def test_what_is_left_out_stays(changed: Dict[str, Any], new_queue: NewQueue) -> None:
    """``new_control`` applies what it is given, and leaves as stored what it is not given."""
    settings = {
        "high_watermark": HighWaterMark(50, 5, 10**7),
        "strategy": Strategy.prune_first,
        "retention_s": 10,
        "deduplication_window_s": 11,
        "deduplication_max": 12
    }
    queue = new_queue("a", **settings)
    queue.environment.new_control(**changed)
    status = queue.control.status()
    assert status.high_watermark == {**settings, **changed}["high_watermark"]
    for name in ("strategy", "retention_s", "deduplication_window_s", "deduplication_max"):
        assert getattr(status, name) == {**settings, **changed}[name], name
    assert list(status.subscribers) == ["a"]


@pytest.mark.capability("status")
def test_the_defaults(engine: Engine, new_environment: Callable[[], Environment]) -> None:
    """A queue that is given nothing has the documented defaults."""
    ids_max = 100_000 if "deduplication_max" in engine.capabilities else None
    status = new_environment().new_control().status()
    assert status.high_watermark == HighWaterMark(None, None, None)
    assert (status.strategy, status.durability) == (Strategy.prune_first, persipubsub.Durability.POWER_LOSS)
    assert (status.retention_s, status.deduplication_window_s, status.deduplication_max) == (0, 120, ids_max)
    assert (status.message_type, dict(status.subscribers)) == (None, {})


@pytest.mark.capability("status", "high_water_mark")
def test_both_spellings_of_the_high_water_mark(new_queue: NewQueue) -> None:
    """``high_water_mark`` is another name of ``high_watermark``; both at once are refused."""
    queue = new_queue("a", high_water_mark=HighWaterMark(max_messages=7))
    assert queue.control.status().high_watermark.max_messages == 7
    with pytest.raises(errors.ArgumentTypeError):
        queue.environment.new_control(high_watermark=HighWaterMark(), high_water_mark=HighWaterMark())


@pytest.mark.capability("clearing", "high_water_mark", "prune_last")
def test_what_a_control_changes_holds_for_all(new_queue: NewQueue) -> None:
    """What one Control changes holds at once for everything that another Environment has open."""
    queue = new_queue("a", "b")
    with queue.opened() as other:
        publisher, subscriber = other.new_publisher(), other.new_subscriber("a")
        publisher.send_many(numbered(3))
        queue.control.prune_all_messages_for("a")
        assert subscriber.front() is None
        queue.control.set_hwm(HighWaterMark(max_messages=2))
        queue.control.set_strategy(Strategy.prune_last)
        queue.control.clear_messages()
        publisher.send_many(numbered(3))
        assert drained(subscriber) == [b"2"]
        queue.control.remove_subscriber("a")
        with pytest.raises(errors.UnknownSubscriberError):
            subscriber.front()


@pytest.mark.parametrize("name", ["new_environment", "initialize", "Environment"])
@pytest.mark.parametrize("home", [persipubsub, persipubsub.environment])
def test_the_names_of_the_factory(home: Any, name: str) -> None:
    """An Environment is made by any of three names, in the package and in its module."""
    environment = getattr(home, name)("queues/orders")
    assert isinstance(environment, Environment)
    environment.close()


def mark_values(mark: HighWaterMark) -> List[Optional[float]]:
    """Return the three limits."""
    return [mark.message_timeout, mark.max_messages, mark.hwm_db_size]


def test_a_high_water_mark_is_a_value() -> None:
    """A high-water mark compares by the limits that were given, None is one of them, and it cannot be changed."""
    mark = HighWaterMark(message_timeout=5, max_messages=6, hwm_db_size=7)
    assert mark_values(HighWaterMark()) == mark_values(HighWaterMark(None, None, None)) == [None] * 3
    assert HighWaterMark() != HighWaterMark(None, None, None) != HighWaterMark(None, None)
    assert mark == HighWaterMark(5, 6, 7) == HighWaterMark(5, max_msgs_num=6, hwm_db_size=7)
    assert mark != HighWaterMark(5, 6, 8) and len({mark, HighWaterMark(5, 6, 7)}) == 1
    assert (mark.max_msgs_num, mark.hwm_lmdb_size) == (6, 7)
    with pytest.raises(AttributeError):
        mark.max_messages = 8


def test_both_spellings_of_the_strategies() -> None:
    """The strategies have two spellings each."""
    members = Strategy.__members__
    for name in ("prune_first", "prune_last", "refuse"):
        assert members[name.upper()] is members[name]
    assert len(set(members.values())) == 3
