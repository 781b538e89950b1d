"""Compare the library with the model of tests/model/model.py, through random sequences of everything that users can do.

``PERSIPUBSUB_HYPOTHESIS=thorough`` looks for minutes, and elsewhere each time.
"""

import contextlib
import functools
import inspect
import os
import re
import tempfile
from typing import Callable, List, Optional, Set, Tuple, Type

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, Subscriber, errors
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.subscriber import SharedSubscriber
from tests.model.lasting_machine import RETENTIONS
from tests.model.machine import Handle, Interrupted, Opened, first_of, is_shared, listed, payloads_of, pickled, within
from tests.model.rules import ALL_NAMES, NAMES, RULES, SIZES_BYTES, WHICH, uses
from tests.model.shared_model import PolicyPlace
from tests.model.task_rules import TaskMachine

STRATEGIES = st.sampled_from(Strategy)
DURABILITIES = st.sampled_from([Durability.PROCESS_CRASH] * 3 + [Durability.POWER_LOSS])
HIGH_WATERMARKS = st.builds(HighWaterMark,
                            message_timeout=st.sampled_from([2.5, 2.5, 10, 1, 10**11, None, 0.000001]),
                            max_messages=st.one_of(st.integers(1, 12), st.none()))
# Sums of them are exactly the timeouts, or a microsecond more; some go far ahead.
#: Messages whose times differ by less may expire together.
WALL_STEPS_US = st.integers(-10**6, 10**6).map(lambda number: number * (RUN_US_MAX + 1))
STEPS_US = st.sampled_from([1_000_000] * 4 + [RUN_US_MAX + 1, 500_000, 2_500_000, 10_000_000, 10**9, 10**16])
BATCHES = st.one_of(st.lists(SIZES_BYTES, min_size=1, max_size=5), st.integers(1, 30).map(lambda count: [8] * count))
#: Batches, and the time after each.
STREAMS = st.lists(st.tuples(st.lists(SIZES_BYTES, min_size=1, max_size=4), STEPS_US), min_size=1, max_size=5)
MEANWHILE = st.sampled_from(["nothing"] * 3 +
                            ["error", "send", "take", "clear", "expire", "rewind", "remove", "replace", "close"])


