"""Send a message once, even if it is sent repeatedly: the servers remember its deduplication id.

Before messages with ids need room, or if a batch contains one that is known, the server is asked for each id. The
question is a message that the server refuses to store unless it knows the id, and then it tells the first message.
"""

import asyncio
import urllib.parse
from typing import Dict, List, NamedTuple, Optional, Sequence

from persipubsub.engine.values import Batch
from persipubsub.nats_engine.client import Publication
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.messages import Stored
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import QueueRecord, new_token
from persipubsub.nats_engine.sending import Sending, copied, refuses, require_fitting, require_room
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.streams import (BATCH_DUPLICATE, ROLLUP_REFUSED, WINDOW_S_MIN, WRONG_LAST, Api, ApiError,
                                             Names)

#: The server refuses this header, but only of a message whose id it does not know. It checks others first.
QUESTION = {"Nats-Rollup": "none"}
#: How many ids are asked for at the same time.
ASKED_MAX = 100


class Once(NamedTuple):
    """What became of a message with a deduplication id."""

    #: Of the first message with this id; 0 if that was delayed.
    message_id: int
    is_new: bool
    #: The first message, if it was stored before and still is.
    before: Optional[Stored] = None


class Deduplication:
    """Sends messages with ids to one queue."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, names: Names, records: Records, reading: Reading, keeping: Keeping,
                 sending: Sending) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._reading = reading
        self._keeping = keeping
        self._sending = sending

    async def put(self, batch: Batch, identifiers: Sequence[Optional[bytes]]) -> Sequence[int]:
        """Send messages, except those with an id that one was sent with before; return an id for each.

        All others are sent, or none of them.
        """
        settings = await self._records.settings()
        self._sending.require_sendable(settings, batch)
        firsts: Dict[bytes, int] = {}
        fresh = [
            index for index, identifier in enumerate(identifiers)
            if identifier is None or firsts.setdefault(identifier, index) == index
        ]
        publications = self._sending.publications(batch.selected(fresh))
        for index, publication in zip(fresh, publications):
            publication.headers["Nats-Msg-Id"] = message_id_of(identifiers[index])
        found = await self.publish(settings, publications, batch.selected(fresh))
        new_ids = [one.message_id for one in found if one.is_new]
        if new_ids:
            await self._sending.keep(settings, new_ids, batch)
        own_ids = {index: one.message_id for index, one in zip(fresh, found)}
        return [own_ids[index if name is None else firsts[name]] for index, name in enumerate(identifiers)]

    async def publish(self,
                      settings: QueueRecord,
                      publications: List[Publication],
                      batch: Optional[Batch] = None) -> List[Once]:
        """Publish the messages whose ids are not known, all or none of them.

        :param batch: the messages, if they need room; None for what has none to find
        """
        known: List[Optional[Once]] = [None] * len(publications)
        is_asked = False
        while True:
            after = None
            if is_asked or (batch is not None and refuses(settings)):
                known = await self._all_known(settings, publications)
            missing = [index for index, once in enumerate(known) if once is None]
            if not missing:
                return [once for once in known if once is not None]
            if batch is not None and refuses(settings):
                require_fitting(settings, batch.selected(missing))
                room = await self._keeping.room()
                require_room(settings, room, batch.selected(missing))
                after = room.last_seq
            ids = await self._publish([publications[index] for index in missing], after)
            if ids is not None:
                new = {index: Once(message_id, True) for index, message_id in zip(missing, ids)}
                return [once or new[index] for index, once in enumerate(known)]
            is_asked = True

    async def _publish(self, publications: List[Publication], after: Optional[int]) -> Optional[range]:
        """Publish messages; return their ids, or None if one is known, or if others were stored after a number."""
        if after is not None:
            publications = [copied(publications[0]), *publications[1:]]
            publications[0].headers["Nats-Expected-Last-Sequence"] = str(after)
        try:
            if len(publications) == 1:
                ack = await self._api.connection.persist(lambda: self._api.publish(*publications[0]), writes=True)
            else:
                ack = await self._api.connection.persist(
                    lambda: self._api.publish_batch(new_token(), [copied(one) for one in publications]), writes=True)
        except ApiError as error:
            if error.code == BATCH_DUPLICATE or error.code in WRONG_LAST:
                return None
            raise
        return None if ack.duplicate else range(ack.seq + 1 - len(publications), ack.seq + 1)

    async def _all_known(self, settings: QueueRecord, publications: List[Publication]) -> List[Optional[Once]]:
        found: List[Optional[Once]] = []
        for start in range(0, len(publications), ASKED_MAX):
            some = publications[start:start + ASKED_MAX]
            found += await asyncio.gather(*(self._known(settings, one) for one in some))
        return found

    async def _known(self, settings: QueueRecord, publication: Publication) -> Optional[Once]:
        """Return the message that was sent before with the id of a publication; None if none was.

        The server may remember an id for longer than the queue is to. Then the publication gets another id, which
        everyone derives from the one before.
        """
        while True:
            headers = {**QUESTION, "Nats-Msg-Id": publication.headers["Nats-Msg-Id"]}
            try:
                ack = await self._api.connection.persist(lambda: self._api.publish(self._names.sent, b"", headers),
                                                         writes=False)
            except ApiError as error:
                if error.code == ROLLUP_REFUSED:
                    return None
                raise
            before = await self._api.get(self._names.messages, seq=ack.seq)
            if before is None or not self._reading.is_message(before):
                return Once(0, False, before)
            window_us = settings.deduplication_window_us
            if window_us >= WINDOW_S_MIN * 10**6 or before.time_us >= await self._reading.now_us() - window_us:
                return Once(ack.seq, False, before)
            publication.headers["Nats-Msg-Id"] += f"#{ack.seq}"


def message_id_of(deduplication_id: Optional[bytes]) -> str:
    """Return a deduplication id as the server gets it; a new one for a message without."""
    if deduplication_id is None:
        return f"s-{new_token()}"
    return f"d-{urllib.parse.quote(deduplication_id, safe='')}"
