"""Headers of messages: names with texts, which travel with a message as JSON."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Dict, Optional, Tuple

from persipubsub import errors, lazy_imports

if TYPE_CHECKING:
    import msgspec

HEADERS_MAX = 64
#: The maximum size of the JSON.
HEADERS_BYTES_MAX = 64 * 1024
NAME_BYTES_MAX = 255
#: Visible ASCII without a colon, so that other protocols can carry it.
_NAME = re.compile(r"[!-9;-~]+")


@functools.lru_cache(maxsize=None)
def _codec() -> "Tuple[msgspec.json.Encoder, msgspec.json.Decoder[Dict[str, str]]]":
    with lazy_imports.NoFork():
        import msgspec  # here, since most programs send no headers
    return msgspec.json.Encoder(enc_hook=str.__str__), msgspec.json.Decoder(Dict[str, str])


def encoded(headers: Optional[Mapping[str, str]]) -> bytes:
    """Return headers as a JSON object; no bytes if there are none.

    :raise ArgumentTypeError: they are not a mapping of str to str
    :raise ArgumentError: they are outside the limits, or a name or text cannot be a header
    """
    if headers is None:
        return b""
    if not isinstance(headers, Mapping):
        raise errors.ArgumentTypeError(f"headers must be a mapping of str to str, got {type(headers).__name__}.")
    if len(headers) > HEADERS_MAX:
        raise errors.ArgumentError(f"A message may have at most {HEADERS_MAX} headers, got {len(headers)}.")
    for name, text in headers.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise errors.ArgumentTypeError("headers must be a mapping of str to str, got "
                                           f"{type(name).__name__} to {type(text).__name__} for {name!r:.60}.")
        if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
            raise errors.ArgumentError(f"The name of a header must have 1 to {NAME_BYTES_MAX} visible ASCII characters "
                                       f"without a colon, got {name!r:.60}.")
    try:
        value = _codec()[0].encode(dict(headers)) if headers else b""
    except UnicodeEncodeError as error:
        raise errors.ArgumentError(f"The text of a header must be encodable as UTF-8: {error}.") from error
    if len(value) > HEADERS_BYTES_MAX:
        raise errors.ArgumentError(f"The headers of a message may have at most {HEADERS_BYTES_MAX} bytes as JSON, got "
                                   f"{len(value)}. Put large values into the message.")
    return value


def decoded(value: bytes) -> Dict[str, str]:
    """Return headers from their JSON.

    :raise DamagedError: it is not the JSON of headers
    """
    if not value:
        return {}
    try:
        return _codec()[1].decode(value)
    except (ValueError, RecursionError) as error:
        raise errors.DamagedError(f"The headers of a message cannot be read: {error}.") from error
