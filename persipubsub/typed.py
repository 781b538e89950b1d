"""Protobuf messages in the place of bytes.

Imported only where a message type is given: who sends bytes does not wait for the import of protobuf.
"""

import contextlib
import importlib
import itertools
from typing import Any, Callable, Generic, Iterable, Iterator, List, Type, TypeVar

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, EncodeError, Message

from persipubsub import errors
from persipubsub.engine.checks import STRETCH_MESSAGES
from persipubsub.engine.values import Found

__all__ = ["Codec", "full_name", "json_writer"]

M = TypeVar("M", bound=Message)


class Codec(Generic[M]):
    """Makes bytes of the messages of one type, and messages of bytes.

    :param message_type: a class that protoc generated, or one of protobuf's own
    :raise ArgumentTypeError: it is no such class
    """

    def __init__(self, message_type: Type[M]) -> None:
        self.name = full_name(message_type)
        self.message_type = message_type

    def encode(self, msg: M) -> bytes:
        """Give the bytes of a message.

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
        """Give the bytes of each message of a batch; the errors are those of :meth:`encode`, with the index."""
        if isinstance(msgs, (str, bytes, Message)) or not isinstance(msgs, Iterable):
            raise errors.ArgumentTypeError(f"send_many takes an iterable of {self.name}, got {_class_name(type(msgs))}."
                                           " For one message use send.")
        return self._encoded(msgs)

    def _encoded(self, msgs: Iterable[M]) -> Iterator[bytes]:
        messages, start = iter(msgs), 0
        # In stretches, which are encoded at one go unless something is wrong.
        while stretch := list(itertools.islice(messages, STRETCH_MESSAGES)):
            payloads: Iterable[bytes] = (self._element(start + index, msg) for index, msg in enumerate(stretch))
            if set(map(type, stretch)) == {self.message_type}:
                with contextlib.suppress(EncodeError):
                    payloads = list(map(self.message_type.SerializeToString, stretch))
            yield from payloads
            start += len(stretch)

    def _element(self, index: int, msg: M) -> bytes:
        try:
            return self.encode(msg)
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            raise type(error)(f"Message {index} of the batch: {error} None was sent.") from error

    def decode(self, payload: bytes) -> M:
        """Give the message of which bytes are.

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
        """Put messages in the place of the payloads that a look has found, up to the first that is no message.

        :param found: what a subscriber found
        :param identifier: the subscriber's, for the error
        :param location: of the queue, for the error
        :raise DecodeError: the first is none
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
                    f"Message {message_id} of the queue at {location}, for the subscriber {identifier!r}, is no "
                    f"{self.name}: {reason}. It stays. Take it unread with pop(), or look at its bytes: they are the "
                    "payload of this error.")
                error.message_id, error.payload = message_id, payload
                raise error from reason
        return found._replace(ids=found.ids[:len(messages)], payloads=messages)


def full_name(message_type: Type[Message]) -> str:
    """Give the full name of a message type, as ``shop.Order``.

    :raise ArgumentTypeError: it is no class of messages
    """
    # Message itself has no descriptor.
    descriptor = getattr(message_type, "DESCRIPTOR", None)
    if not isinstance(message_type, type) or not issubclass(message_type, Message) or descriptor is None:
        raise errors.ArgumentTypeError("message_type must be a class of protobuf messages, such as protoc generates, "
                                       f"got {message_type!r}.")
    return str(descriptor.full_name)


def json_writer(name: str, modules: Iterable[str] = ()) -> Callable[[bytes], str]:
    """Give a function that makes a line of protobuf's JSON of the payload of a message.

    :param name: the full name of the message type
    :param modules: to import before, since a type is known once the module that protoc generated for it is imported
    :raise ArgumentError: there is no such module, or no such type is known
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise errors.ArgumentError(f"The module {module} cannot be imported: {error}. Name the one that protoc "
                                       f"generated for {name}, and have PYTHONPATH lead to it.") from error
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError as error:
        raise errors.ArgumentError(f"The message type {name} is not known. Import the module that protoc generated "
                                   "for it.") from error
    codec: Codec[Message] = Codec(message_factory.GetMessageClass(descriptor))

    def write(payload: bytes) -> str:
        """Write a message.

        :raise ValueError: the payload is none, or has a part of which JSON or this process knows nothing
        """
        message = codec.decode(payload)
        try:
            return json_format.MessageToJson(message, indent=None, ensure_ascii=False)
        except (json_format.Error, TypeError, ValueError) as error:
            raise ValueError(f"the {name} cannot be written as JSON: {error}") from error

    return write


def _missing(message: Any) -> str:  # Any: the types of protobuf lack the method
    return ", ".join(message.FindInitializationErrors())


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
