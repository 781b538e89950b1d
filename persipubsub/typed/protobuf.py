"""Protobuf messages, also as JSON for people to read."""

import contextlib
import importlib
from typing import Any, Callable, Generic, Iterable, List, Type, TypeVar

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, EncodeError, Message

from persipubsub import errors
from persipubsub.engine.values import Found, make
from persipubsub.typed.coding import Coding

__all__ = ["ProtobufCoding", "full_name", "json_writer"]

M = TypeVar("M", bound=Message)


class ProtobufCoding(Coding[M]):
    """Encodes and decodes the messages of one type, in batches as fast as protobuf can.

    :param message_type: a class that protoc generated, or one of protobuf's own
    :raise ArgumentTypeError: it is not such a class
    """

    def __init__(self, message_type: Type[M]) -> None:
        codec = _ProtobufCodec(message_type)
        super().__init__(codec, message_type, codec.name, message_type)

    def encode_chunk(self, start: int, chunk: List[M]) -> List[bytes]:
        """Return the bytes of some messages of a batch, at once unless one is invalid."""
        if set(map(type, chunk)) == {self.message_type}:
            with contextlib.suppress(EncodeError):
                return list(map(self.message_type.SerializeToString, chunk))
        return super().encode_chunk(start, chunk)

    def decoded(self, found: Found, identifier: str, location: object) -> Found:
        """Decode the payloads that a subscriber found, at once unless one is invalid."""
        try:
            messages: List[Any] = list(map(self.message_type.FromString, found.payloads))
            if all(map(self.message_type.IsInitialized, messages)):
                return make(Found, (found.ids, messages, *found[2:]))
        except DecodeError:
            pass
        return super().decoded(found, identifier, location)


class _ProtobufCodec(Generic[M]):
    """The codec of one class."""

    def __init__(self, message_type: Type[M]) -> None:
        self.name = full_name(message_type)
        self._message_type = message_type

    def encode(self, message: M) -> bytes:
        """Return the bytes of a message."""
        return message.SerializeToString()

    def decode(self, payload: bytes) -> M:
        """Return the message that bytes encode.

        :raise ValueError: they do not parse, or lack required fields
        """
        try:
            message = self._message_type.FromString(payload)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        if not message.IsInitialized():
            raise ValueError(f"it lacks required fields: {_missing(message)}")
        return message


def full_name(message_type: Type[Message]) -> str:
    """Return the full name of a message type, such as ``shop.Order``.

    :raise ArgumentTypeError: it is not a class of messages
    """
    # Message itself has no descriptor.
    descriptor = getattr(message_type, "DESCRIPTOR", None)
    if not isinstance(message_type, type) or not issubclass(message_type, Message) or descriptor is None:
        raise errors.ArgumentTypeError("message_type must be a class of protobuf messages, such as protoc generates, "
                                       f"got {message_type!r}.")
    return str(descriptor.full_name)


def json_writer(name: str, modules: Iterable[str] = ()) -> Callable[[bytes], str]:
    """Return a function that writes the payload of a message as a line of protobuf's JSON.

    :param name: the full name of the message type
    :param modules: modules to import first: a type is known once the module that protoc generated for it is imported
    :raise ArgumentError: there is no such module, or no such type is known
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise errors.ArgumentError(f"The module {module} cannot be imported: {error}. Name the one that protoc "
                                       f"generated for {name}, and add its directory to PYTHONPATH.") from error
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError as error:
        raise errors.ArgumentError(f"The message type {name} is not known. Import the module that protoc generated "
                                   "for it.") from error
    codec: _ProtobufCodec[Message] = _ProtobufCodec(message_factory.GetMessageClass(descriptor))

    def write(payload: bytes) -> str:
        """Write a message.

        :raise ValueError: the payload cannot be decoded, or has a part unknown to JSON or to this process
        """
        message = codec.decode(payload)
        try:
            return json_format.MessageToJson(message, indent=None, ensure_ascii=False)
        except (json_format.Error, TypeError, ValueError) as error:
            raise ValueError(f"the {name} cannot be written as JSON: {error}") from error

    return write


def _missing(message: Any) -> str:  # Any: protobuf's type stubs lack the method
    return ", ".join(message.FindInitializationErrors())
