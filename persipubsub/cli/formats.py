"""How a message is written: one function for each format."""

from typing import Callable, Dict


def _raw(payload: bytes) -> bytes:
    return payload


def _lines(payload: bytes) -> bytes:
    return payload + b"\n"


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


#: By the name that the user gives. Each gives the bytes to write for a message, with what ends it.
FORMATS: Dict[str, Callable[[bytes], bytes]] = {
    "lines": _lines,
    "raw": _raw,
    "json": _json,
    "hex": _hex,
}
