"""The bytes of a queue's records: each encoder is beside its decoder.

Integers in keys are big-endian and of fixed width, so the order of the keys is the order of the messages.

==================  ==========================  ======================================================
sub-database        key                         value
==================  ==========================  ======================================================
``queue_db``        field name                  ``format``: its version; ``header``: :class:`Header`;
                                                ``message_type``: if it is bound to one, its full name;
                                                ``identity``: by which relays know it; ``route:`` and an identifier:
                                                :class:`.Route`; ``relayed:`` and the origin of a route:
                                                :class:`.Relayed`
``data_db``         message id                  the payload; of a long one its length and first part
``chunk_db``        message id, part number     the further parts of a long payload; with :data:`HEADERS_PART`, the
                                                headers of a message
``meta_db``         id of a run's first         :class:`Run`; the newest record always stays, since the
                    message                     next id follows its messages
``pending_db``      message id P                how many subscribers have their cursor at P
``subscriber_db``   identifier                  :class:`SubscriberRecord`
``index_db``        subscriber number, id       the deliveries of a message that is not yet acknowledged
``due_db``          subscriber number, time,    (empty) when another worker may claim the message of that entry
                    id                          of ``index_db``
``letter_db``       subscriber number, id,      a payload outside the log: of a dead letter, or of a requeued
                    part number                 message
``dead_letter_db``  subscriber number, id       why the message became a dead letter
``delayed_db``      due time, number, part      a delayed message, in parts as in ``data_db`` and ``chunk_db``
``once_db``         deduplication id            :class:`Deduplicated`: the message that was sent with it
``once_order_db``   time, message id            the deduplication id of the message that was sent then
==================  ==========================  ======================================================

The values of ``index_db``, ``letter_db`` and ``dead_letter_db`` are in ``delivery_layouts``.
"""

import functools
import struct
from typing import TYPE_CHECKING, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import Relayed, Route

if TYPE_CHECKING:
    import lmdb

FORMAT_VERSION = 1
FORMAT_KEY = b"format"
HEADER_KEY = b"header"
MESSAGE_TYPE_KEY = b"message_type"
#: By which relays know this queue; it is stored once one has asked for it.
IDENTITY_KEY = b"identity"
IDENTITY_BYTES = 16
#: The prefix of a key that ends with the identifier of a subscriber that is relayed.
ROUTE_PREFIX = b"route:"
#: The prefix of a key that ends with the origin of a relay that brings messages into this queue.
RELAYED_PREFIX = b"relayed:"
#: The value of ``Header.durability`` under which commits are synced.
POWER_LOSS = 0
#: The size of one part of a payload: with LMDB's page header of 16 bytes it fills 16 pages. Longer values need longer
#: runs of adjacent free pages, which a busy queue does not have: the file would grow instead.
PART_BYTES = 65520

#: The number of the part that holds the headers of a message: after all parts of the payload.
HEADERS_PART = 2**32 - 1

NUMBER = struct.Struct(">Q")
PART_KEY = struct.Struct(">QI")
DELAYED_KEY = struct.Struct(">QQI")
DEDUPLICATION_ORDER_KEY = struct.Struct(">QQ")
_HEADERS_END = struct.pack(">I", HEADERS_PART)
_UINT64 = 2**64 - 1
#: The value of a limit in the header where there is none. It is larger than any time, number or size.
NO_LIMIT = _UINT64


class SubDatabases(NamedTuple):
    """The open handles of the sub-databases, by their names."""

    queue_db: "lmdb._Database"
    data_db: "lmdb._Database"
    chunk_db: "lmdb._Database"
    meta_db: "lmdb._Database"
    pending_db: "lmdb._Database"
    subscriber_db: "lmdb._Database"
    index_db: "lmdb._Database"
    delayed_db: "lmdb._Database"
    once_db: "lmdb._Database"
    once_order_db: "lmdb._Database"
    due_db: "lmdb._Database"
    letter_db: "lmdb._Database"
    dead_letter_db: "lmdb._Database"


#: What decoding raises for a record that this package did not write, and what encoding its values raises.
DECODING_ERRORS = (struct.error, UnicodeDecodeError)


def require_count(count: int) -> int:
    """Return a count of messages that was computed from records.

    :raise struct.error: it is below 0, so these records contradict each other
    """
    if count < 0:
        raise struct.error(f"the records add up to {count} messages")
    return count


