"""Messages that are kept after all have acknowledged them, and reading them again."""

import contextlib
import datetime
import functools
import itertools
import threading
from typing import Callable, Dict, List, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, Strategy, clock, errors, moments
from persipubsub.engine import limits
from persipubsub.engine.settings import giving_way
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import futex
from persipubsub.lmdb_engine.rules import replay
from persipubsub.replay import StoredMessage
from tests.concurrency import WAIT_S, Opened, Task

MakeEnvironment = Callable[..., Environment]
RELAXED = Durability.PROCESS_CRASH


class Time:
    """The queue's time, which only a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.us = 10**15
        monkeypatch.setattr(clock, "boottime_us", lambda: self.us - 10**14)
        monkeypatch.setattr(clock, "wall_us", lambda: self.us)

    def now(self) -> datetime.datetime:
        """Return it."""
        return moments.utc(self.us)


@pytest.fixture(name="time")
def time_fixture(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Have the time stand still."""
    return Time(monkeypatch)


def drained(environment: Environment, identifier: str) -> List[bytes]:
    """Receive and acknowledge all that is pending."""
    with environment.new_subscriber(identifier).receive_many(timeout=0) as messages:
        return messages


def test_acknowledged_messages_stay_until_the_retention_ends(new_environment: MakeEnvironment, time: Time) -> None:
    """A message that all have acknowledged is there until its retention ends."""
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send(b"first")
    time.us += 30_000_000
    publisher.send(b"second")
    assert drained(environment, "a") == [b"first", b"second"]
    assert (control.status().messages, control.status().retained) == (2, 2)
    time.us += 30_000_000
    assert control.status().retained == 2
    time.us += 1
    assert (control.status().messages, control.status().retained) == (1, 1)
    assert [one.payload for one in control.history()] == [b"second"]
    assert control.rewind("a", "earliest") == 1
    time.us += 30_000_000
    # It is awaited again, so that its age matters no more.
    assert drained(environment, "a") == [b"second"]
    assert control.status().messages == 0


@pytest.mark.parametrize("how", ["send", "take", "prune", "set_retention", "add_subscriber", "history", "rewind"])
def test_what_somebody_awaits_outlives_the_retention(how: str, new_environment: MakeEnvironment, time: Time) -> None:
    """A message older than the retention stays while somebody awaits it, whoever deletes others."""
    environment = new_environment("a", "slow", durability=RELAXED, retention_s=10)
    control, publisher = environment.new_control(), environment.new_publisher()
    for payload in (b"1", b"2", b"3"):
        publisher.send(payload)
        time.us += 1_000_000
    assert drained(environment, "a") == [b"1", b"2", b"3"]
    environment.new_subscriber("slow").pop()
    time.us += 60_000_000
    if how == "send":
        publisher.send(b"4")
    elif how == "take":
        environment.new_subscriber("slow").pop()
    elif how == "prune":
        control.prune_dangling_messages()
    elif how == "set_retention":
        control.set_retention(5)
    elif how == "add_subscriber":
        control.add_subscriber("new", start="earliest")
        assert drained(environment, "new") == [b"2", b"3"]
    elif how == "history":
        assert [one.payload for one in control.history()] == [b"2", b"3"]
    else:
        assert control.rewind("a", "earliest") == 2
    assert control.status().retained == 0
    assert drained(environment, "slow") == [b"2", b"3"][how == "take":] + [b"4"] * (how == "send")


def test_what_was_retained_leaves_the_disk(new_environment: MakeEnvironment, time: Time) -> None:
    """What has been retained for long enough is deleted by the next write of anybody, though no subscriber moves."""
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    environment.new_publisher().send_many([bytes(1000)] * 100)
    drained(environment, "a")
    time.us += 60_000_001
    opened = open_queues.acquire(environment.path)
    try:
        assert opened.read(lambda txn: txn.stored_messages()) == 100
        environment.new_publisher().send(b"next")
        assert opened.read(lambda txn: txn.stored_messages()) == 1
    finally:
        open_queues.release(opened)


def test_a_queue_without_subscribers_retains(new_environment: MakeEnvironment, time: Time) -> None:
    """With a retention a queue stores what nobody awaits yet, and a subscriber may begin with it."""
    environment = new_environment(durability=RELAXED, retention_s=60)
    publisher, control = environment.new_publisher(), environment.new_control()
    publisher.send(b"first")
    time.us += 1_000_000
    moment = time.now()
    publisher.send(b"second")
    control.add_subscriber("all", start="earliest")
    control.add_subscriber("later", start=moment)
    control.add_subscriber("latest", start="latest")
    assert drained(environment, "all") == [b"first", b"second"]
    assert (drained(environment, "later"), drained(environment, "latest")) == ([b"second"], [])
    control.add_subscriber("all", start="earliest")
    assert drained(environment, "all") == [], "one that exists stays as it is"


