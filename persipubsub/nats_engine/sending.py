"""Send messages, and refuse them at the high-water mark.

Each message or batch has an id of its own, by which the server knows it if it is sent again because the answer was
lost. What several threads or tasks send while an earlier send is on its way is sent together, as one batch.
"""

import asyncio
from typing import List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.engine.values import Batch
from persipubsub.nats_engine.client import Publication, parsed_header
from persipubsub.nats_engine.keeping import Keeping, Room
from persipubsub.nats_engine.messages import publication
from persipubsub.nats_engine.records import QueueRecord, new_token
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.streams import BATCH_DUPLICATE, BATCH_MESSAGES_MAX, WRONG_LAST, Ack, Api, ApiError, Names
from persipubsub.queue import Strategy

#: What the server's limit for a message leaves for headers of this library, and for what a dead letter says.
RESERVED_BYTES = 16 * 1024
#: The maximum size of what is sent together because it was waiting.
GATHERED_BYTES_MAX = 4 * 1024**2


class _Job(NamedTuple):
    batch: Batch
    future: "asyncio.Future[Sequence[int]]"


class Sending:  # pylint: disable=too-many-instance-attributes  # what it uses
    """Sends the messages of this process to one queue."""

    def __init__(self, api: Api, names: Names, records: Records, keeping: Keeping) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._keeping = keeping
        self._jobs: List[_Job] = []
        self._worker: "Optional[asyncio.Task[None]]" = None
        self._room: Optional[Room] = None

    async def put(self, batch: Batch) -> Sequence[int]:
        """Send messages, all or none of them; return their ids."""
        job = _Job(batch, asyncio.get_running_loop().create_future())
        # Before anything is awaited, so that messages are stored in the order in which their sends began.
        self._jobs.append(job)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        ids = await job.future
        await self.keep(await self._records.settings(), ids, batch)
        return ids

    async def keep(self, settings: QueueRecord, ids: Sequence[int], batch: Batch) -> None:
        """Delete what was sent if no subscriber awaits it, and what it has pushed out."""
        last_id = max(ids)
        if not self._records.known:
            await self._keeping.drop_unawaited(last_id, len(ids))
        if settings.strategy == Strategy.prune_first.value:
            await self._keeping.enforce(settings, last_id, len(ids), batch.size_bytes)
        elif refuses(settings) and settings.retention_us:
            await self._keeping.let_retained_go()

    def require_sendable(self, settings: QueueRecord, batch: Batch) -> None:
        """Raise an error if the messages can never be sent."""
        size_max = self._api.connection.max_payload - RESERVED_BYTES
        if batch.largest_bytes > size_max:
            raise errors.MessageTooLargeError(
                f"A message of {batch.largest_bytes} bytes with its headers is over the limit of the servers, "
                f"{size_max} bytes. Send it in parts, or raise max_payload in the configuration of the servers.")
        if settings.hwm_db_size is not None and batch.largest_bytes > settings.hwm_db_size:
            raise errors.MessageTooLargeError(
                f"A message of {batch.largest_bytes} bytes is over the high-water mark of the queue, hwm_db_size="
                f"{settings.hwm_db_size} bytes. Send a smaller one, or raise the high-water mark with Control.set_hwm.")
        if len(batch.payloads) > BATCH_MESSAGES_MAX:
            raise errors.BatchTooLargeError(
                f"On a cluster send_many takes at most {BATCH_MESSAGES_MAX} messages, got {len(batch.payloads)}. None "
                "was sent: send them in several batches.")

    # Sending together

    async def _work(self) -> None:
        while self._jobs:
            jobs = self._gathered()
            try:
                ids = await self._send(jobs)
                for job in jobs:
                    count = len(job.batch.payloads)
                    if not job.future.done():
                        job.future.set_result(ids[:count])
                    ids = ids[count:]
            except Exception as error:  # pylint: disable=broad-exception-caught  # raised where it was sent
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
        self._worker = None

    def _gathered(self) -> List[_Job]:
        """Take the jobs that are sent together: at least one."""
        count = size_bytes = taken = 0
        for job in self._jobs:
            count += len(job.batch.payloads)
            size_bytes += job.batch.size_bytes
            if taken and (count > BATCH_MESSAGES_MAX or size_bytes > GATHERED_BYTES_MAX):
                break
            taken += 1
        jobs, self._jobs = self._jobs[:taken], self._jobs[taken:]
        return jobs

    async def _send(self, jobs: List[_Job]) -> range:
        settings = await self._records.settings()
        jobs[:] = [job for job in jobs if self._accepts(settings, job)]
        if not jobs:
            return range(0)
        if refuses(settings):
            return await self._send_refusing(settings, jobs)
        return await self.publish([one for job in jobs for one in self.publications(job.batch)])

    def _accepts(self, settings: QueueRecord, job: _Job) -> bool:
        """Return whether a job can be sent. Otherwise the job fails alone."""
        try:
            self.require_sendable(settings, job.batch)
            require_fitting(settings, job.batch)
        except errors.PersipubsubError as error:
            if not job.future.done():
                job.future.set_exception(error)
            return False
        return True

    def publications(self, batch: Batch) -> List[Publication]:
        """Return the messages of a batch as they are published."""
        headers = batch.headers or [b""] * len(batch.payloads)
        return [publication(self._names.sent, *one) for one in zip(batch.payloads, headers)]

    async def publish(self, publications: List[Publication], after: Optional[int] = None) -> range:
        """Publish messages, all or none of them; return their ids.

        :param after: only if nothing was stored in the stream after this sequence number
        :raise ApiError: something was
        """
        # One id for all: it suffices to know whether the last one is stored.
        publications[-1].headers["Nats-Msg-Id"] = f"s-{new_token()}"
        if after is not None:
            publications[0].headers["Nats-Expected-Last-Sequence"] = str(after)

        async def attempt() -> Ack:
            if len(publications) == 1:
                return await self._api.publish(*publications[0])
            try:
                return await self._api.publish_batch(new_token(), [copied(one) for one in publications])
            except ApiError as error:
                if error.code != BATCH_DUPLICATE:
                    raise
                # An earlier try has stored them. The server returns the number of the last one.
                return await self._api.publish(*publications[-1])

        ack = await self._api.connection.persist(attempt, writes=True)
        return range(ack.seq + 1 - len(publications), ack.seq + 1)

    # Refusing

    async def _send_refusing(self, settings: QueueRecord, jobs: List[_Job]) -> range:
        """Send what has room, and refuse the other jobs.

        The server stores it only if nothing else was stored since the room was looked for.
        """
        room, is_exact = self._room, False
        while jobs:
            if room is None:
                room, is_exact = await self._keeping.room(), True
            chosen, used = _fitting(settings, room, jobs)
            if len(chosen) < len(jobs):
                if not is_exact:
                    room = None
                    continue
                for job in jobs:
                    if job not in chosen and not job.future.done():
                        job.future.set_exception(full_error(settings, room))
                jobs[:] = chosen
                continue
            ids = await self._publish_after(room.last_seq,
                                            [one for job in jobs for one in self.publications(job.batch)])
            self._room = None if ids is None else used._replace(last_seq=ids[-1])
            if ids is not None:
                return ids
            room = None
        return range(0)

    async def _publish_after(self, last_seq: int, publications: List[Publication]) -> Optional[range]:
        """Publish messages if nothing else was stored after a number; return their ids, or None if something was."""
        try:
            return await self.publish(publications, last_seq)
        except ApiError as error:
            if error.code not in WRONG_LAST:
                raise
        # An earlier try may have stored them, whose answer was lost.
        ids = range(last_seq + 1, last_seq + 1 + len(publications))
        return ids if await self._is_stored(ids[-1], publications[-1]) else None

    async def _is_stored(self, seq: int, sent: Publication) -> bool:
        """Return whether a message is stored under a number."""
        stored = await self._api.get(self._names.messages, seq=seq)
        found = {} if stored is None else parsed_header(stored.header)
        return found.get(b"Nats-Msg-Id") == sent.headers["Nats-Msg-Id"].encode()


