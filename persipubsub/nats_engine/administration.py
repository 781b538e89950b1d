"""Everything that a Control does to a queue on a cluster."""

import pathlib
from typing import Any, AsyncIterator, Coroutine, Iterator, List, Optional, Protocol, Sequence, Tuple, TypeVar

from persipubsub import moments
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine import headers as encoded_headers
from persipubsub.engine.clusters import without_files
from persipubsub.engine.values import LATEST, Cleared, Configuration, Delivering, Position, Relayed, Route
from persipubsub.nats_engine import status
from persipubsub.nats_engine.dead_letters import DeadLetters, is_shared
from persipubsub.nats_engine.delays import Delays
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.messages import headers_of
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import REQUEUED, SubscriberRecord
from persipubsub.nats_engine.relaying import Relaying
from persipubsub.nats_engine.settings import Settings
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.subscribers import Subscribers
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation

T = TypeVar("T")

#: The maximum number and size of the messages of the history that one request reads; it reads one in any case.
HISTORY_MESSAGES_MAX = 1000
HISTORY_BYTES_MAX = 16 * 1024**2
#: What to do in place of setting the mode of files.
PERMISSIONS = "Give users permissions in the configuration of the servers"


class Parts(Protocol):
    """What works on a queue; all of it runs on the loop."""

    shown: str
    records: Records
    reading: Reading
    keeping: Keeping
    letters: DeadLetters
    delays: Delays
    settings: Settings
    subscribers: Subscribers
    relaying: Relaying


class Caller(Protocol):
    """What has the parts of a queue in this process."""

    @property
    def parts(self) -> Parts:
        """Return the parts."""

    def call(self, coroutine: "Coroutine[Any, Any, T]") -> T:
        """Run a coroutine on the loop, and wait for its result."""


