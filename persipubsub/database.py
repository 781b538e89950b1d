"""The bytes of a queue, and the only module that knows LMDB.

One queue is one LMDB environment with seven sub-databases. Integers in keys are big-endian and of fixed width, so the
order of the keys is the order of the messages.

===============  ==========================  ===========================================================
sub-database     key                         value
===============  ==========================  ===========================================================
``queue_db``     field name                  ``format``: version; ``header``: see :class:`Header`
``data_db``      message id                  the payload; of a long one its length and first part
``chunk_db``     message id, part number     the further parts of a long payload
``meta_db``      id of a commit's first      see :class:`Commit`; the newest record always stays: it tells
                 message                     the next id
``pending_db``   message id P                how many subscribers have their place at P
``subscriber_db``  identifier                see :class:`Place`
``index_db``     subscriber number, id       (reserved for messages handed out but not yet taken)
===============  ==========================  ===========================================================

The functions of :mod:`persipubsub.queue` hold the meaning; here are records, cursors and errors.
"""

import errno
import functools
import os
import pathlib
import struct
from typing import Callable, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

import lmdb

from persipubsub import errors

FORMAT_VERSION = 1
# The value of `Header.durability` under which commits are synced.
POWER_LOSS = 0
MAX_READERS = 1024
# What LMDB makes of its lock file for MAX_READERS; allocated before LMDB opens it, because it is sparse and a
# full disk turns a touched reader slot into SIGBUS.
LOCK_FILE_BYTES = 65664
MAP_BYTES_MIN = 40 * 1024**3
# One stretch of a payload: with LMDB's page header of 16 bytes it fills 16 pages. Longer values need longer runs of
# adjacent free pages, which a queue in motion does not have: the file would grow instead.
PART_BYTES = 65520

_pack_id = struct.Struct(">Q").pack
_unpack_id = struct.Struct(">Q").unpack
_PART_KEY = struct.Struct(">QI")
_COUNT = struct.Struct(">Q")
_FORMAT_KEY = b"format"
_HEADER_KEY = b"header"


class Header(NamedTuple):
    """What every transaction reads: the configuration, which Control sets, and the few numbers that operations keep."""

    message_timeout_us: int
    max_messages: int
    hwm_db_size: int
    strategy: int
    durability: int
    next_subscriber_number: int
    first: int  # ids below are gone for everybody, though `waiting` of their messages are still to be deleted
    waiting: int
    boot_id: bytes  # the boot for which the offset holds
    clock_offset_us: int  # the queue's time is the time since boot plus this


_HEADER = struct.Struct(">QQQBBIQQ16sq")


@functools.lru_cache(maxsize=64)
def _decode_header(value: bytes) -> Header:
    return Header._make(_HEADER.unpack(value))


def _encode_header(header: Header) -> bytes:
    return _HEADER.pack(*header)


class Commit(NamedTuple):
    """One commit's run of messages: ids without gaps. The running totals make counting between two ids arithmetic."""

    first_id: int
    time_us: int
    messages: int
    size_bytes: int
    messages_before: int  # messages in all earlier runs, not counting what prune_last took from the end
    bytes_before: int

    @property
    def end_id(self) -> int:
        """Give the id behind the last one of the run."""
        return self.first_id + self.messages


_COMMIT = struct.Struct(">QIIQQ")


def _decode_commit(key: bytes, value: bytes) -> Commit:
    return Commit(*_unpack_id(key), *_COMMIT.unpack(value))


def _encode_commit(commit: Commit) -> Tuple[bytes, bytes]:
    return _pack_id(commit.first_id), _COMMIT.pack(*commit[1:])


class Place(NamedTuple):
    """A subscriber's number, which is never given again, and the first id that was never handed out to it for good."""

    number: int
    next_id: int


_PLACE = struct.Struct(">IQ")


def _decode_place(value: bytes) -> Place:
    return Place._make(_PLACE.unpack(value))


def _encode_place(place: Place) -> bytes:
    return _PLACE.pack(*place)


class _SubDatabases(NamedTuple):
    queue: "lmdb._Database"
    data: "lmdb._Database"
    chunk: "lmdb._Database"
    meta: "lmdb._Database"
    pending: "lmdb._Database"
    subscriber: "lmdb._Database"
    index: "lmdb._Database"


