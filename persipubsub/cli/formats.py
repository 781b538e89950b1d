"""How a message is written: one function for each format; and a number with its noun."""

from typing import Callable, Dict, Sequence

from persipubsub.cli import output

Format = Callable[[bytes], bytes]


def _raw(payload: bytes) -> bytes:
    return payload


def _lines(payload: bytes) -> bytes:
    return payload + b"\n"


def shown_lines(payload: bytes) -> bytes:
    """Write a message as a line that no terminal obeys; tabs and line feeds are layout, and stay."""
    text = payload.decode("utf-8", "surrogateescape")
    lines = ("\t".join(map(output.shown, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(lines).encode() + b"\n"


def _hex(payload: bytes) -> bytes:
    return payload.hex().encode() + b"\n"


def _json(payload: bytes) -> bytes:
    # Only here: the other formats do without.
    import base64
    import json
    try:
        written = {"text": payload.decode()}
    except UnicodeDecodeError:
        written = {"base64": base64.b64encode(payload).decode()}
    # In ASCII: some readers of lines take more characters than the line feed for the end of one.
    return json.dumps(written).encode() + b"\n"


def counted(count: int, noun: str) -> str:
    """Give a number with its noun, in the plural where it is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


#: The format that a queue bound to a message type can be written in.
PROTOBUF_JSON = "protobuf-json"


def protobuf_json(path: str, message_type: str, modules: Sequence[str]) -> Format:
    """Give the format that writes messages of a protobuf type as its JSON.

    :param message_type: its full name
    :param modules: to import before: the type is known once the module that protoc generated for it is imported
    :raise ArgumentError: there is no such module, or it does not define the type
    """
    # Only here: the other formats do without.
    import json

    from persipubsub import errors, typed
    try:
        line = typed.json_writer(message_type, modules)
    except errors.ArgumentError as error:
        raise errors.ArgumentError(f"{error} Name the module with --import MODULE.") from error

    def write(payload: bytes) -> bytes:
        try:
            # Characters that a terminal would obey stand for themselves only as escapes of JSON.
            return "".join(one if one.isprintable() else json.dumps(one)[1:-1]
                           for one in line(payload)).encode() + b"\n"
        except ValueError as error:
            raise errors.DecodeError(f"The next message of the queue at {path} is not written: {error}. It stays. "
                                     "Look at its bytes with --format hex --peek, and take it with --max 1.") from error

    return write


#: By the name that the user gives. Each gives the bytes to write for a message, with what ends it.
FORMATS: Dict[str, Format] = {
    "lines": _lines,
    "raw": _raw,
    "json": _json,
    "hex": _hex,
}
