"""Messages of a type instead of bytes. Imported only for a message type."""

import typing
from typing import Any, List, Optional, Protocol, TypeVar

from persipubsub import errors
from persipubsub.engine import checks
from persipubsub.typed.coding import Coding

__all__ = ["Codec", "coding_of", "name_of"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """Encodes and decodes messages. A program passes one as ``message_type`` for a type of its own.

    Threads may call it at the same time. It must be possible to pickle it if endpoints that have it are passed to other
    processes.
    """

    #: The name to which a queue may be bound, such as ``shop.Order``: names joined by dots.
    name: str

    def encode(self, message: T) -> bytes:
        """Return the bytes of a message. Any exception means that the message cannot be sent."""

    def decode(self, payload: bytes) -> T:
        """Return the message that bytes encode. Any exception means that they are not a message of this type."""


def coding_of(message_type: Any) -> Coding[Any]:
    """Return the coding of a message type.

    :param message_type: a class of protobuf messages; ``dict``, ``list`` or ``str``, a dataclass, a class of
        ``msgspec.Struct``, or a pydantic model, which are sent as JSON; or a :class:`Codec`
    :raise ArgumentTypeError: it is none of these, or has fields that cannot be sent
    """
    if typing.get_origin(message_type) is not None:
        raise errors.ArgumentTypeError(
            f"message_type must be a class, so it cannot be {message_type!r}. Derive a class "
            "from it, or make it a field of a dataclass.")
    if not isinstance(message_type, type):
        return _coding_of_codec(message_type)
    if hasattr(message_type, "DESCRIPTOR"):
        from persipubsub.typed import protobuf  # here, so that only programs that need protobuf load it
        return protobuf.ProtobufCoding(message_type)
    from persipubsub.typed import json_codecs  # here, since it loads msgspec
    coding: Optional[Coding[Any]] = json_codecs.coding_of(message_type)
    if coding is None:
        raise _wrong(message_type, "" if _lacking(message_type) else " Pass an instance of the codec, not its class.")
    return coding


def _coding_of_codec(codec: Any) -> Coding[Any]:
    lacking = _lacking(codec)
    if not hasattr(codec, "name"):
        lacking.append("name")
    if lacking:
        raise _wrong(codec, f" It lacks {lacking[0]}." if len(lacking) == 1 else "")
    try:
        name = checks.message_type(codec.name)
    except (errors.ArgumentError, errors.ArgumentTypeError) as error:
        raise type(error)(f"The name of the codec {codec!r} cannot be that of a message type: {error}") from error
    return Coding(codec, codec, name)


def _lacking(codec: object) -> List[str]:
    return [name for name in ("encode", "decode") if not callable(getattr(codec, name, None))]


def _wrong(message_type: object, hint: str) -> errors.ArgumentTypeError:
    return errors.ArgumentTypeError(
        "message_type must be a class of protobuf messages, dict, list, str, a dataclass, a class of msgspec.Struct, a "
        f"pydantic model, or an object with name, encode and decode, got {message_type!r}.{hint}")


def name_of(message_type: Any) -> str:
    """Return the name to which a queue is bound by a message type.

    :raise ArgumentTypeError: it is no message type
    """
    return coding_of(message_type).name
