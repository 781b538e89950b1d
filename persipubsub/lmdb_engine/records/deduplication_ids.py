"""The remembered deduplication ids within one transaction: the records of ``once_db`` and ``once_order_db``."""

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

from persipubsub.engine import values
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import DEDUPLICATION_ORDER_KEY, Deduplicated

if TYPE_CHECKING:
    import lmdb


class DeduplicationIds:
    """What was sent with a deduplication id. The two sub-databases hold the same, by id and by time."""

    __slots__ = ("_by_id", "_by_time")

    def __init__(self, by_id: "lmdb.Cursor[bytes]", by_time: "lmdb.Cursor[bytes]") -> None:
        self._by_id = by_id
        self._by_time = by_time

    def get(self, identifier: bytes) -> Optional[Deduplicated]:
        """Give what was sent with an id."""
        return layouts.decode_deduplicated(self._by_id.value()) if self._by_id.set_key(identifier) else None

    def put(self, identifier: bytes, once: Deduplicated) -> None:
        """Remember what was sent with an id, and nothing that was before."""
        before = self.get(identifier)
        if before is not None and self._by_time.set_key(_order_key(before)):
            self._by_time.delete()
        self._by_id.put(identifier, layouts.encode_deduplicated(once))
        self._by_time.put(_order_key(once), identifier)

    def oldest_us(self) -> int:
        """Tell when the oldest was sent, or NEVER_US where there is none."""
        return DEDUPLICATION_ORDER_KEY.unpack(self._by_time.key())[0] if self._by_time.first() else values.NEVER_US

    def delete_oldest(self) -> None:
        """Forget the oldest."""
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


def _order_key(once: Deduplicated) -> bytes:
    return DEDUPLICATION_ORDER_KEY.pack(once.time_us, once.message_id)