def other_version(path: object, found: str) -> errors.FormatError:
    """Return the error for a queue that is not of this format version.

    :param found: the version that it has
    """
    return errors.FormatError(
        f"The queue at {path} is not of format version {FORMAT_VERSION}, which this version reads and writes "
        f"(found: {found}). Use the version of persipubsub that created it, or another directory.")


pack_id = NUMBER.pack


def unpack_id(key: bytes) -> int:
    """Decode the message id at the beginning of a key."""
    return int.from_bytes(key[:8], "big")


def unpack_ids(keys: Sequence[bytes]) -> Tuple[int, ...]:
    """Decode the message ids of many keys."""
    return struct.unpack(f">{len(keys)}Q", b"".join(keys))


def is_headers(key: bytes) -> bool:
    """Return whether a key, which ends with the number of a part, is that of the headers of a message."""
    return key.endswith(_HEADERS_END)


def is_long(size_bytes: int) -> bool:
    """Return whether a payload of that size, or a first part of that size, has further parts."""
    return size_bytes >= PART_BYTES


def split(prefix: bytes, payload: bytes) -> Iterator[bytes]:
    """Iterate over the parts of a prefix and a payload. All but the last have PART_BYTES."""
    first_bytes = PART_BYTES - len(prefix)
    yield prefix + payload[:first_bytes]
    for start in range(first_bytes, len(payload), PART_BYTES):
        yield payload[start:start + PART_BYTES]


def encode_payload(payload: bytes) -> Iterator[bytes]:
    """Encode a payload in parts: a short one is its only part, and a long one begins with its size."""
    return split(NUMBER.pack(len(payload)) if is_long(len(payload)) else b"", payload)


def joined(first: bytes, others: Iterable[bytes]) -> bytes:
    """Decode a payload from its first part and the others.

    :raise ValueError: a part is missing, or there is one too many
    """
    if is_long(len(first)):
        return require_size(b"".join((first[NUMBER.size:], *others)), NUMBER.unpack_from(first)[0])
    return require_size(b"".join((first, *others)), len(first))


def require_size(payload: bytes, size_bytes: int) -> bytes:
    """Return a payload that was put together from its parts.

    :raise ValueError: it does not have the size that its first part states
    """
    if len(payload) != size_bytes:
        raise ValueError(f"{len(payload)} bytes of {size_bytes} were found")
    return payload


class Header(NamedTuple):
    """What every transaction reads: the configuration that Control sets, and the counters that operations keep."""

    message_timeout_us: int  # this and the next two: NO_LIMIT if there is no limit
    max_messages: int
    hwm_db_size: int
    strategy: int
    durability: int
    next_subscriber_number: int
    first: int  # messages with lower ids count as deleted, though `waiting` of them are still stored
    waiting: int
    boot_id: bytes  # the boot for which the offset holds
    clock_offset_us: int  # the queue's time is the time since boot plus this
    retention_us: int  # how old messages become that all subscribers acknowledged; 0: they are deleted at once
    next_due_us: int  # of the first message in `delayed_db`, or NEVER_US
    delayed: int  # the number of messages in `delayed_db`
    next_delayed_number: int
    deduplication_window_us: int
    deduplication_max: int  # the maximum number of remembered ids
    # The number of messages that were deleted for each reason since the queue was created; modulo 2 ** 64.
    pruned_timeout: int
    pruned_overflow: int
    pruned_dangling: int


_HEADER = struct.Struct(">QQQBBIQQ16sqQQQQQQQQQ")


@functools.lru_cache(maxsize=64)
def decode_header(value: bytes) -> Header:
    """Decode the value of the header."""
    return Header(*_HEADER.unpack(value))


def encode_header(header: Header) -> bytes:
    """Encode the value of the header."""
    return _HEADER.pack(*header[:-3], *(count & _UINT64 for count in header[-3:]))


class Run(NamedTuple):
    """Messages that were committed at nearly the same time. The totals of the next run say where they end.

    The running totals make counting between two ids arithmetic. Ids after the last message of a run are those of
    messages that ``prune_last`` deleted, or that no subscriber awaited.
    """

    first_id: int
    time_us: int  # of the first commit of the run, since the epoch
    largest_bytes: int  # no message of the run is larger
    messages_before: int  # in all earlier runs
    bytes_before: int  # the maximum size of their payloads together; modulo 2 ** 64


_RUN = struct.Struct(">QQIQQ")