class NatsAdministration:  # pylint: disable=too-many-public-methods  # as the protocol
    """See :class:`persipubsub.engine.protocols.Administration`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def _parts(self) -> Parts:
        return self._caller.parts

    def is_initialized(self) -> bool:
        """Return whether the queue still exists."""
        return self._caller.call(self._parts.settings.is_initialized())

    def configure(self, configuration: Configuration, identifiers: Sequence[bytes], mode: Optional[int]) -> None:
        """Apply a configuration, and add the subscribers that are missing."""
        if mode is not None:
            raise without_files("set the mode of files", PERMISSIONS)
        self._caller.call(self._configure(configuration, identifiers))

    async def _configure(self, configuration: Configuration, identifiers: Sequence[bytes]) -> None:
        if configuration != Configuration():
            await self._parts.settings.configure(configuration)
        await self._parts.subscribers.add_all(identifiers)

    def require_message_type(self, name: str) -> None:
        """Make sure that the queue accepts messages of a type."""
        self._caller.call(self._parts.settings.require_message_type(name))

    def add_subscriber(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber at a position, or change one; return how many dead letters were deleted."""
        return self._caller.call(self._parts.subscribers.add(identifier, start, given))

    def remove_subscriber(self, identifier: bytes) -> int:
        """Remove a subscriber; return how many dead letters were deleted with it."""
        return self._caller.call(self._parts.subscribers.remove(identifier))

    def rewind(self, identifier: bytes, position: Position) -> int:
        """Move the cursor of a subscriber back; return how many messages the subscriber awaits then."""
        return self._caller.call(self._parts.subscribers.rewind(identifier, position))

    def acknowledge_all(self, identifier: bytes) -> int:
        """Move the cursor of a subscriber to the end; return how many messages it skips."""
        return self._caller.call(self._parts.subscribers.acknowledge_all(identifier))

    # Clearing

    def expire_and_prune(self) -> int:
        """Delete messages that have expired; those that nobody awaits are deleted already."""
        return self._caller.call(self._expire())

    async def _expire(self) -> int:
        count = await self._parts.keeping.note_expired(force=True)
        self._parts.keeping.purge_later()
        return count

    def clear_messages(self) -> int:
        """Delete all messages; return how many."""
        return self._caller.call(self._clear_messages())

    async def _clear_messages(self, **counts: int) -> int:
        parts = self._parts
        while True:
            settings = await parts.records.settings()
            next_id = await parts.reading.next_id()
            count = await parts.reading.count(await parts.reading.kept_id(settings, await parts.records.all()))
            dangling = {name: count for name in counts}
            if await parts.keeping.drop_below(settings, next_id, **dangling):
                return count + await parts.delays.clear()

    def clear_subscribers(self) -> Cleared:
        """Remove all subscribers and delete all messages."""
        return self._caller.call(self._clear_subscribers())

    async def _clear_subscribers(self) -> Cleared:
        messages = await self._clear_messages(pruned_dangling=1)
        return (await self._parts.subscribers.clear())._replace(messages=messages)

    # Looking

    def history(self, start: Position, end: Position) -> Iterator[StoredMessage]:
        """Iterate over the messages that are stored between two positions, reading a few at a time."""
        span = self._caller.call(self._span(start, end))
        while messages := self._caller.call(self._read_history(span)):
            span = range(messages[-1].id + 1, span.stop)
            yield from messages

    async def _span(self, start: Position, end: Position) -> range:
        reading, records = self._parts.reading, self._parts.records
        kept_id = await reading.kept_id(await records.settings(), await records.all())
        last = await reading.next_id() if end == LATEST else await self._resolved(end)
        return range(max(kept_id, await self._resolved(start)), last)

    async def _resolved(self, position: Position) -> int:
        if position.message_id is not None:
            return position.message_id
        return await self._parts.reading.id_since(position.time_us)

    async def _read_history(self, span: range) -> List[StoredMessage]:
        if not span:
            return []
        found = await self._parts.reading.unexpired(span.start, min(HISTORY_MESSAGES_MAX, span.stop - span.start),
                                                    HISTORY_BYTES_MAX)
        return [
            StoredMessage(message.seq, moments.utc(message.time_us), message.payload,
                          encoded_headers.decoded(headers_of(message))) for message in found if message.seq < span.stop
        ]

    def peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        """Return the next messages of a subscriber without delivering them."""
        return self._caller.call(self._peek(identifier, max_messages))

    async def _peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        parts = self._parts
        record, payloads = await parts.subscribers.record(identifier), list[bytes]()
        for message_id in await self._delivered_before(record):
            if len(payloads) == max_messages:
                break
            letter = message_id >= REQUEUED
            message = await (parts.letters.get(record.number, message_id) if letter else parts.reading.at(message_id))
            if message is not None:
                payloads.append(message.payload)
        start = record.next_id
        while len(payloads) < max_messages:
            found = await parts.reading.unexpired(start, max_messages - len(payloads), HISTORY_BYTES_MAX)
            if not found:
                break
            payloads += [message.payload for message in found]
            start = found[-1].seq + 1
        return payloads

    async def _delivered_before(self, record: SubscriberRecord) -> List[int]:
        """Return the messages that a subscriber receives before those that were never delivered."""
        entries, policy = record.entries(), record.policy
        if policy is None or not is_shared(policy):
            return [message_id for message_id in entries if message_id >= REQUEUED]
        now_us = await self._parts.reading.now_us()
        due = sorted((entry.due_us, message_id) for message_id, entry in entries.items()
                     if entry.due_us <= now_us and entry.deliveries < policy.max_deliveries)
        return [message_id for _, message_id in due]

    def status(self) -> QueueStatus:
        """Return the current status of the queue."""
        return self._caller.call(status.read(self._parts))

    # Dead letters

    def dead_letters(self, identifier: bytes) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, reading a few at a time."""
        return self._iterate(self._caller.call(self._dead_letters(identifier)))

    async def _dead_letters(self, identifier: bytes) -> AsyncIterator[List[DeadLetter]]:
        record = await self._parts.subscribers.record(identifier)
        return self._parts.letters.read(record.number, record)

    def _iterate(self, found: AsyncIterator[List[T]]) -> Iterator[T]:

        async def following() -> Optional[List[T]]:
            return await anext_or_none(found)

        while (some := self._caller.call(following())) is not None:
            yield from some

    def requeue_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Requeue the dead letters with the given ids, or all; return how many."""
        return self._caller.call(self._requeue(identifier, ids))

    async def _requeue(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        parts = self._parts
        record = await parts.subscribers.record(identifier)
        return await parts.letters.requeue(identifier, record.number, ids, await parts.reading.now_us())

    def discard_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Delete the dead letters with the given ids, or all; return how many."""
        return self._caller.call(self._discard(identifier, ids))

    async def _discard(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        record = await self._parts.subscribers.record(identifier)
        return await self._parts.letters.discard(record.number, record, ids)

    # Relays

    def identity(self) -> bytes:
        """Return the identity of the queue."""
        return self._caller.call(self._parts.relaying.identity())

    def route(self, identifier: bytes, target: bytes) -> Route:
        """Return the route of a relay that receives as a subscriber."""
        return self._caller.call(self._parts.relaying.route(identifier, target))

    def relayed(self, origin: bytes) -> Relayed:
        """Return how far a relay has come that brings messages into this queue."""
        return self._caller.call(self._parts.relaying.relayed(origin))

    # What has no meaning here

    def check(self) -> Tuple[Violation, ...]:
        """Raise: the servers check their own files."""
        raise without_files("check a queue",
                            "The servers check what they read; see: nats stream info, nats server check")

    def backup(self, path: pathlib.Path) -> None:
        """Raise: the servers' own tool copies streams."""
        raise without_files("back a queue up", "Use: nats stream backup, for both streams of the queue")


async def anext_or_none(found: AsyncIterator[T]) -> Optional[T]:
    """Return the next item; None at the end."""
    async for item in found:
        return item
    return None
