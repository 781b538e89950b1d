"""What the demo sends: lines of a file, each with a header by which a subscriber sees what is wrong with them."""

import dataclasses
import pathlib
import struct
import sys
import zlib
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Set, Tuple

#: A longer line goes in pieces, so that no line needs much memory.
PIECE_BYTES_MAX = 1024**2
#: So many numbers that one publisher left out are remembered. Of those beyond, one that comes late counts as duplicate.
GAPS_MAX = 10_000

# Publisher, running number, CRC-32 of the line.
_HEADER = struct.Struct(">IQI")
HEADER_BYTES = _HEADER.size

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
        """Give the number of messages that it makes."""
        return self.lines * self.repeat

    @property
    def message_bytes(self) -> int:
        """Give the size of these messages."""
        return self.size_bytes * self.repeat + HEADER_BYTES * self.messages


class Share(NamedTuple):
    """The lines of one publisher: those that start in a range of bytes."""

    source: Source
    start: int
    end: int
    repeat: int

    def lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Read them from the open file."""
        for _ in range(self.repeat):
            yield from _lines(file, self.start, self.end, self.source.size_bytes)


def count(path: Optional[pathlib.Path]) -> Source:
    """Read a file, or the text that comes with the package, to know what will be sent."""
    size_bytes = lines = 0
    with open(path or _TEXT, "rb") as file:
        for line in _lines(file, 0, sys.maxsize, sys.maxsize):
            size_bytes += len(line)
            lines += 1
    return Source(path or _TEXT, size_bytes, lines, 1 if path else -(-_TEXT_LINES // lines))


def shares(source: Source, publishers: int) -> List[Share]:
    """Divide a source among publishers: by bytes, or by rounds where it is repeated."""
    result = []
    for number in range(publishers):
        if source.repeat == 1:
            start, end = (source.size_bytes * part // publishers for part in (number, number + 1))
            result.append(Share(source, start, end, 1))
        else:
            first, last = (source.repeat * part // publishers for part in (number, number + 1))
            result.append(Share(source, 0, source.size_bytes, last - first))
    return result


def _lines(file: BinaryIO, start: int, end: int, size_bytes: int) -> Iterator[bytes]:
    """Read the lines that start in a range of bytes, long ones in pieces.

    :param size_bytes: where the file ends; what has been added since it was counted is not read
    """
    _seek_line(file, start)
    position = file.tell()
    whole = True
    while position < (end if whole else size_bytes):
        line = file.readline(min(PIECE_BYTES_MAX, size_bytes - position))
        if not line:
            return
        position += len(line)
        whole = line.endswith(b"\n")
        yield line


def _seek_line(file: BinaryIO, start: int) -> None:
    """Go to the first line that starts at a position or later."""
    file.seek(max(0, start - 1))
    while start:
        line = file.readline(PIECE_BYTES_MAX)
        if not line or line.endswith(b"\n"):
            return


def encode(publisher: int, number: int, line: bytes) -> bytes:
    """Make a message of a line."""
    return _HEADER.pack(publisher, number, zlib.crc32(line)) + line


def decode(message: bytes) -> Tuple[int, int, bool]:
    """Give the publisher and the number of a message, and whether its line is as it was sent."""
    publisher, number, checksum = _HEADER.unpack_from(message)
    return publisher, number, zlib.crc32(memoryview(message)[HEADER_BYTES:]) == checksum


@dataclasses.dataclass
class Tally:
    """The messages of one publisher: as it sent them, or as a subscriber received them."""

    messages: int = 0
    #: One more than the highest running number.
    end: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    altered: int = 0

    @property
    def distinct(self) -> int:
        """Give the number of messages without the duplicates."""
        return self.messages - self.duplicates


class Stream:
    """Compares what one subscriber receives of one publisher with what the numbers promise, in constant memory."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._gaps: Set[int] = set()

    def add(self, number: int, intact: bool) -> None:
        """Count a message."""
        tally = self.tally
        tally.messages += 1
        if number == tally.end:
            tally.end += 1
        elif number > tally.end:
            self._gaps.update(range(tally.end, min(number, tally.end + GAPS_MAX - len(self._gaps))))
            tally.end = number + 1
        elif number in self._gaps:
            self._gaps.remove(number)
            tally.out_of_order += 1
        else:
            tally.duplicates += 1
        if not intact:
            tally.altered += 1