class Commits:
    """The records of ``meta_db`` within one transaction."""

    __slots__ = ("_cursor", )

    def __init__(self, cursor: "lmdb.Cursor[bytes]") -> None:
        self._cursor = cursor

    def _here(self) -> Commit:
        return _decode_commit(*self._cursor.item())

    def newest(self) -> Commit:
        """Give the newest record, which always exists."""
        self._cursor.last()
        return self._here()

    def oldest(self) -> Commit:
        """Give the oldest record."""
        self._cursor.first()
        return self._here()

    def totals(self) -> Tuple[int, int]:
        """Give the number of messages and of bytes up to the end of the log."""
        if not self._cursor.last():
            return 0, 0
        newest = self._here()
        return newest.messages_before + newest.messages, newest.bytes_before + newest.size_bytes

    def at(self, message_id: int) -> Commit:
        """Give the newest record that does not begin after the id, or the oldest if all do."""
        cursor, key = self._cursor, _pack_id(message_id)
        if not cursor.set_range(key):
            cursor.last()
        elif cursor.key() != key and not cursor.prev():
            cursor.first()
        return self._here()

    def first_where(self, predicate: Callable[[Commit], bool]) -> Optional[Commit]:
        """Give the first record for which the predicate holds, which must then hold for all later ones. Bisection."""
        newest = self.newest()
        if not predicate(newest):
            return None
        oldest = self.oldest()
        if predicate(oldest):
            return oldest
        low, high = oldest.end_id, newest.first_id
        while low < high:
            middle = (low + high) // 2
            self._cursor.set_range(_pack_id(middle))
            commit = self._here()
            if predicate(commit):
                high = middle
            else:
                low = commit.end_id
        self._cursor.set_range(_pack_id(low))
        return self._here()

    def messages_before(self, message_id: int) -> int:
        """Count the stored messages with smaller ids; exact as a difference between ids of the present log."""
        commit = self.at(message_id)
        return commit.messages_before + max(0, min(message_id - commit.first_id, commit.messages))

    def id_of(self, rank: int) -> int:
        """Give the id of the message with that many messages before it: the inverse of messages_before."""
        commit = self.first_where(lambda one: one.messages_before + one.messages > rank)
        if commit is None:
            return self.newest().end_id
        return commit.first_id + max(0, rank - commit.messages_before)

    def all(self) -> Iterator[Commit]:
        """Iterate over all records, the oldest first."""
        if self._cursor.first():
            for key, value in self._cursor:
                yield _decode_commit(key, value)

    def delete_below(self, bound: int) -> None:
        """Delete the records whose whole run lies below the bound, but never the newest."""
        cursor = self._cursor
        cursor.last()
        newest_key = cursor.key()
        cursor.first()
        while cursor.key() != newest_key and self._here().end_id <= bound:
            cursor.delete()

    def cut_last(self, count: int) -> int:
        """Take that many messages off the end of the log's records; give the first id that went."""
        commit = self.newest()
        while commit.messages <= count:
            self._cursor.delete()
            count -= commit.messages
            if not count:
                return commit.first_id
            commit = self.newest()
        self._cursor.put(*_encode_commit(commit._replace(messages=commit.messages - count)))
        return commit.end_id - count


