"""What a queue keeps: its high-water mark, expired messages, messages that nobody awaits, and what the server deletes.

Messages are deleted for everyone when the record of the queue says so, or when all subscribers are past them. The
server deletes them later: while it still has a message, it also remembers its deduplication id, even after all servers
were restarted.
"""

import asyncio
import logging
from typing import Any, NamedTuple, Optional

import msgspec

from persipubsub import clock, errors
from persipubsub.engine.settings import giving_way, survivors
from persipubsub.nats_engine.reading import Reading, floor_of
from persipubsub.nats_engine.records import QueueRecord
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import WINDOW_S_MIN, Api, Names, State
from persipubsub.queue import Strategy

_LOGGER = logging.getLogger("persipubsub.writer")  # the name that programs filter by
#: Messages that expired or were dropped are reported at most once in this time, for each reason.
WARN_EVERY_US = 60_000_000
#: When the server deletes messages after the first acknowledgement, and how often at most.
PURGE_FIRST_S = 1.0
PURGE_EVERY_S = 10.0
#: Expired messages are counted at most this often, unless somebody asks for their number.
EXPIRE_EVERY_S = 1.0
#: What the server stores of a message beside its payload, about.
OVERHEAD_BYTES = 100


class Losses:
    """Counts messages that were dropped, and warns of them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._warned_us = -WARN_EVERY_US
        self.count = 0

    def report(self, shown: str, at_once: bool = False) -> None:
        """Warn of them, unless there was a warning recently."""
        now_us = clock.boottime_us()
        if self.count and (at_once or now_us - self._warned_us >= WARN_EVERY_US):
            self._warned_us, count, self.count = now_us, self.count, 0
            _LOGGER.warning(f"{self._text} More in the next %d seconds are reported together.", shown, count,
                            WARN_EVERY_US // 1_000_000)


class Room(NamedTuple):
    """What a queue that refuses messages has, and the sequence number up to which this is known."""

    last_seq: int
    messages: int
    bytes: int

    def after(self, messages: int, size_bytes: int) -> "Room":
        """Return the room with more messages."""
        return Room(self.last_seq, self.messages + messages, self.bytes + size_bytes + messages * OVERHEAD_BYTES)


class Keeping:  # pylint: disable=too-many-instance-attributes  # what was noted, and when
    """Deletes messages of a queue."""

    def __init__(self, api: Api, names: Names, records: Records, reading: Reading) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._reading = reading
        self.expired = Losses(
            "Messages of the queue at %s expired, since they were older than its message timeout: %d.")
        self.overflowed = Losses("The queue at %s reached its high-water mark: %d messages were dropped.")
        self.unawaited = Losses("The queue at %s has no subscribers, so it did not store what was sent: %d messages.")
        self._expired_s = -EXPIRE_EVERY_S
        self._sent_bytes = 0  # since the size was asked for
        self._known_bytes: Optional[int] = None
        self._purging: "Optional[asyncio.Task[None]]" = None
        self._purged_s: Optional[float] = None

    # Dropping

    async def drop_below(self, settings: QueueRecord, message_id: int, **counts: int) -> bool:
        """Delete messages for everyone; return False if others changed the first message meanwhile.

        :param counts: added to counters of the record
        """

        def operation(record: Optional[QueueRecord]) -> Change:
            if record is None or record.first != settings.first:
                return Change(None, False)
            more = {name: getattr(record, name) + count for name, count in counts.items()}
            return Change(msgspec.structs.replace(record, first=max(record.first, message_id), **more), True)

        done: bool = await self._records.queue.change(operation)
        self.purge_later()
        return done

    async def drop_unawaited(self, last_id: int, count: int) -> None:
        """Delete what was sent if there is still no subscriber."""
        while not await self._records.all():
            settings = await self._records.settings()
            if settings.retention_us:
                return
            if await self.drop_below(settings, last_id + 1, pruned_dangling=count):
                self.unawaited.count += count
                return

    # Expiry

    async def note_expired(self, force: bool = False) -> int:
        """Count the messages that have expired, and delete them for everyone; return how many there were."""
        now_s = asyncio.get_running_loop().time()
        settings = await self._records.settings()
        if settings.message_timeout_us is None or (not force and now_s - self._expired_s < EXPIRE_EVERY_S):
            return 0
        self._expired_s = now_s
        unexpired_id = await self._reading.unexpired_id(settings)
        if unexpired_id <= settings.first:
            return 0
        subscribers = await self._records.all()
        low_water_mark = floor_of(subscribers)
        start = unexpired_id if low_water_mark is None else max(settings.first, low_water_mark)
        count = max(0, unexpired_id - start)
        if settings.delayed and count:
            count = await self._reading.count(start, unexpired_id)
        if not await self.drop_below(settings, unexpired_id, pruned_timeout=count):
            return 0
        self.expired.count += count
        return count

    # The high-water mark

    async def enforce(self, settings: QueueRecord, last_id: int, count: int, size_bytes: int) -> None:
        """Delete the oldest messages if what was sent has exceeded the high-water mark."""
        mark = settings.max_messages
        low_water_mark = floor_of(self._records.known)
        low = settings.first if settings.retention_us else max(settings.first, low_water_mark or 0)
        while mark is not None and last_id - low + 1 > mark and not await self._overflow_by_number(mark, count):
            pass
        if settings.hwm_db_size is None:
            return
        self._sent_bytes += size_bytes
        if self._known_bytes is None or self._known_bytes + self._sent_bytes > settings.hwm_db_size:
            while not await self._overflow_by_size(settings.hwm_db_size):
                pass

    async def _overflow_by_number(self, mark: int, count: int) -> bool:
        settings, kept_id, retained = await self._kept()
        total = await self._reading.count(kept_id)
        before = max(0, total - count)
        given_way = giving_way(before, count, mark, retained) if retained else 0
        left = survivors(before - given_way, count, mark, Strategy.prune_first)[1]
        dropped = total - given_way - left
        if left >= total:
            return True
        if not await self.drop_below(settings, await self._reading.id_of_last(left), pruned_overflow=dropped):
            return False
        if mark > 1:
            self.overflowed.count += dropped
        return True

    async def _overflow_by_size(self, mark_bytes: int) -> bool:
        settings, kept_id, retained = await self._kept()
        total, state = await self._reading.count(kept_id), await self._reading.state()
        size_bytes = live_bytes(state, total)
        self._known_bytes, self._sent_bytes = size_bytes, 0
        left = total
        if size_bytes > mark_bytes:
            while size_bytes * left > mark_bytes // 2 * total and left > 1:
                left -= min(left - 1, left // 2 + 1)
        if left == total:
            return True
        self._known_bytes = size_bytes * left // total
        dropped = max(0, total - left - retained)
        self.overflowed.count += dropped
        return await self.drop_below(settings, await self._reading.id_of_last(left), pruned_overflow=dropped)

    async def _kept(self) -> Any:
        """Return the settings, the id of the first message that is kept, and how many are kept for the retention."""
        settings = await self._records.queue.read()
        assert settings is not None
        subscribers = await self._records.all()
        kept_id = await self._reading.kept_id(settings, subscribers)
        low_water_mark = floor_of(subscribers)
        retained = 0
        if settings.retention_us and low_water_mark is not None and low_water_mark > kept_id:
            retained = await self._reading.count(kept_id, low_water_mark)
        return settings, kept_id, retained

    # Refusing

    async def let_retained_go(self) -> None:
        """Delete retained messages if the high-water mark requires it, since new ones do not give way to them."""
        is_done = False
        while not is_done:
            settings, kept_id, retained = await self._kept()
            total, surplus = await self._reading.count(kept_id), 0
            if settings.max_messages is not None:
                surplus = total - settings.max_messages
            if (settings.hwm_db_size is not None
                    and live_bytes(await self._reading.state(), total) > settings.hwm_db_size):
                surplus = retained
            surplus = min(surplus, retained)
            if surplus <= 0:
                return
            is_done = await self.drop_below(settings, await self._reading.id_of_last(total - surplus))

    async def room(self) -> Room:
        """Return what the queue has now; retained messages do not count, since they give way."""
        settings = await self._records.queue.read()
        assert settings is not None
        subscribers = await self._records.all()
        state = await self._reading.state()
        low_water_mark = floor_of(subscribers)
        start = state.last_seq + 1 if low_water_mark is None else low_water_mark
        count = await self._reading.count(max(start, await self._reading.unexpired_id(settings)))
        return Room(state.last_seq, count, live_bytes(state, count))

    # Deleting on the server

    def purge_later(self) -> None:
        """Have the server delete soon what nobody needs any longer."""
        if self._purging is None or self._purging.done():
            self._purging = asyncio.get_running_loop().create_task(self._purge_later())

    async def _purge_later(self) -> None:
        loop = asyncio.get_running_loop()
        if self._purged_s is None:
            await asyncio.sleep(PURGE_FIRST_S)
        else:
            await asyncio.sleep(max(0, self._purged_s + PURGE_EVERY_S - loop.time()))
        self._purged_s = loop.time()
        try:
            await self.purge()
        except errors.PersipubsubError:
            pass  # the next one deletes more

    async def purge(self) -> None:
        """Have the server delete what nobody needs, except messages whose deduplication ids must be remembered."""
        settings = await self._records.settings()
        subscribers = await self._records.all()
        kept_id = await self._reading.kept_id(settings, subscribers)
        state = await self._reading.state()
        window_us = max(settings.deduplication_window_us, WINDOW_S_MIN * 10**6)
        stop = min(kept_id, await self._reading.id_since(await self._reading.now_us() - window_us))
        if state.first_seq < stop and state.messages:
            await self._api.purge(self._names.messages, filter=self._names.read, seq=stop)

    async def close(self) -> None:
        """End what is going on."""
        if self._purging is not None:
            self._purging.cancel()


def live_bytes(state: State, messages: int) -> int:
    """Return how many bytes a number of the messages has, in proportion to all that the server stores."""
    return state.bytes * messages // state.messages if state.messages else 0
