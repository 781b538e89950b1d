"""Shared subscribers: claims, acknowledgements, retries and leases, by a clock that the tests move."""

import concurrent.futures
import contextlib
import logging
import time
from typing import Any, Callable, Dict, Generator, List, Optional, Type, cast

import pytest
from google.protobuf.wrappers_pb2 import StringValue

import persipubsub
from persipubsub import Control, Durability, Environment, Publisher, Subscriber, clock, errors, recovery
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine.commands import Command, Extend
from persipubsub.lmdb_engine import administration
from persipubsub.lmdb_engine.engine import LmdbEngine
from persipubsub.lmdb_engine.process.session import Session
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import dead_letters, leases
from tests.children import status_of
from tests.process.forking import fork

MakeEnvironment = Callable[..., Environment]


class Failed(Exception):
    """Raised in the block of a receive."""


class Clock:
    """The time of the machine, which stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_us = clock.boottime_us()
        monkeypatch.setattr(clock, "boottime_us", lambda: self.now_us)

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now_us += round(seconds * 1e6)


class Queue:
    """A queue with a shared subscriber, "workers", whose lease is 10 s."""

    def __init__(self, environment: Environment, moved: Clock) -> None:
        self.environment = environment
        self.clock = moved
        self.control: Control = environment.new_control()
        self.publisher: Publisher = environment.new_publisher()
        self.share()

    def share(self, **changed: Any) -> None:
        """Set how messages are handed out."""
        settings = {"lease_s": 10, "max_deliveries": 3, "retry_delay_s": 0, **changed}
        self.control.add_subscriber("workers", shared=True, **settings)

    def worker(self) -> Subscriber:
        """Make one more worker."""
        return self.environment.new_subscriber("workers")

    def send(self, *msgs: bytes) -> None:
        """Send messages."""
        self.publisher.send_many(msgs)

    def dead(self) -> List[DeadLetter]:
        """List the dead letters."""
        return list(self.control.dead_letters("workers"))


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Set up a queue."""
    return Queue(new_environment(durability=Durability.PROCESS_CRASH), Clock(monkeypatch))


def received(worker: Subscriber, timeout: float = 0) -> Optional[bytes]:
    """Receive a message and acknowledge it."""
    with worker.receive(timeout) as msg:
        return msg


def failed(worker: Subscriber) -> Optional[bytes]:
    """Receive a message in a block that raises."""
    found = None
    with pytest.raises(Failed), worker.receive(timeout=0) as found:
        raise Failed("no " + repr(found))
    return found


def held(worker: Subscriber, max_messages: int = 1) -> List[bytes]:
    """Receive messages in a block that never ends, like a worker that dies."""
    return worker.receive_many(max_messages, timeout=0).__enter__()  # pylint: disable=unnecessary-dunder-call


def test_each_message_goes_to_one_worker(opened: Queue) -> None:
    """While workers hold messages, others get those behind them, and all are acknowledged in the end."""
    opened.send(b"1", b"2", b"3")
    first, second = opened.worker(), opened.worker()
    with first.receive(timeout=0) as one, second.receive_many(timeout=0) as others:
        assert (one, others) == (b"1", [b"2", b"3"])
        assert opened.control.status().subscribers["workers"].in_flight == 3
        assert received(opened.worker()) is None
    status = opened.control.status()
    assert (status.messages, status.floor, status.subscribers["workers"].taken) == (0, 4, 3)


def test_the_cursor_is_the_first_message_that_is_not_acknowledged(opened: Queue) -> None:
    """Messages behind one that a worker holds stay until it is acknowledged."""
    opened.send(b"1", b"2")
    with opened.worker().receive(timeout=0):
        assert received(opened.worker()) == b"2"
        assert opened.control.status().floor == 1
        assert opened.control.status().subscribers["workers"].pending == 1
    assert opened.control.status().floor == 3


def test_a_message_comes_again_at_once_when_its_block_raises(opened: Queue) -> None:
    """A message is given back when its block raises, and another worker gets it before those that follow."""
    opened.send(b"1", b"2")
    assert failed(opened.worker()) == b"1"
    assert received(opened.worker()) == b"1"
    assert received(opened.worker()) == b"2"