def test_retention_ends_with_the_message_timeout(new_environment: MakeEnvironment, time: Time) -> None:
    """A retention over the message timeout is refused wherever it is set, and nothing is changed."""
    del time
    mark = HighWaterMark(message_timeout=500)
    environment = new_environment("a", durability=RELAXED, high_watermark=mark, retention_s=60)
    control = environment.new_control()
    with pytest.raises(errors.ArgumentError, match="over the message timeout of 500 seconds"):
        control.set_retention(501)
    with pytest.raises(errors.ArgumentError, match="retention_s=60 is over the message timeout of 59 "):
        control.set_hwm(HighWaterMark(message_timeout=59))
    with pytest.raises(errors.ArgumentError, match="over the message timeout"):
        new_environment(name="other", high_watermark=mark, retention_s=501)
    assert not (environment.path.parent / "other").exists()
    control.set_retention(500)
    assert (control.status().retention_s, control.status().high_watermark.message_timeout) == (500, 500)
    control.set_hwm(message_timeout=None)
    control.set_retention(10**9)
    assert control.status().retention_s == 10**9


def test_a_shorter_retention_holds_at_once(new_environment: MakeEnvironment, time: Time) -> None:
    """A shorter retention holds at once, and what it deletes counts nowhere as lost."""
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    control = environment.new_control()
    environment.new_publisher().send_many([b"1", b"2"])
    time.us += 10_000_000
    drained(environment, "a")
    control.set_retention(9)
    status = control.status()
    assert (status.messages, status.size_bytes) == (0, 0)
    assert (status.pruned.timeout, status.pruned.overflow, status.pruned.dangling) == (0, 0, 0)


