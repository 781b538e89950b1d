"""What a queue on a cluster looks like at one moment."""

from typing import Dict, Optional, Protocol, Tuple

from persipubsub.engine.policies import Policy
from persipubsub.engine.settings import stored_seconds
from persipubsub.nats_engine.dead_letters import DeadLetters
from persipubsub.nats_engine.delays import Delays
from persipubsub.nats_engine.keeping import Keeping, live_bytes
from persipubsub.nats_engine.reading import Reading, floor_of
from persipubsub.nats_engine.records import REQUEUED, SubscriberRecord
from persipubsub.nats_engine.relaying import Relaying
from persipubsub.nats_engine.settings import high_watermark_of
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.subscribers import Subscribers
from persipubsub.queue import Durability, Strategy
from persipubsub.status import PrunedStatus, QueueStatus, SubscriberPolicy, SubscriberStatus


class Parts(Protocol):
    """What a status is read with."""

    shown: str
    records: Records
    reading: Reading
    keeping: Keeping
    letters: DeadLetters
    delays: Delays
    subscribers: Subscribers
    relaying: Relaying


# pylint: disable-next=too-many-locals  # one for each number that others are computed from
async def read(parts: Parts) -> QueueStatus:
    """Read the status of a queue. The numbers are of one moment if nothing changes meanwhile."""
    reading, records = parts.reading, parts.records
    await parts.keeping.note_expired(force=True)
    settings = await records.queue.read()
    assert settings is not None
    subscribers = await records.all()
    kept_id = await reading.kept_id(settings, subscribers)
    state, letters = await reading.state(), await parts.letters.counts()
    next_id, now_us = await reading.next_id(), await reading.now_us()
    low_water_mark = floor_of(subscribers)

    async def counted(start: int) -> Tuple[int, Optional[float]]:
        """Return the number of messages from an id on, and the age of the oldest of them."""
        start = max(start, kept_id)
        first = await reading.next(start)
        if first is None:
            return 0, None
        return await reading.count(start), max(0, now_us - first.time_us) / 1e6

    async def of_subscriber(record: SubscriberRecord) -> SubscriberStatus:
        pending, age_s = await counted(record.next_id)
        in_flight, requeued = parts.subscribers.awaited(record, kept_id)
        if in_flight or requeued:
            oldest_us = await _oldest_us(parts, record, kept_id)
            age_s = max(age_s or 0, (now_us - oldest_us) / 1e6) if oldest_us is not None else age_s
        dead = max(0, letters.get(record.number, 0) - requeued)
        return SubscriberStatus(record.next_id, pending + in_flight + requeued, age_s, record.taken,
                                in_flight + requeued, dead, _public(record.policy))

    messages, oldest_age_s = await counted(1)
    awaited, _ = (0, None) if low_water_mark is None else await counted(low_water_mark)
    shown: Dict[str, SubscriberStatus] = {}
    for identifier, record in subscribers.items():
        shown[identifier.decode()] = await of_subscriber(record)
    return QueueStatus(path=parts.shown,
                       messages=messages,
                       size_bytes=live_bytes(state, messages),
                       oldest_age_s=oldest_age_s,
                       next_id=next_id,
                       sent=next_id - 1 - settings.delayed - await parts.relaying.stored(),
                       pruned=PrunedStatus(settings.pruned_timeout, settings.pruned_overflow, settings.pruned_dangling),
                       floor=next_id if low_water_mark is None else low_water_mark,
                       high_watermark=high_watermark_of(settings),
                       strategy=Strategy(settings.strategy),
                       durability=Durability.POWER_LOSS,
                       message_type=settings.message_type,
                       retention_s=stored_seconds(settings.retention_us),
                       retained=messages - awaited,
                       deduplication_window_s=stored_seconds(settings.deduplication_window_us),
                       deduplication_max=None,
                       delayed=len(await parts.delays.sizes()),
                       reader_lag=0,
                       subscribers=shown)


async def _oldest_us(parts: Parts, record: SubscriberRecord, kept_id: int) -> Optional[int]:
    """Return when the oldest message was sent that a subscriber awaits before its next id or outside the stream."""
    found = []
    ids = list(record.entries())
    in_stream = [message_id for message_id in ids if kept_id <= message_id < REQUEUED]
    requeued = [message_id for message_id in ids if message_id >= REQUEUED]
    if in_stream:
        message = await parts.reading.next(in_stream[0])
        found += [message.time_us] if message is not None else []
    if requeued:
        letter = await parts.letters.get(record.number, requeued[0])
        death = None if letter is None else parts.letters.death_of(letter)
        found += [death.sent_us] if death is not None else []
    return min(found, default=None)


def _public(policy: Optional[Policy]) -> Optional[SubscriberPolicy]:
    if policy is None:
        return None
    times_us = (policy.lease_us, policy.retry_delay_us, policy.retry_delay_max_us)
    lease_s, delay_s, delay_max_s = (stored_seconds(time_us) if policy.shared else None for time_us in times_us)
    return SubscriberPolicy(policy.shared, lease_s, policy.max_deliveries, delay_s, delay_max_s,
                            policy.dead_letters_max)
