"""What processes note during faults: messages and headers that name their sender, and journals that outlive writers.

A journal lies outside the file system of the queue, and what is noted as durable is there after any fault of the queue.
"""

import os
import pathlib
import re
import time
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from persipubsub import Envelope

#: The size of the padding of some headers: they fill a page of their own.
PADDING_CHARACTERS = 5000
#: The beginning of the name of a message that was received without the headers that it was sent with.
WITHOUT_HEADERS = "?without-headers-"

NAME = re.compile("[!-9;-~]+:[0-9]{1,9}:(?P<size>[0-9]{1,9})")
#: What may not be in a word of a journal. A page that a power cut left half written has any bytes, also ends of lines.
NOT_IN_WORDS = re.compile("[^!-~]")


def message(sender: str, number: int, size_bytes: int = 0) -> bytes:
    """Make a message that no other one equals, and of which every byte is known from its name.

    :param sender: without spaces and colons; its messages are numbered in the order in which it sends them
    :param size_bytes: of the message, unless its name is longer
    """
    return _filled(f"{sender}:{number}:{size_bytes}")


def _filled(name: str) -> bytes:
    size_bytes = int(name.rpartition(":")[2])
    unit = name.encode() + b" "
    return (unit * (size_bytes // len(unit) + 1))[:max(size_bytes, len(unit) - 1)]


def name_of(payload: bytes) -> str:
    """Return the name of a message; of what is not a whole message, its beginning after a question mark."""
    name = payload.partition(b" ")[0].decode(errors="replace")
    matched = NAME.fullmatch(name)
    if matched and int(matched["size"]) <= len(payload) and _filled(name) == payload:
        return name
    return "?" + NOT_IN_WORDS.sub("_", name[:40])


def headers_of(name: str) -> Optional[Dict[str, str]]:
    """Return the headers of a message: one of three has none, and those of some are long."""
    number = sender_and_number(name)[1]
    if number % 3 == 0:
        return None
    padding = "x" * PADDING_CHARACTERS if number % 12 == 1 else ""
    return {"message": name, "padding": padding}


def envelope(payload: bytes) -> "Envelope[bytes]":
    """Return a message that :func:`message` made, in an envelope with its headers."""
    return Envelope(payload, headers_of(name_of(payload)))


def name_with_headers(payload: bytes, headers: Mapping[str, str]) -> str:
    """Return the name of a message that was received; after a question mark if it has other headers than were sent."""
    name = name_of(payload)
    if is_broken(name) or headers == (headers_of(name) or {}):
        return name
    return f"{'?other-headers-' if headers else WITHOUT_HEADERS}{name}"


def is_broken(name: str) -> bool:
    """Return whether a name is of something that is not a whole message."""
    return name.startswith("?")


def sender_and_number(name: str) -> Tuple[str, int]:
    """Return which sender sent a message, and as which of its messages."""
    sender, number, _ = name.split(":")
    return sender, int(number)


class Event(NamedTuple):
    """What a process noted, and when: by the clock that all processes of a machine share."""

    at_ns: int
    what: str
    words: Tuple[str, ...]


class Journal:
    """The journal of one writer, or of several that do not write at one time."""

    def __init__(self, path: pathlib.Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, what: str, words: Iterable[str], durably: bool = False) -> None:
        """Add an event, in one step.

        :param durably: return only when it is on the disk
        """
        os.write(self._fd, f"{time.monotonic_ns()} {what} {' '.join(words)}\n".encode())
        if durably:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the journal."""
        os.close(self._fd)


def events(directory: pathlib.Path) -> List[Event]:
    """Read all journals of a directory, as one in the order of time."""
    found = []
    for path in directory.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else its writer was killed in the middle of it
                at_ns, what, *words = line.split()
                found.append(Event(int(at_ns), what, tuple(words)))
    return sorted(found, key=lambda event: event.at_ns)
