"""One transaction in terms of the queue's records: how they are read, written, ordered and counted.

Their meaning is in :mod:`persipubsub.lmdb_engine.rules`, their bytes in
:mod:`persipubsub.lmdb_engine.records.layouts`.
"""

import itertools
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.dead_letters import DeadLetters
from persipubsub.lmdb_engine.records.deduplication_ids import DeduplicationIds
from persipubsub.lmdb_engine.records.delayed_messages import DelayedMessages
from persipubsub.lmdb_engine.records.in_flight import InFlight
from persipubsub.lmdb_engine.records.known import KNOWN_CURSORS, KNOWN_SUBSCRIBERS, Ahead, read_ahead
from persipubsub.lmdb_engine.records.layouts import Header, Run, SubscriberRecord, pack_id, unpack_id
from persipubsub.lmdb_engine.records.lifecycle import Lifecycle
from persipubsub.lmdb_engine.records.parts import Parts
from persipubsub.lmdb_engine.records.runs import Log, following

if TYPE_CHECKING:
    import lmdb

#: The maximum number of records that are read from LMDB at once.
BATCH_MESSAGES = 1000


class Transaction(Lifecycle):  # pylint: disable=too-many-public-methods  # one short method per access to a sub-database
    """One LMDB transaction in terms of the queue's records.

    What one transaction has read or changed is known to the next one: see :mod:`.known`.
    """

    _in_flight: Optional[InFlight] = None  # of the last subscriber that was asked for

    def put_header(self, header: Header) -> None:
        """Store the header if it has changed."""
        if header != self.header:
            self._txn.put(layouts.HEADER_KEY, layouts.encode_header(header), db=self._dbs.queue_db)
            known = self.own_known()
            self.header = known["header"] = header
            known["at_rest"], known["room"] = False, None
            self.changed = True

    def message_type(self) -> Optional[str]:
        """Return the full name of the message type that the queue is bound to, if any.

        It is not in the header, which every transaction reads.
        """
        value = self._txn.get(layouts.MESSAGE_TYPE_KEY, db=self._dbs.queue_db)
        return None if value is None else value.decode()

    def put_message_type(self, name: str) -> None:
        """Bind the queue to a message type."""
        self._txn.put(layouts.MESSAGE_TYPE_KEY, name.encode(), db=self._dbs.queue_db)

    def log(self) -> Log:
        """Return the log, to read it: the runs in ``meta_db`` and the ids in ``data_db``."""
        cursor = self._txn.cursor
        return Log(cursor(self._dbs.meta_db), cursor(self._dbs.data_db))

    def next_id(self) -> int:
        """Return the id that the next message will get."""
        next_id = self.known["next_id"]
        if next_id is None:
            next_id = self.own_known()["next_id"] = self.log().next_id()
        return next_id

    def newest(self) -> Run:
        """Return the newest run."""
        newest = self.known["newest"]
        if newest is None:
            newest = self.own_known()["newest"] = self.log().newest()
        return newest

    def oldest(self) -> Run:
        """Return the oldest run."""
        oldest = self.known["oldest"]
        if oldest is None:
            oldest = self.own_known()["oldest"] = self.log().oldest()
        return oldest

    def run_of(self, message_id: int) -> Run:
        """Return the run of a message, as :meth:`Log.at` does."""
        span = self.known["span"]
        if span is None or not span.run.first_id <= message_id < span.end_id:
            span = self.own_known()["span"] = self.log().span_at(message_id)
        return span.run

    def begin_run(self, time_us: int, largest_bytes: int) -> Run:
        """Begin a new run with the next message, and return it.

        :param time_us: the time of its commit, not before that of the newest run
        :param largest_bytes: no message of the run will be larger
        """
        next_id = self.next_id()
        return self._put_run(following(self.newest(), next_id, next_id, time_us, largest_bytes))

    def mark_end(self, next_id: int) -> None:
        """Store the next id: it follows messages that will be deleted, or that no subscriber awaits."""
        newest = self.newest()
        if next_id > newest.first_id:
            self._put_run(following(newest, self.next_id(), next_id, newest.time_us, 0))
            self.own_known()["next_id"] = next_id

    def _put_run(self, run: Run) -> Run:
        known = self.own_known()
        # It may replace the oldest run, if that is the newest one.
        known["span"] = known["room"] = known["oldest"] = None
        known["newest"] = run
        self._txn.put(*layouts.encode_run(run), db=self._dbs.meta_db)
        return run

    def changing_log(self) -> Log:
        """Return the log, to change its runs."""
        known = self.own_known()
        known["span"] = known["room"] = known["oldest"] = known["newest"] = None
        return self.log()

    def delayed_messages(self) -> DelayedMessages:
        """Return the delayed messages."""
        return DelayedMessages(self._txn.cursor(self._dbs.delayed_db))

    def clear_delayed_messages(self) -> None:
        """Delete all delayed messages."""
        self._txn.drop(self._dbs.delayed_db, delete=False)

    def delayed_bytes(self) -> int:
        """Return the size of the pages of ``delayed_db``."""
        return self._pages_bytes(self._dbs.delayed_db)

    def deduplication_ids(self) -> DeduplicationIds:
        """Return the remembered deduplication ids."""
        cursor = self._txn.cursor
        return DeduplicationIds(cursor(self._dbs.once_db), cursor(self._dbs.once_order_db))

    def deduplication_count(self) -> int:
        """Count the remembered deduplication ids."""
        return self._txn.stat(self._dbs.once_db)["entries"]

    # Messages

    def append(self,
               first_id: int,
               payloads: Sequence[bytes],
               largest_bytes: int,
               headers: Optional[Sequence[bytes]] = None) -> None:
        """Append messages after all stored ones.

        :param largest_bytes: no message is larger
        :param headers: of each message, empty for one without; None if no message has any
        :raise DamagedError: a stored message has such an id, or a later one
        """
        long, count = largest_bytes >= layouts.PART_BYTES, len(payloads)
        if count == 1 and not long:
            complete = self._txn.put(pack_id(first_id), payloads[0], append=True, db=self._dbs.data_db)
        else:
            heads = list(map(self.parts().put, itertools.count(first_id), payloads)) if long else payloads
            keys = map(pack_id, range(first_id, first_id + count))
            _, appended = self._txn.cursor(self._dbs.data_db).putmulti(zip(keys, heads), append=True)
            complete = appended == count
        # LMDB skips keys out of order without an error.
        if not complete:
            raise errors.DamagedError(f"Message id {first_id} is not after the ids of all stored messages.")
        if headers is not None:
            self.parts().put_headers(first_id, headers)
        self.own_known()["next_id"] = first_id + count
        self.changed = True

    def parts(self) -> Parts:
        """Return the further parts of messages."""
        return Parts(self._txn.cursor(self._dbs.chunk_db))

    def payload(self, key: bytes, value: bytes) -> bytes:
        """Return the payload of a record of ``data_db``, with its further parts."""
        return self.parts().payload(key, value) if layouts.is_long(len(value)) else value

    def first_id(self, start: int) -> Optional[int]:
        """Return the id of the first stored message from an id on, or None if there is none."""
        cursor = self._txn.cursor(self._dbs.data_db)
        return unpack_id(cursor.key()) if cursor.set_range(pack_id(start)) else None

    def last_id(self) -> Optional[int]:
        """Return the id of the latest stored message, or None if there is none."""
        cursor = self._txn.cursor(self._dbs.data_db)
        return unpack_id(cursor.key()) if cursor.last() else None

    def messages(self, start: int, max_messages: int, max_bytes: int) -> Tuple[Sequence[int], List[bytes]]:
        """Read the next messages from an id on: ids and payloads.

        :param max_messages: the maximum number of messages
        :param max_bytes: the maximum size of their payloads; one message is read in any case
        """
        if max_messages == 1:
            return self.next_message(start)
        cursor = self._txn.cursor(self._dbs.data_db)
        ids: List[int] = []
        payloads: List[bytes] = []
        if not cursor.set_range(pack_id(start)):
            return ids, payloads
        records_left = iter(cursor)
        while len(ids) < max_messages:
            batch = list(itertools.islice(records_left, min(max_messages - len(ids), BATCH_MESSAGES)))
            if not batch:
                break
            keys = [key for key, _ in batch]
            values = [value for _, value in batch]
            sizes = list(map(len, values))
            if layouts.is_long(max(sizes)) or sum(sizes) > max_bytes:
                values = self._payloads_within(batch, max_bytes, bool(ids))
            ids += layouts.unpack_ids(keys[:len(values)])
            payloads += values
            max_bytes -= sum(map(len, values))
            if len(values) < len(batch):
                break
        return ids, payloads

    def next_message(self, start: int) -> Tuple[Sequence[int], List[bytes]]:
        """Read the next message. If nobody else has written since the one before it was read, read some ahead."""
        ids, payloads = self.message_ahead(start)
        if ids:
            return ids, payloads
        ahead = self.known["ahead"]
        cursor = self._txn.cursor(self._dbs.data_db)
        if not cursor.set_range(pack_id(start)):
            return (), []
        if ahead is not None and ahead.ids.stop == start:
            ahead = read_ahead(cursor, start)
            if ahead is not None:
                self.own_known()["ahead"] = ahead
                return (ahead.ids[0], ), [ahead.payloads[0]]
            cursor.set_range(pack_id(start))
        key, value = cursor.item()
        message_id = unpack_id(key)
        end = message_id + 1
        self.own_known()["ahead"] = Ahead(end, range(end, end), ())
        return (message_id, ), [self.payload(key, value)]

    def message_ahead(self, start: int) -> Tuple[Sequence[int], List[bytes]]:
        """Return the next message from an id on if it has been read ahead."""
        ahead = self.known["ahead"]
        if ahead is None or not ahead.start <= start < ahead.ids.stop:
            return (), []
        index = max(0, start - ahead.ids.start)
        return (ahead.ids[index], ), [ahead.payloads[index]]

    def _payloads_within(self, batch: Sequence[Tuple[bytes, bytes]], max_bytes: int, some_found: bool) -> List[bytes]:
        """Return the payloads of the first records, as many as fit; one in any case, unless some were found before."""
        payloads: List[bytes] = []
        for key, value in batch:
            payload = self.payload(key, value)
            max_bytes -= len(payload)
            if max_bytes < 0 and (payloads or some_found):
                break
            payloads.append(payload)
        return payloads

    def lmdb_cursor(self, sub_database: str) -> "lmdb.Cursor[bytes]":
        """Return an LMDB cursor of a sub-database, to delete or to verify its records."""
        return self._txn.cursor(getattr(self._dbs, sub_database))

    def drop_messages(self) -> None:
        """Delete all messages, but no parts: far cheaper than one by one."""
        self._txn.drop(self._dbs.data_db, delete=False)

    def forget_below(self, bound: int) -> None:
        """Forget what is known of messages below an id, which are about to be deleted, and of their runs."""
        known = self.own_known()
        known["span"] = known["oldest"] = None
        if known["ahead"] is not None:
            known["ahead"] = known["ahead"].without(bound)

    def stored_messages(self) -> int:
        """Count the messages in ``data_db``, including those that wait to be deleted."""
        return self._txn.stat(self._dbs.data_db)["entries"]

    def stored_bytes(self) -> int:
        """Return the size of the pages of ``data_db`` and ``chunk_db``."""
        return sum(map(self._pages_bytes, (self._dbs.data_db, self._dbs.chunk_db)))

    def _pages_bytes(self, sub_database: "lmdb._Database") -> int:
        stat = self._txn.stat(sub_database)
        return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    # Subscribers and their cursors

    def subscriber(self, identifier: bytes) -> Optional[SubscriberRecord]:
        """Return a subscriber's record, or None if there is no such subscriber."""
        record = self.known["subscribers"].get(identifier)
        if record is None:
            value = self._txn.get(identifier, db=self._dbs.subscriber_db)
            if value is None:
                return None
            record = layouts.decode_subscriber(value)
            self._know_subscriber(identifier, record)
        return record

    def _know_subscriber(self, identifier: bytes, record: SubscriberRecord) -> None:
        known = self.own_known()
        others = known["subscribers"] if len(known["subscribers"]) < KNOWN_SUBSCRIBERS else {}
        known["subscribers"] = {**others, identifier: record}

    def subscribers(self) -> List[Tuple[bytes, SubscriberRecord]]:
        """List the identifiers and records of all subscribers."""
        return [(key, layouts.decode_subscriber(value)) for key, value in self._txn.cursor(self._dbs.subscriber_db)]

    def put_subscriber(self, identifier: bytes, record: SubscriberRecord) -> None:
        """Store a subscriber's record."""
        self._txn.put(identifier, layouts.encode_subscriber(record), db=self._dbs.subscriber_db)
        self._know_subscriber(identifier, record)
        self.changed = True

    def delete_subscriber(self, identifier: bytes) -> None:
        """Delete a subscriber's record."""
        self._txn.delete(identifier, db=self._dbs.subscriber_db)
        known = self.own_known()
        known["subscribers"], known["room"] = {}, None

    def low_water_mark(self) -> Optional[int]:
        """Return the lowest cursor of all subscribers, or None if there are none."""
        cursors = self._cursors()
        if cursors is not None:
            return min(cursors, default=None)
        cursor = self._txn.cursor(self._dbs.pending_db)
        return unpack_id(cursor.key()) if cursor.first() else None

    def _cursors(self) -> Optional[Mapping[int, int]]:
        """Return how many subscribers have their cursor at each id, or None if there are too many cursors to keep."""
        cursors = self.known["cursors"]
        if cursors is None:
            cursors = dict(itertools.islice(self._stored_cursors(), KNOWN_CURSORS + 1))
            if len(cursors) > KNOWN_CURSORS:
                return None
            self.own_known()["cursors"] = cursors
        return cursors

    def count_cursor(self, message_id: int, change: int) -> None:
        """Change the number of subscribers that have their cursor at an id.

        :param change: 1 or -1
        """
        cursors = self._cursors()
        counts = {message_id: self._stored_count(message_id)} if cursors is None else dict(cursors)
        self._count(counts, message_id, change)
        self.own_known()["cursors"] = None if cursors is None else counts

    def move_cursor(self, before: int, after: int) -> Optional[int]:
        """Move the cursor of one subscriber; return the low-water mark then."""
        cursors = self._cursors()
        if cursors is None:
            self.count_cursor(before, -1)
            self.count_cursor(after, 1)
            return self.low_water_mark()
        counts = dict(cursors)
        self._count(counts, before, -1)
        self._count(counts, after, 1)
        self.own_known()["cursors"] = counts if len(counts) <= KNOWN_CURSORS else None
        return min(counts)

    def _count(self, counts: Dict[int, int], message_id: int, change: int) -> None:
        """Change the number of one cursor, also among those that are known."""
        count = counts.pop(message_id, 0) + change
        if count:
            counts[message_id] = count
            self._txn.put(pack_id(message_id), layouts.NUMBER.pack(count), db=self._dbs.pending_db)
        else:
            self._txn.delete(pack_id(message_id), db=self._dbs.pending_db)

    def _stored_count(self, message_id: int) -> int:
        value = self._txn.get(pack_id(message_id), db=self._dbs.pending_db)
        return 0 if value is None else layouts.NUMBER.unpack(value)[0]

    def cursor_counts(self) -> List[Tuple[int, int]]:
        """List the records of ``pending_db``: each cursor, and how many subscribers have it."""
        return list(self._stored_cursors())

    def _stored_cursors(self) -> Iterator[Tuple[int, int]]:
        for key, value in self._txn.cursor(self._dbs.pending_db):
            yield unpack_id(key), layouts.NUMBER.unpack(value)[0]

    # Messages in flight and dead letters

    def in_flight(self, record: SubscriberRecord) -> InFlight:
        """Return the messages in flight of a subscriber with a policy."""
        found = self._in_flight
        shared = record.policy is not None and record.policy.shared
        if found is None or not found.is_of(record.number, shared):
            cursor = self._txn.cursor
            self._in_flight = found = InFlight(record.number, shared, cursor(self._dbs.index_db),
                                               cursor(self._dbs.due_db))
        return found

    def dead_letters(self, number: int) -> DeadLetters:
        """Return the dead letters and requeued messages of a subscriber."""
        cursor = self._txn.cursor
        return DeadLetters(number, cursor(self._dbs.letter_db), cursor(self._dbs.dead_letter_db))

    def has_message(self, message_id: int) -> bool:
        """Return whether a message is in ``data_db``."""
        return self._txn.cursor(self._dbs.data_db).set_key(pack_id(message_id))
