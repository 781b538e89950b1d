"""The remembered deduplication ids in one transaction: the records of ``once_db`` and ``once_order_db``."""

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

from persipubsub.engine import values
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import DEDUPLICATION_ORDER_KEY, Deduplicated

if TYPE_CHECKING:
    import lmdb


class DeduplicationIds:
    """The messages that were sent with a deduplication id. The two sub-databases list them by id and by time."""

    __slots__ = ("_by_id", "_by_time")

    def __init__(self, by_id: "lmdb.Cursor[bytes]", by_time: "lmdb.Cursor[bytes]") -> None:
        self._by_id = by_id
        self._by_time = by_time

    def get(self, identifier: bytes) -> Optional[Deduplicated]:
        """Return the message that was sent with an id, or None if the id is not remembered."""
        return layouts.decode_deduplicated(self._by_id.value()) if self._by_id.set_key(identifier) else None

    def put(self, identifier: bytes, sent: Deduplicated) -> None:
        """Remember the message that was sent with an id, in place of an earlier one."""
        before = self.get(identifier)
        if before is not None and self._by_time.set_key(_order_key(before)):
            self._by_time.delete()
        self._by_id.put(identifier, layouts.encode_deduplicated(sent))
        self._by_time.put(_order_key(sent), identifier)

    def oldest_us(self) -> int:
        """Return when the oldest message was sent, or NEVER_US if there is none."""
        return DEDUPLICATION_ORDER_KEY.unpack(self._by_time.key())[0] if self._by_time.first() else values.NEVER_US

    def delete_oldest(self) -> None:
        """Forget the id of the oldest message."""
        if self._by_time.first():
            if self._by_id.set_key(self._by_time.value()):
                self._by_id.delete()
            self._by_time.delete()

    def by_id(self) -> Iterator[Tuple[bytes, Deduplicated]]:
        """Iterate over the records of ``once_db``."""
        for identifier, value in self._by_id if self._by_id.first() else ():
            yield identifier, layouts.decode_deduplicated(value)

    def by_time(self) -> Iterator[Tuple[bytes, Deduplicated]]:
        """Iterate over the records of ``once_order_db``."""
        for key, identifier in self._by_time if self._by_time.first() else ():
            time_us, message_id = DEDUPLICATION_ORDER_KEY.unpack(key)
            yield identifier, Deduplicated(message_id, time_us)


def _order_key(sent: Deduplicated) -> bytes:
    return DEDUPLICATION_ORDER_KEY.pack(sent.time_us, sent.message_id)
