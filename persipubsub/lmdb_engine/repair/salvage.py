"""Find the records of a damaged data file that can still be read, without LMDB.

First the trees are read as far as they are intact, from the newest commit, then from the one before. If any of their
pages cannot be read, every leaf page of the file is read as well. Payloads never change and ids are never reused. So a
message on a page that no tree leads to is genuine, though it may have been acknowledged.
"""

import collections
import itertools
import struct
from typing import DefaultDict, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from persipubsub import errors
from persipubsub.engine import checks, headers, policies
from persipubsub.engine.values import Relayed, Route
from persipubsub.lmdb_engine.process import queue_file
from persipubsub.lmdb_engine.records import delayed_messages, delivery_layouts, layouts, page_file
from persipubsub.lmdb_engine.records.delivery_layouts import (DEAD_LETTER_KEY, ENTRY_KEY, REQUEUED, DeadLetterPayload,
                                                              Death, Delivery)
from persipubsub.lmdb_engine.records.layouts import (HEADERS_PART, Deduplicated, Header, Run, SubDatabases,
                                                     SubscriberRecord)
from persipubsub.lmdb_engine.records.page_file import LEAF, META_PAGES, SUB_DATABASE, Node, PageError, PageFile
from persipubsub.lmdb_engine.repair import orphan_pages
from persipubsub.lmdb_engine.repair.orphan_pages import ID_MAX, PART_NUMBER_MAX
from persipubsub.queue import MESSAGE_BYTES_MAX


class Where(NamedTuple):
    """A record in a leaf page."""

    page: int
    node: int


