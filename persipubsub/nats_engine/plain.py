"""What a subscriber that is not shared receives, and how its cursor moves."""

import bisect
from typing import List, NamedTuple, Optional, Sequence

import msgspec

from persipubsub import errors
from persipubsub.engine.commands import Acknowledge, Fail
from persipubsub.engine.values import NEVER_US, NOTHING, Found, Settled, Subscription
from persipubsub.nats_engine.client import Publication
from persipubsub.nats_engine.dead_letters import RAISED, REJECTED, DeadLetters, Dying, no_dead_letters
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.messages import Stored, details_of
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import NOBODY, REQUEUED, Entry, SubscriberRecord, runs_of
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import Api


class Gap(NamedTuple):
    """The id of the first message that is stored from another id on."""

    start: int
    first_id: int


#: The result of an operation that has to know of another gap, or of a message that it has not read.
AGAIN = object()


def own_record(record: Optional[SubscriberRecord], subscription: Subscription) -> SubscriberRecord:
    """Return the record of a subscriber.

    :raise UnknownSubscriberError: it was removed, even if one of that name was added again
    """
    if record is None or record.removed or record.number != subscription.number:
        raise errors.UnknownSubscriberError(
            f"The subscriber {subscription.identifier.decode()!r} was removed from the queue. If it was added again, "
            "it is a new one: open it with Environment.new_subscriber.")
    return record


def is_own(record: Optional[SubscriberRecord], subscription: Subscription) -> bool:
    """Return whether a record is that of a subscriber, which was not removed."""
    return record is not None and not record.removed and record.number == subscription.number


