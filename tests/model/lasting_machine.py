"""The rules of the state machine for messages that stay after all have acknowledged them, and for delayed ones."""

import datetime
import functools
from typing import List, Optional, Tuple, Union

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import errors, moments
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import limits
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from tests.model.lasting_model import Outgoing
from tests.model.machine import Handle, Machine
from tests.model.model import Headers
from tests.model.rules import ALL_NAMES, HEADERS, IDENTIFIERS, NAMES, SIZES_BYTES, WHICH, publisher, uses

#: In seconds; the last is over some of the message timeouts.
RETENTIONS = st.sampled_from([0, 1, 1, 2.5, 10])
#: A time back from now, by a part of the age of the oldest message.
AGES = st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.5])

#: In seconds.
DELAYS = st.sampled_from([0, 0.5, 1, 2, 2, 3, 1000])


class LastingMachine(Machine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.delayed_messages: List[DelayedMessage] = []

    def moment(self, age: float) -> datetime.datetime:
        """Return a time between now and the oldest message, or before it; the last datetime if none is as late."""
        now_us = self.model.now_us()
        oldest_us = min((message.time_us for message in self.model.log), default=now_us)
        return moments.utc(round(now_us - age * (now_us - oldest_us)))

    def allowed(self, retention_us: int, timeout_s: Optional[float]) -> bool:
        """Return whether a retention ends before the message timeout."""
        return timeout_s is None or retention_us <= round(timeout_s * 1e6)

    @rule(which=WHICH, retention_s=RETENTIONS)
    @uses("Control.set_retention")
    def set_retention(self, which: int, retention_s: float) -> None:
        """What all have acknowledged stays for the retention, which is at most the message timeout."""
        control, model = self.some(which).control, self.model
        retention_us = round(retention_s * 1e6)
        if not self.allowed(retention_us, model.high_watermark.message_timeout):
            with pytest.raises(errors.ArgumentError):
                control.set_retention(retention_s)
            return
        control.set_retention(retention_s)
        model.write()
        model.retention_us = retention_us
        model.log = model.kept(model.log)

    @rule(which=WHICH, name=NAMES, start=st.one_of(st.sampled_from(["latest", "earliest"]), AGES))
    @uses("Control.add_subscriber")
    def add_subscriber_at(self, which: int, name: str, start: Union[str, float]) -> None:
        """A new subscriber begins at the given start, as far as that is still stored."""
        model = self.model
        known = name in model.places
        since = start if isinstance(start, str) else self.moment(start)
        self.some(which).control.add_subscriber(name, start=since)
        model.write()
        model.add(name)
        if not known and since != "latest":
            model.rewind(name, time_us=0 if isinstance(since, str) else microseconds(since))
        number = model.places[name].number
        self.some(which).handles.append(Handle(self.some(which).environment.new_subscriber(name), number))

    @rule(which=WHICH, name=ALL_NAMES, to=st.one_of(st.just("earliest"), AGES, st.integers(1, 30)))
    @uses("Control.rewind")
    def rewind(self, which: int, name: str, to: Union[str, int, float]) -> None:
        """A subscriber gets again what is still stored from a position on, and skips nothing."""
        control, model = self.some(which).control, self.model
        if name not in model.places:
            with pytest.raises(errors.UnknownSubscriberError):
                control.rewind(name, "earliest")
            return
        model.write()
        if isinstance(to, str):
            assert control.rewind(name, to) == model.rewind(name)
        elif isinstance(to, int):
            assert control.rewind(name, to) == model.rewind(name, first_id=to)
        else:
            moment = self.moment(to)
            assert control.rewind(name, moment) == model.rewind(name, time_us=microseconds(moment))

    @rule(which=WHICH, start=st.one_of(st.none(), AGES, st.integers(1, 30)), end=st.one_of(st.none(), AGES))
    @uses("Control.history")
    def history(self, which: int, start: Union[None, int, float], end: Optional[float]) -> None:
        """The history is what is stored, in order, with its times and headers."""
        # A first id is an int, a time a float.
        since = self.moment(start) if isinstance(start, float) else start or None
        until = None if end is None else self.moment(end)
        if self.model.is_due():
            self.model.write()
        expected = [(one.id, moments.utc(one.time_us), one.payload, dict(one.headers)) for one in self.model.there()
                    if (until is None or one.time_us < microseconds(until)) and (one.id >= since if isinstance(
                        since, int) else since is None or one.time_us >= microseconds(since) - RUN_US_MAX)]
        found = self.some(which).control.history(since, until)
        assert [(one.id, one.time, one.payload, one.headers) for one in found] == expected

    @rule(which=WHICH,
          size_bytes=SIZES_BYTES,
          delay_s=DELAYS,
          absolute=st.booleans(),
          headers=HEADERS,
          identifier=st.one_of(st.none(), st.none(), IDENTIFIERS))
    @uses(*publisher("send_later"))
    def send_later(  # pylint: disable=too-many-arguments,too-many-positional-arguments  # those of the method
            self, which: int, size_bytes: int, delay_s: float, absolute: bool, headers: Headers,
            identifier: Optional[str]) -> None:
        """A delayed message is appended when it is due, by any access; the mark limits how many there are."""
        pub, payload = self.some(which).publisher, self.payloads([size_bytes])[0]
        at = moments.utc(self.model.now_us() + round(delay_s * 1e6))
        send = functools.partial(pub.send_later, payload, headers=dict(headers), deduplication_id=identifier)
        send = functools.partial(send, at=at) if absolute and at < limits.AT_END else \
            functools.partial(send, delay_s=delay_s)

        def send_really() -> Tuple[int, int]:
            message = send()
            self.delayed_messages.append(message)
            return message.due_us, message.number

        self.same(send_really, lambda: self.model.delay(Outgoing(payload, headers, identifier), round(delay_s * 1e6)))

    @rule(which=WHICH, window_s=st.sampled_from([1, 2.5, 120, 10**6]), ids_max=st.sampled_from([1, 2, 3, 100_000]))
    @uses("Environment.new_control")
    def set_deduplication(self, which: int, window_s: float, ids_max: int) -> None:
        """Another window and another number hold for the next send."""
        opened, model = self.some(which), self.model
        opened.environment.new_control(deduplication_window_s=window_s, deduplication_max=ids_max)
        model.write()
        model.deduplication_window_us, model.deduplication_max = round(window_s * 1e6), ids_max

    @precondition(lambda self: self.delayed_messages)
    @rule(which=WHICH, message=st.integers(0, 30))
    @uses(*publisher("cancel"))
    def cancel(self, which: int, message: int) -> None:
        """Whoever sent it, a message that is not due yet can be cancelled, once."""
        sent = self.delayed_messages[message % len(self.delayed_messages)]
        assert self.some(which).publisher.cancel(sent) == self.model.cancel(sent.due_us, sent.number)

    @rule(which=WHICH, delays_s=st.lists(DELAYS, min_size=1, max_size=6), step_us=st.sampled_from([10**6, 3 * 10**6]))
    def send_many_later(self, which: int, delays_s: List[float], step_us: int) -> None:
        """Several become due."""
        for delay_s in delays_s:
            self.send_later(which, 8, delay_s, False, (), None)
        self.model.boottime_us += step_us


def microseconds(moment: datetime.datetime) -> int:
    """Return a time since the epoch."""
    return (moment - moments.EPOCH) // datetime.timedelta(microseconds=1)