class QueueMachine(TaskMachine):
    """One queue; Environments, publishers and subscribers that come and go; a clock that does what clocks do."""

    # pylint: disable=too-many-public-methods  # one per thing that can be done

    @initialize(strategy=STRATEGIES,
                high_watermark=HIGH_WATERMARKS,
                names=st.sets(NAMES, min_size=1),
                stream=STREAMS,
                sharing=st.booleans())
    def set_up(self, strategy: Strategy, high_watermark: HighWaterMark, names: Set[str],
               stream: List[Tuple[List[int], int]], sharing: bool) -> None:
        """Make the queue."""
        environment = persipubsub.new_environment(self.path)
        with pytest.raises(errors.NotInitializedError):
            environment.new_publisher()
        control = environment.new_control(durability=Durability.PROCESS_CRASH)
        self.opened.append(Opened(environment, control, environment.new_publisher()))
        self.set_up_again(0, names, high_watermark, strategy, Durability.PROCESS_CRASH, None)
        for name in names:
            self.open_subscriber(0, name)
        if sharing:
            self.share(0, lease_s=2, max_deliveries=2, retry_delay_s=0, dead_letters_max=3)
        self.send_stream(0, stream)

    @rule(which=WHICH,
          names=st.sets(NAMES, max_size=1),
          high_watermark=st.one_of(st.none(), HIGH_WATERMARKS),
          strategy=st.one_of(st.none(), STRATEGIES),
          durability=st.one_of(st.none(), DURABILITIES),
          retention_s=st.one_of(st.none(), RETENTIONS))
    @uses("Environment.new_control", "Control.close", "Control.closed")
    def set_up_again(self, which: int, names: Set[str], high_watermark: Optional[HighWaterMark],
                     strategy: Optional[Strategy], durability: Optional[Durability],
                     retention_s: Optional[float]) -> None:
        """new_control applies what it is given, and leaves the rest as it is."""
        opened, model = self.some(which), self.model
        opened.control.close()
        with pytest.raises(errors.ClosedError):
            opened.control.status()
        assert opened.control.closed
        mark = high_watermark or model.high_watermark
        retention_us = model.retention_us if retention_s is None else round(retention_s * 1e6)
        if not self.allowed(retention_us, mark.message_timeout):
            with pytest.raises(errors.ArgumentError):
                opened.environment.new_control(sorted(names), high_watermark, retention_s=retention_s)
            if self.allowed(round((retention_s or 0) * 1e6), (high_watermark or HighWaterMark()).message_timeout):
                model.write()  # it is only in this queue that it may not be
            mark, retention_us = model.high_watermark, model.retention_us
            high_watermark = retention_s = None
        opened.control = opened.environment.new_control(sorted(names),
                                                        high_watermark,
                                                        strategy,
                                                        durability,
                                                        retention_s=retention_s)
        if names or (high_watermark, strategy, durability, retention_s) != (None, None, None, None):
            model.write()
        model.high_watermark, model.retention_us = mark, retention_us
        model.log = model.kept(model.log)
        for name in sorted(names):
            model.add(name)
        model.strategy = strategy or model.strategy
        model.durability = durability or model.durability

    @rule(which=WHICH, high_watermark=HIGH_WATERMARKS)
    @uses("Control.set_hwm")
    def set_hwm(self, which: int, high_watermark: HighWaterMark) -> None:
        """Another mark holds for the next send."""
        self.model.write()
        if self.allowed(self.model.retention_us, high_watermark.message_timeout):
            self.some(which).control.set_hwm(high_watermark)
            self.model.high_watermark = high_watermark
        else:
            with pytest.raises(errors.ArgumentError):
                self.some(which).control.set_hwm(high_watermark)

    @rule(which=WHICH, strategy=STRATEGIES)
    @uses("Control.set_strategy")
    def set_strategy(self, which: int, strategy: Strategy) -> None:
        """Another strategy holds for the next overflow."""
        self.some(which).control.set_strategy(strategy)
        self.model.write()
        self.model.strategy = strategy

    # Environments and time

    @precondition(lambda self: len(self.opened) < 3)
    @rule(linked=st.booleans())
    @uses("Environment.path")
    def open_another(self, linked: bool) -> None:
        """Environments of one queue share it, under whichever path."""
        path = self.root / "link" if linked else self.path
        if linked and not path.exists():
            path.symlink_to(self.path)
        assert self.open(path).environment.path == path

    @precondition(lambda self: len(self.opened) > 1)
    @rule(which=WHICH)
    @uses("Environment.close", "Environment.closed")
    def close_one(self, which: int) -> None:
        """What a closed Environment made is closed; the others of the same queue go on."""
        opened = self.opened.pop(which % len(self.opened))
        opened.environment.close()
        assert opened.environment.closed and opened.control.closed
        calls: List[Callable[[], object]] = [opened.environment.new_control, opened.control.check]
        calls += [functools.partial(opened.publisher.send, b"")]
        calls += [handle.subscriber.front for handle in opened.handles]
        for call in calls:
            with pytest.raises(errors.ClosedError):
                call()

    @rule()
    def reopen(self) -> None:
        """Nothing changes when all close the queue and open it again."""
        self.close_all()
        self.open(self.path)

    @rule(boottime_us=st.integers(0, 10**7),
          wall_step_us=st.one_of(WALL_STEPS_US, st.just(-10**15)),
          first=st.sampled_from(["control", "front", "send"]))
    @uses("Environment.new_publisher", "Environment.new_subscriber")
    def reboot(self, boottime_us: int, wall_step_us: int, first: str) -> None:
        """After a boot, time goes on from the wall clock, or from the newest message where that was set back."""
        self.close_all()
        self.model.boot += 1
        self.model.boottime_us = boottime_us
        self.model.wall_us = max(0, self.model.wall_us + wall_step_us)
        with persipubsub.new_environment(self.path) as environment:
            if first == "send":
                payloads = self.payloads([8])
                assert [environment.new_publisher().send(payloads[0])] == self.model.put(payloads)
            elif first == "front":
                for name in [name for name, place in sorted(self.model.places.items()) if not is_shared(place)]:
                    assert environment.new_subscriber(name).front() == first_of(self.model.look(name))
        self.open(self.path)

    @rule(step_us=STEPS_US, wall_step_us=st.one_of(st.just(0), st.integers(-10**15, 10**15)))
    def forward(self, step_us: int, wall_step_us: int) -> None:
        """Time passes. A step of the wall clock changes nothing within a boot."""
        self.model.boottime_us += step_us
        self.model.wall_us = max(0, self.model.wall_us + step_us + wall_step_us)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, kind=st.sampled_from(["environment", "control", "publisher", "subscriber"]))
    def pickle(self, which: int, kind: str) -> None:
        """What comes out of a pickle works on the same queue."""
        opened = self.some(which)
        if kind == "subscriber":
            handle = self.handle(which)
            name = handle.subscriber.identifier
            self.agree(lambda: pickled(handle.subscriber).front(), name in self.model.places,
                       lambda: first_of(self.model.look(name)))
        elif kind == "publisher":
            payloads = self.payloads([8, 8])
            copied = pickled(opened.publisher)
            ids = [copied.send(payload) for payload in payloads]
            assert ids == [message_id for payload in payloads for message_id in self.model.put([payload])]
        else:
            with pickled(opened.environment) as environment:
                control = environment.new_control() if kind == "environment" else pickled(opened.control)
                self.compare(control)

    # Subscribers and publishers

    @rule(which=WHICH, name=NAMES)
    @uses("Control.add_subscriber")
    def add_subscriber(self, which: int, name: str) -> None:
        """A subscriber that is added again is a new one, unless it is there."""
        self.some(which).control.add_subscriber(name)
        self.model.write()
        self.model.add(name)
        self.open_subscriber(which, name)

    @rule(which=WHICH, name=ALL_NAMES)
    @uses("Control.remove_subscriber")
    def remove_subscriber(self, which: int, name: str) -> None:
        """What only a removed subscriber awaited is deleted; nobody can open it any more."""
        control = self.some(which).control
        self.agree(lambda: control.remove_subscriber(name), name in self.model.places, lambda: None)
        if name in self.model.places:
            self.remove_from_model(name)
        else:
            self.model.write()
        self.open_subscriber(which, name)

    @rule(which=WHICH, identifier=NAMES)
    @uses("Environment.new_subscriber", "Subscriber.identifier")
    def open_subscriber(self, which: int, identifier: str) -> None:
        """Only a subscriber that the queue has can be opened."""
        opened = self.some(which)
        if identifier in self.model.places:
            handle = Handle(opened.environment.new_subscriber(identifier), self.model.places[identifier].number)
            assert handle.subscriber.identifier == identifier
            opened.handles.append(handle)
        else:
            with pytest.raises(errors.UnknownSubscriberError):
                opened.environment.new_subscriber(identifier)

    @rule(which=WHICH, autosync=st.booleans())
    @uses("Environment.new_publisher", "Publisher.close", "Subscriber.close")
    def replace_endpoints(self, which: int, autosync: bool) -> None:
        """Closed endpoints cannot be used; the subscribers keep their cursors for the next ones."""
        opened = self.some(which)
        opened.publisher.close()
        with pytest.raises(errors.ClosedError):
            opened.publisher.send(b"")
        opened.publisher, opened.autosync = opened.environment.new_publisher(autosync=autosync), autosync
        for handle in list(opened.handles):
            handle.subscriber.close()
            self.close_handle(handle)
            self.open_subscriber(which, handle.subscriber.identifier)

    # Sending

    @rule(which=WHICH, size_bytes=SIZES_BYTES, kind=st.sampled_from([bytes, bytearray, memoryview]))
    @uses("Publisher.send")
    def send(self, which: int, size_bytes: int, kind: Type[bytes]) -> None:
        """A message is appended; first the queue overflows where it is at its mark."""
        payloads = self.payloads([size_bytes])
        assert [self.some(which).publisher.send(kind(payloads[0]))] == self.model.put(payloads)

    @rule(which=WHICH, sizes_bytes=BATCHES, lazy=st.booleans())
    @uses("Publisher.send_many")
    def send_many(self, which: int, sizes_bytes: List[int], lazy: bool) -> None:
        """A batch has the same effect as its messages one by one, also where it is larger than the mark."""
        payloads, opened = self.payloads(sizes_bytes), self.some(which)
        ids = opened.publisher.send_many(iter(payloads) if lazy else payloads)
        batches = [[payload] for payload in payloads] if opened.autosync else [payloads]
        assert list(ids) == [message_id for batch in batches for message_id in self.model.put(batch)]

    @rule(which=WHICH, stream=STREAMS)
    def send_stream(self, which: int, stream: List[Tuple[List[int], int]]) -> None:
        """Batches sent many times make many commits."""
        for sizes_bytes, step_us in stream:
            self.send_many(which, sizes_bytes, False)
            self.forward(step_us, 0)

    @rule(which=WHICH, sizes_bytes=st.lists(SIZES_BYTES, max_size=3), bad=st.sampled_from([None, "text", 1]))
    @uses("Publisher.send_many", "Publisher.send", "Control.set_hwm")
    def send_what_cannot_be_sent(self, which: int, sizes_bytes: List[int], bad: object) -> None:
        """A batch with an invalid message, or one larger than the mark for bytes, is not sent."""
        opened, mark, payloads = self.some(which), self.model.high_watermark, self.payloads(sizes_bytes)
        assert not opened.publisher.send_many([])
        with pytest.raises(errors.ArgumentTypeError):
            opened.publisher.send(bad)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(errors.ArgumentTypeError):
            opened.publisher.send_many([*payloads, bad])  # type: ignore[list-item]  # on purpose
        opened.control.set_hwm(HighWaterMark(mark.message_timeout, mark.max_messages, hwm_db_size=140_000))
        self.model.write()
        with pytest.raises(errors.MessageTooLargeError):
            opened.environment.new_publisher().send_many([*payloads, bytes(140_001), b""])
        self.model.write()
        self.set_hwm(which, mark)

    # Receiving

    @precondition(lambda self: self.handles())
    @rule(which=WHICH)
    @uses("Subscriber.front", "Control.peek")
    def front(self, which: int) -> None:
        """A subscriber and a control can look at the next message without acknowledging it."""
        handle = self.handle(which)
        name = handle.subscriber.identifier
        self.agree(handle.subscriber.front, self.is_known(handle), lambda: first_of(self.model.look(name)))
        if self.is_known(handle):
            found = first_of(self.model.look(name))
            assert self.opened[0].control.peek(name) == ([] if found is None else [found])

    @precondition(lambda self: self.handles())
    @rule(which=WHICH)
    @uses("Subscriber.pop")
    def pop(self, which: int) -> None:
        """The next message can be acknowledged unread; where there is none, that is an error."""
        handle = self.handle(which)
        name = handle.subscriber.identifier
        found = self.model.look(name) if self.is_known(handle) else []
        if found or not self.is_known(handle):
            self.agree(handle.subscriber.pop, self.is_known(handle),
                       lambda: self.model.take(name, handle.number, found[0].id, [found[0].id]))
        else:
            with pytest.raises(errors.EmptyError):
                handle.subscriber.pop()

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, meanwhile=MEANWHILE, timeout=st.sampled_from([0, 0, 0.001]))
    @uses("Subscriber.receive")
    def receive(self, which: int, meanwhile: str, timeout: float) -> None:
        """The next message is acknowledged when the block ends, unless it raises."""
        handle = self.handle(which)
        receipt = listed(handle.subscriber.receive(timeout, retries=1))
        self.taken_in_block(handle, receipt, lambda: self.model.look(handle.subscriber.identifier)[:1],
                            *self.in_block(handle, meanwhile))

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, meanwhile=MEANWHILE)
    @uses("Subscriber.receive_to_top")
    def receive_to_top(self, which: int, meanwhile: str) -> None:
        """The block acknowledges the latest message and all before it; what came meanwhile stays."""
        handle = self.handle(which)
        receipt = listed(handle.subscriber.receive_to_top(timeout=0))
        self.taken_in_block(handle,
                            receipt,
                            lambda: self.model.look(handle.subscriber.identifier, top=True),
                            *self.in_block(handle, meanwhile),
                            skipping=True)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH,
          max_messages=st.integers(1, 6),
          max_bytes=st.sampled_from([2**26, 2**26, 1, 16, 24, 65_528]),
          meanwhile=MEANWHILE)
    @uses("Subscriber.receive_many")
    def receive_many(self, which: int, max_messages: int, max_bytes: int, meanwhile: str) -> None:
        """A batch is acknowledged when the block ends, unless it raises."""
        handle = self.handle(which)
        receipt = handle.subscriber.receive_many(max_messages, timeout=0, max_bytes=max_bytes)
        self.taken_in_block(handle, receipt,
                            lambda: within(self.model.look(handle.subscriber.identifier)[:max_messages], max_bytes),
                            *self.in_block(handle, meanwhile))

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, taken=st.integers(1, 3), left=st.integers(1, 3), retention_s=RETENTIONS)
    def fall_behind(self, which: int, taken: int, left: int, retention_s: float) -> None:
        """What one subscriber awaits for longer than the retention stays for it when others are deleted."""
        self.set_retention(which, retention_s)
        self.send_many(which, [8] * (taken + left), False)
        self.receive_many(which, taken, 2**26, "nothing")
        self.forward(round((retention_s + 0.5) * 1e6), 0)
        self.send_many(which, [8], False)
        self.peek()

    def in_block(self, handle: Handle, what: str) -> Tuple[Callable[[], None], Optional[Type[Exception]]]:
        """Return what to do in the block of a receive, and the error that then ends it."""
        refused = {"error": Interrupted, "close": errors.ClosedError}.get(what)
        return functools.partial(self.meanwhile, handle, what), refused

    def meanwhile(self, handle: Handle, what: str) -> None:
        """Do something in the block of a receive."""
        if what == "error":
            raise Interrupted
        if what == "send":
            self.send_many(0, [8, 8, 65521], False)
        if what == "take":
            self.peek()
            self.receive_many(self.handles().index(handle), 2, 2**26, "nothing")
        if what == "clear":
            self.clear_messages(0)
        if what == "expire":
            self.forward(10**9, 0)
            self.prune_dangling_messages(0)
        if what == "rewind":
            self.rewind(0, handle.subscriber.identifier, "earliest")
        if what in ("remove", "replace"):
            self.remove_subscriber(0, handle.subscriber.identifier)
        if what == "replace":
            self.add_subscriber(0, handle.subscriber.identifier)
        if what == "close":
            self.close_handle(handle)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, every=st.integers(1, 4), turns=st.integers(1, 6), sending=st.booleans())
    @uses("Subscriber.messages")
    def messages(self, which: int, every: int, turns: int, sending: bool) -> None:
        """A loop acknowledges what is finished, also where it is left; the last message comes again."""
        handle = self.handle(which)
        if not self.is_known(handle):
            with pytest.raises(errors.UnknownSubscriberError):
                next(handle.subscriber.messages(timeout=0))
            return
        expected = self.messages_of_model(handle.subscriber.identifier, handle.number, every)
        for msg in handle.subscriber.messages(timeout=0, acknowledge_every=every):
            assert msg == next(expected)
            turns -= 1
            if not turns:
                break
            if sending:
                self.send_many(0, [8, 8], False)
        else:
            assert next(expected, None) is None
        expected.close()

    @rule(which=WHICH)
    def hold(self, which: int) -> None:
        """What a worker just received is there, and its lease can be extended at once."""
        self.share(which, lease_s=2, max_deliveries=2, retry_delay_s=0, dead_letters_max=3)
        self.send_many(which, [8, 8], False)
        self.claim(which, 2, 2**26, True)

    @rule()
    @uses("Subscriber.receive_many")
    def peek(self) -> None:
        """Everything is there for everybody, in order."""
        for handle in filter(self.is_known, self.handles()):
            found = self.model.look(handle.subscriber.identifier)
            with contextlib.suppress(Interrupted), handle.subscriber.receive_many(timeout=0) as received:
                assert received == payloads_of(found)
                raise Interrupted
            self.model.fail(handle.subscriber.identifier, handle.number, [message.id for message in found])

    # Removing

    @rule(which=WHICH)
    @uses("Control.prune_dangling_messages")
    def prune_dangling_messages(self, which: int) -> None:
        """What is too old is deleted; nothing else was left that nobody awaits."""
        went = self.some(which).control.prune_dangling_messages()
        assert went == self.model.keep(self.model.young(self.model.log), "timeout")

    @rule(which=WHICH, name=ALL_NAMES)
    @uses("Control.prune_all_messages_for")
    def prune_all_messages_for(self, which: int, name: str) -> None:
        """A subscriber moves to the end of the queue."""
        control, model = self.some(which).control, self.model
        model.write()
        self.agree(lambda: control.prune_all_messages_for(name), name in model.places, lambda: model.take_all(name))

    @precondition(lambda self: self.model.log)
    @rule(which=WHICH)
    @uses("Control.clear_messages")
    def clear_messages(self, which: int) -> None:
        """All messages are deleted, and the subscribers stay."""
        assert self.some(which).control.clear_messages() == self.model.clear()

    @precondition(lambda self: self.model.log)
    @rule(which=WHICH, again=st.lists(NAMES))
    @uses("Control.clear_all_subscribers")
    def clear_all_subscribers(self, which: int, again: List[str]) -> None:
        """All messages and subscribers are deleted; those that are added again are new ones."""
        assert self.some(which).control.clear_all_subscribers() == self.clear_model()
        for name in again:
            self.add_subscriber(which, name)

    # Looking

    @rule(which=WHICH)
    @uses("Control.is_initialized", "Control.status", "Control.check", "Control.backup")
    def backup(self, which: int) -> None:
        """A copy holds the same, and is independent."""
        control = self.some(which).control
        assert control.is_initialized()
        while self.model.is_due():
            self.compare(control)  # the copy would append what is due by itself
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            control.backup(name)
            with persipubsub.new_environment(name) as environment, environment.new_control() as copied:
                assert copied.check() == ()
                self.compare(copied)
                for identifier, place in self.model.places.items():
                    if isinstance(place, PolicyPlace):
                        self.compare_dead_letters(copied, identifier)
                        pending = copied.status().subscribers[identifier].pending
                        assert copied.prune_all_messages_for(identifier) == pending
                        continue
                    with environment.new_subscriber(identifier).receive_many(timeout=0) as received:
                        assert received == payloads_of(self.model.young(self.model.awaited(identifier)))
                assert copied.status().messages == copied.status().retained


