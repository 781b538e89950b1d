"""Read LMDB's data file in Python, byte by byte, so that no broken or hostile file can do harm.

Every opening checks the beginning of the file before LMDB maps it, in
:mod:`persipubsub.lmdb_engine.process.opening_check`. :mod:`persipubsub.lmdb_engine.repair.salvage` reads whatever can
still be read. Only LMDB's format 0.9 is known here, which all queues have. Malformed bytes raise PageError, which is a
ValueError.
"""

import errno
import os
import pathlib
import stat
import struct
from types import TracebackType
from typing import Iterator, List, NamedTuple, Optional, Set, Tuple, Type

from persipubsub import os_errors
from persipubsub.lmdb_engine.records import layouts

MAGIC = 0xBEEFC0DE
VERSION = 1
META_PAGES = 2
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 256, 32768
HEADER_BYTES = 16
NODE_BYTES = 8
#: LMDB's limit.
DEPTH_MAX = 32
NO_ROOT = 2**64 - 1

BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG_VALUE, SUB_DATABASE = 1, 2
#: The flags of a tree's order and duplicates, except the one for integer keys, which the tree of free pages has.
FREE_FLAGS_NOT_OURS = 0x76

# LMDB writes integers in the machine's byte order, so files are not portable between architectures.
_PAGE = struct.Struct("=QHHHH")  # number, pad, flags, lower, upper
_PAGE_COUNT = struct.Struct("=I")  # in place of lower and upper, of a large value's first page
_NODE = struct.Struct("=HHHH")  # size low and high, flags, key size; of a branch the child's page: low, middle, high
_META = struct.Struct("=IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("=IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
_META_END = struct.Struct("=QQ")  # last page, transaction
_META_BYTES = HEADER_BYTES + _META.size + 2 * _TREE.size + _META_END.size
_NUMBER = struct.Struct("=Q")


class PageError(ValueError):
    """A page is not as LMDB writes it."""


class Meta(NamedTuple):
    """One of the two meta pages, which say where the trees are."""

    page_bytes: int
    ours: bool  # whether its two trees have the flags and depth that they have in a queue
    free_root: int
    main_root: int
    last_page: int
    transaction: int


class Node(NamedTuple):
    """A record in a leaf page."""

    key: bytes
    flags: int
    size_bytes: int
    start: int  # of the value in the page


class PageFile:
    """An LMDB data file, opened for reading."""

    def __init__(self, file: pathlib.Path) -> None:
        """Open a data file.

        :raise PathError: it is not a regular file, or this user may not read it
        """
        with os_errors.errors_about(file):
            # Non-blocking: opening a FIFO would wait for a writer.
            self._fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise OSError(errno.EINVAL, "It is not a regular file")
        self.page_bytes = 4096
        self._latest: Tuple[int, bytes, List[Node]] = (0, b"", [])

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> "PageFile":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.close()

    def size_bytes(self) -> int:
        """Return the size of the file."""
        return os.fstat(self._fd).st_size

    def pages(self) -> int:
        """Return the number of whole pages in the file."""
        return self.size_bytes() // self.page_bytes

    def _read(self, size_bytes: int, start: int) -> bytes:
        try:
            return os.pread(self._fd, size_bytes, start)
        except OSError as error:  # a bad sector of the disk, or a directory
            raise PageError(f"byte {start} cannot be read ({error.strerror})") from error

    def meta_at(self, start: int) -> Meta:
        """Read the meta page that begins at a byte of the file.

        :raise PageError: there is none
        """
        data = self._read(_META_BYTES, start)
        if len(data) < _META_BYTES:
            raise PageError("the file ends within its meta pages")
        magic, version, _, _ = _META.unpack_from(data, HEADER_BYTES)
        if magic != MAGIC or version != VERSION or not _PAGE.unpack_from(data)[2] & META:
            raise PageError(f"no meta page of LMDB 0.9 at byte {start}")
        free = _TREE.unpack_from(data, HEADER_BYTES + _META.size)
        main = _TREE.unpack_from(data, HEADER_BYTES + _META.size + _TREE.size)
        last_page, transaction = _META_END.unpack_from(data, _META_BYTES - _META_END.size)
        page_bytes = free[0]
        if page_bytes & (page_bytes - 1) or not PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX:
            raise PageError(f"pages of {page_bytes} bytes")
        # With other flags LMDB compares keys differently, or fails an assertion, which ends the process.
        ours = not free[1] & FREE_FLAGS_NOT_OURS and not main[1] and max(free[2], main[2]) <= DEPTH_MAX
        return Meta(page_bytes, ours, free[7], main[7], last_page, transaction)

    def newest_meta(self) -> Meta:
        """Read both meta pages, set the size of pages, and return the meta page of the later commit.

        :raise PageError: one is broken
        """
        first = self.meta_at(0)
        second = self.meta_at(first.page_bytes)
        if second.page_bytes != first.page_bytes:
            raise PageError("the meta pages have different page sizes")
        for parity, meta in enumerate((first, second)):
            if meta.transaction and meta.transaction % META_PAGES != parity:
                raise PageError(f"transaction {meta.transaction} in meta page {parity}")
        self.page_bytes = first.page_bytes
        return max(first, second, key=lambda meta: meta.transaction)

    def page(self, number: int) -> bytes:
        """Read a page of a tree.

        :raise PageError: it is outside the file, or it has the number of another page
        """
        if not META_PAGES <= number < self.pages():
            raise PageError(f"page {number} is outside the file")
        data = self._read(self.page_bytes, number * self.page_bytes)
        if len(data) != self.page_bytes or _PAGE.unpack_from(data)[0] != number:
            raise PageError(f"page {number} has the number of another page")
        return data

    def children(self, page: bytes) -> List[Tuple[bytes, int]]:
        """Return the keys and the numbers of the pages below a branch page.

        :raise PageError: the page is broken
        """
        found = []
        for start in _node_starts(page):
            low, middle, high, key_bytes = _NODE.unpack_from(page, start)
            found.append((_bytes_at(page, start + NODE_BYTES, key_bytes), low | middle << 16 | high << 32))
        return found

    def nodes(self, page: bytes) -> List[Node]:
        """Return the records of a leaf page.

        :raise PageError: the page is broken
        """
        found = []
        for start in _node_starts(page):
            low, high, flags, key_bytes = _NODE.unpack_from(page, start)
            key = _bytes_at(page, start + NODE_BYTES, key_bytes)
            found.append(Node(key, flags, low | high << 16, start + NODE_BYTES + key_bytes))
        return found

    def value(self, page: bytes, node: Node, bytes_max: int = layouts.PART_BYTES) -> bytes:
        """Read the value of a record.

        :param bytes_max: a larger value counts as broken
        :raise PageError: the value is broken
        """
        if not node.flags & BIG_VALUE:
            return _bytes_at(page, node.start, node.size_bytes)
        number, = _NUMBER.unpack(_bytes_at(page, node.start, _NUMBER.size))
        first = self.page(number)
        pages = (HEADER_BYTES - 1 + node.size_bytes) // self.page_bytes + 1
        if kind(first) != OVERFLOW or _PAGE_COUNT.unpack_from(first, 12)[0] != pages:
            raise PageError(f"page {number} does not begin a large value of {node.size_bytes} bytes")
        if node.size_bytes > bytes_max:
            raise PageError(f"page {number} begins a value of {node.size_bytes} bytes, over the limit of {bytes_max}")
        data = self._read(node.size_bytes, number * self.page_bytes + HEADER_BYTES)
        if len(data) != node.size_bytes:
            raise PageError(f"the value in page {number} extends beyond the end of the file")
        return data

    def value_at(self, number: int, index: int, bytes_max: int = layouts.PART_BYTES) -> bytes:
        """Read the value of a record, given its leaf page and its index there. Arguments and errors are as in value().

        The page is kept for the next call, since records are often read in their order.
        """
        if self._latest[0] != number:
            page = self.page(number)
            self._latest = number, page, self.nodes(page)
        _, page, nodes = self._latest
        return self.value(page, nodes[index], bytes_max)

    def find(self, root: int, key: bytes) -> Optional[Tuple[bytes, Node]]:
        """Find a key in a tree; return its leaf page and its record, or None.

        :raise PageError: a page on the path to it is broken
        """
        number = root
        if number == NO_ROOT:
            return None
        for _ in range(DEPTH_MAX):
            page = self.page(number)
            if kind(page) == LEAF:
                return next(((page, node) for node in self.nodes(page) if node.key == key), None)
            if kind(page) != BRANCH:
                raise PageError(f"page {number} is not a page of a tree")
            children = self.children(page)
            if not children:
                raise PageError(f"page {number} has no pages below it")
            number = next((child for low, child in reversed(children[1:]) if low <= key), children[0][1])
        raise PageError(f"a tree is deeper than {DEPTH_MAX} pages, LMDB's limit")

    def leaves(self, root: int, seen: Set[int], problems: List[str]) -> Iterator[Tuple[int, bytes]]:
        """Iterate over the leaf pages of a tree that can be reached: number and page, each page once.

        :param seen: the pages that were visited so far
        :param problems: receives what cannot be read
        """
        waiting = [] if root == NO_ROOT else [root]
        while waiting:
            number = waiting.pop()
            if number in seen:
                problems.append(f"two references lead to page {number}")
                continue
            seen.add(number)
            try:
                page = self.page(number)
                if kind(page) == BRANCH:
                    waiting += [child for _, child in reversed(self.children(page))]
                elif kind(page) == LEAF:
                    yield number, page
                else:
                    raise PageError(f"page {number} is not a page of a tree")
            except PageError as error:
                problems.append(str(error))


def kind(page: bytes) -> int:
    """Return the flags of a page."""
    return int(_PAGE.unpack_from(page)[2])


def decode_root(value: bytes) -> int:
    """Decode the record of a sub-database: the number of its root page.

    :raise PageError: it is not a record of a queue's sub-database
    """
    if len(value) != _TREE.size:
        raise PageError("the record of a sub-database is broken")
    _, flags, depth, *_, root = _TREE.unpack(value)
    # Flags choose how LMDB compares keys, and it may then read beyond the end of a short key.
    if flags or depth > DEPTH_MAX:
        raise PageError("a sub-database has flags or a depth that those of a queue do not have")
    return int(root)


def _node_starts(page: bytes) -> List[int]:
    number, _, _, lower, upper = _PAGE.unpack_from(page)
    if not HEADER_BYTES <= lower <= upper <= len(page) or lower % 2:
        raise PageError(f"page {number} is malformed")
    starts = list(struct.unpack_from(f"={(lower - HEADER_BYTES) // 2}H", page, HEADER_BYTES))
    if any(not upper <= start <= len(page) - NODE_BYTES for start in starts):
        raise PageError(f"page {number} has records outside it")
    return starts


def _bytes_at(page: bytes, start: int, size: int) -> bytes:
    if start + size > len(page):
        raise PageError(f"page {_PAGE.unpack_from(page)[0]} has records beyond its end")
    return page[start:start + size]
