"""One subscriber's messages in flight, in one transaction.

Their meaning is in ``rules.leases`` and ``rules.dead_letters``, their bytes are in ``delivery_layouts``.
"""

from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from persipubsub.lmdb_engine.records import delivery_layouts
from persipubsub.lmdb_engine.records.delivery_layouts import DUE_KEY, ENTRY_KEY, Delivery

if TYPE_CHECKING:
    import lmdb

_ID_MAX = 2**64 - 1


class Due(NamedTuple):
    """A message in flight, and when it may be claimed again."""

    due_us: int
    message_id: int


class InFlight:
    """The entries of one subscriber in ``index_db`` and, where it is shared, in ``due_db``."""

    __slots__ = ("_number", "_shared", "_index", "_due")

    def __init__(self, number: int, shared: bool, index: "lmdb.Cursor[bytes]", due: "lmdb.Cursor[bytes]") -> None:
        self._number = number
        self._shared = shared
        self._index = index
        self._due = due

    def is_of(self, number: int, shared: bool) -> bool:
        """Return whether these are the entries of a subscriber."""
        return self._number == number and self._shared == shared

    def get(self, message_id: int) -> Optional[Delivery]:
        """Return the entry of a message, or None if it has none."""
        value = self._index.get(ENTRY_KEY.pack(self._number, message_id))
        return None if value is None else delivery_layouts.decode_delivery(value)

    def get_many(self, ids: Sequence[int]) -> List[Optional[Delivery]]:
        """Return the entries of many messages, with None for each that has none."""
        if len(ids) == 1:
            return [self.get(ids[0])]
        pack, number = ENTRY_KEY.pack, self._number
        keys = [pack(number, message_id) for message_id in ids]
        found = dict(self._index.getmulti(keys))
        # The entries of a batch are mostly equal, so there is little to decode.
        decoded = {value: delivery_layouts.decode_delivery(value) for value in set(found.values())}
        return [decoded[found[key]] if key in found else None for key in keys]

    def put(self, message_id: int, delivery: Delivery, before: Optional[Delivery] = None) -> None:
        """Store an entry in place of the one before."""
        self.put_many((message_id, ), delivery, before)

    def put_many(self, ids: Sequence[int], delivery: Delivery, before: Optional[Delivery] = None) -> None:
        """Store equal entries in place of the previous ones, which are equal as well."""
        number, pack, pack_due, due_us = self._number, ENTRY_KEY.pack, DUE_KEY.pack, delivery.due_us
        value = delivery_layouts.encode_delivery(delivery)
        if len(ids) == 1:
            self._index.put(pack(number, ids[0]), value)
        else:
            self._index.putmulti([(pack(number, message_id), value) for message_id in ids])
        if self._shared and (before is None or before.due_us != due_us):
            if before is not None:
                self._delete_due(ids, before.due_us)
            if len(ids) == 1:
                self._due.put(pack_due(number, due_us, ids[0]), b"")
            else:
                self._due.putmulti([(pack_due(number, due_us, message_id), b"") for message_id in ids])

    def delete_many(self, ids: Sequence[int], delivery: Delivery) -> None:
        """Delete equal entries."""
        number, pack, index = self._number, ENTRY_KEY.pack, self._index
        for message_id in ids:
            if index.set_key(pack(number, message_id)):
                index.delete()
        if self._shared:
            self._delete_due(ids, delivery.due_us)

    def _delete_due(self, ids: Sequence[int], due_us: int) -> None:
        number, pack, due = self._number, DUE_KEY.pack, self._due
        for message_id in ids:
            if due.set_key(pack(number, due_us, message_id)):
                due.delete()

    def first_id(self, start: int = 0) -> Optional[int]:
        """Return the id of the first entry from an id on, or None if there is none."""
        index = self._index
        if not index.set_range(ENTRY_KEY.pack(self._number, start)):
            return None
        number, message_id = ENTRY_KEY.unpack(index.key())
        return message_id if number == self._number else None

    def next_due(self) -> Optional[Due]:
        """Return the message that may be claimed first, or None if there is none."""
        due = self._due
        if not due.set_range(DUE_KEY.pack(self._number, 0, 0)):
            return None
        number, *found = DUE_KEY.unpack(due.key())
        return Due(*found) if number == self._number else None

    def due(self) -> Iterator[Tuple[int, int]]:
        """Iterate over times and ids in the order in which they may be claimed."""
        for key in keys_of(self._due, self._number):
            yield delivery_layouts.split_due_key(key)

    def all(self, start: int = 0, stop: int = _ID_MAX) -> Iterator[Tuple[int, Delivery]]:
        """Iterate over the entries with ids from ``start`` to before ``stop``."""
        index = self._index
        if index.set_range(ENTRY_KEY.pack(self._number, start)):
            for key, value in index:
                number, message_id = ENTRY_KEY.unpack(key)
                if number != self._number or message_id >= stop:
                    return
                yield message_id, delivery_layouts.decode_delivery(value)


def keys_of(cursor: "lmdb.Cursor[bytes]", number: int, start: int = 0) -> Iterator[bytes]:
    """Iterate over the keys of one subscriber."""
    if cursor.set_range(ENTRY_KEY.pack(number, start)):
        for key in cursor.iternext(values=False):
            if ENTRY_KEY.unpack_from(key)[0] != number:
                return
            yield key