class QueueMachineInSmallSteps(QueueMachine):
    """A queue that often has messages still to delete: a transaction deletes at most three."""

    deletions_max = 3
    stretch_messages = 2
    appended_max = 2

    @rule(which=WHICH,
          backlog=st.integers(5, 40),
          to_nobody=st.lists(st.integers(1, 6), min_size=1, max_size=4),
          again=st.lists(NAMES, min_size=1, max_size=2),
          then=st.integers(1, 12))
    def send_to_nobody(self, which: int, backlog: int, to_nobody: List[int], again: List[str], then: int) -> None:
        """What is sent without subscribers is stored nowhere, also while much is still to be deleted."""
        self.send_many(which, [8] * backlog, False)
        assert self.some(which).control.clear_all_subscribers() == self.clear_model()
        for count in to_nobody:
            self.send_many(which, [8] * count, False)
        for name in again:
            self.add_subscriber(which, name)
            self.send_many(which, [8] * then, False)
            self.all_is_well()


PROFILES = {
    "":
    hypothesis.settings(max_examples=150, stateful_step_count=40, derandomize=True, database=None),
    "thorough":
    hypothesis.settings(max_examples=2000, stateful_step_count=60),
    # For mutants, of which nobody reads the smallest example.
    "core":
    hypothesis.settings(max_examples=10,
                        stateful_step_count=25,
                        derandomize=True,
                        database=None,
                        phases=[hypothesis.Phase.generate]),
}

