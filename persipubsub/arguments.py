"""What callers may pass: each function gives the checked value or raises an error that names the remedy.

The paths that run for every message check by hand: an icontract condition costs 3 microseconds.
"""

import itertools
import os
from typing import Iterable, List, Optional

from persipubsub import errors
from persipubsub.queue import IDENTIFIER_BYTES_MAX, MESSAGE_BYTES_MAX, Batch

BATCH_MESSAGES_MAX = 1_000_000
BATCH_BYTES_MAX = 1024**3
STRETCH_MESSAGES = 1000
MESSAGE_ID_END = 2**63
#: Longer timeouts are this one, so that time can be reckoned with them: 30 years.
TIMEOUT_S_MAX = 1e9


def payload(msg: object) -> bytes:
    """Give the bytes of a message.

    :raise ArgumentTypeError: it is not bytes-like
    :raise MessageTooLargeError: it is over the limit
    """
    if type(msg) is not bytes:  # pylint: disable=unidiomatic-typecheck  # the fast path: exactly bytes needs no copy
        if not isinstance(msg, (bytes, bytearray, memoryview)):
            try:
                memoryview(msg)  # type: ignore[arg-type]  # the question is whether it is a buffer
            except TypeError:
                raise errors.ArgumentTypeError(
                    f"A message must be bytes-like (bytes, bytearray, memoryview), got {type(msg).__name__}"
                    f"{': encode it first, e.g. msg.encode()' if isinstance(msg, str) else ''}.") from None
        msg = bytes(memoryview(msg))  # type: ignore[arg-type]  # checked above
    if len(msg) > MESSAGE_BYTES_MAX:
        raise errors.MessageTooLargeError(
            f"A message of {len(msg)} bytes is over the limit of {MESSAGE_BYTES_MAX} bytes. Send it in parts.")
    return msg


def batch(msgs: object) -> Batch:
    """Give the bytes of the messages of a batch.

    :raise ArgumentTypeError: it is not an iterable of bytes-like objects
    :raise MessageTooLargeError: one is over the limit
    :raise BatchTooLargeError: there are too many, or they are too large together
    """
    if isinstance(msgs, (str, bytes, bytearray, memoryview)) or not isinstance(msgs, Iterable):
        raise errors.ArgumentTypeError(
            f"send_many takes an iterable of bytes-like messages, got {type(msgs).__name__}. For one message use send.")
    result: List[bytes] = []
    size_bytes = largest_bytes = 0
    messages = iter(msgs)
    # In stretches, so that an iterable without end is refused before it fills the memory.
    while stretch := list(itertools.islice(messages, STRETCH_MESSAGES)):
        if set(map(type, stretch)) != {bytes}:
            stretch = [_element(index, msg) for index, msg in enumerate(stretch, len(result))]
        sizes = list(map(len, stretch))
        result += stretch
        size_bytes += sum(sizes)
        largest_bytes = max(largest_bytes, *sizes)
        if len(result) > BATCH_MESSAGES_MAX or size_bytes > BATCH_BYTES_MAX:
            raise errors.BatchTooLargeError(
                f"send_many takes at most {BATCH_MESSAGES_MAX} messages and {BATCH_BYTES_MAX} bytes, since it is one "
                "transaction. None was sent: send them in several batches.")
    return Batch(result, size_bytes, largest_bytes)


def _element(index: int, msg: object) -> bytes:
    try:
        return payload(msg)
    except errors.ArgumentTypeError as error:
        raise errors.ArgumentTypeError(f"Message {index} of the batch: {error} None was sent.") from None


def identifier(value: object) -> bytes:
    """Give the bytes of a subscriber's identifier.

    :raise ArgumentTypeError: it is not a str
    :raise ArgumentError: it is empty, too long, or not UTF-8 without NUL
    """
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"A subscriber's identifier must be a str, got {type(value).__name__}.")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise errors.ArgumentError(f"A subscriber's identifier must be encodable as UTF-8, got {value!r}.") from error
    if not 1 <= len(encoded) <= IDENTIFIER_BYTES_MAX:
        raise errors.ArgumentError(
            f"A subscriber's identifier must have 1 to {IDENTIFIER_BYTES_MAX} bytes of UTF-8, got {len(encoded)}: "
            f"{value[:40]!r}.")
    if b"\0" in encoded:
        raise errors.ArgumentError(f"A subscriber's identifier must not have a NUL, got {value!r}.")
    return encoded


def identifiers(values: object) -> List[bytes]:
    """Give the bytes of several identifiers; a single str is not taken for a list of its letters.

    :raise ArgumentTypeError: it is not an iterable of str
    :raise ArgumentError: one is outside the limits
    """
    if values is None:
        return []
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise errors.ArgumentTypeError(
            f"subscriber_ids must be an iterable of str, got {type(values).__name__}: for one, give a list of one.")
    return [identifier(value) for value in values]


def directory(value: object) -> str:
    """Give the path of a directory.

    :raise ArgumentTypeError: it is not a str or PathLike of str
    :raise ArgumentError: it is empty, has a NUL, or cannot be the name of a file
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise errors.ArgumentTypeError(f"path must be a str or PathLike of str, got {type(value).__name__}.")
    if not path or "\0" in path:
        raise errors.ArgumentError(f"path must name a directory, not be empty and have no NUL, got {path!r}.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise errors.ArgumentError(f"path must be encodable as the names of files are, got {path!r}.") from error
    return path


def timeout(value: object) -> Optional[float]:
    """Give a timeout in seconds; None waits for ever.

    :raise ArgumentTypeError: it is not a number
    :raise ArgumentError: it is negative or not a number at all
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(f"timeout must be a number of seconds or None, got {type(value).__name__}.")
    if not value >= 0:  # NaN neither
        raise errors.ArgumentError(
            f"timeout must be 0 (look once), more (seconds), or None (wait for ever); got {value}.")
    return min(value, TIMEOUT_S_MAX)


def at_least_one(name: str, value: object) -> int:
    """Give a number that must be an int of at least 1.

    :raise ArgumentTypeError: it is not an int
    :raise ArgumentError: it is less than 1
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}.")
    if value < 1:
        raise errors.ArgumentError(f"{name} must be at least 1, got {value}.")
    return value


def message_ids(values: object) -> Optional[List[int]]:
    """Give message ids as a list; None stands for all.

    :raise ArgumentTypeError: it is not an iterable of ints
    """
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise errors.ArgumentTypeError(
            f"ids must be an iterable of message ids, got {type(values).__name__}: for one, give a list of one.")
    ids = list(values)
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int):
            raise errors.ArgumentTypeError(f"A message id must be an int, got {type(value).__name__}.")
    # No other number is an id: records have no room for it.
    return [value for value in ids if 0 <= value < MESSAGE_ID_END]
