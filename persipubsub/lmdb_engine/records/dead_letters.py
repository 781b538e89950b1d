"""The payloads that one subscriber has outside the log, in one transaction: of dead letters and requeued messages."""

from typing import TYPE_CHECKING, Iterator, Optional

from persipubsub import errors
from persipubsub.lmdb_engine.records import delivery_layouts
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY, ENTRY_KEY, DeadLetterPayload, Death
from persipubsub.lmdb_engine.records.in_flight import keys_of
from persipubsub.lmdb_engine.records.layouts import HEADERS_PART, is_headers

if TYPE_CHECKING:
    import lmdb


class DeadLetters:
    """The records of one subscriber in ``letter_db`` and ``dead_letter_db``."""

    __slots__ = ("_number", "_payloads", "_deaths")

    def __init__(self, number: int, payloads: "lmdb.Cursor[bytes]", deaths: "lmdb.Cursor[bytes]") -> None:
        self._number = number
        self._payloads = payloads
        self._deaths = deaths

    def put(self, message_id: int, message: DeadLetterPayload) -> None:
        """Store a payload outside the log."""
        for part, value in enumerate(delivery_layouts.split_payload(message)):
            self._payloads.put(DEAD_LETTER_KEY.pack(self._number, message_id, part), value)
        if message.headers:
            self._payloads.put(DEAD_LETTER_KEY.pack(self._number, message_id, HEADERS_PART), message.headers)

    def get(self, message_id: int) -> DeadLetterPayload:
        """Read a payload outside the log.

        :raise DamagedError: a part is missing
        """
        try:
            message = delivery_layouts.joined_payload(self._parts(message_id))
        except ValueError as error:
            raise errors.DamagedError(f"The payload of message {message_id}, which is a dead letter or was requeued, "
                                      f"cannot be read: {error}.") from error
        headers = self._payloads.get(DEAD_LETTER_KEY.pack(self._number, message_id, HEADERS_PART), b"")
        return message._replace(headers=headers) if headers else message

    def _parts(self, message_id: int) -> Iterator[bytes]:
        prefix = ENTRY_KEY.pack(self._number, message_id)
        if self._payloads.set_range(prefix):
            for key, value in self._payloads:
                if key[:len(prefix)] != prefix or is_headers(key):
                    return
                yield value

    def delete(self, message_id: int) -> int:
        """Delete a payload outside the log; return how many parts it had."""
        payloads, prefix, parts = self._payloads, ENTRY_KEY.pack(self._number, message_id), 0
        payloads.set_range(prefix)
        while payloads.key()[:len(prefix)] == prefix:
            payloads.delete()
            parts += 1
        return parts

    def ids(self) -> Iterator[int]:
        """Iterate over the ids of all payloads outside the log."""
        last = None
        for key in keys_of(self._payloads, self._number):
            _, message_id, _ = DEAD_LETTER_KEY.unpack(key)
            if message_id != last:
                yield message_id
            last = message_id

    def add_dead_letter(self, message_id: int, death: Death) -> None:
        """Store that a message is a dead letter, and why."""
        self._deaths.put(ENTRY_KEY.pack(self._number, message_id), delivery_layouts.encode_death(death))

    def death(self, message_id: int) -> Optional[Death]:
        """Return why a message became a dead letter, or None if it is not one."""
        value = self._deaths.get(ENTRY_KEY.pack(self._number, message_id))
        return None if value is None else delivery_layouts.decode_death(value)

    def restore(self, message_id: int) -> None:
        """Delete the record that a message is a dead letter; its payload stays."""
        if self._deaths.set_key(ENTRY_KEY.pack(self._number, message_id)):
            self._deaths.delete()

    def discard(self, message_id: int) -> int:
        """Delete a dead letter and its payload; return how many parts the payload had."""
        self.restore(message_id)
        return self.delete(message_id)

    def dead_ids(self, start: int = 0) -> Iterator[int]:
        """Iterate over the ids of the dead letters from an id on. None may be added or deleted meanwhile."""
        for key in keys_of(self._deaths, self._number, start):
            yield ENTRY_KEY.unpack(key)[1]
