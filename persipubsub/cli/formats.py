"""Formats of a message, with one function each; and a number with its noun."""

from typing import Callable, Dict, Mapping, Optional, Sequence

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


def json_line(payload: bytes, facts: Optional[Mapping[str, object]] = None) -> bytes:
    """Write a message as a line of JSON: an object with its text or, if it is not UTF-8, its base64.

    :param facts: what else the object has
    """
    # Imported here: only this format needs them.
    import base64
    import json
    written = dict(facts or {})
    try:
        written["text"] = payload.decode()
    except UnicodeDecodeError:
        written["base64"] = base64.b64encode(payload).decode()
    # In ASCII: some readers treat other characters besides the line feed as the end of a line.
    return json.dumps(written).encode() + b"\n"


def headers_column(headers: Mapping[str, str]) -> bytes:
    """Write headers as JSON and a tab, to stand before a message."""
    import json  # here, since few commands need it
    return json.dumps(dict(headers)).encode() + b"\t"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _json_line(payload: bytes) -> str:
    """Return JSON as one line. Its numbers stay as they are written.

    :raise ValueError: it is not JSON
    """
    import msgspec  # here, since few commands need it
    try:
        return msgspec.json.format(payload, indent=-1).decode()
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error


def _protobuf_line(message_type: str, modules: Sequence[str]) -> Callable[[bytes], str]:
    from persipubsub import errors
    from persipubsub.typed import protobuf  # here, since few commands need it
    try:
        return protobuf.json_writer(message_type, modules)
    except errors.ArgumentError as error:
        raise errors.ArgumentError(f"{error} Name the module with --import MODULE.") from error


#: The format for a queue that is bound to a message type.
PROTOBUF_JSON = "protobuf-json"


def protobuf_json(path: str, message_type: str, modules: Sequence[str]) -> Format:
    """Return the format that writes messages of a type as JSON: of a protobuf type, or of one that is sent as JSON.

    :param message_type: its full name, such as ``shop.Order`` or ``json:Order``
    :param modules: modules to import first: one of them defines a protobuf type
    :raise ArgumentError: there is no such module, or it does not define the type
    """
    # Imported here: only this format needs them.
    import json

    from persipubsub import errors
    line = _json_line if message_type.startswith("json:") else _protobuf_line(message_type, modules)

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
    "json": json_line,
    "hex": _hex,
}
