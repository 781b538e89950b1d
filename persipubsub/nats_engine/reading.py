"""Read the messages of a queue, find positions among them, and count them.

Any replica answers a request for many messages, and may lag behind. So "there is nothing" is believed only of the
leader, which answers the requests for one message.
"""

import asyncio
import re
from typing import Dict, List, Optional

from persipubsub.nats_engine.client import Reply, parsed_header
from persipubsub.nats_engine.messages import Stored, stored
from persipubsub.nats_engine.records import QueueRecord, SubscriberRecord
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.streams import Api, Names, State, microseconds, timestamp_of

_SENT = re.compile(rb"\r\nNats-Subject: ([^\r]*)\r\nNats-Sequence: ([0-9]+)\r\nNats-Time-Stamp: ([^\r]*)\r\n")
#: How many replicas are asked for a number that a lagging one may not know.
ASKED = 3
#: The maximum number of messages that one request reads.
READ_MAX = 10_000


def stored_of(reply: Reply) -> Stored:
    """Return the message that a replica sent."""
    matched = _SENT.search(reply.header)
    if matched is not None:  # as the server writes it now, which is read in a third of the time
        subject, sequence, moment = matched.groups()
        return stored(int(sequence), microseconds(moment.decode()), subject.decode(), reply.header, reply.data)
    found = parsed_header(reply.header)
    return stored(int(found[b"Nats-Sequence"]), microseconds(found[b"Nats-Time-Stamp"].decode()),
                  found[b"Nats-Subject"].decode(), reply.header, reply.data)


class Reading:
    """The messages of a queue."""

    def __init__(self, api: Api, names: Names, records: Records) -> None:
        self._api = api
        self._names = names
        self._records = records

    # Messages

    async def next(self, start: int) -> Optional[Stored]:
        """Return the first message from an id on, whether it has expired or not."""
        return await self._api.get(self._names.messages, seq=start, next_by_subj=self._names.read)

    async def last(self) -> Optional[Stored]:
        """Return the latest message."""
        return await self._api.get(self._names.messages, last_by_subj=self._names.read)

    async def at(self, message_id: int) -> Optional[Stored]:
        """Return the message with an id, unless it was deleted or has expired."""
        settings = await self._records.settings()
        if message_id < settings.first:
            return None
        found = await self._api.get(self._names.messages, seq=message_id)
        if found is None or not self.is_message(found) or found.time_us < await self.expired_before_us(settings):
            return None
        return found

    def is_message(self, found: Stored) -> bool:
        """Return whether what the stream has is a message of a subscriber, not a delayed one."""
        return found.subject in (self._names.sent, self._names.due)

    async def many(self, start: int, max_messages: int, max_bytes: int) -> List[Stored]:
        """Return the first messages from an id on; one of them may exceed the number of bytes."""
        if max_messages > 1:
            replies = await self._api.get_many(self._names.messages,
                                               seq=start,
                                               next_by_subj=self._names.read,
                                               batch=min(max_messages, READ_MAX),
                                               max_bytes=max_bytes)
            if replies:
                return _within(list(map(stored_of, replies)), max_bytes)
        found = await self.next(start)
        return [] if found is None else [found]

    async def unexpired(self, start: int, max_messages: int, max_bytes: int) -> List[Stored]:
        """Return the first messages from an id on that are neither deleted nor expired."""
        settings = await self._records.settings()
        found = await self.many(max(1, start, settings.first), max_messages, max_bytes)
        if settings.message_timeout_us is None or not found:
            return found
        before_us = await self.expired_before_us(settings)
        if found[0].time_us >= before_us:
            return found
        first = await self.since(before_us)
        return [] if first is None else await self.many(max(first.seq, start), max_messages, max_bytes)

    # Times

    async def now_us(self) -> int:
        """Return the time of the servers, in microseconds since the epoch."""
        if not self._api.time.is_known:
            await self._api.state(self._names.messages)
        return self._api.time.now_us()

    async def expired_before_us(self, settings: QueueRecord) -> int:
        """Return the time before which messages that were sent have expired; 0 if none expire."""
        if settings.message_timeout_us is None:
            return 0
        return await self.now_us() - settings.message_timeout_us

    async def since(self, time_us: int) -> Optional[Stored]:
        """Return the first message that was sent at a time or later."""
        if time_us <= 0:
            return await self.next(1)
        return await self._api.get(self._names.messages,
                                   next_by_subj=self._names.read,
                                   start_time=timestamp_of(time_us))

    # Positions

    async def state(self) -> State:
        """Return what the stream has of messages for subscribers."""
        return await self._api.state(self._names.messages, self._names.read)

    async def next_id(self) -> int:
        """Return the id that the next message will get at least."""
        return (await self._api.state(self._names.messages)).last_seq + 1

    async def id_since(self, time_us: int) -> int:
        """Return the id of the first message that was sent at a time or later, or the next id."""
        next_id = await self.next_id()  # first: what is sent meanwhile is not before it
        found = await self.since(time_us)
        return next_id if found is None else found.seq

    async def unexpired_id(self, settings: QueueRecord) -> int:
        """Return the id below which all messages are deleted or have expired."""
        if settings.message_timeout_us is None:
            return settings.first
        return max(settings.first, await self.id_since(await self.expired_before_us(settings)))

    async def kept_id(self, settings: QueueRecord, subscribers: Dict[bytes, SubscriberRecord]) -> int:
        """Return the id below which no message is kept: all subscribers are past it, and so is the retention."""
        low_water_mark = floor_of(subscribers)
        kept = await self.next_id() if low_water_mark is None else low_water_mark
        if settings.retention_us:
            kept = min(kept, await self.id_since(await self.now_us() - settings.retention_us))
        return max(kept, await self.unexpired_id(settings))

    # Counts

    async def count(self, start: int, stop: Optional[int] = None) -> int:
        """Return how many messages the stream has from an id on, perhaps up to another one."""
        state = await self.state()
        count = await self._count_from(state, start)
        return count if stop is None else count - await self._count_from(state, stop)

    async def _count_from(self, state: State, start: int) -> int:
        total, start = sum(state.subjects.values()), max(start, state.first_seq)
        if not total or start > state.last_seq:
            return 0
        if start == state.first_seq:
            return total
        if total == state.last_seq - state.first_seq + 1:
            return state.last_seq - start + 1
        # Delayed messages lie between them.
        return max(await asyncio.gather(*(self._pending(start) for _ in range(ASKED))))

    async def _pending(self, start: int) -> int:
        replies = await self._api.get_many(self._names.messages, seq=start, next_by_subj=self._names.read, batch=1)
        return int(parsed_header(replies[0].header)[b"Nats-Num-Pending"]) + 1 if replies else 0

    async def id_of_last(self, count: int) -> int:
        """Return the id of the first of the last messages, of which there are a number."""
        state = await self.state()
        low, high = state.first_seq, state.last_seq + 1 - count
        if await self._count_from(state, high) == count:
            return high
        while low < high:  # the highest id from which on there are that many
            middle = (low + high + 1) // 2
            if await self._count_from(state, middle) >= count:
                low = middle
            else:
                high = middle - 1
        return low


def floor_of(subscribers: Dict[bytes, SubscriberRecord]) -> Optional[int]:
    """Return the lowest cursor; None if there are no subscribers."""
    return min((record.position() for record in subscribers.values()), default=None)


def _within(found: List[Stored], max_bytes: int) -> List[Stored]:
    """Return the first messages that have a number of bytes together, or the first one."""
    for index, message in enumerate(found):
        max_bytes -= len(message.payload)
        if max_bytes < 0 and index:
            return found[:index]
    return found
