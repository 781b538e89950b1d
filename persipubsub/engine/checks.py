"""Checks of arguments: each function returns the checked value, or raises an error that names the remedy.

Checks that run for every message are plain code, since an icontract condition costs 3 microseconds.
"""

import datetime
import itertools
import os
import re
from typing import Callable, Iterable, List, Mapping, Optional, Tuple

from persipubsub import errors, moments
from persipubsub.engine.limits import (AT_END, BATCH_BYTES_MAX, DEAD_LETTERS_MAX_MAX, DEDUPLICATION_MAX_MAX,
                                       DEDUPLICATION_WINDOW_S_MAX, DEDUPLICATION_WINDOW_S_MIN, DELAY_S_MAX,
                                       IDENTIFIER_BYTES_MAX, LEASE_S_MIN, MAX_DELIVERIES_MAX, MESSAGE_ID_END,
                                       MESSAGE_TYPE_BYTES_MAX, RETENTION_S_MAX, SECONDS_MAX, TIMEOUT_S_MAX)
from persipubsub.engine.values import EARLIEST, LATEST, Batch, Delivering, DueTime, Position
from persipubsub.queue import BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX

#: A batch is checked and encoded in chunks of this size.
CHUNK_MESSAGES = 1000
#: Names separated by dots, of a protobuf type or a codec; or the name of a class that is sent as JSON.
MESSAGE_TYPE = r"(json:)?[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"


def payload(msg: object) -> bytes:
    """Return the bytes of a message.

    :raise ArgumentTypeError: it is not bytes-like
    :raise MessageTooLargeError: it is over the limit
    """
    if type(msg) is not bytes:  # pylint: disable=unidiomatic-typecheck  # the fast path: bytes need no copy
        try:
            msg = bytes(memoryview(msg))  # type: ignore[arg-type]  # it may not be a buffer
        except (TypeError, ValueError, BufferError) as error:  # ValueError: a released memoryview, or NumPy
            hint = ": encode it first, e.g. msg.encode()" if isinstance(msg, str) else ""
            why = "" if isinstance(error, TypeError) else f" that has no bytes ({error})"
            raise errors.ArgumentTypeError(
                f"A message must be bytes-like (bytes, bytearray, memoryview), got {type(msg).__name__}{why}{hint}."
            ) from None
    if len(msg) > MESSAGE_BYTES_MAX:
        raise errors.MessageTooLargeError(
            f"A message of {len(msg)} bytes is over the limit of {MESSAGE_BYTES_MAX} bytes. Send it in parts.")
    return msg


def batch(msgs: object, encode: Callable[[int, List[object]], List[bytes]], always: bool) -> Batch:
    """Return the bytes of the messages of a batch.

    :param encode: returns the bytes of some messages, given the index of the first one
    :param always: whether it is called even for messages that are bytes already
    :raise ArgumentTypeError: it is not an iterable of messages
    :raise MessageTooLargeError: one is over the limit
    :raise BatchTooLargeError: there are too many messages, or too many bytes together
    """
    if isinstance(msgs, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(msgs, Iterable):
        raise errors.ArgumentTypeError(
            f"send_many takes an iterable of messages, got {type(msgs).__name__}. For one message use send.")
    result: List[bytes] = []
    size_bytes = largest_bytes = 0
    messages = iter(msgs)
    # In chunks, so that an endless iterable is refused before it fills the memory.
    while chunk := list(itertools.islice(messages, CHUNK_MESSAGES)):
        if always or set(map(type, chunk)) != {bytes}:
            chunk = encode(len(result), chunk)
        sizes = list(map(len, chunk))
        result += chunk
        size_bytes += sum(sizes)
        largest_bytes = max(largest_bytes, *sizes)
        require_batch(len(result), size_bytes)
    return Batch(result, size_bytes, largest_bytes)


def require_batch(messages: int, size_bytes: int) -> None:
    """Raise BatchTooLargeError if a batch is over its limits."""
    if messages > BATCH_MESSAGES_MAX or size_bytes > BATCH_BYTES_MAX:
        raise errors.BatchTooLargeError(
            f"send_many takes at most {BATCH_MESSAGES_MAX} messages and {BATCH_BYTES_MAX} bytes, with their headers, "
            "since it is one transaction. None was sent: send them in several batches.")


def element(index: int, msg: object) -> bytes:
    """Return the bytes of a message of a batch; an error names its index."""
    try:
        return payload(msg)
    except errors.ArgumentTypeError as error:
        raise errors.ArgumentTypeError(f"Message {index} of the batch: {error} None was sent.") from None


def identifier(value: object) -> bytes:
    """Return the bytes of a subscriber's identifier.

    :raise ArgumentTypeError: it is not a str
    :raise ArgumentError: it is empty, too long, or not UTF-8 without NUL
    """
    return _name("A subscriber's identifier", value, IDENTIFIER_BYTES_MAX)


def deduplication_id(value: object) -> bytes:
    """Return the bytes of a deduplication id.

    :raise ArgumentTypeError: it is not a str
    :raise ArgumentError: it is empty, too long, or not UTF-8 without NUL
    """
    return _name("A deduplication_id", value, IDENTIFIER_BYTES_MAX)


def _name(noun: str, value: object, bytes_max: int) -> bytes:
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"{noun} must be a str, got {type(value).__name__}.")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise errors.ArgumentError(f"{noun} must be encodable as UTF-8, got {value!r}.") from error
    if not 1 <= len(encoded) <= bytes_max:
        raise errors.ArgumentError(
            f"{noun} must have 1 to {bytes_max} bytes of UTF-8, got {len(encoded)}: {value[:40]!r}.")
    if b"\0" in encoded:
        raise errors.ArgumentError(f"{noun} must not contain a NUL, got {value!r}.")
    return encoded


