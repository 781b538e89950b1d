"""The delayed messages in one transaction: the records of ``delayed_db``, in the order of their due times."""

from typing import TYPE_CHECKING, Iterator, List, Optional, Tuple

from persipubsub import errors
from persipubsub.engine import values
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import DELAYED_KEY

if TYPE_CHECKING:
    import lmdb

#: The size of due time and number, with which a key begins: so the parts of one message are adjacent.
_MESSAGE_KEY_BYTES = 16


class DelayedMessages:
    """The records of ``delayed_db``. Messages with the same due time are in the order of their numbers."""

    __slots__ = ("_parts", )

    def __init__(self, parts: "lmdb.Cursor[bytes]") -> None:
        self._parts = parts

    def put(self, due_us: int, number: int, payload: bytes) -> None:
        """Store a message."""
        for index, part in enumerate(layouts.encode_payload(payload)):
            self._parts.put(DELAYED_KEY.pack(due_us, number, index), part)

    def delete(self, due_us: int, number: int) -> bool:
        """Delete a message; return whether it was there."""
        key = DELAYED_KEY.pack(due_us, number, 0)
        return self._parts.set_key(key) and bool(self._pop_parts())

    def next_due_us(self) -> int:
        """Return the due time of the first message, or NEVER_US if there is none."""
        return DELAYED_KEY.unpack(self._parts.key())[0] if self._parts.first() else values.NEVER_US

    def pop_due(self, time_us: int, max_messages: int, max_bytes: int) -> List[bytes]:
        """Delete and return the first messages that are due at a time.

        :param max_messages: the maximum number of messages
        :param max_bytes: no further message is returned once their payloads are larger than this
        :raise DamagedError: a part of one is missing
        """
        payloads: List[bytes] = []
        size_bytes = 0
        while len(payloads) < max_messages and size_bytes <= max_bytes and self.next_due_us() <= time_us:
            parts = self._pop_parts()
            try:
                payloads.append(joined(parts))
            except ValueError as error:
                raise errors.DamagedError(f"A part of a delayed message is missing: {error}.") from error
            size_bytes += len(payloads[-1])
        return payloads

    def _pop_parts(self) -> List[bytes]:
        """Delete the message at whose first part the LMDB cursor is, and return its parts."""
        key, parts = self._parts.key()[:_MESSAGE_KEY_BYTES], []
        while self._parts.key()[:_MESSAGE_KEY_BYTES] == key:
            parts.append(self._parts.value())
            self._parts.delete()
        return parts

    def all(self) -> Iterator[Tuple[int, int, Optional[int]]]:
        """Iterate over due time, number and size of all messages. If a part is missing, the size is None."""
        found: List[Tuple[bytes, List[bytes]]] = []
        for key, part in self._parts if self._parts.first() else ():
            if found and found[0][0] == key[:_MESSAGE_KEY_BYTES]:
                found[0][1].append(part)
            else:
                yield from map(_described, found)
                found = [(key[:_MESSAGE_KEY_BYTES], [part])]
        yield from map(_described, found)


def _described(found: Tuple[bytes, List[bytes]]) -> Tuple[int, int, Optional[int]]:
    key, parts = found
    due_us, number, _ = DELAYED_KEY.unpack(key + bytes(DELAYED_KEY.size - _MESSAGE_KEY_BYTES))
    try:
        return due_us, number, len(joined(parts))
    except ValueError:
        return due_us, number, None


def joined(parts: List[bytes]) -> bytes:
    """Decode a delayed message from its parts.

    :raise ValueError: a part is missing, or there is one too many
    """
    if not parts:
        raise ValueError("its first part is missing")
    return layouts.joined(parts[0], parts[1:])
