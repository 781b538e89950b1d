"""Determine from its records the sub-database of an orphan leaf page: one to which no tree leads.

LMDB's pages do not name their sub-database. The lengths of keys and values narrow it down. If several remain, the
content of the records decides: times are of this century, ids and numbers are small. A page that could still belong to
two sub-databases counts as unknown.
"""

import contextlib
import functools
import struct
import sys
from typing import Callable, List, NamedTuple, Optional, Tuple

from persipubsub.engine.headers import HEADERS_BYTES_MAX
from persipubsub.engine.limits import IDENTIFIER_BYTES_MAX
from persipubsub.lmdb_engine.records import delivery_layouts, layouts
from persipubsub.lmdb_engine.records.delivery_layouts import (DEAD_LETTER_KEY, DUE_KEY, ENTRY_KEY, REQUEUED, Death,
                                                              Delivery)
from persipubsub.lmdb_engine.records.layouts import HEADERS_PART
from persipubsub.lmdb_engine.records.page_file import SUB_DATABASE, Node, PageError, PageFile
from persipubsub.lmdb_engine.rules import dead_letters
from persipubsub.queue import MESSAGE_BYTES_MAX

PART_NUMBER_MAX = MESSAGE_BYTES_MAX // layouts.PART_BYTES + 1
#: The clocks of all queues are later than this time.
TIME_US_MIN = 1_500_000_000_000_000
#: The clocks of all queues are earlier than this time.
_TIME_US_END = 4 * TIME_US_MIN
#: All leases end earlier than this time.
_LEASE_US_END = _TIME_US_END + 10**15
#: All due times are earlier than this time.
_DUE_US_END = 2**56
#: The longest record with the text of an error, in bytes.
_ERROR_RECORD_BYTES_MAX = 8192
#: No queue reaches this id, and LMDB's own records look like larger ids.
ID_MAX = 2**48


def guess(opened: PageFile, page: bytes) -> Optional[str]:
    """Return the name of the sub-database of a leaf page, or None where it is uncertain."""
    try:
        return _guess(opened, page, opened.nodes(page))
    except (PageError, struct.error):
        return None


def is_identifier(key: bytes) -> bool:
    """Return whether a key can be the identifier of a subscriber."""
    try:
        return 0 < len(key) <= IDENTIFIER_BYTES_MAX and b"\0" not in key and bool(key.decode())
    except UnicodeDecodeError:
        return False


def _guess(opened: PageFile, page: bytes, nodes: List[Node]) -> Optional[str]:
    if not nodes or any(node.flags & SUB_DATABASE for node in nodes):
        return None
    if any(node.key == layouts.HEADER_KEY for node in nodes) or all(map(_is_of_relay, nodes)):
        return "queue_db"
    sizes = {node.size_bytes for node in nodes}
    if sizes <= {layouts.SUBSCRIBER_BYTES, layouts.SUBSCRIBER_WITH_POLICY_BYTES} and all(
            is_identifier(node.key) for node in nodes):
        return "subscriber_db"
    if any(node.key[:1] != b"\0" for node in nodes):
        return None  # deduplication ids, perhaps; once_order_db has all of them as well
    lengths = {len(node.key) for node in nodes}
    if lengths == {layouts.NUMBER.size}:
        return _guess_by_id(opened, page, nodes)
    found = [
        name for name, key_bytes, fits in _KINDS
        if lengths == {key_bytes} and all(fits(node.key, _value(opened, page, node)) for node in nodes)
    ]
    return found[0] if len(found) == 1 else None


def _is_of_relay(node: Node) -> bool:
    """Return whether a record can be a route, or how far a relay has come. A queue may have pages of them."""
    if node.key.startswith(layouts.ROUTE_PREFIX):
        return node.size_bytes == layouts.ROUTE_BYTES and is_identifier(node.key)
    key_bytes = len(layouts.RELAYED_PREFIX) + layouts.IDENTITY_BYTES
    is_relayed = node.key.startswith(layouts.RELAYED_PREFIX) and len(node.key) == key_bytes
    return is_relayed and node.size_bytes == layouts.RELAYED_BYTES


# Keys that are ids


def _guess_by_id(opened: PageFile, page: bytes, nodes: List[Node]) -> Optional[str]:
    if any(not 0 < layouts.unpack_id(node.key) < ID_MAX for node in nodes):
        return None
    sizes = {node.size_bytes for node in nodes}
    if sizes == {28} and all(_is_run(opened, page, node) for node in nodes):
        return "meta_db"
    if sizes == {8} and all(opened.value(page, node)[:4] == bytes(4) for node in nodes):
        return "pending_db"
    return None if all(_is_free_list(opened, page, node) for node in nodes) else "data_db"


def _is_run(opened: PageFile, page: bytes, node: Node) -> bool:
    time_us = layouts.decode_run(node.key, opened.value(page, node)).time_us
    return time_us == 0 or TIME_US_MIN <= time_us < _TIME_US_END


def _is_free_list(opened: PageFile, page: bytes, node: Node) -> bool:
    """Return whether a record could be LMDB's own list of free pages, which begins with its length."""
    if node.size_bytes % 8 or node.size_bytes < 16 or node.size_bytes > opened.page_bytes:
        return False
    return int.from_bytes(opened.value(page, node)[:8], sys.byteorder) == node.size_bytes // 8 - 1


# Keys of several parts


