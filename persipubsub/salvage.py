"""What can still be read of a broken data file: where each record lies, found without LMDB.

First the trees are followed as far as they hold together, from the newest commit, then from the one before. Where any
page of them cannot be read, every leaf page of the file is looked at as well. Payloads never change and ids are not
given twice, so that a message on a page that no tree leads to is that message, though it may have been taken.
"""

import itertools
import struct
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from persipubsub import arguments, errors, page_walk, records, schedule
from persipubsub.delivery_records import ENTRY_KEY
from persipubsub.page_walk import LEAF, META_PAGES, SUB_DATABASE, Node, PageError, PageFile
from persipubsub.records import Header, Once, Place, Run
from persipubsub.transaction import SubDatabases

IDENTIFIER_BYTES_MAX = 255
PART_NUMBER_MAX = 2**30 // records.PART_BYTES + 1
MESSAGE_BYTES_MAX = 2**30
#: No clock of a queue was before.
TIME_US_MIN = 1_500_000_000_000_000
#: No queue lives to see it, and LMDB's own records look like such ids.
ID_MAX = 2**48

#: How long the keys are of the sub-databases that are ordered by time.
_KEY_SIZES_BY_TIME = {records.DELAYED_KEY.size: "delayed_db", records.ONCE_ORDER_KEY.size: "once_order_db"}
#: Later than any due time.
_DUE_US_END = 2**56


class Where(NamedTuple):
    """A record in a leaf page."""

    page: int
    node: int