class Transaction:
    """One LMDB transaction in terms of the queue's records. Made by :meth:`Database.begin`."""

    __slots__ = ("_txn", "_dbs", "header", "published")

    def __init__(self, txn: "lmdb.Transaction[bytes]", dbs: _SubDatabases) -> None:
        self._txn = txn
        self._dbs = dbs
        self.header = _decode_header(txn.get(_HEADER_KEY, b"", db=dbs.queue))
        self.published = False  # whether there is something new for those who wait

    def commit(self) -> None:
        """Make the changes; after an error nothing of them is there."""
        self._txn.commit()

    def abort(self) -> None:
        """Forget the changes."""
        self._txn.abort()

    @property
    def syncs(self) -> bool:
        """Tell whether the queue's durability wants commits to be synced."""
        return self.header.durability == POWER_LOSS

    def id(self) -> int:
        """Give LMDB's number of the transaction."""
        return self._txn.id()

    def put_header(self, header: Header) -> None:
        """Store the header, unless it is as stored."""
        if header != self.header:
            self._txn.put(_HEADER_KEY, _encode_header(header), db=self._dbs.queue)
            self.header = header

    def commits(self) -> Commits:
        """Give the records of ``meta_db``."""
        return Commits(self._txn.cursor(self._dbs.meta))

    # Messages

    def append(self, commit: Commit, payloads: Sequence[bytes]) -> None:
        """Append a run of messages behind all stored ones, with its record."""
        long = max(map(len, payloads), default=0) >= PART_BYTES
        if len(payloads) == 1 and not long:
            added = self._txn.put(_pack_id(commit.first_id), payloads[0], append=True, db=self._dbs.data)
            complete = added
        else:
            heads = [self._put_parts(id_, payload) for id_, payload in enumerate(payloads, commit.first_id)
                     ] if long else payloads
            keys = map(_pack_id, range(commit.first_id, commit.first_id + len(heads)))
            _, count = self._txn.cursor(self._dbs.data).putmulti(zip(keys, heads), append=True)
            complete = count == len(heads)
        # LMDB skips keys out of order without an error.
        if not complete or not self.append_commit(commit):
            raise errors.DamagedError(f"message id {commit.first_id} is not behind all stored ones")

    def append_commit(self, commit: Commit) -> bool:
        """Append a commit's record alone."""
        key, value = _encode_commit(commit)
        return self._txn.put(key, value, append=True, db=self._dbs.meta)

    def _put_parts(self, message_id: int, payload: bytes) -> bytes:
        """Store the further parts of a long payload and give what goes into ``data_db``."""
        if len(payload) < PART_BYTES:
            return payload
        head = PART_BYTES - _COUNT.size
        for part, start in enumerate(range(head, len(payload), PART_BYTES), 1):
            key = _PART_KEY.pack(message_id, part)
            self._txn.put(key, payload[start:start + PART_BYTES], append=True, db=self._dbs.chunk)
        return _COUNT.pack(len(payload)) + payload[:head]

    def _payload(self, key: bytes, value: bytes) -> bytes:
        """Undo :meth:`_put_parts`."""
        if len(value) < PART_BYTES:
            return value
        parts = [value[_COUNT.size:]]
        cursor = self._txn.cursor(self._dbs.chunk)
        if cursor.set_range(key):
            for part_key, part in cursor:
                if part_key[:len(key)] != key:
                    break
                parts.append(part)
        payload = b"".join(parts)
        if len(payload) != _COUNT.unpack_from(value)[0]:
            raise errors.DamagedError(f"message {_unpack_id(key)[0]} lacks a part")
        return payload

    def first_id(self, start: int) -> Optional[int]:
        """Give the id of the first stored message from an id on."""
        cursor = self._txn.cursor(self._dbs.data)
        return _unpack_id(cursor.key())[0] if cursor.set_range(_pack_id(start)) else None

    def last_id(self) -> Optional[int]:
        """Give the id of the latest stored message."""
        cursor = self._txn.cursor(self._dbs.data)
        return _unpack_id(cursor.key())[0] if cursor.last() else None

    def messages(self, start: int) -> Iterator[Tuple[int, bytes]]:
        """Iterate over id and payload from an id on."""
        cursor = self._txn.cursor(self._dbs.data)
        if cursor.set_range(_pack_id(start)):
            for key, value in cursor:
                yield _unpack_id(key)[0], self._payload(key, value)

    def delete_below(self, bound: int, limit: int) -> Tuple[int, bool]:
        """Delete the messages below an id, at most a limit of them and of their parts.

        :return: the number deleted, and whether all below the bound are gone
        """
        reached = key_bound = _pack_id(bound)
        chunks = self._txn.cursor(self._dbs.chunk)
        if chunks.first():
            _delete_while_below(chunks, key_bound, limit)
            # A message whose parts did not all go stays until they have.
            reached = min(key_bound, chunks.key()[:len(key_bound)] or key_bound)
        data = self._txn.cursor(self._dbs.data)
        data.first()
        deleted = _delete_while_below(data, reached, limit)
        rest = data.key()
        all_gone = not rest or rest >= key_bound
        self.commits().delete_below(bound if all_gone else _unpack_id(rest)[0])
        return deleted, all_gone

    def delete_last(self, count: int) -> None:
        """Delete that many of the latest messages."""
        first_id = self.commits().cut_last(count)
        for sub_database in (self._dbs.data, self._dbs.chunk):
            cursor = self._txn.cursor(sub_database)
            if cursor.set_range(_pack_id(first_id)):
                while cursor.key():
                    cursor.delete()

    def stored_messages(self) -> int:
        """Count the messages in ``data_db``, those that wait to be deleted included."""
        return self._txn.stat(self._dbs.data)["entries"]

    def stored_bytes(self) -> int:
        """Give the size of the pages of ``data_db`` and ``chunk_db``."""
        size = 0
        for sub_database in (self._dbs.data, self._dbs.chunk):
            stat = self._txn.stat(sub_database)
            size += stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
        return size

    def sizes(self) -> Iterator[Tuple[int, Optional[int]]]:
        """Iterate over id and size of all messages; a message that lacks a part has no size."""
        for key, value in self._txn.cursor(self._dbs.data):
            try:
                yield _unpack_id(key)[0], len(self._payload(key, value))
            except errors.DamagedError:
                yield _unpack_id(key)[0], None

    def part_ids(self) -> Iterator[int]:
        """Iterate over the message id of every part."""
        for key in self._txn.cursor(self._dbs.chunk).iternext(values=False):
            yield _PART_KEY.unpack(key)[0]

    # Subscribers and their places

    def place(self, identifier: bytes) -> Optional[Place]:
        """Give a subscriber's record."""
        value = self._txn.get(identifier, db=self._dbs.subscriber)
        return None if value is None else _decode_place(value)

    def places(self) -> List[Tuple[bytes, Place]]:
        """List all subscribers' records."""
        return [(key, _decode_place(value)) for key, value in self._txn.cursor(self._dbs.subscriber)]

    def put_place(self, identifier: bytes, place: Place) -> None:
        """Store a subscriber's record."""
        self._txn.put(identifier, _encode_place(place), db=self._dbs.subscriber)

    def delete_place(self, identifier: bytes) -> None:
        """Delete a subscriber's record."""
        self._txn.delete(identifier, db=self._dbs.subscriber)

    def floor(self) -> Optional[int]:
        """Give the smallest place of all subscribers, or None where there are none."""
        cursor = self._txn.cursor(self._dbs.pending)
        return _unpack_id(cursor.key())[0] if cursor.first() else None

    def count_place(self, message_id: int, change: int) -> None:
        """Change by one, up or down, how many subscribers have their place at an id."""
        key = _pack_id(message_id)
        value = self._txn.get(key, db=self._dbs.pending)
        count = change + (0 if value is None else _COUNT.unpack(value)[0])
        if count:
            self._txn.put(key, _COUNT.pack(count), db=self._dbs.pending)
        else:
            self._txn.delete(key, db=self._dbs.pending)

    def place_counts(self) -> List[Tuple[int, int]]:
        """List all of ``pending_db``: places and how many subscribers have theirs there."""
        cursor = self._txn.cursor(self._dbs.pending)
        return [(_unpack_id(key)[0], _COUNT.unpack(value)[0]) for key, value in cursor]

    def index(self) -> List[Tuple[int, int]]:
        """List all keys of ``index_db``: subscriber number and message id."""
        key = struct.Struct(">IQ")
        return [key.unpack(one) for one in self._txn.cursor(self._dbs.index).iternext(values=False)]