def test_retries_wait_longer_each_time(opened: Queue) -> None:
    """The delay before a retry doubles, up to its maximum; other messages do not wait."""
    opened.share(retry_delay_s=1, retry_delay_max_s=3, max_deliveries=9)
    opened.send(b"1", b"2")
    worker = opened.worker()
    assert failed(worker) == b"1"
    assert received(worker) == b"2"
    for delay_s in (1, 2, 3, 3):
        opened.clock.move(delay_s - 0.001)
        assert received(worker) is None
        opened.clock.move(0.001)
        assert failed(worker) == b"1"


def test_a_message_comes_again_when_its_lease_has_ended(opened: Queue) -> None:
    """A dead worker's message goes to another one when its lease has ended, and not before."""
    opened.send(b"1")
    assert held(opened.worker()) == [b"1"]
    opened.clock.move(9.999)
    assert received(opened.worker()) is None
    opened.clock.move(0.001)
    assert received(opened.worker()) == b"1"


def test_a_late_acknowledgement_raises(opened: Queue) -> None:
    """Acknowledging a message that another worker holds by now raises LeaseLostError; the other one keeps it."""
    opened.send(b"1")
    with pytest.raises(errors.LeaseLostError, match="workers"), opened.worker().receive(timeout=0):
        opened.clock.move(10)
        assert held(opened.worker()) == [b"1"]
    assert opened.control.status().subscribers["workers"].in_flight == 1


def test_an_acknowledgement_that_nobody_has_overtaken_counts(opened: Queue) -> None:
    """A message that no other worker was given can be acknowledged after the lease."""
    opened.send(b"1")
    with opened.worker().receive(timeout=0):
        opened.clock.move(11)
    assert opened.control.status().subscribers["workers"].taken == 1


def test_a_batch_acknowledges_what_it_still_holds(opened: Queue) -> None:
    """Of a batch of which one message is lost, the others are acknowledged; the error counts it."""
    opened.send(b"1", b"2", b"3")
    with pytest.raises(errors.LeaseLostError,
                       match="1 messages, the first of them 1:"), opened.worker().receive_many(timeout=0):
        opened.clock.move(10)
        assert held(opened.worker()) == [b"1"]
    assert opened.control.status().subscribers["workers"].taken == 2


def test_extend_lease(opened: Queue) -> None:
    """A lease that is extended begins anew; one that was lost cannot be."""
    opened.send(b"1", b"2")
    worker = opened.worker()
    with worker.receive(timeout=0):
        opened.clock.move(9)
        worker.extend_lease()
        opened.clock.move(9)
        assert received(opened.worker()) == b"2"
        assert received(opened.worker()) is None
    worker.extend_lease()  # it holds nothing
    opened.send(b"3")
    assert held(worker) == [b"3"]
    opened.clock.move(10)
    assert received(opened.worker()) == b"3"
    with pytest.raises(errors.LeaseLostError):
        worker.extend_lease()
    worker.close()
    with pytest.raises(errors.ClosedError):
        worker.extend_lease()


