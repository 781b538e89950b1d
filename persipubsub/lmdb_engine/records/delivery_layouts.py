"""The bytes of messages in flight and of dead letters: each encoder is beside its decoder.

An id in ``index_db`` and ``due_db`` is that of a message in the log. With the bit :data:`REQUEUED` it is that of a
requeued message, whose payload is in ``letter_db``. So requeued messages sort after all messages of the log, and the
first entry of a shared subscriber is its cursor.
"""

import struct
from typing import Iterator, NamedTuple, Tuple

from persipubsub.engine.values import NO_FAILURE, Failure
from persipubsub.lmdb_engine.records.layouts import require_size, split

REQUEUED = 2**63
#: No claim: the message waits for its next delivery.
NO_TOKEN = bytes(8)

ENTRY_KEY = struct.Struct(">IQ")
DUE_KEY = struct.Struct(">IQQ")
DEAD_LETTER_KEY = struct.Struct(">IQI")


def _encode_failure(failure: Failure) -> bytes:
    """Encode what is kept of an exception. A type is never empty, so a NUL at the beginning announces a traceback."""
    if not failure.type:
        return b""
    before = "\0{}\0".format(failure.traceback.replace("\0", "\\0")) if failure.traceback else ""
    return f"{before}{failure.type}\0{failure.text}".encode("utf-8", "backslashreplace")


def _decode_failure(value: bytes) -> Failure:
    if not value:
        return NO_FAILURE
    text, traceback = value.decode(), ""
    if text.startswith("\0"):
        traceback, _, text = text[1:].partition("\0")
    kind, _, text = text.partition("\0")
    return Failure(kind, text, traceback)


class Delivery(NamedTuple):
    """A value of ``index_db``: how often a message was delivered, and which claim holds it now."""

    deliveries: int
    token: bytes  # of the claim that holds it
    due_us: int  # when it may be delivered again, in the queue's time; 0 for at once
    failure: Failure = NO_FAILURE  # the latest one


_DELIVERY = struct.Struct(">I8sQ")


def decode_delivery(value: bytes) -> Delivery:
    """Decode a value of ``index_db``."""
    deliveries, token, due_us = _DELIVERY.unpack_from(value)
    return Delivery(deliveries, token, due_us, _decode_failure(value[_DELIVERY.size:]))


def encode_delivery(delivery: Delivery) -> bytes:
    """Encode a value of ``index_db``."""
    return _DELIVERY.pack(*delivery[:3]) + _encode_failure(delivery.failure)


class DeadLetterPayload(NamedTuple):
    """A payload outside the log, and when it was sent, in microseconds since the epoch."""

    sent_us: int
    payload: bytes
    headers: bytes = b""  # encoded; empty if it has none


_DEAD_LETTER = struct.Struct(">QQ")
DEAD_LETTER_BYTES = _DEAD_LETTER.size


def split_payload(message: DeadLetterPayload) -> Iterator[bytes]:
    """Encode a payload outside the log, in parts. Its headers are not among them."""
    return split(_DEAD_LETTER.pack(message.sent_us, len(message.payload)), message.payload)


def joined_payload(parts: Iterator[bytes]) -> DeadLetterPayload:
    """Decode a payload outside the log, without its headers.

    :raise ValueError: a part is missing
    """
    whole = b"".join(parts)
    if len(whole) < _DEAD_LETTER.size:
        raise ValueError("its first part is missing")
    sent_us, size_bytes = _DEAD_LETTER.unpack_from(whole)
    return DeadLetterPayload(sent_us, require_size(whole[_DEAD_LETTER.size:], size_bytes))


def payload_bytes(first_part: bytes) -> int:
    """Return the size of all parts of a payload outside the log together."""
    return _DEAD_LETTER.size + int(_DEAD_LETTER.unpack_from(first_part)[1])


#: Why a message became a dead letter: the block of its last receive raised, its last lease expired, or a worker
#: rejected it.
RAISED, LEASE_RAN_OUT, REJECTED = 0, 1, 2


class Death(NamedTuple):
    """A value of ``dead_letter_db``: why and when a message became a dead letter."""

    reason: int
    deliveries: int
    died_us: int  # since the epoch
    failure: Failure


_DEATH = struct.Struct(">BIQ")


def decode_death(value: bytes) -> Death:
    """Decode a value of ``dead_letter_db``."""
    reason, deliveries, died_us = _DEATH.unpack_from(value)
    if reason not in (RAISED, LEASE_RAN_OUT, REJECTED):
        raise struct.error(f"a dead letter has the unknown reason {reason}")
    return Death(reason, deliveries, died_us, _decode_failure(value[_DEATH.size:]))


def encode_death(death: Death) -> bytes:
    """Encode a value of ``dead_letter_db``."""
    return _DEATH.pack(*death[:3]) + _encode_failure(death.failure)


def split_due_key(key: bytes) -> Tuple[int, int]:
    """Decode a key of ``due_db``: time and id."""
    _, due_us, message_id = DUE_KEY.unpack(key)
    return due_us, message_id