def identifiers(values: object) -> List[bytes]:
    """Return the bytes of several identifiers; a single str is refused.

    :raise ArgumentTypeError: it is not an iterable of str
    :raise ArgumentError: one is outside the limits
    """
    if values is None:
        return []
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise errors.ArgumentTypeError(
            f"subscriber_ids must be an iterable of str, got {type(values).__name__}: for one, pass a list of one.")
    return [identifier(value) for value in values]


def message_type(value: object) -> str:
    """Return the name of a message type.

    :raise ArgumentTypeError: it is not a str
    :raise ArgumentError: it cannot be the name of a message type
    """
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"message_type must be a str, got {type(value).__name__}.")
    if not re.fullmatch(MESSAGE_TYPE, value) or len(value) > MESSAGE_TYPE_BYTES_MAX:
        raise errors.ArgumentError(
            "message_type must be the full name of a protobuf type, such as shop.Order, or of a class that is sent as "
            f"JSON, such as json:Order; in ASCII, at most {MESSAGE_TYPE_BYTES_MAX} bytes; got {value[:40]!r}.")
    return value


def directory(value: object) -> str:
    """Return the path of a directory.

    :raise ArgumentTypeError: it is not a str or PathLike of str
    :raise ArgumentError: it is empty, has a NUL, or cannot be the name of a file
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise errors.ArgumentTypeError(f"path must be a str or PathLike of str, got {type(value).__name__}.")
    if not path or "\0" in path:
        raise errors.ArgumentError(f"path must be the name of a directory, not empty and without NUL, got {path!r}.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise errors.ArgumentError(f"path must be encodable as a file name, got {path!r}.") from error
    return path


def timeout(value: object) -> Optional[float]:
    """Return a timeout in seconds; None waits forever.

    :raise ArgumentTypeError: it is not a number
    :raise ArgumentError: it is negative or NaN
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(f"timeout must be a number of seconds or None, got {type(value).__name__}.")
    if not value >= 0:  # this also refuses NaN
        raise errors.ArgumentError(
            f"timeout must be 0 (look once), more (seconds), or None (wait forever); got {value}.")
    return min(value, TIMEOUT_S_MAX)


