"""Message types for tests, made at run time as protoc's classes are: a generated file would fit one protobuf only."""

from typing import Any, Dict, Type

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_FIELD = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    """Describe a file of proto2, which alone has required fields."""
    file = descriptor_pb2.FileDescriptorProto(name="tests/shop.proto", package="shop", syntax="proto2")
    for name, fields in {
            "Order": [("number", _FIELD.TYPE_INT64, _FIELD.LABEL_REQUIRED),
                      ("item", _FIELD.TYPE_STRING, _FIELD.LABEL_OPTIONAL)],
            "Invoice": [("text", _FIELD.TYPE_STRING, _FIELD.LABEL_OPTIONAL)],
    }.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, label) in enumerate(fields, 1):
            message.field.add(name=field, number=number, type=kind, label=label)
    return file


_TYPES: Dict[str, Type[Message]] = message_factory.GetMessages([_file()], pool=descriptor_pool.Default())

# Any: mypy cannot know their fields.
Order: Any = _TYPES["shop.Order"]
Invoice: Any = _TYPES["shop.Invoice"]
for _kind in (Order, Invoice):
    _kind.__module__ = __name__  # so that a message and its class can be pickled