def decode_run(key: bytes, value: bytes) -> Run:
    """Decode a record of ``meta_db``."""
    # Not Run._make: it is twice as slow, and every operation reads runs.
    return tuple.__new__(Run, _RUN.unpack(key + value))


def encode_run(run: Run) -> Tuple[bytes, bytes]:
    """Encode a record of ``meta_db``: key and value."""
    record = _RUN.pack(*run[:-1], run.bytes_before & _UINT64)
    return record[:NUMBER.size], record[NUMBER.size:]


def wrapped(total: int) -> int:
    """Return a total modulo 2 ** 64, as it is stored."""
    return total & _UINT64


def bytes_between(first: Run, second: Run) -> int:
    """Return the maximum size of the payloads of the runs from one on to before another."""
    return (second.bytes_before - first.bytes_before) & _UINT64


class SubscriberRecord(NamedTuple):
    """A value of ``subscriber_db``: the state of one subscriber. Its number is never used again.

    Of the messages of the log before ``next_id`` it awaits only those in flight.
    """

    number: int
    next_id: int
    taken: int = 0  # the number of messages that it acknowledged; modulo 2 ** 64
    policy: Optional[Policy] = None  # without one the following are not stored
    in_flight: int = 0  # the number of messages before `next_id` that a shared one has not acknowledged
    requeued: int = 0  # the number of requeued messages that it awaits
    dead_letters: int = 0


_SUBSCRIBER = struct.Struct(">IQQ")
SUBSCRIBER_BYTES = _SUBSCRIBER.size
_POLICY = struct.Struct(">?IIQQQQQQ")
SUBSCRIBER_WITH_POLICY_BYTES = SUBSCRIBER_BYTES + _POLICY.size


def decode_subscriber(value: bytes) -> SubscriberRecord:
    """Decode a value of ``subscriber_db``."""
    if len(value) != SUBSCRIBER_WITH_POLICY_BYTES:
        return SubscriberRecord(*_SUBSCRIBER.unpack(value))
    number, next_id, taken = _SUBSCRIBER.unpack_from(value)
    *policy, in_flight, requeued, dead_letters = _POLICY.unpack_from(value, SUBSCRIBER_BYTES)
    return SubscriberRecord(number, next_id, taken, Policy(*policy), in_flight, requeued, dead_letters)


def encode_subscriber(record: SubscriberRecord) -> bytes:
    """Encode a value of ``subscriber_db``."""
    value = _SUBSCRIBER.pack(record.number, record.next_id, record.taken & _UINT64)
    return value if record.policy is None else value + _POLICY.pack(*record.policy, *record[4:])


_ROUTE = struct.Struct(f"{IDENTITY_BYTES}s{IDENTITY_BYTES}s")
ROUTE_BYTES = _ROUTE.size
_RELAYED = struct.Struct(">QQ")
RELAYED_BYTES = _RELAYED.size


def decode_route(value: bytes) -> Route:
    """Decode a route."""
    return Route(*_ROUTE.unpack(value))


def encode_route(route: Route) -> bytes:
    """Encode a route."""
    return _ROUTE.pack(*route)


def decode_relayed(value: bytes) -> Relayed:
    """Decode how far a relay has come."""
    return Relayed(*_RELAYED.unpack(value))


def encode_relayed(relayed: Relayed) -> bytes:
    """Encode how far a relay has come."""
    return _RELAYED.pack(*relayed)


#: Marks the number of a delayed message among message ids.
DELAYED = 2**63


class Deduplicated(NamedTuple):
    """A message that was sent with a deduplication id, and when."""

    message_id: int  # of a delayed message: its number with the bit DELAYED, since it has no id yet
    time_us: int
    due_us: int = 0  # of a delayed message: when it is due; for others this is not stored


_DEDUPLICATED = struct.Struct(">QQ")
_DEDUPLICATED_DELAYED = struct.Struct(">QQQ")


def decode_deduplicated(value: bytes) -> Deduplicated:
    """Decode a value of ``once_db``."""
    layout = _DEDUPLICATED if len(value) == _DEDUPLICATED.size else _DEDUPLICATED_DELAYED
    return Deduplicated(*layout.unpack(value))


def encode_deduplicated(sent: Deduplicated) -> bytes:
    """Encode a value of ``once_db``."""
    return _DEDUPLICATED_DELAYED.pack(*sent) if sent.due_us else _DEDUPLICATED.pack(*sent[:2])
