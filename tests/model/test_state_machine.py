"""Compare the library with the model of tests/model/model.py, through random sequences of everything that users can do.

``PERSIPUBSUB_HYPOTHESIS=thorough`` looks for minutes, and elsewhere each time.
"""

import functools
import inspect
import os
import pickle
import re
import tempfile
from typing import Callable, List, Optional, Set, Tuple, Type, TypeVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, Subscriber, errors
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.subscriber import SharedSubscriber
from tests.model.lasting_machine import RETENTIONS
from tests.model.machine import Opened, first_of, is_shared, payloads_of
from tests.model.receiving_machine import ReceivingMachine
from tests.model.rules import HIGH_WATERMARKS, NAMES, RULES, STRATEGIES, STREAMS, WALL_STEPS_US, WHICH, uses
from tests.model.shared_machine import SharedMachine
from tests.model.shared_model import PolicyPlace

T = TypeVar("T")

DURABILITIES = st.sampled_from([Durability.PROCESS_CRASH] * 3 + [Durability.POWER_LOSS])


class QueueMachine(ReceivingMachine, SharedMachine):
    """One queue; Environments, publishers and subscribers that come and go; a clock that does what clocks do."""

    # pylint: disable=too-many-public-methods  # one per thing that can be done

    @initialize(strategy=STRATEGIES,
                high_watermark=HIGH_WATERMARKS,
                names=st.sets(NAMES, min_size=1),
                stream=STREAMS,
                sharing=st.booleans(),
                tasks=st.booleans())
    def set_up(  # pylint: disable=too-many-arguments,too-many-positional-arguments  # what a queue begins with
            self, strategy: Strategy, high_watermark: HighWaterMark, names: Set[str],
            stream: List[Tuple[List[int], int]], sharing: bool, tasks: bool) -> None:
        """Make the queue."""
        environment = persipubsub.new_environment(self.path)
        with pytest.raises(errors.NotInitializedError):
            environment.new_publisher()
        control = environment.new_control(durability=Durability.PROCESS_CRASH)
        self.opened.append(Opened(environment, control, self.forms[tasks].publisher(environment, False)))
        self.set_up_again(0, names, high_watermark, strategy, Durability.PROCESS_CRASH, None)
        for name in names:
            self.open_subscriber(0, name, tasks)
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
        mark = model.with_limits(high_watermark or HighWaterMark())
        retention_us = model.retention_us if retention_s is None else round(retention_s * 1e6)
        if not self.allowed(retention_us, mark.message_timeout):
            with pytest.raises(errors.ArgumentError):
                opened.environment.new_control(sorted(names), high_watermark, retention_s=retention_s)
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

    # Environments and time

    @precondition(lambda self: len(self.opened) < 3)
    @rule(linked=st.booleans(), tasks=st.booleans())
    @uses("Environment.path", "Environment.location")
    def open_another(self, linked: bool, tasks: bool) -> None:
        """Environments of one queue share it, under whichever path."""
        path = self.root / "link" if linked else self.path
        if linked and not path.exists():
            path.symlink_to(self.path)
        environment = self.open(path, tasks).environment
        assert environment.path == environment.location == path

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

    @rule(tasks=st.booleans())
    def reopen(self, tasks: bool) -> None:
        """Nothing changes when all close the queue and open it again."""
        self.close_all()
        self.open(self.path, tasks)

    @rule(which=WHICH, name=NAMES, tasks=st.booleans())
    @uses("Environment.stop")
    def stop_one(self, which: int, name: str, tasks: bool) -> None:
        """What an Environment that was stopped made receives nothing more, and can be used otherwise; others go on."""
        opened = self.some(which)
        opened.environment.stop()
        assert all(handle.subscriber.stopped for handle in opened.handles)
        if name in self.model.places and not is_shared(self.model.places[name]):
            sub = self.forms[tasks].subscriber(opened.environment, name)
            assert sub.stopped and not list(sub.messages())
            assert sub.front() == first_of(self.model.look(name))
        message, = self.outgoing([8])
        self.same(lambda: opened.publisher.send(message.payload, timeout=None), lambda: self.model.send([message])[0])
        opened.environment.close()
        self.opened.remove(opened)
        if not self.opened:
            self.model.busy.clear()
            self.open(self.path, tasks)

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
                message, = self.outgoing([8])
                publisher = environment.new_publisher()
                self.same(lambda: publisher.send(message.payload), lambda: self.model.send([message])[0])
            elif first == "front":
                for name in [name for name, place in sorted(self.model.places.items()) if not is_shared(place)]:
                    assert environment.new_subscriber(name).front() == first_of(self.model.look(name))
        self.open(self.path)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, kind=st.sampled_from(["environment", "control", "publisher", "subscriber"]))
    def pickle(self, which: int, kind: str) -> None:
        """What comes out of a pickle works on the same queue."""
        opened = self.some(which)
        if kind == "subscriber":
            name = self.handle(which).name
            if name in self.model.places:
                copied = pickled(opened.environment.new_subscriber(name))
                assert copied.front() == first_of(self.model.look(name))
        elif kind == "publisher":
            publisher = pickled(opened.environment.new_publisher())
            messages = self.outgoing([8, 8])
            self.same(lambda: [publisher.send(message.payload) for message in messages],
                      lambda: self.sent_by_model(messages, autosync=True))
        else:
            with pickled(opened.environment) as environment:
                control = environment.new_control() if kind == "environment" else pickled(opened.control)
                self.compare(control)

    @rule(which=WHICH)
    def hold(self, which: int) -> None:
        """What a worker just received is there, and its lease can be extended at once."""
        self.share(which, lease_s=2, max_deliveries=2, retry_delay_s=0, dead_letters_max=3)
        self.send_many(which, [8, 8], False)
        self.claim(which, 2, 2**26, extends=True, detailed=False, tasks=False)

    # Looking

    @rule(which=WHICH)
    @uses("Control.is_initialized", "Control.status", "Control.check", "Control.backup")
    def backup(self, which: int) -> None:
        """A copy holds the same, and is independent."""
        control = self.some(which).control
        assert control.is_initialized()
        self.append_all_due()  # the copy would do so by itself
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


class QueueMachineInSmallSteps(QueueMachine):  # pylint: disable=too-many-ancestors  # the rules are mixed in
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
            self.add_subscriber(which, name, False)
            self.send_many(which, [8] * then, False)
            self.all_is_well()


PROFILES = {
    "":
    hypothesis.settings(max_examples=250, stateful_step_count=40, derandomize=True, database=None),
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


def pickled(original: T) -> T:
    """Return what comes out of a pickle."""
    copied: T = pickle.loads(pickle.dumps(original))
    return copied


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
