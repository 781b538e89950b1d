"""How endpoints encode and decode messages of a type: one by one and in batches, with errors of this package."""

from typing import TYPE_CHECKING, Any, Generic, List, NoReturn, TypeVar

from persipubsub import errors
from persipubsub.engine.limits import MESSAGE_ID_END
from persipubsub.engine.values import Found, make

if TYPE_CHECKING:
    from persipubsub.typed import Codec

T = TypeVar("T")


class Coding(Generic[T]):
    """A codec as endpoints use it.

    :param message_type: what the program passed
    :param noun: what the messages are, for errors
    :param base: the class of all messages
    :param exact: whether messages of its subclasses are refused
    """

    def __init__(self,
                 codec: "Codec[T]",
                 message_type: Any,
                 noun: str,
                 base: type = object,
                 exact: bool = False) -> None:
        self.name = codec.name
        self.message_type = message_type
        self._codec = codec
        self._noun = noun
        self._base = base
        self._exact = exact

    def encode(self, msg: T) -> bytes:
        """Return the bytes of a message.

        :raise ArgumentTypeError: it is of another type, or the codec did not return bytes
        :raise ArgumentError: it cannot be encoded
        """
        # pylint: disable-next=unidiomatic-typecheck  # subclasses differ
        if type(msg) is not self._base and (self._exact or not isinstance(msg, self._base)):
            self._refuse(msg)
        try:
            payload = self._codec.encode(msg)
        except Exception as error:  # pylint: disable=broad-exception-caught  # of the program, or of its library
            raise errors.ArgumentError(f"The message cannot be encoded: {reason(error)}.") from error
        if not isinstance(payload, bytes):
            raise errors.ArgumentTypeError(
                f"The codec {self.name} must encode messages as bytes, got {class_name(type(payload))}.")
        return payload

    def _refuse(self, msg: object) -> NoReturn:
        base = class_name(self._base)
        noun = self._noun if base == self._noun else f"{self._noun} ({base})"
        hint = " What a subclass adds would not arrive." if isinstance(msg, self._base) else ""
        raise errors.ArgumentTypeError(f"A message must be a {noun}, got {class_name(type(msg))}.{hint}")

    def encode_chunk(self, start: int, chunk: List[T]) -> List[bytes]:
        """Return the bytes of some messages of a batch. The errors are those of :meth:`encode`, with the index.

        :param start: the index of the first one
        """
        payloads: List[bytes] = []
        try:
            for msg in chunk:
                payloads.append(self.encode(msg))
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            raise type(error)(f"Message {start + len(payloads)} of the batch: {error} None was sent.") from error
        return payloads

    def decoded(self, found: Found, identifier: str, location: object) -> Found:
        """Decode the payloads that a subscriber found, up to the first that cannot be decoded.

        :param found: what the subscriber found
        :param identifier: of the subscriber, for the error
        :param location: of the queue, for the error
        :raise DecodeError: the first payload cannot be decoded
        """
        messages: List[Any] = []
        try:
            for payload in found.payloads:
                messages.append(self._codec.decode(payload))
        except Exception as why:  # pylint: disable=broad-exception-caught  # of the program, or of its library
            count = len(messages)
            if count:
                return found._replace(ids=found.ids[:count], payloads=messages, details=found.details[:count])
            message_id = found.ids[0] % MESSAGE_ID_END
            error = errors.DecodeError(
                f"Message {message_id} of the queue at {location}, for the subscriber {identifier!r}, is not a "
                f"{self._noun}: {reason(why)}. It is not acknowledged. Skip it with pop(), or look at its bytes: "
                "they are the payload of this error.")
            error.message_id, error.payload = message_id, found.payloads[0]
            raise error from why
        return make(Found, (found.ids, messages, *found[2:]))


def class_name(kind: type) -> str:
    """Return the name of a class, as errors name it."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def reason(error: Exception) -> str:
    """Return the reason that an exception has, as a part of a sentence."""
    try:
        text = str(error).rstrip(".")
    except Exception:  # pylint: disable=broad-exception-caught  # a program's own __str__
        text = ""
    # A bare ValueError is that of a codec of ours, which says it in words.
    name = type(error).__name__
    return text if text and name == "ValueError" else ": ".join(filter(None, (name, text)))
