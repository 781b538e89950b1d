"""One transaction in terms of the queue's records: how they are read, written, ordered and counted.

Their meaning is in :mod:`persipubsub.lmdb_engine.rules`, their bytes in
:mod:`persipubsub.lmdb_engine.records.layouts`.
"""

import itertools
from typing import TYPE_CHECKING, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.dead_letters import DeadLetters
from persipubsub.lmdb_engine.records.deduplication_ids import DeduplicationIds
from persipubsub.lmdb_engine.records.delayed_messages import DelayedMessages
from persipubsub.lmdb_engine.records.in_flight import InFlight
from persipubsub.lmdb_engine.records.layouts import Header, SubDatabases, SubscriberRecord, pack_id, unpack_id
from persipubsub.lmdb_engine.records.parts import Parts
from persipubsub.lmdb_engine.records.runs import Log
from persipubsub.lmdb_engine.records.turns import Turn, Turns

if TYPE_CHECKING:
    import lmdb

#: The maximum number of records that are read from LMDB at once.
BATCH_MESSAGES = 1000
#: The key of the turns of transactions that open the sub-databases.
HANDLES = "handles"


class Transaction:  # pylint: disable=too-many-public-methods  # one short method per access to a sub-database
    """One LMDB transaction in terms of the queue's records.

    The object exists before the transaction begins, so that its owner can end it after an interrupt at any point.
    """

    published = False  # whether it has something new for waiting subscribers
    expired = 0  # the number of messages that expired
    overflowed = 0  # the number of messages that were dropped at the high-water mark
    durable = False  # whether it is synced to the disk, whatever the durability of the queue
    number = 0  # LMDB's number of the transaction, once it has published something
    header: Header
    _dbs: SubDatabases
    _txn: "lmdb.Transaction[bytes]" = None  # type: ignore[assignment]  # set while it is open
    commit_failed = False
    _committing = False
    _turn: Optional[Tuple[Turns[str], Turn]] = None  # which abort() must end

    def begin(self, environment: "lmdb.Environment", dbs: SubDatabases, write: bool) -> None:
        """Begin; a write transaction waits for the other writers of all processes."""
        self._txn = txn = environment.begin(write=write)
        self._dbs = dbs
        self.header = layouts.decode_header(txn.get(layouts.HEADER_KEY, b"", db=dbs.queue_db))

    def begin_in_turn(self, environment: "lmdb.Environment", turns: Turns[str],
                      opened: "Callable[[lmdb.Environment, lmdb.Transaction[bytes]], SubDatabases]") -> None:
        """Begin a read that opens the sub-databases for itself. It waits for other reads that do so.

        :param turns: of the transactions that open sub-databases
        :param opened: opens the sub-databases
        """
        turn = Turn()
        self._turn = (turns, turn)  # before it begins, so that abort() ends it in any case
        turns.begin(HANDLES, turn)
        self._txn = txn = environment.begin()
        self._dbs = opened(environment, txn)
        self.header = layouts.decode_header(txn.get(layouts.HEADER_KEY, b"", db=self._dbs.queue_db))

    @property
    def has_begun(self) -> bool:
        """Return whether it is open, and no longer waits for others. Any thread may ask."""
        return self._txn is not None

    def commit(self) -> None:
        """Commit the changes. After an error none of them is stored, unless LMDB gives up the environment."""
        txn = self._txn
        if self.published:
            self.number = txn.id()
        self._committing = True
        try:
            txn.commit()
        except Exception:
            self._committing = False
            self.commit_failed = True
            raise
        self._txn = None  # type: ignore[assignment]  # it has ended

    def abort(self) -> None:
        """Discard the changes, unless they are committed. It may be called repeatedly, and before the beginning."""
        txn = self._txn
        if txn is not None:
            if self._committing and _is_open(txn):
                self._committing = False  # an interrupt came before LMDB was called
            txn.abort()
            self._txn = None  # type: ignore[assignment]  # the last reference keeps a reader's slot
        if self._turn is not None:
            turns, turn = self._turn
            turns.end(HANDLES, turn)

    @property
    def committed(self) -> bool:
        """Return whether the changes are committed. It is valid once the transaction has ended."""
        return self._committing

    def disown(self) -> object:
        """Detach and return the LMDB transaction: a forked child must not end its copy."""
        txn = self._txn
        self._txn = None  # type: ignore[assignment]  # it is out of reach
        return txn

    def put_header(self, header: Header) -> None:
        """Store the header if it has changed."""
        if header != self.header:
            self._txn.put(layouts.HEADER_KEY, layouts.encode_header(header), db=self._dbs.queue_db)
            self.header = header

    def message_type(self) -> Optional[str]:
        """Return the full name of the protobuf type that the queue is bound to, if any.

        It is not in the header, which every transaction reads.
        """
        value = self._txn.get(layouts.MESSAGE_TYPE_KEY, db=self._dbs.queue_db)
        return None if value is None else value.decode()

    def put_message_type(self, name: str) -> None:
        """Bind the queue to a protobuf type."""
        self._txn.put(layouts.MESSAGE_TYPE_KEY, name.encode(), db=self._dbs.queue_db)

    def log(self) -> Log:
        """Return the log: the runs in ``meta_db`` and the ids in ``data_db``."""
        cursor = self._txn.cursor
        return Log(cursor(self._dbs.meta_db), cursor(self._dbs.data_db))

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

    def append(self, first_id: int, payloads: Sequence[bytes], largest_bytes: int) -> None:
        """Append messages after all stored ones.

        :param largest_bytes: no message is larger
        :raise DamagedError: a stored message has such an id, or a later one
        """
        long = largest_bytes >= layouts.PART_BYTES
        if len(payloads) == 1 and not long:
            complete = self._txn.put(pack_id(first_id), payloads[0], append=True, db=self._dbs.data_db)
        else:
            heads = list(map(self.parts().put, itertools.count(first_id), payloads)) if long else payloads
            keys = map(pack_id, range(first_id, first_id + len(heads)))
            _, count = self._txn.cursor(self._dbs.data_db).putmulti(zip(keys, heads), append=True)
            complete = count == len(heads)
        # LMDB skips keys out of order without an error.
        if not complete:
            raise errors.DamagedError(f"Message id {first_id} is not after the ids of all stored messages.")

    def parts(self) -> Parts:
        """Return the further parts of long payloads."""
        return Parts(self._txn.cursor(self._dbs.chunk_db))

    def _payload(self, key: bytes, value: bytes) -> bytes:
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

    def messages(self, start: int, max_messages: int, max_bytes: int) -> Tuple[List[int], List[bytes]]:
        """Read the next messages from an id on: ids and payloads.

        :param max_messages: the maximum number of messages
        :param max_bytes: the maximum size of their payloads; one message is read in any case
        """
        ids: List[int] = []
        payloads: List[bytes] = []
        cursor = self._txn.cursor(self._dbs.data_db)
        if not cursor.set_range(pack_id(start)):
            return ids, payloads
        if max_messages == 1:
            key, value = cursor.item()
            return [unpack_id(key)], [self._payload(key, value)]
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

    def _payloads_within(self, batch: Sequence[Tuple[bytes, bytes]], max_bytes: int, some_found: bool) -> List[bytes]:
        """Return the payloads of the first records, as many as fit; one in any case, unless some were found before."""
        payloads: List[bytes] = []
        for key, value in batch:
            payload = self._payload(key, value)
            max_bytes -= len(payload)
            if max_bytes < 0 and (payloads or some_found):
                break
            payloads.append(payload)
        return payloads

    def delete_below(self, bound: int, limit: int) -> Tuple[int, bool]:
        """Delete the messages below an id.

        :param limit: the maximum number of messages, and of parts of long ones
        :return: the number of deleted messages, and whether all below the bound are deleted
        """
        reached = key_bound = pack_id(bound)
        chunks = self._txn.cursor(self._dbs.chunk_db)
        if chunks.first():
            _delete_while_below(chunks, key_bound, limit)
            # A message stays until all its parts are deleted.
            reached = min(key_bound, chunks.key()[:len(key_bound)] or key_bound)
        log, data, deleted = self.log(), self._txn.cursor(self._dbs.data_db), 0
        if data.last() and data.key() < reached:
            latest = data.key()
            log.mark_end(log.next_id())
            data.first()
            if data.key() != latest and self.stored_messages() <= limit:
                # All can be deleted, as when a subscriber has caught up: far cheaper than one by one.
                deleted = self.stored_messages()
                self._txn.drop(self._dbs.data_db, delete=False)
        if not deleted:
            data.first()
            deleted = _delete_while_below(data, reached, limit)
        rest = data.key()
        all_deleted = not rest or rest >= key_bound
        log.delete_below(bound if all_deleted else unpack_id(rest))
        return deleted, all_deleted

    def delete_last(self, count: int) -> None:
        """Delete the latest messages, by their number."""
        log = self.log()
        first_id = log.id_of(log.messages_before(log.next_id()) - count)
        log.truncate(first_id)
        for sub_database in (self._dbs.data_db, self._dbs.chunk_db):
            cursor = self._txn.cursor(sub_database)
            if cursor.set_range(pack_id(first_id)):
                while cursor.key():
                    cursor.delete()

    def stored_messages(self) -> int:
        """Count the messages in ``data_db``, including those that wait to be deleted."""
        return self._txn.stat(self._dbs.data_db)["entries"]

    def stored_bytes(self) -> int:
        """Return the size of the pages of ``data_db`` and ``chunk_db``."""
        return sum(map(self._pages_bytes, (self._dbs.data_db, self._dbs.chunk_db)))

    def _pages_bytes(self, sub_database: "lmdb._Database") -> int:
        stat = self._txn.stat(sub_database)
        return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def sizes(self) -> Iterator[Tuple[int, Optional[int]]]:
        """Iterate over id and size of all messages. If a part is missing, the size is None."""
        for key, value in self._txn.cursor(self._dbs.data_db):
            try:
                yield unpack_id(key), len(self._payload(key, value))
            except errors.DamagedError:
                yield unpack_id(key), None

    # Subscribers and their cursors

    def subscriber(self, identifier: bytes) -> Optional[SubscriberRecord]:
        """Return a subscriber's record, or None if there is no such subscriber."""
        value = self._txn.get(identifier, db=self._dbs.subscriber_db)
        return None if value is None else layouts.decode_subscriber(value)

    def subscribers(self) -> List[Tuple[bytes, SubscriberRecord]]:
        """List the identifiers and records of all subscribers."""
        return [(key, layouts.decode_subscriber(value)) for key, value in self._txn.cursor(self._dbs.subscriber_db)]

    def put_subscriber(self, identifier: bytes, record: SubscriberRecord) -> None:
        """Store a subscriber's record."""
        self._txn.put(identifier, layouts.encode_subscriber(record), db=self._dbs.subscriber_db)

    def delete_subscriber(self, identifier: bytes) -> None:
        """Delete a subscriber's record."""
        self._txn.delete(identifier, db=self._dbs.subscriber_db)

    def low_water_mark(self) -> Optional[int]:
        """Return the lowest cursor of all subscribers, or None if there are none."""
        cursor = self._txn.cursor(self._dbs.pending_db)
        return unpack_id(cursor.key()) if cursor.first() else None

    def has_subscribers(self) -> bool:
        """Return whether there is any subscriber."""
        return self._txn.cursor(self._dbs.pending_db).first()

    def count_cursor(self, message_id: int, change: int) -> None:
        """Change the number of subscribers that have their cursor at an id.

        :param change: 1 or -1
        """
        key = pack_id(message_id)
        value = self._txn.get(key, db=self._dbs.pending_db)
        count = change + (0 if value is None else layouts.NUMBER.unpack(value)[0])
        if count:
            self._txn.put(key, layouts.NUMBER.pack(count), db=self._dbs.pending_db)
        else:
            self._txn.delete(key, db=self._dbs.pending_db)

    def cursor_counts(self) -> List[Tuple[int, int]]:
        """List the records of ``pending_db``: each cursor, and how many subscribers have it."""
        cursor = self._txn.cursor(self._dbs.pending_db)
        return [(unpack_id(key), layouts.NUMBER.unpack(value)[0]) for key, value in cursor]

    # Messages in flight and dead letters

    def in_flight(self, record: SubscriberRecord) -> InFlight:
        """Return the messages in flight of a subscriber with a policy."""
        cursor = self._txn.cursor
        shared = record.policy is not None and record.policy.shared
        return InFlight(record.number, shared, cursor(self._dbs.index_db), cursor(self._dbs.due_db))

    def dead_letters(self, number: int) -> DeadLetters:
        """Return the dead letters and requeued messages of a subscriber."""
        cursor = self._txn.cursor
        return DeadLetters(number, cursor(self._dbs.letter_db), cursor(self._dbs.dead_letter_db))

    def has_message(self, message_id: int) -> bool:
        """Return whether a message is in ``data_db``."""
        return self._txn.cursor(self._dbs.data_db).set_key(pack_id(message_id))

    def delivery_keys(self) -> Iterator[Tuple[str, bytes]]:
        """Iterate over all keys that begin with the number of a subscriber, each with its sub-database."""
        for name in ("index_db", "due_db", "letter_db", "dead_letter_db"):
            for key in self._txn.cursor(getattr(self._dbs, name)).iternext(values=False):
                yield name, key


def _is_open(txn: "lmdb.Transaction[bytes]") -> bool:
    """Return whether an LMDB transaction is still open: it forgets its number when it ends."""
    try:
        txn.id()
    except Exception:  # pylint: disable=broad-exception-caught  # lmdb.Error, which only database.py imports
        return False
    return True


def _delete_while_below(cursor: "lmdb.Cursor[bytes]", bound: bytes, limit: int) -> int:
    """Delete the records below a key, from the cursor on; return their number.

    The cursor is then at the first record that is left. At the end there is no key.
    """
    deleted = 0
    key, delete = cursor.key, cursor.delete
    while deleted < limit and b"" < key() < bound:
        delete()
        deleted += 1
    return deleted
