"""Test the counters of a queue where the state machine does not come: each reason, bytes, and what is counted once."""

import dataclasses
from typing import Callable, Dict

import pytest

from persipubsub import Control, Durability, Environment, HighWaterMark, Strategy, clock
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord

MakeEnvironment = Callable[..., Environment]


def pruned(control: Control) -> Dict[str, int]:
    """Return the counters that are not 0."""
    counters = dataclasses.asdict(control.status().pruned)
    return {reason: count for reason, count in counters.items() if count}


def taken(control: Control, identifier: str = "a") -> int:
    """Return how many messages a subscriber has acknowledged."""
    return control.status().subscribers[identifier].taken


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
def test_overflow_of_bytes_is_counted(strategy: Strategy, new_environment: MakeEnvironment,
                                      caplog: pytest.LogCaptureFixture) -> None:
    """Every message dropped at the mark for bytes is counted, and each warning has its part."""
    environment = new_environment("a",
                                  strategy=strategy,
                                  durability=Durability.PROCESS_CRASH,
                                  high_watermark=HighWaterMark(hwm_db_size=500_000))
    control, publisher = environment.new_control(), environment.new_publisher()
    for count in range(1, 30):
        publisher.send_many([bytes(10_000)] * count)
    status = control.status()
    assert pruned(control) == {"overflow": status.sent - status.messages} and status.sent > status.messages
    environment.close()  # which counts the rest
    told = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert sum(count for count in told if isinstance(count, int)) == status.pruned.overflow


def test_what_all_have_acknowledged_is_not_pruned(new_environment: MakeEnvironment) -> None:
    """Messages that all have acknowledged, or that a Control deletes, are not counted."""
    environment = new_environment("a", "b")
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send_many([b""] * 10)
    for identifier in "ab":
        with environment.new_subscriber(identifier).receive_many(max_messages=4, timeout=0):
            pass
    assert control.prune_all_messages_for("a") == 6
    assert control.prune_all_messages_for("b") == 6
    publisher.send(b"")
    assert control.clear_messages() == 1
    assert pruned(control) == {}
    assert (taken(control, "a"), taken(control, "b"), control.status().sent) == (4, 4, 11)


def test_what_nobody_awaits_is_dangling(new_environment: MakeEnvironment) -> None:
    """Messages of a removed subscriber count unless another one awaits them, and so does what is sent to nobody."""
    environment = new_environment("a", "b")
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send_many([b""] * 10)
    control.remove_subscriber("a")
    assert pruned(control) == {}
    control.remove_subscriber("b")
    assert pruned(control) == {"dangling": 10}
    publisher.send_many([b""] * 3)
    assert pruned(control) == {"dangling": 13}
    control.add_subscriber("a")
    publisher.send(b"")
    control.clear_all_subscribers()
    assert pruned(control) == {"dangling": 14}


def test_acknowledging_twice_counts_once(new_environment: MakeEnvironment) -> None:
    """Where two handles got the same messages, or a block raised, each message counts once."""
    environment = new_environment("a")
    control, first, second = environment.new_control(), *(environment.new_subscriber("a") for _ in range(2))
    environment.new_publisher().send_many([b""] * 10)
    with pytest.raises(ZeroDivisionError), first.receive(timeout=0):
        raise ZeroDivisionError
    assert taken(control) == 0
    with first.receive_many(max_messages=5, timeout=0), second.receive_many(max_messages=3, timeout=0):
        pass
    assert taken(control) == 5
    with first.receive_to_top(timeout=0):
        second.pop()
    assert taken(control) == 10


def test_what_was_deleted_during_the_block_counts_as_taken(new_environment: MakeEnvironment) -> None:
    """A message that was handed out counts, even if deleted meanwhile; a skipped one does not."""
    environment = new_environment("a")
    control, subscriber = environment.new_control(), environment.new_subscriber("a")
    publisher = environment.new_publisher()
    publisher.send_many([b""] * 3)
    with subscriber.receive_many(max_messages=2, timeout=0):
        control.clear_messages()
    assert taken(control) == 2
    publisher.send_many([b""] * 3)
    with subscriber.receive_to_top(timeout=0):
        control.clear_messages()
    assert taken(control) == 3


def test_what_overflowed_during_the_block_counts_as_taken(new_environment: MakeEnvironment,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest message and all before it count, even if they overflowed during the block."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)  # all in one run, of which a part overflows
    environment = new_environment("a", high_watermark=HighWaterMark(max_messages=4))
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send_many([b""] * 3)
    with environment.new_subscriber("a").receive_to_top(timeout=0):
        for _ in range(2):
            publisher.send(b"")
        assert control.status().pruned.overflow == 3
    assert taken(control) == 1


def test_what_overflowed_behind_a_gap_counts_as_taken(new_environment: MakeEnvironment) -> None:
    """A received message counts even if it and messages before it were dropped by overflows."""
    environment = new_environment("a", high_watermark=HighWaterMark(max_messages=4))
    control, subscriber = environment.new_control(), environment.new_subscriber("a")
    publisher = environment.new_publisher()
    publisher.send_many([b"%d" % number for number in range(1, 6)])
    with subscriber.receive(timeout=0) as message:
        assert message == b"4", "the first three overflowed"
        publisher.send_many([b"%d" % number for number in range(6, 9)])
    assert (taken(control), pruned(control)) == (1, {"overflow": 6})
    assert subscriber.front() == b"7"


def test_skipping_counts_no_gaps(new_environment: MakeEnvironment) -> None:
    """What ``prune_last`` dropped counts neither as skipped nor as taken."""
    environment = new_environment("a", strategy=Strategy.prune_last, high_watermark=HighWaterMark(max_messages=10))
    control, subscriber = environment.new_control(), environment.new_subscriber("a")
    environment.new_publisher().send_many([b""] * 25)
    status = control.status()
    assert status.messages < 11 and status.pruned.overflow == 25 - status.messages
    with subscriber.receive_to_top(timeout=0):
        pass
    assert taken(control) == status.messages


def test_a_subscriber_that_is_added_again_begins_at_0(new_environment: MakeEnvironment) -> None:
    """A counter belongs to the subscriber, not to its name."""
    environment = new_environment("a")
    control = environment.new_control()
    environment.new_publisher().send(b"")
    environment.new_subscriber("a").pop()
    assert taken(control) == 1
    control.remove_subscriber("a")
    control.add_subscriber("a")
    assert taken(control) == 0


def test_counters_begin_anew_behind_the_largest_number() -> None:
    """A counter beyond 64 bits, which only damage can cause, keeps nobody from acknowledging."""
    assert layouts.decode_subscriber(layouts.encode_subscriber(SubscriberRecord(1, 2, 2**64 + 3))) == SubscriberRecord(
        1, 2, 3)
