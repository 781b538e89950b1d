"""What a relay brings from another queue, each message once.

How far a relay has come is a message of its own in the stream of messages, which no subscriber reads. It is stored in
one batch with the messages, by compare-and-set: the server stores the batch only if the relay has not come further.
"""

from typing import Dict, NamedTuple, Optional, Tuple

import msgspec

from persipubsub import errors
from persipubsub.engine.commands import PutRelayed
from persipubsub.engine.values import Batch, Relayed, Route
from persipubsub.nats_engine.client import Publication
from persipubsub.nats_engine.keeping import Keeping, Room
from persipubsub.nats_engine.records import QueueRecord, SubscriberRecord, new_identity, new_token
from persipubsub.nats_engine.sending import Sending, copied, refuses, require_fitting, require_room
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import BATCH_MESSAGES_MAX, WRONG_LAST, Api, ApiError, Names
from persipubsub.nats_engine.subscribers import Subscribers


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a relay has come, as it is stored."""

    message_id: int
    sent_us: int
    #: How many times this was stored: each time has taken an id.
    stored: int


class _Found(NamedTuple):
    """How far a relay has come, and the sequence number of the message that says so; 0 if there is none."""

    progress: Progress
    seq: int

    @property
    def relayed(self) -> Relayed:
        """Return what the relay knows of it."""
        return Relayed(self.progress.message_id, self.progress.sent_us)

    def after(self, last: Relayed) -> Progress:
        """Return what is stored when the relay has come further."""
        return Progress(*last, self.progress.stored + 1)


class Relaying:
    """The part of a queue in relays, at either end."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, names: Names, records: Records, keeping: Keeping, sending: Sending,
                 subscribers: Subscribers) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._keeping = keeping
        self._sending = sending
        self._subscribers = subscribers
        #: What the last command of each relay has stored.
        self._known: Dict[bytes, _Found] = {}

    # As the source

    async def identity(self) -> bytes:
        """Return the identity of the queue."""
        return bytes.fromhex((await self._records.settings()).identity)

    async def route(self, identifier: bytes, target: bytes) -> Route:
        """Return the route of a subscriber, which is made when it is first asked for.

        :raise UnknownSubscriberError: there is none
        """
        await self._subscribers.record(identifier)

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or record.removed:
                return Change(None)  # just now
            if record.route is not None:
                return Change(None, record.route)
            made = (new_identity(), target.hex())
            return Change(msgspec.structs.replace(record, route=made), made)

        found: Optional[Tuple[str, str]] = await self._records.subscriber(identifier).change(operation)
        return await self.route(identifier, target) if found is None else Route(*map(bytes.fromhex, found))

    # As the target

    async def relayed(self, origin: bytes) -> Relayed:
        """Return how far a relay has come."""
        return (await self._found(origin)).relayed

    async def _found(self, origin: bytes) -> _Found:
        message = await self._api.get(self._names.messages, last_by_subj=self._subject(origin))
        if message is None:
            return _Found(Progress(0, 0, 0), 0)
        return _Found(msgspec.json.decode(message.payload, type=Progress), message.seq)

    async def stored(self) -> int:
        """Return how many ids the messages took that say how far relays have come."""
        state = await self._api.state(self._names.messages, f"{self._names.relayed}.*")
        found = [await self._found(bytes.fromhex(subject.rpartition(".")[2])) for subject in state.subjects]
        return sum(one.progress.stored for one in found)

    def _subject(self, origin: bytes) -> str:
        return f"{self._names.relayed}.{origin.hex()}"

    async def put(self, command: PutRelayed) -> Relayed:
        """Store messages and how far the relay has come, all or nothing; return how far it has come then."""
        settings = await self._records.settings()
        self._require_sendable(settings, command.batch)
        found = self._known.pop(command.origin, None)
        if found is None or found.relayed != command.after:
            found = await self._found(command.origin)
        while found.relayed == command.after:
            room = await self._keeping.room() if refuses(settings) else None
            if room is not None:
                require_room(settings, room, command.batch)
            ids = await self._publish(command, found, room)
            if ids is not None:
                self._known[command.origin] = _Found(found.after(command.last), ids.stop)
                await self._sending.keep(settings, ids, command.batch)
                return command.last
            # Something else was stored meanwhile: perhaps these messages, by an earlier try whose answer was lost.
            found = await self._found(command.origin)
        return found.relayed

    def _require_sendable(self, settings: QueueRecord, batch: Batch) -> None:
        if len(batch.payloads) >= BATCH_MESSAGES_MAX:
            raise errors.BatchTooLargeError(
                f"A relay brings fewer than {BATCH_MESSAGES_MAX} messages to a cluster at once, got "
                f"{len(batch.payloads)}. None was stored.")
        self._sending.require_sendable(settings, batch)
        require_fitting(settings, batch)

    async def _publish(self, command: PutRelayed, found: _Found, room: Optional[Room]) -> Optional[range]:
        """Store a batch if the relay has not come further, and, if there is a room, if that is as it was."""
        batch = self._sending.publications(command.batch)
        if room is not None:
            batch[0].headers["Nats-Expected-Last-Sequence"] = str(room.last_seq)
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(found.seq),
            "Nats-Rollup": "sub",
            "Nats-TTL": "never",
        }
        batch.append(Publication(self._subject(command.origin), msgspec.json.encode(found.after(command.last)),
                                 headers))

        async def attempt() -> Optional[range]:
            try:
                ack = await self._api.publish_batch(new_token(), [copied(one) for one in batch])
            except ApiError as error:
                if error.code in WRONG_LAST:
                    return None
                raise
            return range(ack.seq + 1 - len(batch), ack.seq)

        return await self._api.connection.persist(attempt, writes=True)