def test_what_all_have_acknowledged_never_expires(new_environment: MakeEnvironment, time: Time,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Retained messages count nowhere as lost, even if they expire within a transaction."""
    for early_us in range(20):
        environment = new_environment("a",
                                      name=f"queue {early_us}",
                                      durability=RELAXED,
                                      retention_s=60,
                                      high_watermark=HighWaterMark(message_timeout=60))
        for _ in range(2):
            environment.new_publisher().send(b"")
            time.us += 30_000_000
        drained(environment, "a")
        with monkeypatch.context() as patched:
            ticks = itertools.count(time.us - 10**14 - early_us)
            patched.setattr(clock, "boottime_us", functools.partial(next, ticks))
            environment.new_publisher().send(b"")
        assert environment.new_control().status().pruned.timeout == 0


def test_clearing_counts_what_was_awaited(new_environment: MakeEnvironment, time: Time) -> None:
    """Clearing all subscribers counts as dangling what not all had acknowledged."""
    del time
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    environment.new_publisher().send_many([b""] * 5)
    with environment.new_subscriber("a").receive_many(2, timeout=0):
        pass
    assert environment.new_control().clear_all_subscribers() == 5
    assert environment.new_control().status().pruned.dangling == 3


@pytest.mark.parametrize("raises", [False, True])
def test_a_block_does_not_move_a_subscriber_that_was_added_again(raises: bool,
                                                                 new_environment: MakeEnvironment) -> None:
    """Acknowledging for a removed subscriber never moves one added again."""
    environment = new_environment(durability=RELAXED, retention_s=60)
    control = environment.new_control()
    control.add_subscriber("a", max_deliveries=1)
    environment.new_publisher().send(b"1")
    with contextlib.suppress(ZeroDivisionError), environment.new_subscriber("a").receive(timeout=0):
        control.remove_subscriber("a")
        control.add_subscriber("a", start="earliest", max_deliveries=1)
        if raises:
            raise ZeroDivisionError
    assert drained(environment, "a") == [b"1"]


@pytest.mark.parametrize("strategy", Strategy)
def test_retained_messages_are_dropped_first(strategy: Strategy, new_environment: MakeEnvironment) -> None:
    """The mark for messages drops retained ones first, whatever the strategy; they do not count as lost."""
    environment = new_environment("a",
                                  durability=RELAXED,
                                  retention_s=60,
                                  strategy=strategy,
                                  high_watermark=HighWaterMark(max_messages=10))
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send_many([b"old"] * 8)
    drained(environment, "a")
    publisher.send_many([b"%d" % number for number in range(10)])
    assert control.status().pruned.overflow == 0
    assert drained(environment, "a") == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("strategy", Strategy)
def test_retained_messages_are_dropped_first_at_the_mark_for_bytes(strategy: Strategy,
                                                                   new_environment: MakeEnvironment) -> None:
    """The mark for bytes drops retained ones first; they do not count as lost."""
    environment = new_environment("a",
                                  durability=RELAXED,
                                  retention_s=60,
                                  strategy=strategy,
                                  high_watermark=HighWaterMark(hwm_db_size=400_000))
    control, publisher = environment.new_control(), environment.new_publisher()
    for _ in range(3):
        payloads = [b"%d" % number + bytes(20_000) for number in range(8)]
        publisher.send_many(payloads)
        assert drained(environment, "a") == payloads
    assert control.status().pruned.overflow == 0
    assert 8 <= control.status().retained < 24


@hypothesis.given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 12), st.integers(0, 30))
def test_a_batch_drops_as_many_retained_messages_as_single_sends(stored: int, new: int, mark: int,
                                                                 retained: int) -> None:
    """A batch drops as many retained messages as its messages sent singly."""
    retained = min(retained, stored)
    left, log = retained, stored
    for _ in range(new):
        while log >= mark and left:
            count = min(left, log // 2 + 1)
            left, log = left - count, log - count
        if log >= mark:
            break  # an overflow of what is awaited; nothing retained is left
        log += 1
    assert giving_way(stored, new, mark, retained) == retained - left


def assert_is_history(found: List[StoredMessage], sent: List[Tuple[int, int, bytes]]) -> None:
    """The history has all that was sent, and times that are at most 10 ms early."""
    assert [(one.id, one.payload) for one in found] == [(message_id, payload) for message_id, _, payload in sent]
    for one, (_, sent_us, _) in zip(found, sent):
        assert 0 <= sent_us - (one.time - moments.EPOCH) // datetime.timedelta(microseconds=1) <= 10_000


@hypothesis.given(batches=st.lists(st.lists(st.binary(max_size=8), min_size=1, max_size=5), min_size=1, max_size=8),
                  steps_us=st.lists(st.integers(0, 30_000), min_size=8, max_size=8))
@hypothesis.settings(max_examples=30, deadline=None)
def test_replay_equals_what_was_sent(tmp_path_factory: pytest.TempPathFactory, batches: List[List[bytes]],
                                     steps_us: List[int]) -> None:
    """History and rewind return what was sent since a time, and at most what came 10 ms before."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        time = Time(monkeypatch)
        with persipubsub.new_environment(tmp_path_factory.mktemp("replay") / "queue") as environment:
            control = environment.new_control(["a"], durability=RELAXED, retention_s=60)
            publisher = environment.new_publisher()
            sent: List[Tuple[int, int, bytes]] = []
            for payloads, step_us in zip(batches, steps_us):
                ids = publisher.send_many(payloads)
                sent += [(id_, time.us, payload) for id_, payload in zip(ids, payloads)]
                drained(environment, "a")
                time.us += step_us
            assert_is_history(list(control.history()), sent)
            for id_, sent_us, _ in sent:
                assert [one.id for one in control.history(id_, id_ + 1)] == [id_]
                first_id = next(control.history(moments.utc(sent_us))).id
                assert min(one for one, at_us, _ in sent if at_us >= sent_us - 20_000) <= first_id
                assert first_id <= min(one for one, at_us, _ in sent if at_us >= sent_us)
                assert control.rewind("a", moments.utc(sent_us)) == sent[-1][0] + 1 - first_id
                assert drained(environment, "a") == [payload for one, _, payload in sent if one >= first_id]
            assert control.check() == ()


def test_rewinding_skips_nothing(new_environment: MakeEnvironment) -> None:
    """One that is behind the position already stays, and what was handed out before a rewind does not undo it."""
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    control = environment.new_control()
    environment.new_publisher().send_many([b"1", b"2", b"3", b"4"])
    subscriber = environment.new_subscriber("a")
    assert control.rewind("a", 3) == 4
    subscriber.pop()
    subscriber.pop()
    with subscriber.receive(timeout=0) as message:
        assert message == b"3"
        assert control.rewind("a", "earliest") == 4
    assert drained(environment, "a") == [b"1", b"2", b"3", b"4"]
    assert control.status().subscribers["a"].taken == 6, "what is taken again counts again"


@pytest.mark.parametrize("kind", [{}, {"max_deliveries": 3}])
def test_a_rewind_during_receive_to_top_stays(new_environment: MakeEnvironment, kind: Dict[str, int]) -> None:
    """A subscriber that is moved back while it works on the latest message gets everything from there again."""
    environment = new_environment(durability=RELAXED, retention_s=60)
    control = environment.new_control()
    control.add_subscriber("a", **kind)  # type: ignore[arg-type]  # its keys are names of arguments
    environment.new_publisher().send_many([b"1", b"2", b"3", b"4"])
    subscriber = environment.new_subscriber("a")
    subscriber.pop()
    with subscriber.receive_to_top(timeout=0) as message:
        assert message == b"4"
        assert control.rewind("a", "earliest") == 4
    assert subscriber.front() == b"1"
    with subscriber.receive_to_top(timeout=0) as message:
        assert message == b"4"
        assert control.rewind("a", 3) == 4, "one that is behind stays, so this moved nothing back"
    assert (subscriber.front(), control.status().subscribers["a"].taken) == (None, 5)


def test_a_rewind_wakes_a_waiting_subscriber(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting subscriber gets what it is moved back to, without looking again by itself."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 1000.0)
    opened.control.set_retention(60)
    opened.publisher.send(b"again")
    assert opened.sent() == [b"again"]
    opened.control.prune_all_messages_for("a")
    sleeping, wait = threading.Event(), futex.wait

    def telling_wait(address: int, expected: int, timeout_s: float) -> None:
        sleeping.set()
        wait(address, expected, timeout_s)

    monkeypatch.setattr(futex, "wait", telling_wait)
    received = Task(functools.partial(next, opened.subscriber.messages()))
    assert sleeping.wait(WAIT_S)
    opened.control.rewind("a", "earliest")
    assert received.result() == b"again"


def test_history_in_stretches(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history is read in bounded transactions; what is deleted or sent meanwhile is left out."""
    monkeypatch.setattr(replay, "HISTORY_MESSAGES_MAX", 2)
    environment = new_environment("a", durability=RELAXED)
    control, publisher = environment.new_control(), environment.new_publisher()
    publisher.send_many([b"%d" % number for number in range(8)])
    found = control.history()
    assert next(found).payload == b"0"
    publisher.send(b"later")
    subscriber = environment.new_subscriber("a")
    for _ in range(5):
        subscriber.pop()
    assert [one.payload for one in found] == [b"1", b"5", b"6", b"7"]
    left = control.history(end=7)
    assert next(left).id == 6
    control.close()
    with pytest.raises(errors.ClosedError):
        next(left)


NAIVE = datetime.datetime(2026, 1, 1)


@pytest.mark.parametrize("call, error, text", [
    (lambda control: control.rewind("a", NAIVE), errors.ArgumentError, "to must have a timezone"),
    (lambda control: control.rewind("a", "latest"), errors.ArgumentError, "to must be one of 'earliest', "),
    (lambda control: control.rewind("a", 0), errors.ArgumentError, "a message id; got 0"),
    (lambda control: control.rewind("a", 2**64), errors.ArgumentError, "a message id; got 18446744073709551616"),
    (lambda control: control.rewind("a", True), errors.ArgumentTypeError, "got bool"),
    (lambda control: control.rewind("a", 1.0), errors.ArgumentTypeError, "got float"),
    (lambda control: control.rewind("x", 1), errors.UnknownSubscriberError, "'x'"),
    (lambda control: control.add_subscriber("b", 1), errors.ArgumentTypeError, "start must be one of .*got int"),
    (lambda control: control.add_subscriber("b", NAIVE), errors.ArgumentError, "start must have a timezone"),
    (lambda control: control.history(end=NAIVE), errors.ArgumentError, "end must have a timezone"),
    (lambda control: control.history("latest"), errors.ArgumentError, "start must be one of"),
    (lambda control: control.set_retention("1"), errors.ArgumentTypeError, "retention_s must be a number"),
    (lambda control: control.set_retention(-1), errors.ArgumentError, "retention_s must be from 0 to 1e.11 seconds"),
    (lambda control: control.set_retention(float("nan")), errors.ArgumentError, "got nan"),
])
def test_invalid_arguments_are_refused(call: Callable[[persipubsub.Control], object], error: type, text: str,
                                       new_environment: MakeEnvironment) -> None:
    """Each wrong argument has an error that names it and what is allowed; the queue stays as it was."""
    environment = new_environment("a", durability=RELAXED, retention_s=60)
    control = environment.new_control()
    environment.new_publisher().send(b"")
    before = control.status()
    with pytest.raises(error, match=text):
        call(control)
    after = control.status()
    assert (after.subscribers.keys(), after.retention_s, after.messages) == (before.subscribers.keys(), 60, 1)