def test_extend_lease_while_another_thread_acknowledges(opened: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ends by an acknowledgement while all of them are extended is not a lost one."""
    opened.send(b"1", b"2")
    worker = opened.worker()
    receipts = [worker.receive(timeout=0) for _ in range(2)]
    run = LmdbEngine.run
    with receipts[0]:
        receipts[1].__enter__()  # pylint: disable=unnecessary-dunder-call  # it ends in the middle of another call

        def acknowledge_and_extend(engine: LmdbEngine, command: Command) -> object:
            if isinstance(command, Extend):
                receipts[1].__exit__(None, None, None)
            return run(engine, command)

        monkeypatch.setattr(LmdbEngine, "run", acknowledge_and_extend)
        opened.clock.move(9)
        worker.extend_lease()
        opened.clock.move(9)
        assert received(opened.worker()) is None


def test_a_fork_leaves_messages_to_the_parent(opened: Queue) -> None:
    """However a forked child leaves its parent's block, the message stays the parent's."""
    opened.share(max_deliveries=1)
    opened.send(b"1", b"2")
    worker = opened.worker()
    receipt, loop = worker.receive(timeout=0), worker.messages(timeout=0)
    assert receipt.__enter__() == b"1"  # pylint: disable=unnecessary-dunder-call  # the child must not leave the block
    assert next(loop) == b"2"

    def acknowledge() -> None:
        with pytest.raises(errors.LeaseLostError, match="fork"):
            receipt.__exit__(None, None, None)

    def leave(error: BaseException) -> None:
        receipt.__exit__(type(error), error, None)
        worker.extend_lease()  # it holds nothing
        cast(Generator[bytes, None, None], loop).close()

    opened.clock.move(9)
    for in_child in (acknowledge, lambda: leave(Failed()), lambda: leave(SystemExit())):
        assert status_of(fork(in_child)) == 0
        assert received(opened.worker()) is None
    assert opened.dead() == []
    receipt.__exit__(None, None, None)
    assert not list(loop)
    assert opened.control.status().subscribers["workers"].taken == 2


def test_a_claim_is_bounded(opened: Queue) -> None:
    """A batch of a worker is acknowledged in one transaction, so it has at most CLAIMED_MAX messages."""
    opened.send(*[b""] * (leases.CLAIMED_MAX + 1))
    for expected in leases.CLAIMED_MAX, 1, 0:
        with opened.worker().receive_many(10**6, timeout=0) as msgs:
            assert len(msgs) == expected


def test_what_fails_in_a_batch_comes_again_alone(opened: Queue) -> None:
    """Messages of a failed batch come again alone, so only the failing one becomes a dead letter."""
    opened.send(b"1", b"bad", b"3")
    worker, taken = opened.worker(), []
    for _ in range(20):
        try:
            with worker.receive_many(timeout=0) as msgs:
                if b"bad" in msgs:
                    raise Failed("bad")
            taken += msgs
        except Failed:
            pass
    assert taken == [b"1", b"3"]
    assert [(letter.payload, letter.deliveries) for letter in opened.dead()] == [(b"bad", 3)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_last_try_is_alone(shared: bool, opened: Queue) -> None:
    """A message that is handed out once fails alone, whichever way it is received."""
    opened.control.add_subscriber("once", shared=shared, max_deliveries=1)
    opened.send(b"1", b"bad", b"3", b"bad", b"5", b"6")
    once, taken = opened.environment.new_subscriber("once"), []
    for _ in range(3):
        with contextlib.suppress(Failed), once.receive_many(timeout=0) as msgs:
            if b"bad" in msgs:
                raise Failed("bad")
            taken += msgs
    for _ in range(2):
        for msg in once.messages(timeout=0, acknowledge_every=3):
            if msg == b"bad":
                break
            taken.append(msg)
    assert taken == [b"1", b"3", b"5", b"6"]
    assert [letter.payload for letter in opened.control.dead_letters("once")] == [b"bad", b"bad"]


def test_requeued_messages_whose_next_try_is_the_last_come_alone(opened: Queue) -> None:
    """Dead letters that were requeued for one more try do not become dead letters together."""
    opened.share(max_deliveries=1)
    opened.send(b"bad", b"2", b"3")
    for _ in range(3):
        failed(opened.worker())
    assert opened.control.requeue_dead_letters("workers") == 3
    with pytest.raises(Failed), opened.worker().receive_many(timeout=0) as msgs:
        assert msgs == [b"bad"]
        raise Failed
    assert [letter.payload for letter in opened.dead()] == [b"bad"]


def test_messages_gives_back_what_it_did_not_reach(opened: Queue) -> None:
    """Leaving a loop acknowledges finished messages, and gives the others back uncounted."""
    opened.share(max_deliveries=2)
    opened.send(*(b"%d" % number for number in range(6)))
    for msg in opened.worker().messages(timeout=0, acknowledge_every=5):
        if msg == b"2":
            opened.share(max_deliveries=1)
            break
    assert [letter.payload for letter in opened.dead()] == [b"2"]
    assert opened.dead()[0].error_type == "GeneratorExit"
    opened.share(max_deliveries=2)
    with opened.worker().receive_many(timeout=0) as msgs:
        assert msgs == [b"3", b"4"]
    assert received(opened.worker()) == b"5"


def test_messages_looks_again_when_its_lease_has_ended(opened: Queue) -> None:
    """A loop hands out no message of its batch whose lease has ended meanwhile."""
    opened.send(b"1", b"2")
    seen = []
    with pytest.raises(errors.LeaseLostError):
        for msg in opened.worker().messages(timeout=0, acknowledge_every=2):
            seen.append(msg)
            opened.clock.move(11)
            assert held(opened.worker()) == [b"1"]
    assert seen == [b"1"]
    opened.clock.move(10)
    assert sorted(opened.worker().messages(timeout=0)) == [b"1", b"2"]


def test_messages_gets_on_where_commits_outlast_the_lease(opened: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop returns the first message of each batch even if its lease ended after the claim."""
    opened.share(lease_s=0.01, max_deliveries=10)
    opened.send(b"1", b"2")
    write, commits = Session.write, iter(range(100))

    def write_slowly(self: Session, operation: Callable[[Transaction], None]) -> Transaction:
        next(commits)
        txn = write(self, operation)
        opened.clock.move(0.02)
        return txn

    monkeypatch.setattr(Session, "write", write_slowly)
    assert sorted(opened.worker().messages(timeout=0, acknowledge_every=2)) == [b"1", b"2"]


def test_a_lease_ends_after_a_boot_with_a_clock_set_back(opened: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker held before the machine went down comes again, though the wall clock is behind and nobody sends."""
    opened.send(b"1")
    assert held(opened.worker()) == [b"1"]
    wall_us = clock.wall_us() - 3600 * 10**6
    monkeypatch.setattr(clock, "wall_us", lambda: wall_us)
    monkeypatch.setattr(clock, "boot_id", lambda: bytes(16))
    opened.clock.now_us = 0
    assert received(opened.worker()) is None
    opened.clock.move(11)
    assert received(opened.worker()) == b"1"


def test_stopping_a_worker_is_no_failure(opened: Queue) -> None:
    """A block that a KeyboardInterrupt or SystemExit ends gives its message back at once, and uncounted."""
    opened.share(max_deliveries=1, retry_delay_s=1)
    opened.send(b"1")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), opened.worker().receive(timeout=0) as msg:
            assert msg == b"1"
            raise kind
    assert received(opened.worker()) == b"1"


def test_methods_of_one_reader(opened: Queue) -> None:
    """Methods that make sense for one reader only raise an error that says so."""
    worker = opened.worker()
    for method in (worker.front, worker.pop, worker.receive_to_top):
        with pytest.raises(errors.SubscriberKindError, match="shared"):
            method()
    opened.control.add_subscriber("plain")
    with pytest.raises(errors.SubscriberKindError, match="not shared"):
        opened.environment.new_subscriber("plain").extend_lease()


def test_messages_that_are_cleared_while_a_worker_holds_them(opened: Queue) -> None:
    """A cleared message may be acknowledged; otherwise it is forgotten with its lease."""
    opened.send(b"1", b"2")
    with opened.worker().receive(timeout=0):
        assert held(opened.worker()) == [b"2"]
        assert opened.control.clear_messages() == 2
        assert opened.control.status().subscribers["workers"].pending == 0
    assert opened.control.status().subscribers["workers"].taken == 1
    opened.clock.move(10)
    opened.send(b"3")
    assert received(opened.worker()) == b"3"
    assert opened.control.status().subscribers["workers"].in_flight == 0
    assert opened.control.status().floor == 4


def test_removing_a_shared_subscriber(opened: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """Removing a subscriber deletes all its records with a warning; a worker with messages is left alone."""
    opened.share(max_deliveries=1)
    opened.send(b"1", b"2", b"3")
    assert failed(opened.worker()) == b"1"
    with opened.worker().receive(timeout=0):
        opened.control.remove_subscriber("workers")
    assert "with its dead letters: 1" in caplog.text
    with pytest.raises(errors.UnknownSubscriberError):
        opened.worker()
    opened.share()
    assert not opened.dead()
    assert opened.control.status().messages == 0


def test_pruning_for_a_shared_subscriber(opened: Queue) -> None:
    """All that is pending is pruned, also what workers hold; they get LeaseLostError."""
    opened.send(b"1", b"2", b"3")
    with pytest.raises(errors.LeaseLostError), opened.worker().receive(timeout=0):
        assert opened.control.prune_all_messages_for("workers") == 3
    assert opened.control.status().messages == 0


def test_the_oldest_dead_letters_are_deleted_with_a_warning(opened: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """There are at most dead_letters_max dead letters; a warning counts the deleted ones."""
    opened.share(max_deliveries=1, dead_letters_max=2)
    opened.send(*(b"%d" % number for number in range(4)))
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            assert failed(opened.worker()) == b"%d" % number
    assert [letter.payload for letter in opened.dead()] == [b"2", b"3"]
    assert ["oldest 1 were deleted" in record.getMessage() for record in caplog.records] == [True, True]
    opened.share(max_deliveries=1, dead_letters_max=1)
    assert [letter.payload for letter in opened.dead()] == [b"3"]


def test_recovery_hands_out_again_what_was_in_flight(opened: Queue) -> None:
    """A recovered queue keeps how messages are shared, and hands out at once what nobody has acknowledged."""
    opened.send(b"1", b"2", b"3")
    assert received(opened.worker()) == b"1"
    assert held(opened.worker()) == [b"2"]
    opened.environment.close()
    recovery.recover(opened.environment.path)
    with persipubsub.new_environment(opened.environment.path) as environment:
        assert environment.new_control().check() == ()
        for expected in (b"2", b"3"):
            with environment.new_subscriber("workers").receive(timeout=0) as msg:
                assert msg == expected


def test_rewinding_a_shared_subscriber(opened: Queue) -> None:
    """After a rewind, workers lose their leases on messages from the new cursor on, and keep the others."""
    opened.control.set_retention(100)
    opened.send(*(b"%d" % number for number in range(1, 7)))
    assert [received(opened.worker()) for _ in range(2)] == [b"1", b"2"]
    first, second = opened.worker(), opened.worker()
    with first.receive(timeout=0) as kept:
        with pytest.raises(errors.LeaseLostError), second.receive_many(2, timeout=0) as lost:
            assert opened.control.rewind("workers", 4) == 4
        assert (kept, lost) == (b"3", [b"4", b"5"])
        with opened.worker().receive_many(timeout=0) as again:
            assert again == [b"4", b"5", b"6"]
    assert opened.control.status().subscribers["workers"].taken == 6
    assert opened.control.rewind("workers", "earliest") == 6
    assert held(opened.worker(), 9) == [b"%d" % number for number in range(1, 7)]


def test_a_shared_subscriber_may_begin_in_the_past(opened: Queue) -> None:
    """A new one gets what is stored, if it begins with the earliest message."""
    opened.send(b"1")
    opened.control.add_subscriber("late", "earliest", shared=True)
    assert held(opened.environment.new_subscriber("late")) == [b"1"]


def test_a_delayed_message_reaches_a_worker_that_waits(opened: Queue) -> None:
    """A waiting worker gets a message when it is due, though nothing else is there."""
    opened.publisher.send_later(b"later", delay_s=5)
    assert received(opened.worker()) is None
    opened.clock.move(5)
    assert received(opened.worker()) == b"later"


@pytest.mark.parametrize("shared", [True, False])
def test_bytes_of_another_type_become_a_dead_letter(shared: bool, opened: Queue) -> None:
    """What cannot be decoded counts as a failed delivery if deliveries are limited; a look does not."""
    opened.control.add_subscriber("typed", shared=shared, max_deliveries=3)
    opened.send(StringValue(value="1").SerializeToString(), b"\xff", StringValue(value="3").SerializeToString())
    typed, taken = opened.environment.new_subscriber("typed", message_type=StringValue), []
    for _ in range(8):
        opened.clock.move(100)
        with contextlib.suppress(errors.DecodeError), typed.receive_many(timeout=0) as msgs:
            taken += [msg.value for msg in msgs]
        with contextlib.suppress(errors.DecodeError, errors.SubscriberKindError):
            typed.front()
    assert taken == ["1", "3"]
    letter, = opened.control.dead_letters("typed")
    assert (letter.payload, letter.deliveries, letter.error_type) == (b"\xff", 3, "persipubsub.errors.DecodeError")


# In real time


def test_a_waiting_worker_is_woken_when_a_lease_ends(new_environment: MakeEnvironment) -> None:
    """Nobody sends, and a waiting worker has the message of a dead one as soon as its lease has ended."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)
    environment.new_control().add_subscriber("workers", shared=True, lease_s=0.2)
    environment.new_publisher().send(b"1")
    assert held(environment.new_subscriber("workers")) == [b"1"]
    start = time.monotonic()
    with environment.new_subscriber("workers").receive(timeout=60) as msg:
        assert msg == b"1"
    # A sleep without a deadline would take a second.
    assert 0.15 < time.monotonic() - start < 0.9


def test_a_waiting_worker_is_woken_by_what_is_given_back(new_environment: MakeEnvironment) -> None:
    """A waiting worker has a message as soon as another one gives it back."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)
    environment.new_control().add_subscriber("workers", shared=True, retry_delay_s=0)
    environment.new_publisher().send(b"1")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        with contextlib.suppress(Failed), environment.new_subscriber("workers").receive() as msg:
            waiting = threads.submit(received, environment.new_subscriber("workers"), 60)
            raise Failed(str(msg))
        assert waiting.result() == b"1"


# Plain subscribers that limit their deliveries


def test_a_message_that_always_raises_stops_nobody(new_environment: MakeEnvironment) -> None:
    """A plain subscriber with max_deliveries continues after a message that always fails."""
    environment = new_environment("plain")
    control, plain = environment.new_control(), environment.new_subscriber("plain")
    control.add_subscriber("plain", max_deliveries=2)
    environment.new_publisher().send_many([b"1", b"2"])
    assert [failed(plain), failed(plain), received(plain)] == [b"1", b"1", b"2"]
    letter, = control.dead_letters("plain")
    assert (letter.payload, letter.reason, letter.deliveries) == (b"1", "raised", 2)
    assert letter.error_type.endswith("Failed") and letter.error_text == "no b'1'"
    assert control.requeue_dead_letters("plain") == 1
    assert received(plain) == b"1" and received(plain) is None
    assert control.status().messages == 0


def test_failures_of_a_batch_count_by_message(new_environment: MakeEnvironment) -> None:
    """A failed message comes again alone; acknowledging it forgets its failures, and no others."""
    environment = new_environment(durability=Durability.PROCESS_CRASH)
    control = environment.new_control()
    control.add_subscriber("plain", max_deliveries=2)
    plain = environment.new_subscriber("plain")
    environment.new_publisher().send_many([b"1", b"2", b"3"])
    with pytest.raises(Failed), plain.receive_many(timeout=0):
        raise Failed
    with plain.receive_many(timeout=0) as msgs:
        assert msgs == [b"1"]
    assert control.check() == ()
    assert failed(plain) == b"2"
    assert [(letter.payload, letter.deliveries) for letter in control.dead_letters("plain")] == [(b"2", 2)]
    assert [failed(plain), received(plain)] == [b"3", None]


def test_requeued_messages_go_to_their_subscriber_only(opened: Queue) -> None:
    """A requeued dead letter, also a long one, comes again to its own subscriber, and to no other one."""
    opened.share(max_deliveries=1)
    opened.control.add_subscriber("other")
    opened.send(bytes(200_000))
    assert failed(opened.worker()) == bytes(200_000)
    other = opened.environment.new_subscriber("other")
    assert received(other) == bytes(200_000)
    assert opened.control.requeue_dead_letters("workers", [1, 2]) == 1
    assert received(other) is None
    assert failed(opened.worker()) == bytes(200_000)
    assert [letter.id for letter in opened.dead()] == [1]
    assert opened.control.discard_dead_letters("workers") == 1


def test_a_message_that_is_in_the_log_and_requeued_dies_once(opened: Queue) -> None:
    """A dead letter that is requeued after a rewind fails together with its message in the log, and is one again."""
    opened.share(max_deliveries=1)
    opened.control.set_retention(100)
    opened.send(b"1")
    worker = opened.worker()
    assert failed(worker) == b"1"
    opened.control.rewind("workers", to="earliest")
    with pytest.raises(KeyboardInterrupt), worker.receive(timeout=0):
        raise KeyboardInterrupt
    assert opened.control.requeue_dead_letters("workers") == 1
    opened.share(max_deliveries=2)
    with pytest.raises(Failed), worker.receive_many(timeout=0) as msgs:
        assert msgs == [b"1", b"1"]
        opened.share(max_deliveries=1)
        raise Failed
    assert [letter.payload for letter in opened.dead()] == [b"1"]
    assert opened.control.status().subscribers["workers"].in_flight == 0


@pytest.mark.parametrize("payload, letters_at_once", [(b"", 3), (bytes(100_000), 2)])
def test_many_dead_letters_change_in_several_commits(payload: bytes, letters_at_once: int, opened: Queue,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters are deleted or requeued in commits of bounded size."""
    monkeypatch.setattr(dead_letters, "CHANGED_MAX", 3)
    write, left = Session.write, []

    def watched(self: Session, operation: Callable[[Transaction], None]) -> Transaction:
        txn = write(self, operation)
        left.append(opened.control.status().subscribers["workers"].dead_letters)
        return txn

    for change in (opened.control.requeue_dead_letters, opened.control.discard_dead_letters):
        opened.share(max_deliveries=2)
        opened.send(*[payload] * 7)
        with pytest.raises(Failed), opened.worker().receive_many(timeout=0):
            opened.share(max_deliveries=1)
            raise Failed
        with monkeypatch.context() as patched:
            patched.setattr(Session, "write", watched)
            assert change("workers") == 7
        at_once = letters_at_once if change == opened.control.discard_dead_letters else 3
        assert left == list(range(7 - at_once, 0, -at_once)) + [0]
        left.clear()
        list(opened.worker().messages(timeout=0))


def test_dead_letters_of_a_control_that_is_closed(opened: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over dead letters ends with ClosedError when the control is closed meanwhile."""
    opened.share(max_deliveries=1)
    opened.send(b"1", b"2")
    with pytest.raises(Failed), opened.worker().receive_many(timeout=0):
        raise Failed
    monkeypatch.setattr(administration, "DEAD_LETTERS_AT_ONCE_MAX", 1)
    letters = opened.control.dead_letters("workers")
    assert next(letters).payload == b"1"
    opened.control.close()
    with pytest.raises(errors.ClosedError):
        next(letters)


# Settings


def test_an_open_plain_subscriber_that_becomes_shared(new_environment: MakeEnvironment) -> None:
    """A plain subscriber that becomes shared keeps its cursor; an open one gets an error."""
    environment = new_environment("a")
    control, plain = environment.new_control(), environment.new_subscriber("a")
    environment.new_publisher().send_many([b"1", b"2"])
    assert received(plain) == b"1"
    control.add_subscriber("a", shared=True)
    with pytest.raises(errors.UnknownSubscriberError):
        received(plain)
    shared = environment.new_subscriber("a")
    with shared.receive(timeout=0) as msg:
        assert msg == b"2"
        with pytest.raises(errors.ArgumentError, match="in flight"):
            control.add_subscriber("a", shared=False)
    control.add_subscriber("a", shared=False)
    assert received(environment.new_subscriber("a")) is None


@pytest.mark.parametrize("kind, wrong", [
    (errors.ArgumentTypeError, {
        "shared": 1
    }),
    (errors.ArgumentTypeError, {
        "shared": True,
        "lease_s": "30"
    }),
    (errors.ArgumentTypeError, {
        "max_deliveries": 1.5
    }),
    (errors.ArgumentError, {
        "shared": True,
        "lease_s": 0
    }),
    (errors.ArgumentError, {
        "shared": True,
        "lease_s": float("nan")
    }),
    (errors.ArgumentError, {
        "max_deliveries": 0
    }),
    (errors.ArgumentError, {
        "lease_s": 30
    }),
    (errors.ArgumentError, {
        "dead_letters_max": 10
    }),
    (errors.ArgumentError, {
        "shared": True,
        "retry_delay_s": 5,
        "retry_delay_max_s": 4
    }),
])
def test_invalid_settings(kind: Type[Exception], wrong: Dict[str, Any], opened: Queue) -> None:
    """Settings of a wrong type, outside their limits, or of another kind of subscriber are refused, by name."""
    with pytest.raises(kind) as raised:
        opened.control.add_subscriber("new", **wrong)
    assert any(name in str(raised.value) for name in wrong)
    assert "new" not in opened.control.status().subscribers
    for ids in ("1", 1, [True]):
        with pytest.raises(errors.ArgumentTypeError):
            opened.control.requeue_dead_letters("workers", ids)  # type: ignore[arg-type]  # on purpose


def test_what_was_cleared_hides_no_failure(new_environment: Callable[..., persipubsub.Environment]) -> None:
    """A message that has failed comes alone, also where messages that failed before it were cleared."""
    environment = new_environment()
    control, publisher = environment.new_control(), environment.new_publisher()
    control.add_subscriber("a", max_deliveries=3)
    for _ in range(2):
        control.clear_messages()
        publisher.send_many([b"1", b"2", b"3"])
        with pytest.raises(Failed), environment.new_subscriber("a").receive_many(timeout=0):
            raise Failed
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        assert messages == [b"1"]
