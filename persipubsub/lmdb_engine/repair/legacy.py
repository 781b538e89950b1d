"""Read a queue of persipubsub 1.0.0 from its data file without LMDB: nothing in its directory changes.

==================  ===================  =========================================================================
sub-database        key                  value
==================  ===================  =========================================================================
``queue_db``        name of a limit      its number: ``message_timeout`` (seconds), ``max_messages``, ``hwm_db_size``
``queue_db``        ``strategy``         ``PRUNE_FIRST`` or ``PRUNE_LAST``
``subscriber_db``   name                 nothing
that name           message key          nothing: the message is pending for the subscriber
``data_db``         message key          payload
==================  ===================  =========================================================================

Numbers are big-endian in 8 bytes. A message key is the time of sending as decimal text, in seconds, followed directly
by the 36 characters of a random UUID. ``meta_db`` has the same time in whole seconds, and ``pending_db`` counts the
records of the subscribers' own databases. Neither is read.
"""

import decimal
import re
import struct
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from persipubsub import errors
from persipubsub.engine import checks
from persipubsub.lmdb_engine.records import page_file
from persipubsub.lmdb_engine.records.layouts import NUMBER
from persipubsub.lmdb_engine.records.page_file import SUB_DATABASE, Node, PageError, PageFile
from persipubsub.queue import MESSAGE_BYTES_MAX, HighWaterMark, Strategy

SUB_DATABASES = frozenset((b"queue_db", b"subscriber_db", b"data_db", b"meta_db", b"pending_db"))
#: Larger numbers mean no limit.
LIMITS = (("message_timeout", HighWaterMark.MESSAGE_TIMEOUT_S_MAX), ("max_messages", HighWaterMark.MAX_MESSAGES_MAX),
          ("hwm_db_size", HighWaterMark.HWM_DB_SIZE_BYTES_MAX))
_KEY = re.compile(rb"([0-9]{1,20}(?:\.[0-9]+)?).{36}", re.DOTALL)


def sent_s(key: bytes) -> decimal.Decimal:
    """Return the time of sending in a message key: seconds since the epoch, by the sender's clock without time zone.

    :raise PageError: it is not a message key
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise PageError(f"{key!r} is not the key of a message")
    return decimal.Decimal(match[1].decode())


class LegacyMessage(NamedTuple):
    """A message whose payload exists: when it was sent, and where it is stored."""

    sent_s: decimal.Decimal
    page: int
    node: int


class LegacyQueue:
    """The records of a queue. Payloads stay in the file until they are needed.

    :raise PageError: something cannot be read
    :raise FormatError: a queue of this version cannot have one of the names or numbers
    """

    def __init__(self, opened: PageFile) -> None:
        self._file = opened
        self._meta = opened.newest_meta()
        roots = {
            node.key: page_file.decode_root(opened.value(page, node))
            for _, page, _, node in self._nodes(self._meta.main_root) if node.flags & SUB_DATABASE
        }
        missing = sorted(SUB_DATABASES - roots.keys())
        if missing:
            raise PageError(f"the sub-database {missing[0].decode()} is missing")
        self.high_watermark, self.strategy = self._configuration(roots[b"queue_db"])
        self.messages = {
            node.key: LegacyMessage(sent_s(node.key), number, index)
            for number, _, index, node in self._nodes(roots[b"data_db"])
        }
        #: The keys of the pending messages of each subscriber, even of messages that do not exist.
        self.pending: Dict[str, Set[bytes]] = {}
        for _, _, _, subscriber in self._nodes(roots[b"subscriber_db"]):
            name = _identifier(subscriber.key)
            # A subscriber without a database never got a message.
            root = roots.get(subscriber.key, page_file.NO_ROOT)
            self.pending[name] = {node.key for _, _, _, node in self._nodes(root)}

    def payload(self, key: bytes) -> bytes:
        """Read the payload of a message.

        :raise PageError: it cannot be read
        """
        where = self.messages[key]
        return self._file.value_at(where.page, where.node, MESSAGE_BYTES_MAX)

    def changed(self) -> bool:
        """Return whether somebody has committed since this object was created. Then what was read may be inconsistent.

        LMDB never changes a page of the newest commit, so without another commit all of it is unchanged.
        """
        return self._file.newest_meta() != self._meta

    def _nodes(self, root: int) -> Iterator[Tuple[int, bytes, int, Node]]:
        """Iterate over the records of a tree: number of the page, page, index in the page, record."""
        problems: List[str] = []
        for number, page in self._file.leaves(root, set(), problems):
            for index, node in enumerate(self._file.nodes(page)):
                yield number, page, index, node
        if problems:
            raise PageError(problems[0])

    def _configuration(self, root: int) -> Tuple[HighWaterMark, Strategy]:
        fields = {
            node.key.decode("ascii", "replace"): self._file.value(page, node)
            for _, page, _, node in self._nodes(root)
        }
        try:
            found = [(NUMBER.unpack(fields[name])[0], largest) for name, largest in LIMITS]
            mark = HighWaterMark(*(limit if limit <= largest else None for limit, largest in found))
            return mark, Strategy[fields["strategy"].decode("ascii")]
        except errors.ArgumentError as error:
            raise errors.FormatError(f"A queue of this version cannot have this configuration: {error}") from error
        except (KeyError, ValueError, struct.error) as error:
            raise PageError(f"the configuration is broken ({error!r})") from error


def _identifier(name: bytes) -> str:
    try:
        identifier = name.decode()
        checks.identifier(identifier)
    except ValueError as error:
        raise errors.FormatError(
            f"The queue has a subscriber that a queue of this version cannot have: {error}") from error
    if name in SUB_DATABASES:
        raise errors.FormatError(
            f"The queue has a subscriber {identifier!r}, for which persipubsub 1.0.0 wrote into the queue's own "
            "records. The records of the two cannot be distinguished. Remove the subscriber with persipubsub 1.0.0.")
    return identifier
