"""What the page reads and changes at a queue. Each function gets the control of the queue, perhaps in a child process.

Nothing here delivers or acknowledges a message.
"""

import base64
import datetime
import itertools
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence

import msgspec

from persipubsub import errors
from persipubsub.control import Control
from persipubsub.status import QueueStatus

#: How many messages or dead letters one answer has.
COUNT_MAX = 50
#: How many bytes of a message are shown.
SHOWN_BYTES_MAX = 16 * 1024
#: A read of several messages ends after this number of bytes.
READ_BYTES_MAX = 8 * 1024**2
#: A deeper value of JSON is shown as it is, and so is one that is longer with indentation.
DEPTH_MAX = 50
INDENTED_CHARACTERS_MAX = 4 * SHOWN_BYTES_MAX
#: How many characters of the name or the value of a header are shown.
HEADER_CHARACTERS_MAX = 1000

Json = Dict[str, Any]


def status(control: Control) -> QueueStatus:
    """Return the status of the queue."""
    return control.status()


def messages(control: Control, start: int, modules: Sequence[str]) -> Json:
    """Return stored messages from an id on, without taking them, and the id at which to continue.

    :param start: the first message id; less than 1 counts from the end
    :param modules: modules that define the message type
    """
    found = control.status()
    write = _writer(found.message_type, modules)
    first_id = max(1, start if start >= 1 else found.next_id + start)
    shown: List[Json] = []
    read_bytes, more_id = 0, None
    for message in control.history(first_id):
        if len(shown) == COUNT_MAX or read_bytes > READ_BYTES_MAX:
            more_id = message.id
            break
        read_bytes += len(message.payload)
        shown.append({
            "id": message.id,
            "time": message.time.isoformat(),
            **_message(message.payload, message.headers, write)
        })
    return {"messages": shown, "next": more_id, "message_type": found.message_type}


def dead_letters(control: Control, subscriber: str, after: int, modules: Sequence[str]) -> Json:
    """Return dead letters of a subscriber whose ids follow one, and the id after which to continue.

    :raise UnknownSubscriberError: there is no such subscriber
    """
    write = _writer(control.status().message_type, modules)
    following = (one for one in control.dead_letters(subscriber) if one.id > after)
    shown: List[Json] = []
    read_bytes = 0
    for one in itertools.islice(following, COUNT_MAX + 1):
        if len(shown) == COUNT_MAX or read_bytes > READ_BYTES_MAX:
            return {"letters": shown, "next": shown[-1]["id"]}
        read_bytes += len(one.payload)
        shown.append({
            "id": one.id,
            "time": _time(one.sent_time_s),
            "died": _time(one.died_time_s),
            "reason": one.reason,
            "deliveries": one.deliveries,
            "error_type": one.error_type,
            "error_text": one.error_text,
            "error_traceback": one.error_traceback,
            **_message(one.payload, one.headers, write)
        })
    return {"letters": shown, "next": None}


def settle(control: Control, action: str, subscriber: str, ids: Optional[Iterable[int]]) -> Json:
    """Requeue or discard dead letters of a subscriber, and return how many as ``count``.

    :param action: ``requeue`` or ``discard``
    :param ids: None for all
    :raise UnknownSubscriberError: there is no such subscriber
    """
    change = control.requeue_dead_letters if action == "requeue" else control.discard_dead_letters
    return {"count": change(subscriber, ids)}


def _time(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc).isoformat()


def _message(payload: bytes, headers: Mapping[str, str], write: Callable[[bytes], Json]) -> Json:
    """Return a message as the page shows it: its first bytes, and as text and JSON where it is that."""
    shown = payload[:SHOWN_BYTES_MAX]
    whole = len(payload) <= SHOWN_BYTES_MAX
    return {
        "size": len(payload),
        "cut": not whole,
        "headers": [[_shortened(name), _shortened(value)] for name, value in headers.items()],
        "base64": base64.b64encode(shown).decode(),
        "text": _text(shown, whole),
        "json": _json(payload) if whole else None,
        **(write(payload) if whole else {})
    }


def _shortened(text: str) -> str:
    return text if len(text) <= HEADER_CHARACTERS_MAX else text[:HEADER_CHARACTERS_MAX] + "…"


def _text(payload: bytes, whole: bool) -> Optional[str]:
    """Return the payload as text; None if it is not UTF-8."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        # The cut may divide a character.
        return payload[:error.start].decode() if not whole and error.start >= len(payload) - 3 else None


def _json(payload: bytes) -> Optional[str]:
    """Return an object or array of JSON with indentation, its numbers as they are written; None for anything else."""
    if not payload.lstrip().startswith((b"{", b"[")):
        return None
    try:
        return _indented(payload.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _indented(text: str) -> Optional[str]:
    """Return JSON with indentation; None if that would make it much longer, as in an array of a thousand arrays."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > DEPTH_MAX:
        return None
    indented = msgspec.json.format(text, indent=2)
    return indented if len(indented) <= INDENTED_CHARACTERS_MAX else None


def _writer(message_type: Optional[str], modules: Sequence[str]) -> Callable[[bytes], Json]:
    """Return a function that decodes protobuf messages of a type, where a module defines the type."""
    if message_type is None or message_type.startswith("json:"):
        return lambda payload: {}
    from persipubsub.typed import protobuf  # here, since few queues need it
    try:
        line = protobuf.json_writer(message_type, modules)
    except errors.ArgumentError as error:
        unknown = f"{error} Start the dashboard with --import MODULE."
        return lambda payload: {"protobuf_error": unknown}

    def write(payload: bytes) -> Json:
        try:
            text = line(payload)
            return {"protobuf": _indented(text) or text}
        except ValueError as error:
            return {"protobuf_error": str(error)}

    return write