class Salvage:  # pylint: disable=too-many-instance-attributes  # a dict for each sub-database
    """The readable records of a data file. It is read when made; payloads stay in the file until asked for."""

    def __init__(self, opened: PageFile) -> None:
        self._file = opened
        self.problems: List[str] = []
        self.header: Optional[Header] = None
        self.message_type: Optional[str] = None
        self.places: Dict[bytes, Place] = {}
        self.first_in_flight: Dict[int, int] = {}  # by the number of the subscriber
        self.runs: Dict[int, Run] = {}
        self.messages: Dict[int, Where] = {}
        self._parts: Dict[Tuple[int, int], Where] = {}
        #: By due time and number.
        self.delayed: Dict[Tuple[int, int], Dict[int, Where]] = {}
        self.once: Dict[bytes, Once] = {}
        self._found: Set[str] = set()
        self._page: Tuple[int, bytes, List[Node]] = (0, b"", [])
        self._read_trees()
        if self.problems:
            self._read_all_pages()

    # Trees

    def _read_trees(self) -> None:
        for age, meta in enumerate(self._metas()):
            roots = self._roots(meta.main_root)
            # The order matters: of two versions of a record, the first that is found stays.
            for name in SubDatabases._fields:
                if name in roots:
                    count = len(self.problems)
                    for number, page in self._file.leaves(roots[name], set(), self.problems):
                        # A page of the commit before may have been used again since, for something else.
                        if not age or self._guess_safely(page) == name:
                            self._keep(name, number, page)
                    if not age and len(self.problems) == count:
                        self._found.add(name)
            if len(self._found) == len(SubDatabases._fields):
                return
            self.problems.append(f"the trees of commit {meta.transaction} are broken")

    def _metas(self) -> List[page_walk.Meta]:
        """Give the meta pages that can be read, the newest first, and know the size of pages."""
        metas = []
        sizes = [page_walk.PAGE_BYTES_MIN << shift for shift in range(8)]
        for start in (0, *sizes):
            try:
                meta = self._file.meta_at(start)
            except PageError as error:
                if not start:
                    self.problems.append(str(error))
                continue
            if start in (0, meta.page_bytes):
                metas.append(meta)
        if len(metas) < META_PAGES:
            self.problems.append(f"{len(metas)} of {META_PAGES} meta pages can be read")
        if metas:
            self._file.page_bytes = metas[0].page_bytes
        return sorted(metas, key=lambda meta: -meta.transaction)

    def _roots(self, main_root: int) -> Dict[str, int]:
        roots = {}
        for _, page in self._file.leaves(main_root, set(), self.problems):
            roots.update(self._roots_in(page))
        for name in SubDatabases._fields:
            if name not in roots:
                self.problems.append(f"{name} is not to be found")
        return roots

    def _roots_in(self, page: bytes) -> Dict[str, int]:
        roots = {}
        try:
            for node in self._file.nodes(page):
                name = node.key.decode("ascii", "replace")
                if node.flags & SUB_DATABASE and name in SubDatabases._fields:
                    roots[name] = page_walk.decode_root(self._file.value(page, node))
        except PageError as error:
            self.problems.append(str(error))
        return roots

    # All pages

    def _read_all_pages(self) -> None:
        for number in range(META_PAGES, self._file.pages()):
            try:
                page = self._file.page(number)
            except PageError:
                continue  # what is in no tree may be anything
            name = self._guess_safely(page) if page_walk.kind(page) == LEAF else None
            if name is not None and name not in self._found:
                self._keep(name, number, page)

    def _guess_safely(self, page: bytes) -> Optional[str]:
        try:
            return self._guess(page, self._file.nodes(page))
        except (PageError, struct.error):
            return None

    # pylint: disable-next=too-many-return-statements  # one for each sub-database
    def _guess(self, page: bytes, nodes: List[Node]) -> Optional[str]:
        """Tell by its records to which sub-database a leaf page belongs."""
        if not nodes or any(node.flags & SUB_DATABASE for node in nodes):
            return None
        if any(node.key == records.HEADER_KEY for node in nodes):
            return "queue_db"
        sizes = {node.size_bytes for node in nodes}
        lengths = {len(node.key) for node in nodes}
        if sizes <= {records.PLACE_BYTES, records.PLACE_WITH_POLICY_BYTES} and all(
                _is_identifier(node.key) for node in nodes):
            return "subscriber_db"
        if any(node.key[:1] != b"\0" for node in nodes):
            return None  # deduplication ids, perhaps; what goes with them is in once_order_db as well
        if lengths == {records.PART_KEY.size}:
            return "chunk_db"
        if len(lengths) == 1 and all(TIME_US_MIN <= records.unpack_id(node.key) < _DUE_US_END for node in nodes):
            return _KEY_SIZES_BY_TIME.get(lengths.pop())
        if lengths != {records.NUMBER.size} or any(not 0 < records.unpack_id(node.key) < ID_MAX for node in nodes):
            return None
        if sizes == {28} and all(self._is_run(page, node) for node in nodes):
            return "meta_db"
        if sizes == {8} and all(self._file.value(page, node)[:4] == bytes(4) for node in nodes):
            return "pending_db"
        return None if all(self._is_free_list(page, node) for node in nodes) else "data_db"

    def _is_free_list(self, page: bytes, node: Node) -> bool:
        """Tell whether a record could be one of LMDB's own, of pages that became free: a list with its length."""
        if node.size_bytes % 8 or node.size_bytes < 16 or node.size_bytes > self._file.page_bytes:
            return False
        return int.from_bytes(self._file.value(page, node)[:8], sys.byteorder) == node.size_bytes // 8 - 1

    def _is_run(self, page: bytes, node: Node) -> bool:
        time_us = records.decode_run(node.key, self._file.value(page, node)).time_us
        return time_us == 0 or TIME_US_MIN <= time_us < 4 * TIME_US_MIN

    # Records

    def _keep(self, name: str, number: int, page: bytes) -> None:
        """Note what a leaf page of a sub-database holds, as far as it is not known yet."""
        try:
            nodes = self._file.nodes(page)
        except PageError as error:
            self.problems.append(str(error))
            return
        for index, node in enumerate(nodes):
            try:
                self._keep_record(name, page, node, Where(number, index))
            except (PageError, struct.error, ValueError) as error:
                self.problems.append(f"a record of {name} in page {number}: {error}")

    def _keep_record(self, name: str, page: bytes, node: Node, where: Where) -> None:
        key = node.key
        if name == "data_db":
            message_id, = records.NUMBER.unpack(key)
            if 0 < message_id < ID_MAX:
                self.messages.setdefault(message_id, where)
        elif name == "chunk_db":
            message_id, part = records.PART_KEY.unpack(key)
            self._parts.setdefault((message_id, part), where)
        elif name == "delayed_db":
            due_us, number, part = records.DELAYED_KEY.unpack(key)
            self.delayed.setdefault((due_us, number), {}).setdefault(part, where)
        elif name == "once_order_db":
            time_us, message_id = records.ONCE_ORDER_KEY.unpack(key)
            identifier = self._file.value(page, node)
            if message_id < ID_MAX:
                self.once[identifier] = max(Once(message_id, time_us), self.once.get(identifier, Once(0, 0)))
        elif name == "meta_db":
            run = records.decode_run(key, self._file.value(page, node))
            if run.first_id < ID_MAX:
                # The later one: in a queue without messages the newest run begins again at its id.
                self.runs[run.first_id] = max(run, self.runs.get(run.first_id, run))
        elif name == "subscriber_db":
            place = records.decode_place(self._file.value(page, node))
            if not _is_identifier(key) or place.next_id >= ID_MAX:
                raise ValueError("no subscriber")
            # The later one: it is on the disk because somebody took what is before it.
            self.places[key] = max(place,
                                   self.places.get(key, place),
                                   key=lambda one: (one.number, one.next_id, one.taken))
        elif name == "index_db":
            number, message_id = ENTRY_KEY.unpack(key)
            self.first_in_flight[number] = min(message_id, self.first_in_flight.get(number, message_id))
        elif name == "queue_db":
            self._keep_setting(key, self._file.value(page, node))

    def _keep_setting(self, key: bytes, value: bytes) -> None:
        if key == records.HEADER_KEY:
            header = page_walk.require_configuration(value)
            if self.header is None or _age(header) > _age(self.header):
                self.header = header
        elif key == records.MESSAGE_TYPE_KEY and self.message_type is None:
            self.message_type = arguments.message_type(value.decode())

    def recovered_places(self) -> Dict[bytes, Place]:
        """Give all subscribers, each where nothing is left out that it has not taken.

        A shared one begins with the first message that was in flight, or, where nobody knows which that was, with the
        first one there is. What it has taken behind that comes again. Its dead letters are not recovered.
        """
        first_id = min(self.messages, default=ID_MAX)
        found = {}
        for identifier, place in self.places.items():
            if place.policy is not None and place.policy.shared:
                start = self.first_in_flight.get(place.number, ID_MAX) if "index_db" in self._found else first_id
                place = place._replace(next_id=min(place.next_id, start))
            found[identifier] = place._replace(in_flight=0, requeued=0, dead_letters=0)
        return found

    def payload(self, message_id: int) -> bytes:
        """Read a message that was found.

        :raise DamagedError: it cannot be read
        """
        try:
            value = self._value(self.messages[message_id])
            if not records.is_long(len(value)):
                return value
            size, = records.NUMBER.unpack_from(value)
            if size > MESSAGE_BYTES_MAX:
                raise PageError(f"it would have {size} bytes")
            return records.joined(value, self._parts_of(message_id))
        except ValueError as error:
            raise errors.DamagedError(f"Message {message_id} cannot be read: {error}.") from error

    def delayed_payload(self, key: Tuple[int, int]) -> bytes:
        """Read a delayed message that was found.

        :raise DamagedError: it cannot be read
        """
        try:
            parts = self.delayed[key]
            numbers = itertools.takewhile(parts.__contains__, itertools.count())
            return schedule.joined([self._value(parts[number]) for number in numbers])
        except ValueError as error:
            raise errors.DamagedError(f"The delayed message {key[1]} cannot be read: {error}.") from error

    def _parts_of(self, message_id: int) -> Iterator[bytes]:
        part = 1
        while (message_id, part) in self._parts and part <= PART_NUMBER_MAX:
            yield self._value(self._parts[message_id, part])
            part += 1

    def _value(self, where: Where) -> bytes:
        if self._page[0] != where.page:
            page = self._file.page(where.page)
            self._page = where.page, page, self._file.nodes(page)
        _, page, nodes = self._page
        return self._file.value(page, nodes[where.node])


def _age(header: Header) -> Tuple[int, int]:
    """Give what only grows in a header."""
    return header.next_subscriber_number, header.first


def _is_identifier(key: bytes) -> bool:
    try:
        return 0 < len(key) <= IDENTIFIER_BYTES_MAX and b"\0" not in key and bool(key.decode())
    except UnicodeDecodeError:
        return False