def seconds(name: str, value: object, least: float, most: float) -> float:
    """Return a number of seconds within limits.

    :raise ArgumentTypeError: it is not a number
    :raise ArgumentError: it is outside the limits, or NaN
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(f"{name} must be a number of seconds, got {type(value).__name__}.")
    if not least <= value <= most:  # this also refuses NaN
        raise errors.ArgumentError(f"{name} must be from {least:g} to {most:g} seconds, got {value}.")
    return value


def moment_us(name: str, value: datetime.datetime) -> int:
    """Return a time in microseconds since the epoch, or 0 for a time before it.

    :raise ArgumentError: it has no timezone, so it would differ between machines
    """
    if value.utcoffset() is None:
        raise errors.ArgumentError(f"{name} must have a timezone, as datetime.now(timezone.utc) has; got {value!r}.")
    return max(0, (value - moments.EPOCH) // datetime.timedelta(microseconds=1))


def position(name: str, value: object, word: str, ids: bool) -> Position:
    """Return a position in the queue: a time, perhaps a message id, or a word that stands for one.

    :param word: a word that is accepted besides ``earliest``; empty for none
    :param ids: whether a message id is accepted
    :raise ArgumentTypeError: it is of another type
    :raise ArgumentError: it is another word, not a message id, or a time without a timezone
    """
    words = {"earliest": EARLIEST, word: LATEST} if word else {"earliest": EARLIEST}
    if isinstance(value, datetime.datetime):
        return Position(time_us=moment_us(name, value))
    if isinstance(value, str) and value in words:
        return words[value]
    choices = ", ".join([*map(repr, words), "a datetime with a timezone", *(["a message id"] if ids else [])])
    if isinstance(value, bool) or not isinstance(value, (str, int) if ids else str):
        raise errors.ArgumentTypeError(f"The argument {name} must be one of {choices}; got {type(value).__name__}.")
    if isinstance(value, str) or not 1 <= value < MESSAGE_ID_END:
        raise errors.ArgumentError(f"The argument {name} must be one of {choices}; got {value!r}.")
    return Position(message_id=value)


def span(start: object, end: object) -> Tuple[Position, Position]:
    """Return the two ends of a part of the history.

    :raise ArgumentTypeError: one is of another type
    :raise ArgumentError: one is not a message id, or is a time without a timezone
    """
    return (EARLIEST if start is None else position("start", start, "", ids=True),
            LATEST if end is None else position("end", end, "", ids=True))


def retention(value: object) -> float:
    """Return the seconds for which messages are kept.

    :raise ArgumentTypeError: it is not a number
    :raise ArgumentError: it is outside the limits
    """
    return seconds("retention_s", value, 0, RETENTION_S_MAX)


def deduplication_window(value: object) -> float:
    """Return the seconds for which a deduplication id is remembered.

    :raise ArgumentTypeError: it is not a number
    :raise ArgumentError: it is outside the limits
    """
    return seconds("deduplication_window_s", value, DEDUPLICATION_WINDOW_S_MIN, DEDUPLICATION_WINDOW_S_MAX)


def deduplication_max(value: object) -> int:
    """Return how many deduplication ids are remembered.

    :raise ArgumentTypeError: it is not an int
    :raise ArgumentError: it is outside the limits
    """
    number = at_least_one("deduplication_max", value)
    if number > DEDUPLICATION_MAX_MAX:
        raise errors.ArgumentError(f"deduplication_max must be at most {DEDUPLICATION_MAX_MAX}, got {number}.")
    return number


def due(delay_s: object, at: object) -> DueTime:
    """Return when a message is due.

    :raise ArgumentTypeError: one is of the wrong type, or not exactly one is set
    :raise ArgumentError: it is outside the limits
    """
    if (delay_s is None) == (at is None):
        raise errors.ArgumentTypeError("send_later takes either delay_s, in seconds, or at, a datetime; got "
                                       f"{'neither' if at is None else 'both'}.")
    if at is None:
        return DueTime(delay_us=round(seconds("delay_s", delay_s, 0, DELAY_S_MAX) * 1e6))
    if not isinstance(at, datetime.datetime):
        raise errors.ArgumentTypeError(f"at must be a datetime with a timezone, got {type(at).__name__}.")
    at_us = moment_us("at", at)
    if at >= AT_END:
        raise errors.ArgumentError(f"at must be before the year {AT_END.year}, got {at!r}.")
    return DueTime(at_us=at_us)


def at_least_one(name: str, value: object) -> int:
    """Return an int of at least 1.

    :raise ArgumentTypeError: it is not an int
    :raise ArgumentError: it is less than 1
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}.")
    if value < 1:
        raise errors.ArgumentError(f"{name} must be at least 1, got {value}.")
    return value


def message_ids(values: object) -> Optional[List[int]]:
    """Return message ids as a list; None stands for all.

    :raise ArgumentTypeError: it is not an iterable of ints
    """
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise errors.ArgumentTypeError(
            f"ids must be an iterable of message ids, got {type(values).__name__}: for one, pass a list of one.")
    ids = list(values)
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int):
            raise errors.ArgumentTypeError(f"A message id must be an int, got {type(value).__name__}.")
    # Other numbers cannot be ids, and would not fit into a record.
    return [value for value in ids if 0 <= value < MESSAGE_ID_END]


def delivering(shared: object = None,
               lease_s: object = None,
               max_deliveries: object = None,
               retry_delay_s: object = None,
               retry_delay_max_s: object = None,
               dead_letters_max: object = None) -> Delivering:
    """Return the checked policy of a subscriber.

    :raise ArgumentTypeError: one is of the wrong type
    :raise ArgumentError: one is outside its limits
    """
    if shared is not None and not isinstance(shared, bool):
        raise errors.ArgumentTypeError(f"shared must be a bool, got {type(shared).__name__}.")
    return Delivering(shared, _number("max_deliveries", max_deliveries, 1, MAX_DELIVERIES_MAX),
                      _number("dead_letters_max", dead_letters_max, 1, DEAD_LETTERS_MAX_MAX),
                      _seconds("lease_s", lease_s, LEASE_S_MIN), _seconds("retry_delay_s", retry_delay_s, 0),
                      _seconds("retry_delay_max_s", retry_delay_max_s, 0))


def _seconds(name: str, value: object, least: float) -> Optional[int]:
    """Return a time in whole microseconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(f"{name} must be a number of seconds, got {type(value).__name__}.")
    if not least <= value <= SECONDS_MAX:
        raise errors.ArgumentError(f"{name} must be from {least} to 10 ** 9 seconds, got {value!r}.")
    return microseconds(value)


def _number(name: str, value: object, least: int, most: int) -> Optional[int]:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}.")
    if not least <= value <= most:
        raise errors.ArgumentError(f"{name} must be from {least} to {most}, got {value}.")
    return value


def microseconds(time_s: float) -> int:
    """Return a time in whole microseconds."""
    return round(time_s * 1e6)