def _fitting(settings: QueueRecord, room: Room, jobs: List[_Job]) -> "Tuple[List[_Job], Room]":
    """Return the jobs that fit below the high-water mark, one after the other, and the room with them."""
    chosen = []
    for job in jobs:
        if fits(settings, room, job.batch):
            chosen.append(job)
            room = room.after(len(job.batch.payloads), job.batch.size_bytes)
    return chosen, room


def copied(one: Publication) -> Publication:
    """Return a publication whose headers may be changed."""
    return one._replace(headers=dict(one.headers))


def fits(settings: QueueRecord, room: Room, batch: Batch) -> bool:
    """Return whether a batch fits below the high-water mark."""
    return ((settings.max_messages is None or room.messages + len(batch.payloads) <= settings.max_messages)
            and (settings.hwm_db_size is None or room.bytes + batch.size_bytes <= settings.hwm_db_size))


def refuses(settings: QueueRecord) -> bool:
    """Return whether a queue refuses messages at its high-water mark."""
    return settings.strategy == Strategy.refuse.value and (settings.max_messages is not None
                                                           or settings.hwm_db_size is not None)


def require_fitting(settings: QueueRecord, batch: Batch) -> None:
    """Raise BatchTooLargeError if a queue will refuse a batch even when it is empty."""
    if refuses(settings) and not fits(settings, Room(0, 0, 0), batch):
        raise errors.BatchTooLargeError(
            f"A batch of {len(batch.payloads)} messages and {batch.size_bytes} bytes never fits below the high-water "
            f"mark of the queue, {limits_of(settings)}. None was sent: send them in several batches, or raise the "
            "limit with Control.set_hwm.")


def require_room(settings: QueueRecord, room: Room, batch: Batch) -> None:
    """Raise QueueFullError if a queue has no room for a batch."""
    if not fits(settings, room, batch):
        raise full_error(settings, room)


def limits_of(settings: QueueRecord) -> str:
    """Return the limits of number and size, as an error names them."""
    limits = {"max_messages": settings.max_messages, "hwm_db_size": settings.hwm_db_size}
    return ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)


def full_error(settings: QueueRecord, room: Room) -> errors.QueueFullError:
    """Return the error of a queue that refuses messages."""
    return errors.QueueFullError(
        f"The queue has {room.messages} messages of {room.bytes} bytes, its high-water mark is {limits_of(settings)}, "
        "and its strategy is to refuse messages then. Nothing was sent. Wait for room with a timeout, have the "
        "subscribers receive, or raise the limit with Control.set_hwm.")