#: Whose public methods and properties the rules use. A class whose rules are new is added here.
CLASSES: List[type] = [Environment, Control, Publisher, Subscriber, AsyncPublisher, AsyncSubscriber]
PUBLIC = {f"{one.__name__}.{name}" for one in CLASSES for name in dir(one) if not name.startswith("_")}


def record_calls(monkeypatch: pytest.MonkeyPatch) -> Set[str]:
    """Return a set to which each public method and property is added once it is used."""
    used: Set[str] = set()

    def recording(function: Callable[..., object], method: str) -> Callable[..., object]:

        @functools.wraps(function)
        def record(*args: object, **kwargs: object) -> object:
            used.add(method)
            return function(*args, **kwargs)

        return record

    named = [(one, name, f"{one.__name__}.{name}") for one in CLASSES for name in dir(one)]
    named += [(SharedSubscriber, name, f"Subscriber.{name}") for name in vars(SharedSubscriber)]
    for one, name, method in named:
        found = inspect.getattr_static(one, name)
        if isinstance(found, property):
            assert found.fget is not None
            monkeypatch.setattr(one, name, property(recording(found.fget, method)))
        elif not name.startswith("_"):
            monkeypatch.setattr(one, name, recording(found, method))
    return used


@pytest.mark.parametrize("machine", [QueueMachine, pytest.param(QueueMachineInSmallSteps, marks=pytest.mark.slow)])
def test_queue_does_what_the_model_does(machine: Type[QueueMachine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever users do in whatever order, queue and model agree, and the invariants hold."""
    profile = os.environ.get("PERSIPUBSUB_HYPOTHESIS", "")
    settings = hypothesis.settings(PROFILES[profile], deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    used = record_calls(monkeypatch)
    run_state_machine_as_test(machine, settings=settings)
    assert used == PUBLIC or profile == "core", f"no rule that ran uses {sorted(PUBLIC - used)}"


def test_every_public_method_has_a_rule() -> None:
    """The state machine has a rule for every public method and property, which uses it; and knows all classes."""
    made = [
        inspect.signature(method).return_annotation for name, method in vars(Environment).items()
        if name.startswith("new_")
    ]
    names = {getattr(one, "__name__", str(one)).partition("[")[0] for one in made}
    assert names | {"Environment"} == {one.__name__ for one in CLASSES}
    assert set(RULES) == PUBLIC
    for method, functions in RULES.items():
        name = method.partition(".")[2]
        for function in functions:
            body = inspect.getsource(function).partition("    def ")[2]
            assert re.search(rf"\.{name}\b", body), f"{function.__name__} does not use {method}"