class PlainSubscribers:
    """Subscribers that are not shared."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, records: Records, reading: Reading, keeping: Keeping, letters: DeadLetters) -> None:
        self._api = api
        self._records = records
        self._reading = reading
        self._keeping = keeping
        self._letters = letters

    async def own(self, subscription: Subscription) -> SubscriberRecord:
        """Return the record of a subscriber. It is asked for again before it is believed that it was removed."""
        cell = self._records.subscriber(subscription.identifier)
        record = await cell.get()
        if not is_own(record, subscription):
            record = await cell.read()
        return own_record(record, subscription)

    # Looking

    async def look(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool) -> Found:
        """Find the next messages of a subscriber."""
        record = await self.own(subscription)
        requeued = [run[0] for run in record.runs if run[0] >= REQUEUED]
        if requeued:
            message = await self._letters.get(record.number, requeued[0])
            if message is not None:
                found = Found([requeued[0]], [message.payload], expires_us=NEVER_US)
                return self._detailed(found, record, [message]) if detailed else found
        if record.policy is not None and record.policy.max_deliveries == 1:
            max_messages = 1
        messages = await self._reading.unexpired(record.next_id, max_messages, max_bytes)
        if messages and messages[0].seq != record.next_id:
            await self._keeping.note_expired()
        if record.policy is not None and messages and messages[0].seq in record.entries():
            messages = messages[:1]  # so that no other message fails with it
        return await self._found(record, messages, detailed)

    async def _found(self, record: SubscriberRecord, messages: List[Stored], detailed: bool) -> Found:
        if not messages:
            await self._keeping.note_expired()
            return NOTHING
        settings, expires_us = await self._records.settings(), NEVER_US
        if settings.message_timeout_us is not None:
            expires_us = self._api.time.since_boot_us(messages[0].time_us + settings.message_timeout_us)
        found = Found([message.seq for message in messages], [message.payload for message in messages], expires_us)
        return self._detailed(found, record, messages) if detailed else found

    def _detailed(self, found: Found, record: SubscriberRecord, messages: Sequence[Stored]) -> Found:
        entries = record.entries()
        details = []
        for message_id, message in zip(found.ids, messages):
            entry = entries.get(message_id)
            deliveries = 0 if record.policy is None else 1 + (entry.deliveries if entry is not None else 0)
            one = details_of(message, deliveries)
            death = self._letters.death_of(message)
            if death is not None:
                one = one._replace(message_id=message_id % REQUEUED, sent_us=death.sent_us)
            details.append(one)
        return found._replace(details=details)

    async def look_at_top(self, subscription: Subscription, detailed: bool) -> Found:
        """Find the latest message of a subscriber."""
        record, settings = await self.own(subscription), await self._records.settings()
        start = max(record.next_id, settings.first)
        last = await self._reading.last()
        if last is None or last.seq < start or last.time_us < await self._reading.expired_before_us(settings):
            return (await self._found(record, [], False))._replace(since=start)
        return (await self._found(record, [last], detailed))._replace(since=start)

    # Acknowledging

    async def acknowledge(self, command: Acknowledge) -> None:
        """Acknowledge messages that a subscriber received. If it was removed, nothing is changed."""
        subscription, ids, since = command
        skipped = await self._reading.count(since, ids[0]) if since is not None and since < ids[0] else 0
        gap: Optional[Gap] = None

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or not is_own(record, subscription) or record.next_id > ids[-1]:
                return Change(None)
            if ids[-1] >= REQUEUED:
                return _without_requeued(record, ids)
            first_id = ids[0] if since is None else since
            if record.next_id < first_id:
                if gap is None or gap.start != record.next_id:
                    return Change(None, AGAIN)
                if gap.first_id < first_id:
                    return Change(None)  # it was moved back meanwhile, so it receives all of them again
            acknowledged = len(ids) - bisect.bisect_left(ids, record.next_id) + skipped
            entries = {message_id: entry for message_id, entry in record.entries().items() if message_id > ids[-1]}
            return Change(
                msgspec.structs.replace(record,
                                        next_id=ids[-1] + 1,
                                        taken=record.taken + acknowledged,
                                        runs=runs_of(entries) if record.runs else ()))

        cell = self._records.subscriber(subscription.identifier)
        while await cell.change(operation) is AGAIN:
            gap = await self._gap(subscription)
        self._keeping.purge_later()
        if ids[-1] >= REQUEUED:
            await self._letters.delete(subscription.number, ids)

    async def _gap(self, subscription: Subscription) -> Gap:
        """Return which message is stored first from the cursor of a subscriber on."""
        record = self._records.subscriber(subscription.identifier).known
        start = 1 if record is None else record.next_id
        found = await self._reading.unexpired(start, 1, 1)
        return Gap(start, found[0].seq if found else REQUEUED)

    # Failing

    async def fail(self, command: Fail) -> Settled:
        """Count a failed delivery; messages that fail for the last time, or are rejected, become dead letters."""
        subscription, ids, _, rejects = command
        cell = self._records.subscriber(subscription.identifier)
        record = await cell.get()
        if record is None or not is_own(record, subscription):
            return Settled()
        if record.policy is None:
            if rejects:
                raise no_dead_letters(subscription.identifier)
            return Settled()
        now_us = await self._reading.now_us()
        gap = await self._gap(subscription)
        messages = {message_id: await self._read(subscription, message_id) for message_id in ids}

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or not is_own(record, subscription) or record.policy is None:
                return Change(None, False)
            if record.next_id != gap.start:
                return Change(None, AGAIN)
            return self._failed(record, command, messages, gap, now_us)

        while (died := await cell.change(operation)) is AGAIN:
            gap = await self._gap(subscription)
        if not died:
            return Settled()
        self._keeping.purge_later()
        record = cell.known
        return Settled(dropped=0 if record is None else await self._letters.trim(subscription.number, record))

    async def _read(self, subscription: Subscription, message_id: int) -> Optional[Stored]:
        if message_id >= REQUEUED:
            return await self._letters.get(subscription.number, message_id)
        return await self._reading.at(message_id)

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments,too-many-locals  # what it computes with
    def _failed(self, record: SubscriberRecord, command: Fail, messages: "dict[int, Optional[Stored]]", gap: Gap,
                now_us: int) -> Change:
        assert record.policy is not None
        entries, next_id, beside = record.entries(), record.next_id, list[Publication]()
        has_died = False  # the message before: then the next one of the batch is the next one of the subscriber
        for message_id in command.ids:
            if message_id < next_id:
                continue  # another endpoint has acknowledged it
            entry = entries.get(message_id)
            if entry is None and message_id >= REQUEUED:
                continue
            count = 1 + (0 if entry is None else entry.deliveries)
            is_next = has_died or message_id >= REQUEUED or message_id in (next_id, gap.first_id)
            has_died = False
            if not is_next or (count < record.policy.max_deliveries and not command.rejects):
                entries[message_id] = Entry(count, NOBODY, 0)
                continue
            message = messages[message_id]
            if message is not None:
                dying = Dying(message, REJECTED if command.rejects else RAISED, command.failure, now_us)
                beside.append(self._letters.publication(record.number, message_id, dying, count))
            entries.pop(message_id, None)
            if message_id < REQUEUED:
                entries.pop(message_id + REQUEUED, None)
                next_id, has_died = message_id + 1, True
                entries = {one: other for one, other in entries.items() if one >= next_id}
        changed = msgspec.structs.replace(record, next_id=next_id, runs=runs_of(entries))
        return Change(changed, bool(beside), beside)


def _without_requeued(record: SubscriberRecord, ids: Sequence[int]) -> Change:
    """Acknowledge requeued messages."""
    entries = record.entries()
    count = sum(1 for message_id in ids if entries.pop(message_id, None) is not None)
    return Change(msgspec.structs.replace(record, taken=record.taken + count, runs=runs_of(entries)))
