"""The payloads outside the log of one subscriber, within one transaction: dead letters, and requeued messages."""

from typing import TYPE_CHECKING, Iterator, Optional

from persipubsub import errors
from persipubsub.lmdb_engine.records import delivery_layouts
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY, ENTRY_KEY, DeadLetterPayload, Death
from persipubsub.lmdb_engine.records.in_flight import keys_of

if TYPE_CHECKING:
    import lmdb


class DeadLetters:
    """What one subscriber has in ``letter_db`` and ``dead_letter_db``."""

    __slots__ = ("_number", "_letters", "_deaths")

    def __init__(self, number: int, letters: "lmdb.Cursor[bytes]", deaths: "lmdb.Cursor[bytes]") -> None:
        self._number = number
        self._letters = letters
        self._deaths = deaths

    def put(self, message_id: int, letter: DeadLetterPayload) -> None:
        """Store a letter."""
        for part, value in enumerate(delivery_layouts.split_payload(letter)):
            self._letters.put(DEAD_LETTER_KEY.pack(self._number, message_id, part), value)

    def get(self, message_id: int) -> DeadLetterPayload:
        """Read a letter.

        :raise DamagedError: it is not complete
        """
        try:
            return delivery_layouts.joined_payload(self._parts(message_id))
        except ValueError as error:
            raise errors.DamagedError(f"The letter of message {message_id} cannot be read: {error}.") from error

    def _parts(self, message_id: int) -> Iterator[bytes]:
        prefix = ENTRY_KEY.pack(self._number, message_id)
        if self._letters.set_range(prefix):
            for key, value in self._letters:
                if key[:len(prefix)] != prefix:
                    return
                yield value

    def delete(self, message_id: int) -> int:
        """Delete a letter; give how many parts it had."""
        letters, prefix, parts = self._letters, ENTRY_KEY.pack(self._number, message_id), 0
        letters.set_range(prefix)
        while letters.key()[:len(prefix)] == prefix:
            letters.delete()
            parts += 1
        return parts

    def ids(self) -> Iterator[int]:
        """Iterate over the ids of all letters."""
        last = None
        for key in keys_of(self._letters, self._number):
            _, message_id, _ = DEAD_LETTER_KEY.unpack(key)
            if message_id != last:
                yield message_id
            last = message_id

    def add_dead_letter(self, message_id: int, death: Death) -> None:
        """Note that a letter is dead."""
        self._deaths.put(ENTRY_KEY.pack(self._number, message_id), delivery_layouts.encode_death(death))

    def death(self, message_id: int) -> Optional[Death]:
        """Tell why a letter is dead; None if it is not."""
        value = self._deaths.get(ENTRY_KEY.pack(self._number, message_id))
        return None if value is None else delivery_layouts.decode_death(value)

    def restore(self, message_id: int) -> None:
        """Forget that a letter is dead."""
        if self._deaths.set_key(ENTRY_KEY.pack(self._number, message_id)):
            self._deaths.delete()

    def discard(self, message_id: int) -> int:
        """Delete a dead letter; give how many parts it had."""
        self.restore(message_id)
        return self.delete(message_id)

    def dead_ids(self, start: int = 0) -> Iterator[int]:
        """Iterate over the ids of the dead letters from an id on. None may be made or raised meanwhile."""
        for key in keys_of(self._deaths, self._number, start):
            yield ENTRY_KEY.unpack(key)[1]
