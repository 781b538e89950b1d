"""Formats of a message, with one function each; and a number with its noun."""

from typing import Callable, Dict, Sequence

from persipubsub.cli import output

Format = Callable[[bytes], bytes]


def _raw(payload: bytes) -> bytes:
    return payload


def _lines(payload: bytes) -> bytes:
    return payload + b"\n"


def shown_lines(payload: bytes) -> bytes:
    """Write a message as lines with escaped control characters; tabs and line feeds stay."""
    text = payload.decode("utf-8", "surrogateescape")
    lines = ("\t".join(map(output.shown, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(lines).encode() + b"\n"


def _hex(payload: bytes) -> bytes:
    return payload.hex().encode() + b"\n"


def _json(payload: bytes) -> bytes:
    # Imported here: only this format needs them.
    import base64
    import json
    try:
        written = {"text": payload.decode()}
    except UnicodeDecodeError:
        written = {"base64": base64.b64encode(payload).decode()}
    # In ASCII: some readers treat other characters besides the line feed as the end of a line.
    return json.dumps(written).encode() + b"\n"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


#: The format for a queue that is bound to a message type.
PROTOBUF_JSON = "protobuf-json"


def protobuf_json(path: str, message_type: str, modules: Sequence[str]) -> Format:
    """Return the format that writes messages of a protobuf type as JSON.

    :param message_type: its full name
    :param modules: modules to import first: one of them defines the type
    :raise ArgumentError: there is no such module, or it does not define the type
    """
    # Imported here: only this format needs them.
    import json

    from persipubsub import errors, typed
    try:
        line = typed.json_writer(message_type, modules)
    except errors.ArgumentError as error:
        raise errors.ArgumentError(f"{error} Name the module with --import MODULE.") from error

    def write(payload: bytes) -> bytes:
        try:
            # Control characters are written as escapes of JSON.
            return "".join(one if one.isprintable() else json.dumps(one)[1:-1]
                           for one in line(payload)).encode() + b"\n"
        except ValueError as error:
            raise errors.DecodeError(f"The next message of the queue at {path} cannot be written: {error}. It is not "
                                     "acknowledged. Show it with --format hex --peek; skip it with --max 1.") from error

    return write


#: Formats by name. Each returns the bytes to write for a message, including its terminator.
FORMATS: Dict[str, Format] = {
    "lines": _lines,
    "raw": _raw,
    "json": _json,
    "hex": _hex,
}