def _delete_while_below(cursor: "lmdb.Cursor[bytes]", bound: bytes, limit: int) -> int:
    """Delete from where the cursor stands, which then stands at the first record left. The end of all has no key."""
    deleted = 0
    key, delete = cursor.key, cursor.delete
    while deleted < limit and b"" < key() < bound:
        delete()
        deleted += 1
    return deleted


class Database:
    """The open LMDB environment of a queue. One in a process for a queue: a second open would drop LMDB's locks."""

    def __init__(self, path: pathlib.Path, sync: bool) -> None:
        self.path = path
        self.sync_commits = sync
        try:
            self._environment = lmdb.Environment(os.fspath(path),
                                                 map_size=MAP_BYTES_MIN,
                                                 sync=sync,
                                                 create=False,
                                                 max_readers=MAX_READERS,
                                                 max_dbs=32)
            try:
                self._dbs = self._open_sub_databases()
                with self._environment.begin() as txn:
                    hwm_db_size = Transaction(txn, self._dbs).header.hwm_db_size
                if hwm_db_size * 5 // 4 > MAP_BYTES_MIN:
                    self._environment.set_mapsize(hwm_db_size * 5 // 4)
                self._environment.reader_check()
            except BaseException:
                self._environment.close()
                raise
        except lmdb.Error as error:
            raise_translated(error, path)

    def _open_sub_databases(self) -> _SubDatabases:
        # A write transaction, since py-lmdb never commits a read transaction, and the handles of an aborted one are
        # invalid. Nothing is written in it.
        txn = self._environment.begin(write=True)
        try:
            dbs = _SubDatabases(*(self._environment.open_db(_sub_database_key(name), txn=txn, create=False)
                                  for name in _SubDatabases._fields))
            version = txn.get(_FORMAT_KEY, db=dbs.queue)
        except lmdb.NotFoundError:
            version = None
        finally:
            txn.commit()
        if version != _COUNT.pack(FORMAT_VERSION):
            raise errors.FormatError(
                f"The queue at {self.path} is not of format version {FORMAT_VERSION}, which this version reads and "
                f"writes (found: {'none' if version is None else int.from_bytes(version, 'big')}). Use the version of "
                "persipubsub that made it, or another directory.")
        return dbs

    def begin(self, write: bool) -> Transaction:
        """Begin a transaction; a write transaction waits for the other writers of all processes."""
        return Transaction(self._environment.begin(write=write), self._dbs)

    def sync(self) -> None:
        """Bring everything committed to the disk."""
        self._environment.sync(True)

    def grow(self) -> None:
        """Double the map: LMDB refused a write, also a delete, because the map is full."""
        self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def adopt_size(self) -> None:
        """Take over the map size of another process that has grown it."""
        self._environment.set_mapsize(0)

    def clear_stale_readers(self) -> None:
        """Free the reader slots of processes that died in the midst of a read."""
        self._environment.reader_check()

    def copy(self, path: str) -> None:
        """Write a compact, consistent copy into a directory."""
        self._environment.copy(path, compact=True)

    def close(self) -> None:
        """Close the environment. No transaction may be open."""
        self._environment.close()


def _sub_database_key(name: str) -> bytes:
    return f"{name}_db".encode()


def create(file: pathlib.Path, header: Header, first_commit: Commit) -> None:
    """Write the data file of a fresh queue, durably, under a name under which nobody looks for it yet."""
    try:
        # Without lib_version the default of the installed py-lmdb would decide which of LMDB's formats it becomes.
        with lmdb.Environment(os.fspath(file),
                              subdir=False,
                              lock=False,
                              map_size=MAP_BYTES_MIN,
                              max_dbs=32,
                              mode=0o600,
                              lib_version=0) as environment, environment.begin(write=True) as txn:
            dbs = _SubDatabases(*(environment.open_db(_sub_database_key(name), txn=txn)
                                  for name in _SubDatabases._fields))
            txn.put(_FORMAT_KEY, _COUNT.pack(FORMAT_VERSION), db=dbs.queue)
            txn.put(_HEADER_KEY, _encode_header(header), db=dbs.queue)
            txn.put(*_encode_commit(first_commit), db=dbs.meta)
    except lmdb.Error as error:
        raise_translated(error, file)


MapFullError = lmdb.MapFullError
MapResizedError = lmdb.MapResizedError
ReadersFullError = lmdb.ReadersFullError
LmdbError = lmdb.Error


def raise_translated(error: Exception, path: pathlib.Path) -> NoReturn:
    """Raise LMDB's error as one of ours, which says what happened, to which queue, and what to do."""
    code = getattr(error, "code", 0)
    kind, what = errors.StorageError, "was refused by LMDB; nothing was changed"
    if isinstance(error, lmdb.ReadersFullError):
        kind, what = errors.ReadersFullError, f"has more than {MAX_READERS} readers at one time. Use fewer processes"
    elif code == errno.ENOSPC:
        kind, what = errors.DiskFullError, "has no room left on its disk; nothing was changed. Make room and try again"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind, what = errors.PathError, "may not be opened by this user. Correct the permissions of its files"
    elif isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
        kind, what = errors.FormatError, "is no LMDB file that this version can read. It was not touched"
    elif isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError)):
        kind, what = errors.DamagedError, "has a damaged file. Restore it from a backup"
    raise kind(f"The queue at {path} {what} (LMDB: {error}).") from error
