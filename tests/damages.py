"""Damaging the records of a queue, so that ``check`` finds it, and its pages, so that LMDB ends whoever reads them."""

import pathlib
import struct
from typing import Any, Callable, List, Sequence, Tuple

import lmdb

from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records import delivery_layouts, layouts, page_file
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY, DUE_KEY, ENTRY_KEY, Delivery
from persipubsub.lmdb_engine.records.layouts import SubDatabases


class Raw:
    """The records of a queue, to be damaged."""

    def __init__(self, path: pathlib.Path) -> None:
        self.environment = lmdb.Environment(str(path), create=False, max_dbs=32, map_size=2**30)
        self._databases = {name: self.environment.open_db(name.encode(), create=False) for name in SubDatabases._fields}

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Store a record."""
        with self.environment.begin(write=True) as txn:
            txn.put(key, value, db=self._databases[name])

    def delete(self, name: str, key: bytes) -> None:
        """Delete a record, which has to be there."""
        with self.environment.begin(write=True) as txn:
            assert txn.delete(key, db=self._databases[name])

    def all(self, name: str) -> List[Tuple[bytes, bytes]]:
        """List the records of a sub-database."""
        with self.environment.begin() as txn:
            return list(txn.cursor(self._databases[name]))

    def get(self, name: str, key: bytes) -> bytes:
        """Return the value of a record, which has to be there."""
        return dict(self.all(name))[key]


def end_readers(path: pathlib.Path, sub_database: str = "subscriber_db") -> None:
    """Say of the topmost page of a sub-database that it is a branch, which ends whoever reads it by SIGABRT."""
    with page_file.PageFile(path / files.DATA_FILE) as opened:
        meta = opened.newest_meta()
        found = opened.find(meta.main_root, sub_database.encode())
        assert found is not None
        start = page_file.decode_root(opened.value(*found)) * meta.page_bytes
    with open(path / files.DATA_FILE, "r+b") as file:
        file.seek(start + 10)
        file.write(struct.pack("=H", page_file.BRANCH))


def change_subscriber(raw: Raw, identifier: bytes, **fields: Any) -> None:
    """Change fields of a subscriber's record."""
    place = layouts.decode_subscriber(raw.get("subscriber_db", identifier))
    raw.put("subscriber_db", identifier, layouts.encode_subscriber(place._replace(**fields)))


def pack(*numbers: int) -> bytes:
    """Encode a key: 64-bit numbers."""
    return struct.pack(f">{len(numbers)}Q", *numbers)


def change_entry(raw: Raw, message_id: int, **fields: Any) -> None:
    """Change fields of an entry of the index of subscriber number 1."""
    key = ENTRY_KEY.pack(1, message_id)
    entry = delivery_layouts.decode_delivery(raw.get("index_db", key))
    raw.put("index_db", key, delivery_layouts.encode_delivery(entry._replace(**fields)))


def change_policy(raw: Raw, identifier: bytes, **fields: Any) -> None:
    """Change fields of a subscriber's policy."""
    place = layouts.decode_subscriber(raw.get("subscriber_db", identifier))
    assert place.policy is not None
    change_subscriber(raw, identifier, policy=place.policy._replace(**fields))


ENTRY = delivery_layouts.encode_delivery(Delivery(1, bytes(8), 0))

# The queue: ids 1 to 6, 3 is long. Subscriber "shared" (number 1) acknowledged 2, holds 1, has the dead letters 3
# and 4, the requeued 5, and its next message at 6. "limited" (number 2) has its cursor at 1, which failed. "plain": 3.
DELIVERY_DAMAGES: Sequence[Tuple[str, str, Callable[[Raw], object]]] = [
    ("I1", "the place is not that of the index", lambda raw: raw.put("pending_db", pack(6), pack(1))),
    ("I6", "an entry of the index is of a plain one", lambda raw: raw.put("index_db", ENTRY_KEY.pack(3, 1), ENTRY)),
    ("I6", "a time is of nobody", lambda raw: raw.put("due_db", DUE_KEY.pack(7, 1, 1), b"")),
    ("I6", "a letter is of nobody", lambda raw: raw.put("letter_db", DEAD_LETTER_KEY.pack(7, 1, 0), b"x")),
    ("I6", "a death is of nobody", lambda raw: raw.put("dead_letter_db", ENTRY_KEY.pack(7, 1), b"x")),
    ("I8", "an entry of the index is not handed out", lambda raw: raw.put("index_db", ENTRY_KEY.pack(1, 6), ENTRY)),
    ("I8", "a failure is of a message that was taken", lambda raw: change_subscriber(raw, b"limited", next_id=2)),
    ("I10", "a message has no time", lambda raw: raw.delete("due_db",
                                                            raw.all("due_db")[0][0])),
    ("I10", "a message has two times", lambda raw: raw.put("due_db", DUE_KEY.pack(1, 7, 1), b"")),
    ("I10", "a message has another time", lambda raw: change_entry(raw, 1, due_us=7)),
    ("I10", "a subscriber that is not shared has a time", lambda raw: raw.put("due_db", DUE_KEY.pack(2, 0, 1), b"")),
    ("I11", "a dead letter has no letter", lambda raw: raw.delete("letter_db", DEAD_LETTER_KEY.pack(1, 4, 0))),
    ("I11", "a requeued message has no letter", lambda raw: raw.delete("letter_db", DEAD_LETTER_KEY.pack(1, 5, 0))),
    ("I11", "a letter is neither dead nor requeued", lambda raw: raw.delete("dead_letter_db", ENTRY_KEY.pack(1, 4))),
    ("I11", "a letter is dead and requeued", lambda raw: raw.put("dead_letter_db", ENTRY_KEY.pack(1, 5),
                                                                 raw.all("dead_letter_db")[0][1])),
    ("I0", "a letter lacks a part", lambda raw: raw.delete("letter_db", DEAD_LETTER_KEY.pack(1, 3, 1))),
    ("I0", "a death cannot be read", lambda raw: raw.put("dead_letter_db", ENTRY_KEY.pack(1, 4), b"x")),
    ("I0", "a death has an unknown reason",
     lambda raw: raw.put("dead_letter_db", ENTRY_KEY.pack(1, 4), b"\7" + raw.all("dead_letter_db")[0][1][1:])),
    ("I0", "an entry cannot be read", lambda raw: raw.put("index_db", ENTRY_KEY.pack(1, 1), b"x")),
    ("I12", "messages in flight are not counted", lambda raw: change_subscriber(raw, b"shared", in_flight=0)),
    ("I12", "requeued messages are not counted", lambda raw: change_subscriber(raw, b"shared", requeued=0)),
    ("I12", "dead letters are not counted", lambda raw: change_subscriber(raw, b"shared", dead_letters=1)),
    ("I12", "there are too many dead letters", lambda raw: change_policy(raw, b"shared", dead_letters_max=1)),
]
