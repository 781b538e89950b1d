"""Codecs of messages that are sent as JSON: plain values, dataclasses, msgspec's structs, pydantic's models.

Each of them decodes what it has encoded, so that a message which no subscriber could decode is not sent.
"""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Callable, Generic, Iterator, List, Optional, Set, Type, TypeVar

import msgspec
import msgspec.inspect

from persipubsub import errors
from persipubsub.engine import checks
from persipubsub.typed.coding import Coding, class_name, reason

if TYPE_CHECKING:
    from persipubsub.typed import Codec

T = TypeVar("T")

_PLAIN = (dict, list, str)
#: What JSON is decoded to.
_VALUES = (dict, list, str, int, float, bool)
#: The first version of pydantic that decodes by names and aliases of fields alike.
_PYDANTIC_MIN = (2, 11)


def coding_of(message_type: Type[T]) -> Optional[Coding[T]]:
    """Return the coding of a class; None if it is of no kind that is sent as JSON.

    :raise ArgumentTypeError: it is of such a kind, but cannot be sent
    """
    kind: "Callable[[Type[T]], Codec[T]]"
    if message_type in _PLAIN:
        kind = _PlainCodec
    elif hasattr(message_type, "__pydantic_validator__"):
        kind = _PydanticCodec
    elif dataclasses.is_dataclass(message_type) or issubclass(message_type, msgspec.Struct):
        kind = _StructCodec
    else:
        return None
    noun = class_name(message_type)
    try:
        codec: "Codec[T]" = kind(message_type)
    except Exception as error:  # pylint: disable=broad-exception-caught  # annotations may raise anything
        raise errors.ArgumentTypeError(f"{noun} cannot be a message type: {reason(error)}. Change its fields, or pass "
                                       "an object with name, encode and decode.") from error
    return Coding(codec, message_type, noun, message_type, message_type not in _PLAIN)


def _name(message_type: type) -> str:
    # Without the module: that of a program's own class is __main__ in one program, and another name in the others.
    return checks.message_type(f"json:{message_type.__name__}")


class _StructCodec(Generic[T]):
    """Dataclasses and msgspec's structs, which msgspec validates."""

    def __init__(self, message_type: Type[T]) -> None:
        self.name = _name(message_type)
        _require_concrete(message_type, msgspec.Struct)
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(message_type)
        for unknown in _custom_types(msgspec.inspect.type_info(message_type)):
            if not any(issubclass(value, unknown) for value in _VALUES):
                raise ValueError(f"JSON has no values of {class_name(unknown)}")

    def encode(self, message: T) -> bytes:
        """Return the JSON of a message, which can be decoded."""
        payload = self._encoder.encode(message)
        self._decoder.decode(payload)
        return payload

    def decode(self, payload: bytes) -> T:
        """Return the message of JSON."""
        return self._decoder.decode(payload)


class _PlainCodec(_StructCodec[T]):
    """Values of JSON. What msgspec encodes as another value, such as a set, is refused."""

    def __init__(self, message_type: Type[T]) -> None:
        super().__init__(message_type)
        self._encoder = msgspec.json.Encoder(enc_hook=_base_value)

    def encode(self, message: T) -> bytes:
        """Return the JSON of a value, which is decoded as an equal value."""
        payload = self._encoder.encode(message)
        if self._decoder.decode(payload) != message:
            raise ValueError("it would arrive as another value, since JSON has only dict with str as keys, list, str, "
                             "int, finite float, bool and None")
        return payload


def _base_value(value: object) -> object:
    """Return the value of JSON that an object of a subclass is."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(f"JSON cannot have a {class_name(type(value))} there")


class _PydanticCodec(Generic[T]):
    """Models and dataclasses of pydantic, which it validates."""

    def __init__(self, message_type: Type[T]) -> None:
        self.name = _name(message_type)
        import pydantic  # here, since only a program that has such a class needs it
        if tuple(map(int, pydantic.VERSION.split(".")[:2])) < _PYDANTIC_MIN:
            raise ValueError(f"pydantic {pydantic.VERSION} is too old; {'.'.join(map(str, _PYDANTIC_MIN))} is enough")
        _require_concrete(message_type, pydantic.BaseModel)
        self._error = pydantic.ValidationError
        self._adapter = pydantic.TypeAdapter(message_type)
        if not self._adapter.pydantic_complete:
            self._adapter.rebuild()

    def encode(self, message: T) -> bytes:
        """Return the JSON of a message, which can be decoded."""
        # Without computed fields, which a model may refuse. What is of a wrong type is found by decoding.
        payload = self._adapter.dump_json(message, round_trip=True, warnings="none")
        self.decode(payload)
        return payload

    def decode(self, payload: bytes) -> T:
        """Return the message of JSON."""
        try:
            return self._adapter.validate_json(payload, by_name=True)
        except self._error as error:
            # In one line, and without the values, which may be secret.
            raise ValueError("; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")
                                       for one in error.errors())) from error


def _require_concrete(message_type: type, base: type) -> None:
    """Refuse classes of which only subclasses or parametrized ones have messages."""
    if message_type is base or inspect.isabstract(message_type):
        raise ValueError("it is abstract: pass the class of the messages")
    if getattr(message_type, "__parameters__", ()):
        raise ValueError("it is generic: derive a class from it with types for its parameters")


def _custom_types(info: msgspec.inspect.Type) -> Iterator[type]:
    """Iterate over the types in the fields of a type that msgspec does not know."""
    left: List[object] = [info]
    seen: Set[int] = set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, msgspec.inspect.CustomType):
            yield one.cls
        elif isinstance(one, (msgspec.inspect.Type, msgspec.inspect.Field)):
            left += [getattr(one, name) for name in one.__struct_fields__]
        elif isinstance(one, tuple):
            left += one
