"""LMDB's data file read in Python, byte by byte, so that no broken or hostile file can do harm.

Two use it: every opening looks at the beginning of the file (:func:`require_queue`) before LMDB maps it, and
:mod:`persipubsub.recovery` reads whatever can still be read. Only LMDB's format 0.9 is known here, that of all queues.
What is malformed raises PageError, which is a ValueError.
"""

import errno
import os
import pathlib
import stat
import struct
from types import TracebackType
from typing import Iterator, List, NamedTuple, Optional, Set, Tuple, Type

from persipubsub import configuration, errors, files, records

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
#: All that concern its order and its duplicates, but that its keys are integers.
FREE_FLAGS_NOT_OURS = 0x76

# LMDB writes integers as the machine does, so files do not travel between architectures.
_PAGE = struct.Struct("=QHHHH")  # number, pad, flags, lower, upper
_PAGE_COUNT = struct.Struct("=I")  # in place of lower and upper, of a large value's first page
_NODE = struct.Struct("=HHHH")  # size low and high, flags, key size; of a branch the child's page: low, middle, high
_META = struct.Struct("=IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("=IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
_META_END = struct.Struct("=QQ")  # last page, transaction
_META_BYTES = HEADER_BYTES + _META.size + 2 * _TREE.size + _META_END.size
_NUMBER = struct.Struct("=Q")
#: A commit by others during the look changes pages under it; then they have the queue open, and have looked at it.
LOOKS_MAX = 10


class PageError(ValueError):
    """Some page is not as LMDB writes it."""


class Meta(NamedTuple):
    """One of the two pages that tell where everything is."""

    page_bytes: int
    ours: bool  # whether its two trees are of the kinds that LMDB gives them in a queue
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
    """An LMDB data file, opened to be read."""

    def __init__(self, file: pathlib.Path) -> None:
        """Open a data file.

        :raise PathError: it is a link, a directory or the like, or this user may not read it
        """
        with files.errors_about(file):
            # Not blocking: a FIFO would wait for a writer.
            self._fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise OSError(errno.EINVAL, "It is no regular file")
        self.page_bytes = 4096

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> "PageFile":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.close()

    def size_bytes(self) -> int:
        """Give the size of the file."""
        return os.fstat(self._fd).st_size

    def pages(self) -> int:
        """Give how many whole pages the file has."""
        return self.size_bytes() // self.page_bytes

    def _read(self, size_bytes: int, start: int) -> bytes:
        try:
            return os.pread(self._fd, size_bytes, start)
        except OSError as error:  # a sector that the disk has lost, or a directory
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
        # Other flags have LMDB compare keys in other ways, or fail an assertion, which ends the process.
        ours = not free[1] & FREE_FLAGS_NOT_OURS and not main[1] and max(free[2], main[2]) <= DEPTH_MAX
        return Meta(page_bytes, ours, free[7], main[7], last_page, transaction)

    def newest_meta(self) -> Meta:
        """Read both meta pages, give the one of the later commit, and know the size of pages from then on.

        :raise PageError: one is broken
        """
        first = self.meta_at(0)
        second = self.meta_at(first.page_bytes)
        if second.page_bytes != first.page_bytes:
            raise PageError("the meta pages tell different sizes of pages")
        for parity, meta in enumerate((first, second)):
            if meta.transaction and meta.transaction % META_PAGES != parity:
                raise PageError(f"transaction {meta.transaction} in meta page {parity}")
        self.page_bytes = first.page_bytes
        return max(first, second, key=lambda meta: meta.transaction)

    def page(self, number: int) -> bytes:
        """Read a page of a tree.

        :raise PageError: it is outside the file, or says that it is another page
        """
        if not META_PAGES <= number < self.pages():
            raise PageError(f"page {number} is outside the file")
        data = self._read(self.page_bytes, number * self.page_bytes)
        if len(data) != self.page_bytes or _PAGE.unpack_from(data)[0] != number:
            raise PageError(f"page {number} is another page")
        return data

    def children(self, page: bytes) -> List[Tuple[bytes, int]]:
        """Give the keys and the numbers of the pages below a branch page.

        :raise PageError: the page is broken
        """
        found = []
        for start in _node_starts(page):
            low, middle, high, key_bytes = _NODE.unpack_from(page, start)
            found.append((_bytes_at(page, start + NODE_BYTES, key_bytes), low | middle << 16 | high << 32))
        return found

    def nodes(self, page: bytes) -> List[Node]:
        """Give the records of a leaf page.

        :raise PageError: the page is broken
        """
        found = []
        for start in _node_starts(page):
            low, high, flags, key_bytes = _NODE.unpack_from(page, start)
            key = _bytes_at(page, start + NODE_BYTES, key_bytes)
            found.append(Node(key, flags, low | high << 16, start + NODE_BYTES + key_bytes))
        return found

    def value(self, page: bytes, node: Node, bytes_max: int = records.PART_BYTES) -> bytes:
        """Read the value of a record.

        :param bytes_max: a larger one is broken
        :raise PageError: it is broken
        """
        if not node.flags & BIG_VALUE:
            return _bytes_at(page, node.start, node.size_bytes)
        number, = _NUMBER.unpack(_bytes_at(page, node.start, _NUMBER.size))
        first = self.page(number)
        pages = (HEADER_BYTES - 1 + node.size_bytes) // self.page_bytes + 1
        if kind(first) != OVERFLOW or _PAGE_COUNT.unpack_from(first, 12)[0] != pages:
            raise PageError(f"page {number} is no large value of {node.size_bytes} bytes")
        if node.size_bytes > bytes_max:
            raise PageError(f"a value of {node.size_bytes} bytes")
        data = self._read(node.size_bytes, number * self.page_bytes + HEADER_BYTES)
        if len(data) != node.size_bytes:
            raise PageError(f"page {number} ends behind the file")
        return data

    def find(self, root: int, key: bytes) -> Optional[Tuple[bytes, Node]]:
        """Look for a key in a tree; give its leaf page and its record.

        :raise PageError: the way to it is broken
        """
        number = root
        if number == NO_ROOT:
            return None
        for _ in range(DEPTH_MAX):
            page = self.page(number)
            if kind(page) == LEAF:
                return next(((page, node) for node in self.nodes(page) if node.key == key), None)
            if kind(page) != BRANCH:
                raise PageError(f"page {number} is of no tree")
            children = self.children(page)
            if not children:
                raise PageError(f"page {number} has no pages below it")
            number = next((child for low, child in reversed(children[1:]) if low <= key), children[0][1])
        raise PageError("a tree deeper than LMDB makes it")

    def leaves(self, root: int, seen: Set[int], problems: List[str]) -> Iterator[Tuple[int, bytes]]:
        """Iterate over the leaf pages of a tree, as far as they can be reached: number and page. Each page once.

        :param seen: the pages that were met so far
        :param problems: what cannot be read is noted here
        """
        waiting = [] if root == NO_ROOT else [root]
        while waiting:
            number = waiting.pop()
            if number in seen:
                problems.append(f"page {number} is in two places")
                continue
            seen.add(number)
            try:
                page = self.page(number)
                if kind(page) == BRANCH:
                    waiting += [child for _, child in reversed(self.children(page))]
                elif kind(page) == LEAF:
                    yield number, page
                else:
                    raise PageError(f"page {number} is of no tree")
            except PageError as error:
                problems.append(str(error))


def kind(page: bytes) -> int:
    """Give the flags of a page."""
    return int(_PAGE.unpack_from(page)[2])


def decode_root(value: bytes) -> int:
    """Decode the record of a sub-database: the number of its topmost page.

    :raise PageError: it is none of ours
    """
    if len(value) != _TREE.size:
        raise PageError("the record of a sub-database is broken")
    _, flags, depth, *_, root = _TREE.unpack(value)
    # Flags choose how LMDB compares keys, which may read beyond a key that is shorter than they say.
    if flags or depth > DEPTH_MAX:
        raise PageError("a sub-database is of another kind than ours")
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


def require_queue(file: pathlib.Path,
                  sub_databases: Tuple[str, ...],
                  configured: bool = True,
                  known: bool = False) -> bool:
    """Look at the beginning of a data file, at constant cost, before LMDB maps it.

    :param sub_databases: that every queue has
    :param configured: look at the configuration, too
    :param known: it is known to be a queue's: then one that does not look so is broken
    :return: False if the file lacks pages at its end, which only matters unless they are free
    :raise FormatError: it is no queue of this version
    :raise DamagedError: it was one, and is broken
    """
    with PageFile(file) as opened:
        for look in range(LOOKS_MAX):
            before = None
            try:
                before = opened.newest_meta()
                header = _header(opened, before, file, sub_databases)
                if configured:
                    require_configuration(header)
                return opened.pages() > before.last_page
            except (PageError, errors.PersipubsubError) as error:
                if look < LOOKS_MAX - 1 and (before is None or _moved_on(opened, before)):
                    continue
                if isinstance(error, errors.PersipubsubError):
                    raise
                raise (damaged(file.parent, str(error)) if known else _broken(opened, file, error)) from error
    return True


class _NoQueueError(PageError):
    """Raised where nothing says that the file is a queue's."""


def _moved_on(opened: PageFile, before: Meta) -> bool:
    try:
        return opened.newest_meta() != before
    except PageError:
        return True


def _broken(opened: PageFile, file: pathlib.Path, error: PageError) -> errors.PersipubsubError:
    """Tell a queue that is broken from a file that never was one."""
    if is_of_1_0(opened):
        return _of_1_0(file)
    if isinstance(error, _NoQueueError):
        return _foreign(file, "none")
    if not opened.size_bytes():
        return errors.FormatError(f"The file {file} is empty, so it is no queue. Delete it, or use another directory.")
    for start in (0, 4096):
        try:
            opened.meta_at(start)
        except PageError:
            continue
        return damaged(file.parent, str(error))
    return errors.FormatError(f"The file {file} is no LMDB file that this version can read ({error}). It was not "
                              "touched. If it was a queue, it is damaged: persipubsub recover saves what can still be "
                              "read. If not, use another directory.")


def is_of_1_0(opened: PageFile) -> bool:
    """Tell whether a file is a queue of persipubsub 1.0.0: each part of its configuration is a record of its own."""
    try:
        queue_db = opened.find(opened.newest_meta().main_root, b"queue_db")
        if queue_db is None or not queue_db[1].flags & SUB_DATABASE:
            return False
        root = decode_root(opened.value(*queue_db))
        return opened.find(root, b"strategy") is not None and opened.find(root, records.FORMAT_KEY) is None
    except PageError:
        return False


def require_not_of_1_0(file: pathlib.Path) -> None:
    """Refuse a queue of persipubsub 1.0.0.

    :raise FormatError: it is one
    :raise PathError: it cannot be read
    """
    with files.errors_about(file), PageFile(file) as opened:
        if is_of_1_0(opened):
            raise _of_1_0(file)


def _of_1_0(file: pathlib.Path) -> errors.FormatError:
    return errors.FormatError(
        f"The queue at {file.parent} was made by persipubsub 1.0.0 and was not touched. Make a new "
        f"one of it with: persipubsub migrate {file.parent} NEW")


def damaged(path: pathlib.Path, what: str) -> errors.DamagedError:
    """Say that a queue is damaged, and what to do."""
    return errors.DamagedError(f"The queue at {path} is damaged and is not served: {what}. Save what can be read with: "
                               f"persipubsub recover {path}")


def _header(opened: PageFile, meta: Meta, file: pathlib.Path, sub_databases: Tuple[str, ...]) -> bytes:
    """Find the header of a queue, and make sure that it is a queue of this version."""
    if not meta.ours:
        raise PageError("the main database is of another kind than ours")
    roots = {}
    for name in sub_databases:
        found = opened.find(meta.main_root, name.encode())
        if found is None or not found[1].flags & SUB_DATABASE:
            raise _NoQueueError(f"the sub-database {name} is missing")
        roots[name] = decode_root(opened.value(*found))
        if roots[name] != NO_ROOT:
            opened.page(roots[name])
    found = opened.find(roots["queue_db"], records.FORMAT_KEY)
    if found is None:
        raise _NoQueueError("the format version is missing")
    version = opened.value(*found)
    if version != records.NUMBER.pack(records.FORMAT_VERSION):
        raise _foreign(file, str(int.from_bytes(version[:8], "big")))
    found = opened.find(roots["queue_db"], records.HEADER_KEY)
    if found is None:
        raise PageError("the configuration is missing")
    return opened.value(*found)


def require_configuration(value: bytes) -> records.Header:
    """Decode the header, and make sure that its configuration is one that can be set.

    :raise PageError: it is not
    """
    try:
        header = records.decode_header(value)
        configuration.stored_high_watermark(header)
        configuration.require_retention_within_timeout(header)
        configuration.Strategy(header.strategy)
        configuration.Durability(header.durability)
    except (struct.error, ValueError) as error:
        raise PageError(f"the configuration is broken ({error})") from error
    return header


def _foreign(file: pathlib.Path, found: str) -> errors.FormatError:
    return errors.FormatError(
        f"The queue at {file.parent} is not of format version {records.FORMAT_VERSION}, which this version reads and "
        f"writes (found: {found}). Use the version of persipubsub that made it, or another directory.")
