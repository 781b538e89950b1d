"""What the demo sends: lines of a file, each with a header by which a subscriber sees what is wrong with them."""

import dataclasses
import itertools
import pathlib
import struct
import sys
import zlib
from typing import BinaryIO, Iterator, NamedTuple, Optional, Set, Tuple

#: A longer line is sent in pieces, so that no line needs much memory.
PIECE_BYTES_MAX = 1024**2
#: At most this many numbers that are missing so far are remembered. A later one that comes late counts as a duplicate.
GAPS_MAX = 10_000

# Publisher, running number, CRC-32 of the line.
_HEADER = struct.Struct(">IQI")

_TEXT = pathlib.Path(__file__).with_name("demo_text.txt")
_TEXT_LINES = 60_000


class Source(NamedTuple):
    """A file whose lines are sent, again and again if ``repeat`` is more than 1."""

    path: pathlib.Path
    size_bytes: int
    lines: int  # pieces of long lines included
    repeat: int

    @property
    def messages(self) -> int:
        """Return the number of messages that it makes."""
        return self.lines * self.repeat

    @property
    def message_bytes(self) -> int:
        """Return the size of these messages."""
        return self.size_bytes * self.repeat + _HEADER.size * self.messages

    def share(self, file: BinaryIO, number: int, publishers: int) -> Iterator[bytes]:
        """Read the lines of one publisher from the open file: with two publishers, every second line."""
        rounds = (_pieces(file, self.size_bytes) for _ in range(self.repeat))
        return itertools.islice(itertools.chain.from_iterable(rounds), number, None, publishers)


def count(path: Optional[pathlib.Path]) -> Source:
    """Read a file, or the text that comes with the package, to know what will be sent."""
    with open(path or _TEXT, "rb") as file:
        lines = sum(1 for _ in _pieces(file, sys.maxsize))
        return Source(path or _TEXT, file.tell(), lines, 1 if path else -(-_TEXT_LINES // lines))


def _pieces(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Read the lines up to a size, long ones in pieces. What was added since the lines were counted is not read."""
    file.seek(0)
    while piece := file.readline(min(PIECE_BYTES_MAX, size_bytes)):
        size_bytes -= len(piece)
        yield piece


def encode(publisher: int, number: int, line: bytes) -> bytes:
    """Make a message of a line."""
    return _HEADER.pack(publisher, number, zlib.crc32(line)) + line


def decode(message: bytes) -> Tuple[int, int, bool]:
    """Return the publisher and the number of a message, and whether its line is as it was sent."""
    publisher, number, checksum = _HEADER.unpack_from(message)
    return publisher, number, zlib.crc32(memoryview(message)[_HEADER.size:]) == checksum


@dataclasses.dataclass
class Tally:
    """The messages of one publisher: as it sent them, or as a subscriber received them, in constant memory."""

    messages: int = 0
    #: One more than the highest running number.
    end: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    altered: int = 0
    _gaps: Set[int] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @property
    def distinct(self) -> int:
        """Return the number of messages without the duplicates."""
        return self.messages - self.duplicates

    def add(self, number: int, intact: bool) -> None:
        """Count a message that was received."""
        self.messages += 1
        self.altered += not intact
        if number >= self.end:
            self._gaps.update(range(self.end, min(number, self.end + GAPS_MAX - len(self._gaps))))
            self.end = number + 1
        elif number in self._gaps:
            self._gaps.remove(number)
            self.out_of_order += 1
        else:
            self.duplicates += 1