class _Value(NamedTuple):
    """A value: its size, and its bytes if it is short enough to need checking."""

    size_bytes: int
    known: Optional[bytes]


def _value(opened: PageFile, page: bytes, node: Node) -> _Value:
    known = None
    if node.size_bytes <= _ERROR_RECORD_BYTES_MAX:
        with contextlib.suppress(PageError):  # the key can still be checked
            known = opened.value(page, node)
    return _Value(node.size_bytes, known)


def _is_part(key: bytes, value: _Value) -> bool:
    message_id, part = layouts.PART_KEY.unpack(key)
    if part == HEADERS_PART:
        return 0 < message_id < ID_MAX and _may_be_headers(value)
    if not (0 < message_id < ID_MAX and 0 < part <= PART_NUMBER_MAX and 0 < value.size_bytes <= layouts.PART_BYTES):
        return False
    # Otherwise it looks like the number of a subscriber and the id of a message.
    return message_id < 2**32 or value.size_bytes == layouts.PART_BYTES


def _may_be_headers(value: _Value) -> bool:
    """Return whether a value may be the headers of a message, which are JSON."""
    known = value.known
    return 2 < value.size_bytes <= HEADERS_BYTES_MAX and (known is None or (known[:1], known[-1:]) == (b"{", b"}"))


def _is_of_subscriber(key: bytes) -> bool:
    number, message_id = ENTRY_KEY.unpack_from(key)
    return bool(number) and 0 < message_id % REQUEUED < ID_MAX


def _is_of_message(key: bytes, value: _Value, require: Callable[[bytes], object]) -> bool:
    """Return whether a record may belong to a subscriber's message, with the text of its last error."""
    if not _is_of_subscriber(key) or value.size_bytes > _ERROR_RECORD_BYTES_MAX:
        return False
    try:
        return value.known is None or bool(require(value.known))
    except (struct.error, ValueError):
        return False


def require_delivery(value: bytes) -> Delivery:
    """Decode a value of index_db.

    :raise ValueError: it is not such a value
    :raise struct.error: it is too short
    """
    entry = delivery_layouts.decode_delivery(value)
    in_range = entry.due_us == 0 or TIME_US_MIN <= entry.due_us < _LEASE_US_END
    if not in_range or delivery_layouts.encode_delivery(entry) != value:
        raise ValueError("it is not a delivery")
    return entry


def require_death(value: bytes) -> Death:
    """Decode a value of dead_letter_db.

    :raise ValueError: it is not such a value
    :raise struct.error: it is too short
    """
    death = delivery_layouts.decode_death(value)
    in_range = death.reason in dead_letters.REASONS and TIME_US_MIN <= death.died_us < _TIME_US_END
    if not in_range or delivery_layouts.encode_death(death) != value:
        raise ValueError("it is not the death of a message")
    return death


def _is_dead_letter_part(key: bytes, value: _Value) -> bool:
    part = DEAD_LETTER_KEY.unpack(key)[2]
    if part == HEADERS_PART:
        return _is_of_subscriber(key) and _may_be_headers(value)
    if not _is_of_subscriber(key) or part > PART_NUMBER_MAX or not 0 < value.size_bytes <= layouts.PART_BYTES:
        return False
    # The first part contains the size of the payload. A deduplication id has fewer bytes.
    if part or value.known is None:
        return True
    return len(value.known) >= delivery_layouts.DEAD_LETTER_BYTES and (delivery_layouts.payload_bytes(value.known)
                                                                       == len(value.known))


def _is_deduplication_order(key: bytes, value: _Value) -> bool:
    time_us, message_id = layouts.DEDUPLICATION_ORDER_KEY.unpack(key)
    in_range = TIME_US_MIN <= time_us < _DUE_US_END and message_id % layouts.DELAYED < ID_MAX
    return in_range and 0 < value.size_bytes <= IDENTIFIER_BYTES_MAX


def _is_delayed(key: bytes, value: _Value) -> bool:
    due_us, _, part = layouts.DELAYED_KEY.unpack(key)
    if part == HEADERS_PART:
        return TIME_US_MIN <= due_us < _DUE_US_END and _may_be_headers(value)
    return TIME_US_MIN <= due_us < _DUE_US_END and part <= PART_NUMBER_MAX and value.size_bytes > 0


def _is_due(key: bytes, value: _Value) -> bool:
    number, due_us, message_id = DUE_KEY.unpack(key)
    in_range = due_us == 0 or TIME_US_MIN <= due_us < _LEASE_US_END
    return bool(number) and in_range and 0 < message_id % REQUEUED < ID_MAX and not value.size_bytes


#: Sub-databases, the lengths of their keys, and checks of their records.
_KINDS: Tuple[Tuple[str, int, Callable[[bytes, _Value], bool]], ...] = (
    ("chunk_db", layouts.PART_KEY.size, _is_part),
    ("index_db", ENTRY_KEY.size, functools.partial(_is_of_message, require=require_delivery)),
    ("dead_letter_db", ENTRY_KEY.size, functools.partial(_is_of_message, require=require_death)),
    ("letter_db", DEAD_LETTER_KEY.size, _is_dead_letter_part),
    ("once_order_db", layouts.DEDUPLICATION_ORDER_KEY.size, _is_deduplication_order),
    ("delayed_db", layouts.DELAYED_KEY.size, _is_delayed),
    ("due_db", DUE_KEY.size, _is_due),
)
