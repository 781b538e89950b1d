"""The options of ``receive`` and ``history`` that say how a message is written."""

import os
import sys
from typing import Any, Callable, Mapping, Optional, Tuple, TypeVar

import click

from persipubsub.cli import formats
from persipubsub.cli.formats import FORMATS, PROTOBUF_JSON, Format
from persipubsub.control import Control

F = TypeVar("F", bound=Callable[..., Any])
#: Returns the bytes to write for a message: its payload, its headers, and what else is known of it.
MessageFormat = Callable[[bytes, Mapping[str, str], Mapping[str, object]], bytes]

_OPTIONS = (
    click.option(
        "--format",
        "format_name",
        type=click.Choice([*FORMATS, PROTOBUF_JSON]),
        default="lines",
        show_default=True,
        help="lines: each message and a line feed, with control characters escaped on a terminal; raw: the unchanged "
        "bytes; json: a line with an object that holds the text of the message or, if it is not UTF-8, its base64; "
        "hex: a line of digits; protobuf-json: a line of JSON, if the queue is bound to a message type."),
    click.option("--import",
                 "modules",
                 metavar="MODULE",
                 multiple=True,
                 help="For protobuf-json: import the module that protoc generated for the message type, such as "
                 "shop_pb2."),
    click.option("--headers",
                 "with_headers",
                 is_flag=True,
                 help="Write the headers of each message: with json, in the object; otherwise as JSON and a tab before "
                 "the message."),
)


def format_options(command: F) -> F:
    """Add the options to a command, which takes them as keyword arguments for :func:`chosen_format`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_format(control: Control, format_name: str, modules: Tuple[str, ...], with_headers: bool) -> MessageFormat:
    """Return the format that the options choose.

    :raise ClickException: the queue has no message type, or the format writes no headers
    """
    if with_headers and format_name == "raw":
        raise click.UsageError("The format raw writes nothing but the message. Choose another one for --headers.")
    formatted = _payload_format(control, format_name, modules)

    def write(payload: bytes, headers: Mapping[str, str], facts: Mapping[str, object]) -> bytes:
        if format_name == "json":
            return formats.json_line(payload, {**facts, "headers": dict(headers)} if with_headers else facts)
        return (formats.headers_column(headers) if with_headers else b"") + formatted(payload)

    return write


def _payload_format(control: Control, name: str, modules: Tuple[str, ...]) -> Format:
    if name == PROTOBUF_JSON:
        status = control.status()
        return _protobuf_json(str(status.path), status.message_type, modules)
    # A message must not control the terminal; the format raw writes its bytes unchanged.
    return formats.shown_lines if name == "lines" and sys.stdout.isatty() else FORMATS[name]


def _protobuf_json(path: str, message_type: Optional[str], modules: Tuple[str, ...]) -> Format:
    if message_type is None:
        raise click.ClickException(f"The queue at {path} is not bound to a message type, so its messages cannot be "
                                   "written as protobuf-json. Bind it with persipubsub set --message-type, or use "
                                   "another format.")
    sys.path.insert(0, os.getcwd())  # where the module is, as for python -m
    return formats.protobuf_json(path, message_type, modules)
