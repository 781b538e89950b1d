"""The rules of the state machine for limits, time, and subscribers that come and go."""

import functools
from typing import Any, List

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import HighWaterMark, Strategy, errors
from tests.model.lasting_machine import LastingMachine
from tests.model.machine import Handle
from tests.model.rules import ALL_NAMES, HIGH_WATERMARKS, NAMES, STEPS_US, STRATEGIES, WHICH, subscriber, uses
from tests.model.sending_machine import SendingMachine


class ControlMachine(SendingMachine, LastingMachine):
    """What an operator changes."""

    # Limits and time

    @rule(which=WHICH, high_watermark=HIGH_WATERMARKS, as_mark=st.booleans())
    @uses("Control.set_hwm")
    def set_hwm(self, which: int, high_watermark: HighWaterMark, as_mark: bool) -> None:
        """Another limit holds for the next send; limits that are left out stay."""
        control, mark = self.some(which).control, self.model.with_limits(high_watermark)
        limits: Any = high_watermark.limits()
        change = functools.partial(control.set_hwm, high_watermark) if as_mark or not limits else \
            functools.partial(control.set_hwm, **limits)
        if self.allowed(self.model.retention_us, mark.message_timeout):
            change()
            self.model.write()
            self.model.high_watermark = mark
        else:
            with pytest.raises(errors.ArgumentError):
                change()

    @rule(which=WHICH, strategy=STRATEGIES)
    @uses("Control.set_strategy")
    def set_strategy(self, which: int, strategy: Strategy) -> None:
        """Another strategy holds for the next message at the mark."""
        self.some(which).control.set_strategy(strategy)
        self.model.write()
        self.model.strategy = strategy

    @rule(step_us=STEPS_US, wall_step_us=st.one_of(st.just(0), st.integers(-10**15, 10**15)))
    def forward(self, step_us: int, wall_step_us: int) -> None:
        """Time passes. A step of the wall clock changes nothing within a boot."""
        self.model.boottime_us += step_us
        self.model.wall_us = max(0, self.model.wall_us + step_us + wall_step_us)

    # The life of subscribers

    @rule(which=WHICH, name=NAMES, tasks=st.booleans())
    @uses("Control.add_subscriber")
    def add_subscriber(self, which: int, name: str, tasks: bool) -> None:
        """A subscriber that is added again is a new one, unless it is there."""
        self.some(which).control.add_subscriber(name)
        self.model.write()
        self.model.add(name)
        self.open_subscriber(which, name, tasks)

    @rule(which=WHICH, name=ALL_NAMES)
    @uses("Control.remove_subscriber")
    def remove_subscriber(self, which: int, name: str) -> None:
        """What only a removed subscriber awaited is deleted; nobody can open it any more."""
        control = self.some(which).control
        self.agree(lambda: control.remove_subscriber(name), name in self.model.places, lambda: None)
        if name in self.model.places:
            self.remove_from_model(name)
        self.open_subscriber(which, name, False)

    @rule(which=WHICH, name=NAMES, tasks=st.booleans())
    @uses("Environment.new_async_subscriber", *subscriber("identifier"))
    def open_subscriber(self, which: int, name: str, tasks: bool) -> None:
        """Only a subscriber that the queue has can be opened."""
        opened = self.some(which)
        if name in self.model.places:
            handle = Handle(self.forms[tasks].subscriber(opened.environment, name), self.model.places[name].number)
            assert handle.subscriber.identifier == name
            opened.handles.append(handle)
        else:
            for make in (opened.environment.new_subscriber, opened.environment.new_async_subscriber):
                with pytest.raises(errors.UnknownSubscriberError):
                    make(name)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH)
    @uses(*subscriber("stop", "stopped"))
    def stop(self, which: int) -> None:
        """A subscriber that was stopped receives nothing more; the others do."""
        handle = self.handle(which)
        assert handle.subscriber.stopped == handle.stopped
        handle.subscriber.stop()
        handle.stopped = True
        assert handle.subscriber.stopped

    @rule(which=WHICH, tasks=st.booleans())
    @uses(*subscriber("close"))
    def replace_subscribers(self, which: int, tasks: bool) -> None:
        """Closed subscribers cannot be used; they keep their cursors for the next ones."""
        for handle in list(self.some(which).handles):
            handle.subscriber.close()
            self.drop_handle(handle)
            self.open_subscriber(which, handle.name, tasks)

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
        if name in model.places:
            model.write()
        self.agree(lambda: control.prune_all_messages_for(name), name in model.places, lambda: model.take_all(name))

    @precondition(lambda self: self.model.log)
    @rule(which=WHICH)
    @uses("Control.clear_messages")
    def clear_messages(self, which: int) -> None:
        """All messages are deleted, and the subscribers stay."""
        assert self.some(which).control.clear_messages() == self.model.clear()

    @precondition(lambda self: self.model.log)
    @rule(which=WHICH, again=st.lists(NAMES, max_size=3))
    @uses("Control.clear_all_subscribers")
    def clear_all_subscribers(self, which: int, again: List[str]) -> None:
        """All messages and subscribers are deleted; those that are added again are new ones."""
        assert self.some(which).control.clear_all_subscribers() == self.clear_model()
        for name in again:
            self.add_subscriber(which, name, False)
