"""Delayed messages: the server stores them at once, and stores them again for subscribers when they are due."""

import datetime
import hashlib
import os
import re
from typing import Dict, Optional

import msgspec

from persipubsub import errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.commands import PutLater
from persipubsub.engine.values import batch_of
from persipubsub.nats_engine.deduplication import Deduplication, message_id_of
from persipubsub.nats_engine.messages import Stored, publication
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import QueueRecord, new_token
from persipubsub.nats_engine.sending import Sending, limits_of
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import WINDOW_S_MIN, Api, Names, microseconds

_DUE = re.compile(rb"\r\nNats-Schedule: @at ([^\r]+)\r\n")


class Delays:
    """The delayed messages of a queue."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, names: Names, records: Records, reading: Reading, sending: Sending,
                 deduplication: Deduplication) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._reading = reading
        self._sending = sending
        self._deduplication = deduplication

    async def put(self, command: PutLater) -> DelayedMessage:
        """Store a message until it is due; if it already is, send it."""
        settings, batch = await self._records.settings(), batch_of((command.payload, ), (command.headers, ))
        self._sending.require_sendable(settings, batch)
        await self._require_few(settings, batch.size_bytes)
        now_us, identifier = await self._reading.now_us(), command.deduplication_id
        due_us = now_us + command.due.delay_us if command.due.at_us is None else command.due.at_us
        number = int.from_bytes(os.urandom(8) if identifier is None else _hashed(identifier), "big") >> 1
        if due_us <= now_us:
            ids = await (self._sending.put(batch) if identifier is None else self._deduplication.put(
                batch, (identifier, )))
            return DelayedMessage(due_us, 0) if ids[0] else await self._first(None, due_us, number)
        made = publication(f"{self._names.delayed}.{number}.{batch.size_bytes}", command.payload, command.headers)
        made.headers.update({
            "Nats-Schedule": f"@at {_moment(due_us)}",
            "Nats-Schedule-Target": self._names.due,
            # Otherwise the stream's limit for the age of messages would delete it before it is due.
            "Nats-TTL": "never",
            "Nats-Msg-Id": message_id_of(identifier),
        })
        once = (await self._deduplication.publish(settings, [made]))[0]
        if not once.is_new:
            return await self._first(once.before, due_us, number)
        if identifier is not None:
            await self._note(settings, due_us, number)
        await self._records.queue.change(_with_another)
        return DelayedMessage(due_us, number)

    async def _note(self, settings: QueueRecord, due_us: int, number: int) -> None:
        """Store when a message with a deduplication id is due, for as long as the id is remembered."""
        window_s = max(WINDOW_S_MIN, settings.deduplication_window_us // 10**6) + 1
        headers = {"Nats-TTL": f"{window_s}s", "Nats-Msg-Id": f"s-{new_token()}"}
        subject, payload = f"{self._names.due_times}.{number}", str(due_us).encode()
        await self._api.connection.persist(lambda: self._api.publish(subject, payload, headers), writes=True)

    async def _first(self, before: Optional[Stored], due_us: int, number: int) -> DelayedMessage:
        """Return what was sent first with a deduplication id.

        :param due_us: when the later one would be due, which is returned if nothing better is known
        """
        if before is not None and self._reading.is_message(before):
            return DelayedMessage(before.time_us, 0)
        noted = await self._api.get(self._names.state, last_by_subj=f"{self._names.due_times}.{number}")
        if noted is not None:
            return DelayedMessage(int(noted.payload), number)
        found = None if before is None else _DUE.search(before.header)
        return DelayedMessage(due_us if found is None else microseconds(found[1].decode()), number)

    async def _require_few(self, settings: QueueRecord, size_bytes: int) -> None:
        if settings.max_messages is None and settings.hwm_db_size is None:
            return
        sizes = await self.sizes()
        if ((settings.max_messages is not None and len(sizes) >= settings.max_messages)
                or (settings.hwm_db_size is not None and sum(sizes.values()) + size_bytes > settings.hwm_db_size)):
            raise errors.TooManyDelayedError(
                f"The queue has {len(sizes)} delayed messages, and their number or size has reached the high-water "
                f"mark ({limits_of(settings)}). Cancel some, wait until they are due, or raise the high-water mark "
                "with Control.set_hwm.")

    async def sizes(self) -> Dict[int, int]:
        """Return the numbers and the sizes of the delayed messages."""
        state = await self._api.state(self._names.messages, f"{self._names.delayed}.>")
        found = (subject.rsplit(".", 2) for subject in state.subjects)
        return {int(number): int(size) for _, number, size in found}

    async def cancel(self, message: DelayedMessage) -> bool:
        """Delete a message; return whether it was still delayed."""
        subject = f"{self._names.delayed}.{message.number}.*"
        return message.number > 0 and await self._api.purge(self._names.messages, filter=subject) > 0

    async def clear(self) -> int:
        """Delete all delayed messages; return how many."""
        return await self._api.purge(self._names.messages, filter=f"{self._names.delayed}.>")


def _with_another(record: Optional[QueueRecord]) -> Change:
    return Change(None if record is None else msgspec.structs.replace(record, delayed=record.delayed + 1))


def _hashed(identifier: bytes) -> bytes:
    return hashlib.sha256(identifier).digest()[:8]


def _moment(time_us: int) -> str:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(microseconds=time_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
