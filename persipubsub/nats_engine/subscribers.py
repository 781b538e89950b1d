"""Add, change, move back and remove subscribers."""

import asyncio
import os
from typing import List, Optional, Sequence, Tuple

import msgspec

from persipubsub import errors
from persipubsub.engine import policies
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import Cleared, Delivering, Position, Subscription
from persipubsub.nats_engine.dead_letters import DeadLetters, is_shared
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.reading import Reading, floor_of
from persipubsub.nats_engine.records import REQUEUED, SubscriberRecord, runs_of
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import Api, Names

#: How many subscribers are added at the same time.
ADDED_MAX = 100


def _new_number() -> int:
    return int.from_bytes(os.urandom(8), "big") >> 1


class Subscribers:
    """The subscribers of a queue."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, names: Names, records: Records, reading: Reading, keeping: Keeping,
                 letters: DeadLetters) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._reading = reading
        self._keeping = keeping
        self._letters = letters

    async def record(self, identifier: bytes) -> SubscriberRecord:
        """Return the record of a subscriber, as the server knows it.

        :raise UnknownSubscriberError: there is none
        """
        record = await self._records.subscriber(identifier).read()
        if record is None or record.removed:
            names = ", ".join(repr(name.decode()) for name in list(await self._records.all())[:20]) or "none"
            raise errors.UnknownSubscriberError(
                f"The queue has no subscriber {identifier.decode()!r}; it has: {names}. Add it with "
                "Control.add_subscriber, or with persipubsub subscriber add.")
        return record

    async def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber.

        :raise UnknownSubscriberError: there is none
        """
        record = await self.record(identifier)
        return Subscription(identifier, record.number, is_shared(record.policy))

    # Adding

    async def add_all(self, identifiers: Sequence[bytes]) -> None:
        """Add the subscribers that are missing, at the end of the queue."""
        next_id = await self._reading.next_id() if identifiers else 1
        for start in range(0, len(identifiers), ADDED_MAX):
            await asyncio.gather(*(self._add(identifier, next_id, Delivering())
                                   for identifier in identifiers[start:start + ADDED_MAX]))

    async def add(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber at a position, or change one; return how many dead letters were deleted."""
        record = await self._records.subscriber(identifier).read()
        is_new = record is None or record.removed
        await self._add(identifier, await self._start(start) if is_new else 1, given)
        record = self._records.subscriber(identifier).known
        return 0 if is_new or record is None else await self._letters.trim(record.number, record)

    async def _start(self, start: Position) -> int:
        settings = await self._records.settings()
        resolved = await self._resolved(start)
        return max(resolved, await self._reading.kept_id(settings, await self._records.all()))

    async def _resolved(self, position: Position) -> int:
        """Return the id of the first message after a position, or the next id if there is none."""
        if position.message_id is not None:
            return min(position.message_id, await self._reading.next_id())
        return await self._reading.id_since(position.time_us)

    async def _add(self, identifier: bytes, next_id: int, given: Delivering) -> None:
        letters = await self._count_letters(identifier)

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or record.removed:
                return Change(SubscriberRecord(_new_number(), next_id, policy=policies.applied(given, None)))
            policy = policies.applied(given, record.policy)
            if policy == record.policy:
                return Change(None)
            if is_shared(policy) == is_shared(record.policy):
                return Change(msgspec.structs.replace(record, policy=policy))
            in_flight, requeued = record.counts()
            in_flight = in_flight if is_shared(record.policy) else 0
            policies.require_changeable(identifier.decode(), record.policy, policy, in_flight + requeued, letters)
            return Change(_of_another_kind(record, policy))

        await self._records.subscriber(identifier).change(operation)

    async def _count_letters(self, identifier: bytes) -> int:
        record = self._records.subscriber(identifier).known
        if record is None or record.removed or record.policy is None:
            return 0
        return len(await self._letters.ids(record.number, record))

    # Moving

    async def rewind(self, identifier: bytes, position: Position) -> int:
        """Move the cursor of a subscriber back; return how many messages are then pending."""
        await self.record(identifier)
        settings = await self._records.settings()
        kept_id = await self._reading.kept_id(settings, await self._records.all())
        start = max(kept_id, await self._resolved(position))
        found = await self._reading.next(start)
        start = await self._reading.next_id() if found is None else found.seq

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or record.removed or start >= record.next_id:
                return Change(None)
            kept = {
                message_id: entry
                for message_id, entry in record.entries().items() if not start <= message_id < REQUEUED
            }
            return Change(msgspec.structs.replace(record, next_id=start, runs=runs_of(kept)))

        await self._records.subscriber(identifier).change(operation)
        record = self._records.subscriber(identifier).known
        return 0 if record is None else await self.pending(record, kept_id)

    async def pending(self, record: SubscriberRecord, kept_id: int) -> int:
        """Return how many messages a subscriber awaits."""
        count = await self._reading.count(max(record.next_id, kept_id))
        in_flight, requeued = self.awaited(record, kept_id)
        return count + in_flight + requeued

    @staticmethod
    def awaited(record: SubscriberRecord, kept_id: int) -> Tuple[int, int]:
        """Return how many messages a subscriber awaits before its next id, and outside the stream of messages."""
        entries = record.entries()
        requeued = sum(1 for message_id in entries if message_id >= REQUEUED)
        if not is_shared(record.policy):
            return 0, requeued
        return sum(1 for message_id in entries if kept_id <= message_id < REQUEUED), requeued

    async def acknowledge_all(self, identifier: bytes) -> int:
        """Move the cursor of a subscriber to the end; return how many messages it skips. Workers lose their leases."""
        before = await self.record(identifier)
        settings, next_id = await self._records.settings(), await self._reading.next_id()
        pending = await self.pending(before, await self._reading.unexpired_id(settings))

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or record.removed:
                return Change(None, [])
            requeued = [message_id for message_id in record.entries() if message_id >= REQUEUED]
            return Change(msgspec.structs.replace(record, next_id=max(record.next_id, next_id), runs=()), requeued)

        requeued: List[int] = await self._records.subscriber(identifier).change(operation)
        await self._letters.delete(before.number, requeued)
        self._keeping.purge_later()
        return pending

    # Removing

    async def remove(self, identifier: bytes) -> int:
        """Remove a subscriber, and the messages that only it awaited; return how many dead letters it had."""
        record = await self.record(identifier)
        dead = len(await self._letters.ids(record.number, record))
        before = await self._records.all()
        await self._remove(identifier)
        after = {name: one for name, one in before.items() if name != identifier}
        await self._drop_dangling(floor_of(before), floor_of(after))
        return dead

    async def _remove(self, identifier: bytes) -> None:
        number = 0

        def operation(record: Optional[SubscriberRecord]) -> Change:
            nonlocal number
            if record is None or record.removed:
                return Change(None)
            number = record.number
            return Change(msgspec.structs.replace(record, removed=True, runs=(), policy=None))

        await self._records.subscriber(identifier).change(operation)
        await self._letters.delete_all(number)
        # The record, which has told all processes, is deleted, unless a later one was stored meanwhile.
        revision = self._records.subscriber(identifier).revision
        await self._api.purge(self._names.state, filter=self._names.subscriber(identifier), seq=revision + 1)

    async def _drop_dangling(self, before: Optional[int], after: Optional[int]) -> None:
        """Delete the messages that only a removed subscriber awaited."""
        while before is not None:
            settings = await self._records.settings()
            end = await self._reading.next_id() if after is None else after
            if settings.retention_us or end <= max(before, settings.first):
                return
            start = max(before, await self._reading.unexpired_id(settings))
            count = await self._reading.count(start, end)
            if await self._keeping.drop_below(settings, end, pruned_dangling=count):
                return

    async def clear(self) -> Cleared:
        """Remove all subscribers; return how many dead letters they had."""
        dead = 0
        for identifier, record in (await self._records.all()).items():
            dead += len(await self._letters.ids(record.number, record))
            await self._remove(identifier)
        return Cleared(0, dead)


def _of_another_kind(record: SubscriberRecord, policy: Optional[Policy]) -> SubscriberRecord:
    """Return a subscriber with the same cursor; endpoints that have the old one open raise from then on."""
    return SubscriberRecord(_new_number(), record.next_id, record.written, record.taken, policy, route=record.route)
