"""Protobuf messages instead of bytes.

Imported only for a message type, so that a program that sends bytes does not load protobuf.
"""

import contextlib
import importlib
import itertools
from typing import Any, Callable, Generic, Iterable, Iterator, List, Type, TypeVar

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, EncodeError, Message

from persipubsub import errors
from persipubsub.engine.checks import CHUNK_MESSAGES
from persipubsub.engine.values import Found

__all__ = ["Codec", "full_name", "json_writer"]

M = TypeVar("M", bound=Message)


class Codec(Generic[M]):
    """Encodes and decodes the messages of one type.

    :param message_type: a class that protoc generated, or one of protobuf's own
    :raise ArgumentTypeError: it is not such a class
    """

    def __init__(self, message_type: Type[M]) -> None:
        self.name = full_name(message_type)
        self.message_type = message_type

    def encode(self, msg: M) -> bytes:
        """Return the bytes of a message.

        :raise ArgumentTypeError: it is of another type
        :raise ArgumentError: it lacks required fields
        """
        if not isinstance(msg, self.message_type):
            raise errors.ArgumentTypeError(f"A message must be a {self.name} ({_class_name(self.message_type)}), "
                                           f"got {_class_name(type(msg))}.")
        try:
            return msg.SerializeToString()
        except EncodeError as error:
            # The text of protobuf names the fields that are missing.
            raise errors.ArgumentError(f"The message cannot be encoded: {error}.") from error

    def encode_all(self, msgs: Iterable[M]) -> Iterator[bytes]:
        """Return the bytes of each message of a batch. The errors are those of :meth:`encode`, with the index."""
        if isinstance(msgs, (str, bytes, Message)) or not isinstance(msgs, Iterable):
            raise errors.ArgumentTypeError(f"send_many takes an iterable of {self.name}, got {_class_name(type(msgs))}."
                                           " For one message use send.")
        return self._encoded(msgs)

    def _encoded(self, msgs: Iterable[M]) -> Iterator[bytes]:
        messages, start = iter(msgs), 0
        # In chunks, each encoded at once unless a message is invalid.
        while chunk := list(itertools.islice(messages, CHUNK_MESSAGES)):
            payloads: Iterable[bytes] = (self._element(start + index, msg) for index, msg in enumerate(chunk))
            if set(map(type, chunk)) == {self.message_type}:
                with contextlib.suppress(EncodeError):
                    payloads = list(map(self.message_type.SerializeToString, chunk))
            yield from payloads
            start += len(chunk)

    def _element(self, index: int, msg: M) -> bytes:
        try:
            return self.encode(msg)
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            raise type(error)(f"Message {index} of the batch: {error} None was sent.") from error

    def decode(self, payload: bytes) -> M:
        """Return the message that bytes encode.

        :raise ValueError: they do not parse, or lack required fields
        """
        try:
            message = self.message_type.FromString(payload)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        if not message.IsInitialized():
            raise ValueError(f"it lacks required fields: {_missing(message)}")
        return message

    def decoded(self, found: Found, identifier: str, location: object) -> Found:
        """Decode the payloads that a subscriber found, up to the first that cannot be decoded.

        :param found: what the subscriber found
        :param identifier: of the subscriber, for the error
        :param location: of the queue, for the error
        :raise DecodeError: the first payload cannot be decoded
        """
        try:
            messages: List[Any] = list(map(self.message_type.FromString, found.payloads))
            if all(map(self.message_type.IsInitialized, messages)):
                # Not _replace: it is slow, and this is done for every message.
                return Found(found.ids, messages, *found[2:])
        except DecodeError:
            pass
        messages = []
        for message_id, payload in zip(found.ids, found.payloads):
            try:
                messages.append(self.decode(payload))
            except ValueError as reason:
                if messages:
                    break
                error = errors.DecodeError(
                    f"Message {message_id} of the queue at {location}, for the subscriber {identifier!r}, is not a "
                    f"{self.name}: {reason}. It is not acknowledged. Skip it with pop(), or look at its bytes: "
                    "they are the payload of this error.")
                error.message_id, error.payload = message_id, payload
                raise error from reason
        return found._replace(ids=found.ids[:len(messages)], payloads=messages)


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
    codec: Codec[Message] = Codec(message_factory.GetMessageClass(descriptor))

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


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
