"""The rules of the state machine for sending, for threads and for tasks."""

import asyncio
from typing import Any, List, Tuple, Type, Union

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from persipubsub import Envelope, HighWaterMark, errors
from tests.model.lasting_model import Outgoing
from tests.model.machine import Machine
from tests.model.model import Headers
from tests.model.rules import BATCHES, HEADERS, IDENTIFIERS, SIZES_BYTES, STREAMS, WHICH, publisher, uses

#: Size, headers and deduplication id of a message, and whether they are in an envelope.
MESSAGES = st.tuples(SIZES_BYTES, HEADERS, st.one_of(st.none(), IDENTIFIERS))
#: A full queue stays full, so a short wait ends as none does.
TIMEOUTS = st.sampled_from([0, 0, 0, 0.001])


def enveloped(message: Outgoing) -> "Union[bytes, Envelope[bytes]]":
    """Return a message as it is sent: one with nothing beside it needs no envelope."""
    if not message.headers and message.identifier is None:
        return message.payload
    return Envelope(message.payload, dict(message.headers), message.identifier)


class SendingMachine(Machine):
    """Publishers of a queue."""

    def outgoing(self, sizes_bytes: List[int]) -> List[Outgoing]:
        """Make messages with nothing beside them."""
        return [Outgoing(payload) for payload in self.payloads(sizes_bytes)]

    @rule(which=WHICH, size_bytes=SIZES_BYTES, kind=st.sampled_from([bytes, bytearray, memoryview]))
    @uses(*publisher("send"))
    def send(self, which: int, size_bytes: int, kind: Type[bytes]) -> None:
        """A message is appended; first the queue overflows if it is at its mark, or it refuses the message."""
        message, = self.outgoing([size_bytes])
        self.same(lambda: self.some(which).publisher.send(kind(message.payload)), lambda: self.model.send([message])[0])

    @rule(which=WHICH,
          size_bytes=SIZES_BYTES,
          headers=HEADERS,
          identifier=st.one_of(st.none(), IDENTIFIERS),
          inside=st.booleans(),
          timeout=TIMEOUTS)
    @uses(*publisher("send"))
    def send_with_headers(self, which: int, size_bytes: int, headers: Headers, identifier: Any, inside: bool,
                          timeout: float) -> None:
        """Headers and a deduplication id have the same effect in an envelope and beside it."""
        message = Outgoing(self.payloads([size_bytes])[0], headers, identifier)
        pub = self.some(which).publisher
        if inside:
            self.same(lambda: pub.send(Envelope(message.payload, dict(headers), identifier), timeout=timeout),
                      lambda: self.model.send([message])[0])
        else:
            self.same(lambda: pub.send(message.payload, identifier, dict(headers), timeout),
                      lambda: self.model.send([message])[0])

    @rule(which=WHICH, sizes_bytes=BATCHES, lazy=st.booleans())
    @uses(*publisher("send_many"))
    def send_many(self, which: int, sizes_bytes: List[int], lazy: bool) -> None:
        """A batch has the same effect as its messages one by one, also if it is larger than the mark, or none."""
        messages, opened = self.outgoing(sizes_bytes), self.some(which)
        payloads = [message.payload for message in messages]
        self.same(lambda: list(opened.publisher.send_many(iter(payloads) if lazy else payloads)),
                  lambda: self.sent_by_model(messages, opened.autosync))

    @rule(which=WHICH, messages=st.lists(MESSAGES, min_size=1, max_size=6), timeout=TIMEOUTS)
    @uses(*publisher("send_many"))
    def send_envelopes(self, which: int, messages: List[Tuple[int, Headers, Any]], timeout: float) -> None:
        """Of a batch, the messages whose deduplication ids are remembered are not sent; all ids are returned."""
        payloads, opened = self.payloads([size for size, _, _ in messages]), self.some(which)
        sent = [Outgoing(payload, *others) for payload, (_, *others) in zip(payloads, messages)]
        self.same(lambda: list(opened.publisher.send_many(map(enveloped, sent), timeout)),
                  lambda: self.sent_by_model(sent, opened.autosync))

    def sent_by_model(self, messages: List[Outgoing], autosync: bool) -> List[int]:
        """Send a batch in the model, with autosync each message by itself."""
        if not autosync:
            return self.model.send(messages)
        return [message_id for message in messages for message_id in self.model.send([message])]

    @rule(which=WHICH, stream=STREAMS)
    def send_stream(self, which: int, stream: List[Tuple[List[int], int]]) -> None:
        """Batches sent many times make many commits."""
        for sizes_bytes, step_us in stream:
            self.send_many(which, sizes_bytes, False)
            self.model.boottime_us += step_us
            self.model.wall_us += step_us

    @rule(which=WHICH, sizes_bytes=st.lists(SIZES_BYTES, max_size=3), bad=st.sampled_from([None, "text", 1]))
    @uses("Control.set_hwm", *publisher("send_many", "send"))
    def send_what_cannot_be_sent(self, which: int, sizes_bytes: List[int], bad: Any) -> None:
        """A batch with an invalid message, or one larger than the mark for bytes, is not sent."""
        opened, payloads = self.some(which), self.payloads(sizes_bytes)
        assert not opened.publisher.send_many([])
        with pytest.raises(errors.ArgumentTypeError):
            opened.publisher.send(bad)
        for wrong in (bad, Envelope(bad), Envelope(b"", {"a": bad} if bad != "text" else {"": bad})):
            with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
                opened.publisher.send_many([*payloads, wrong])
        opened.control.set_hwm(hwm_db_size=140_000)
        self.model.write()
        for large in (bytes(140_001), Envelope(bytes(139_995), {"a": "x"})):
            with pytest.raises(errors.MessageTooLargeError):
                opened.publisher.send_many([*payloads, large, b""] if not opened.autosync else [large])
        opened.control.set_hwm(HighWaterMark(hwm_db_size=None))
        self.model.write()

    @rule(which=WHICH, autosync=st.booleans(), tasks=st.booleans(), size_bytes=SIZES_BYTES)
    @uses(*publisher("stop", "close", "send"))
    def replace_publisher(self, which: int, autosync: bool, tasks: bool, size_bytes: int) -> None:
        """A publisher that was stopped does not wait for room, and one that was closed cannot be used."""
        opened, message = self.some(which), self.outgoing([size_bytes])[0]
        opened.publisher.stop()
        self.same(lambda: opened.publisher.send(message.payload, timeout=None), lambda: self.model.send([message])[0])
        opened.publisher.close()
        with pytest.raises(errors.ClosedError):
            opened.publisher.send(b"")
        opened.publisher, opened.autosync = self.forms[tasks].publisher(opened.environment, autosync), autosync

    @rule(which=WHICH, sizes_bytes=st.lists(SIZES_BYTES, min_size=1, max_size=12))
    @uses("Environment.new_async_publisher", "AsyncPublisher.send")
    def send_from_tasks(self, which: int, sizes_bytes: List[int]) -> None:
        """What many tasks send at once is appended in the order of the tasks, as if each had sent alone."""
        pub, messages = self.some(which).environment.new_async_publisher(), self.outgoing(sizes_bytes)

        async def send() -> List[Any]:
            return await asyncio.gather(*(pub.send(message.payload) for message in messages), return_exceptions=True)

        self.append_all_due()  # the sends may be in one transaction or in several
        assert list(map(_outcome, asyncio.run(send()))) == list(map(_outcome, self.model.put_together(messages)))


def _outcome(result: Any) -> Any:
    """Return the id of a message, or the kind of the error."""
    return type(result) if isinstance(result, Exception) else result