class Salvage:  # pylint: disable=too-many-instance-attributes  # a dict for each sub-database
    """The readable records of a data file. All are read at once, except payloads, which are read when needed."""

    def __init__(self, opened: PageFile) -> None:
        self._file = opened
        self.problems: List[str] = []
        self.header: Optional[Header] = None
        self.message_type: Optional[str] = None
        self.identity: Optional[bytes] = None
        #: By the identifiers of subscribers.
        self.routes: Dict[bytes, Route] = {}
        #: How far relays have come that bring messages into the queue, by their origins.
        self.relayed: Dict[bytes, Relayed] = {}
        self.subscribers: Dict[bytes, SubscriberRecord] = {}
        #: The cursors that pending_db counts.
        self.cursors: Set[int] = set()
        #: By the number of a subscriber, then by message id. The parts of a dead letter are by their number.
        self.entries: DefaultDict[int, Dict[int, Delivery]] = collections.defaultdict(dict)
        self.deaths: DefaultDict[int, Dict[int, Death]] = collections.defaultdict(dict)
        self.dead_letter_parts: DefaultDict[int, Dict[int, Dict[int, Where]]] = collections.defaultdict(dict)
        self.runs: Dict[int, Run] = {}
        self.messages: Dict[int, Where] = {}
        self._parts: Dict[Tuple[int, int], Where] = {}
        #: By due time and number.
        self.delayed: Dict[Tuple[int, int], Dict[int, Where]] = {}
        self.deduplicated: Dict[bytes, Deduplicated] = {}
        self._found: Set[str] = set()
        self._read_trees()
        if self.problems:
            self._read_all_pages()

    # Trees

    def _read_trees(self) -> None:
        for age, meta in enumerate(self._metas()):
            roots = self._roots(meta.main_root)
            # The order matters: of two versions of a record, the first one found is kept.
            for name in SubDatabases._fields:
                if name in roots and name not in self._found:
                    count = len(self.problems)
                    for number, page in self._file.leaves(roots[name], set(), self.problems):
                        # A page of the commit before may have been reused since.
                        if not age or orphan_pages.guess(self._file, page) == name:
                            self._keep(name, number, page)
                    if not age and len(self.problems) == count:
                        self._found.add(name)
            if len(self._found) == len(SubDatabases._fields):
                return
            self.problems.append(f"the trees of commit {meta.transaction} are broken")

    def _metas(self) -> List[page_file.Meta]:
        """Return the readable meta pages, the newest first, and set the size of pages."""
        metas = []
        sizes = [page_file.PAGE_BYTES_MIN << shift for shift in range(8)]
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
                self.problems.append(f"{name} was not found")
        return roots

    def _roots_in(self, page: bytes) -> Dict[str, int]:
        roots = {}
        try:
            for node in self._file.nodes(page):
                name = node.key.decode("ascii", "replace")
                if node.flags & SUB_DATABASE and name in SubDatabases._fields:
                    roots[name] = page_file.decode_root(self._file.value(page, node))
        except PageError as error:
            self.problems.append(str(error))
        return roots

    # All pages

    def _read_all_pages(self) -> None:
        for number in range(META_PAGES, self._file.pages()):
            try:
                page = self._file.page(number)
            except PageError:
                continue  # a page outside the trees may have any content
            name = orphan_pages.guess(self._file, page) if page_file.kind(page) == LEAF else None
            if name is not None and name not in self._found:
                self._keep(name, number, page)

    # Records

    def _keep(self, name: str, number: int, page: bytes) -> None:
        """Keep the records of a leaf page of a sub-database that are not known yet."""
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

    # pylint: disable-next=too-many-branches  # one for each sub-database
    def _keep_record(self, name: str, page: bytes, node: Node, where: Where) -> None:
        key = node.key
        if name == "data_db":
            message_id, = layouts.NUMBER.unpack(key)
            if 0 < message_id < ID_MAX:
                self.messages.setdefault(message_id, where)
        elif name == "chunk_db":
            message_id, part = layouts.PART_KEY.unpack(key)
            self._parts.setdefault((message_id, part), where)
        elif name == "delayed_db":
            due_us, number, part = layouts.DELAYED_KEY.unpack(key)
            if number < ID_MAX:
                self.delayed.setdefault((due_us, number), {}).setdefault(part, where)
        elif name == "once_order_db":
            time_us, message_id = layouts.DEDUPLICATION_ORDER_KEY.unpack(key)
            identifier = self._file.value(page, node)
            if not orphan_pages.is_identifier(identifier):
                raise ValueError("it is not a deduplication id")
            if message_id % layouts.DELAYED < ID_MAX:
                self.deduplicated[identifier] = max(Deduplicated(message_id, time_us),
                                                    self.deduplicated.get(identifier, Deduplicated(0, 0)))
        elif name == "meta_db":
            run = layouts.decode_run(key, self._file.value(page, node))
            if run.first_id < ID_MAX:
                # Keep the later one: in a queue without messages the newest run begins again at its id.
                self.runs[run.first_id] = max(run, self.runs.get(run.first_id, run))
        elif name == "subscriber_db":
            self._keep_subscriber(key, layouts.decode_subscriber(self._file.value(page, node)))
        elif name == "pending_db":
            position, = layouts.NUMBER.unpack(key)
            if position < ID_MAX:
                self.cursors.add(position)
        elif name == "queue_db":
            self._keep_setting(key, self._file.value(page, node))
        elif name == "letter_db":
            subscriber_number, message_id, part = DEAD_LETTER_KEY.unpack(key)
            if 0 < message_id < ID_MAX:
                self.dead_letter_parts[subscriber_number].setdefault(message_id, {}).setdefault(part, where)
        elif name in ("index_db", "dead_letter_db"):
            subscriber_number, message_id = ENTRY_KEY.unpack(key)
            self._keep_delivery(name, subscriber_number, message_id, self._file.value(page, node))

    def _keep_subscriber(self, key: bytes, record: SubscriberRecord) -> None:
        if not orphan_pages.is_identifier(key) or record.next_id >= ID_MAX or not record.number:
            raise ValueError("it is not a subscriber")
        if record.policy is not None and not policies.can_be_set(record.policy):
            raise ValueError("it has an invalid policy")
        # Keep the later one: it is on the disk since the messages before it were acknowledged.
        self.subscribers[key] = max(record,
                                    self.subscribers.get(key, record),
                                    key=lambda one: (one.number, one.next_id, one.taken))

    def _keep_delivery(self, name: str, number: int, message_id: int, value: bytes) -> None:
        if message_id % REQUEUED >= ID_MAX:
            raise ValueError("it is not a message")
        if name == "index_db":
            self.entries[number].setdefault(message_id, orphan_pages.require_delivery(value))
        else:
            self.deaths[number].setdefault(message_id, orphan_pages.require_death(value))

    def _keep_setting(self, key: bytes, value: bytes) -> None:
        if key == layouts.HEADER_KEY:
            header = queue_file.require_configuration(value)
            if self.header is None or _age(header) > _age(self.header):
                self.header = header
        elif key == layouts.MESSAGE_TYPE_KEY and self.message_type is None:
            self.message_type = checks.message_type(value.decode())
        elif key == layouts.IDENTITY_KEY and len(value) == layouts.IDENTITY_BYTES and self.identity is None:
            self.identity = value
        elif key.startswith(layouts.ROUTE_PREFIX):
            self.routes.setdefault(key[len(layouts.ROUTE_PREFIX):], layouts.decode_route(value))
        elif key.startswith(layouts.RELAYED_PREFIX):
            origin = key[len(layouts.RELAYED_PREFIX):]
            # The later one: if it were brought again, a message would be doubled.
            self.relayed[origin] = max(layouts.decode_relayed(value), self.relayed.get(origin, Relayed()))

    def dead_letter(self, number: int, message_id: int) -> DeadLetterPayload:
        """Read a dead letter that was found.

        :raise DamagedError: it cannot be read
        """
        parts = self.dead_letter_parts[number][message_id]
        try:
            message = delivery_layouts.joined_payload(self._adjacent(parts))
            return message._replace(headers=self._headers_at(parts.get(HEADERS_PART)))
        except ValueError as error:
            raise errors.DamagedError(f"The dead letter {message_id} cannot be read: {error}.") from error

    def ids_by_subscriber(self) -> Iterator[Iterable[int]]:
        """Iterate over the message ids of all entries, deaths and dead letters, one subscriber after the other."""
        yield from self.entries.values()
        yield from self.deaths.values()
        yield from self.dead_letter_parts.values()

    def is_whole(self, name: str) -> bool:
        """Return whether exactly the records of the newest commit were found of a sub-database."""
        return name in self._found

    def payload(self, message_id: int) -> bytes:
        """Read a message that was found.

        :raise DamagedError: it cannot be read
        """
        try:
            value = self._file.value_at(*self.messages[message_id])
            if not layouts.is_long(len(value)):
                return value
            size, = layouts.NUMBER.unpack_from(value)
            if size > MESSAGE_BYTES_MAX:
                raise PageError(f"it would have {size} bytes")
            return layouts.joined(value, self._parts_of(message_id))
        except ValueError as error:
            raise errors.DamagedError(f"Message {message_id} cannot be read: {error}.") from error

    def headers(self, message_id: int) -> bytes:
        """Read the encoded headers of a message, which are empty if none were found."""
        return self._headers_at(self._parts.get((message_id, HEADERS_PART)))

    def delayed_headers(self, key: Tuple[int, int]) -> bytes:
        """Read the encoded headers of a delayed message, which are empty if none were found."""
        return self._headers_at(self.delayed[key].get(HEADERS_PART))

    def _headers_at(self, where: Optional[Where]) -> bytes:
        if where is None:
            return b""
        try:
            encoded = self._file.value_at(*where)
            headers.decoded(encoded)
        except (PageError, errors.DamagedError) as error:
            self.problems.append(f"headers of a message: {error}")
            return b""
        return encoded

    def delayed_payload(self, key: Tuple[int, int]) -> bytes:
        """Read a delayed message that was found.

        :raise DamagedError: it cannot be read
        """
        try:
            return delayed_messages.joined(list(self._adjacent(self.delayed[key])))
        except ValueError as error:
            raise errors.DamagedError(f"The delayed message {key[1]} cannot be read: {error}.") from error

    def _adjacent(self, parts: Dict[int, Where]) -> Iterator[bytes]:
        """Read parts from number 0 on, up to the first missing one."""
        return (self._file.value_at(*parts[number])
                for number in itertools.takewhile(parts.__contains__, itertools.count()))

    def _parts_of(self, message_id: int) -> Iterator[bytes]:
        part = 1
        while (message_id, part) in self._parts and part <= PART_NUMBER_MAX:
            yield self._file.value_at(*self._parts[message_id, part])
            part += 1


def _age(header: Header) -> Tuple[int, int]:
    """Return the numbers of a header that only grow."""
    return header.next_subscriber_number, header.first
