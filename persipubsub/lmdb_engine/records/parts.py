"""What messages have beside their first part, in one transaction: the records of ``chunk_db``."""

from typing import TYPE_CHECKING, Iterator, Sequence, Tuple

from persipubsub import errors
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import HEADERS_PART, PART_KEY, unpack_id

if TYPE_CHECKING:
    import lmdb


class Parts:
    """The records of ``chunk_db``: the further parts of long payloads, and headers.

    The first part of a long payload is in ``data_db``, and begins with the size of all.
    """

    __slots__ = ("_parts", )

    def __init__(self, parts: "lmdb.Cursor[bytes]") -> None:
        self._parts = parts

    def put(self, message_id: int, payload: bytes) -> bytes:
        """Store the further parts of a payload, and return its first part, for ``data_db``."""
        parts = layouts.encode_payload(payload)
        first = next(parts)
        for number, part in enumerate(parts, 1):
            self._parts.put(PART_KEY.pack(message_id, number), part, append=True)
        return first

    def put_headers(self, first_id: int, headers: Sequence[bytes]) -> None:
        """Store the headers of messages with adjacent ids; those without any have none here."""
        for message_id, encoded in enumerate(headers, first_id):
            if encoded:
                self._parts.put(PART_KEY.pack(message_id, HEADERS_PART), encoded)

    def headers(self, message_id: int) -> bytes:
        """Return the headers of a message, which are empty if it has none."""
        return self._parts.get(PART_KEY.pack(message_id, HEADERS_PART), b"")

    def payload(self, key: bytes, first: bytes) -> bytes:
        """Return a payload from its record in ``data_db``.

        :raise DamagedError: a part is missing
        """
        try:
            return layouts.joined(first, self._of(key))
        except ValueError as error:
            raise errors.DamagedError(f"A part of message {unpack_id(key)} is missing: {error}.") from error

    def _of(self, key: bytes) -> Iterator[bytes]:
        if self._parts.set_range(key):
            for part_key, part in self._parts:
                if part_key[:len(key)] != key or layouts.is_headers(part_key):
                    break
                yield part

    def ids(self) -> Iterator[int]:
        """Iterate over the message ids of all further parts."""
        for key in self._parts.iternext(values=False):
            if not layouts.is_headers(key):
                yield unpack_id(key)

    def all_headers(self) -> Iterator[Tuple[int, bytes]]:
        """Iterate over the message ids and the encoded headers of all messages that have some."""
        for key, value in self._parts:
            if layouts.is_headers(key):
                yield unpack_id(key), value
