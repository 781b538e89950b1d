"""The delayed messages in one transaction: the records of ``delayed_db``, in the order of their due times."""

import itertools
from typing import TYPE_CHECKING, Iterable, Iterator, List, NamedTuple, Tuple

from persipubsub import errors
from persipubsub.engine import values
from persipubsub.engine.values import Batch, batch_of
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import DELAYED_KEY, HEADERS_PART

if TYPE_CHECKING:
    import lmdb

#: The size of due time and number, with which a key begins: so the parts of one message are adjacent.
_MESSAGE_KEY_BYTES = 16


class DelayedMessages:
    """The records of ``delayed_db``. Messages with the same due time are in the order of their numbers."""

    __slots__ = ("_parts", )

    def __init__(self, parts: "lmdb.Cursor[bytes]") -> None:
        self._parts = parts

    def put(self, due_us: int, number: int, payload: bytes, headers: bytes) -> None:
        """Store a message, with its encoded headers."""
        for index, part in enumerate(layouts.encode_payload(payload)):
            self._parts.put(DELAYED_KEY.pack(due_us, number, index), part)
        if headers:
            self._parts.put(DELAYED_KEY.pack(due_us, number, HEADERS_PART), headers)

    def delete(self, due_us: int, number: int) -> bool:
        """Delete a message; return whether it was there."""
        key = DELAYED_KEY.pack(due_us, number, 0)
        return self._parts.set_key(key) and bool(self._pop().parts)

    def next_due_us(self) -> int:
        """Return the due time of the first message, or NEVER_US if there is none."""
        return DELAYED_KEY.unpack(self._parts.key())[0] if self._parts.first() else values.NEVER_US

    def pop_due(self, time_us: int, max_messages: int, max_bytes: int) -> Batch:
        """Delete and return the first messages that are due at a time.

        :param max_messages: the maximum number of messages
        :param max_bytes: no further message is returned once their payloads are larger than this
        :return: perhaps no message
        :raise DamagedError: a part of one is missing
        """
        payloads: List[bytes] = []
        headers: List[bytes] = []
        size_bytes = 0
        while len(payloads) < max_messages and size_bytes <= max_bytes and self.next_due_us() <= time_us:
            stored = self._pop()
            try:
                payloads.append(joined(stored.parts))
            except ValueError as error:
                raise errors.DamagedError(f"A part of a delayed message is missing: {error}.") from error
            headers.append(stored.headers)
            size_bytes += len(payloads[-1])
        return batch_of(payloads, headers)

    def _pop(self) -> "_Stored":
        """Delete the message at whose first part the LMDB cursor is, and return its parts and headers."""
        key, records = self._parts.key()[:_MESSAGE_KEY_BYTES], []
        while self._parts.key()[:_MESSAGE_KEY_BYTES] == key:
            records.append(self._parts.item())
            self._parts.delete()
        return _collected(records)

    def all(self) -> "Iterator[Described]":
        """Iterate over all messages, also over those of which only some records are there."""
        records = self._parts if self._parts.first() else ()
        for key, group in itertools.groupby(records, lambda record: record[0][:_MESSAGE_KEY_BYTES]):
            due_us, number, _ = DELAYED_KEY.unpack(key + bytes(DELAYED_KEY.size - _MESSAGE_KEY_BYTES))
            stored = _collected(group)
            yield Described(due_us, number, stored.is_whole(), stored.headers)


class Described(NamedTuple):
    """A delayed message, without its payload."""

    due_us: int
    number: int
    is_whole: bool  # whether all parts of the payload are there
    headers: bytes


class _Stored(NamedTuple):
    parts: List[bytes]
    headers: bytes

    def is_whole(self) -> bool:
        """Return whether no part is missing."""
        try:
            joined(self.parts)
        except ValueError:
            return False
        return True


def _collected(records: Iterable[Tuple[bytes, bytes]]) -> _Stored:
    """Return the parts and the headers of one message from its records."""
    parts, headers = [], b""
    for key, value in records:
        if layouts.is_headers(key):
            headers = value
        else:
            parts.append(value)
    return _Stored(parts, headers)


def joined(parts: List[bytes]) -> bytes:
    """Decode a delayed message from its parts.

    :raise ValueError: a part is missing, or there is one too many
    """
    if not parts:
        raise ValueError("its first part is missing")
    return layouts.joined(parts[0], parts[1:])
