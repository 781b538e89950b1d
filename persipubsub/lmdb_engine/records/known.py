"""What is known of a queue's records as of one commit, so that the next transaction need not ask LMDB.

LMDB numbers its commits. If the number of a transaction shows that nobody has committed since, all of this still holds.
:class:`.transaction.Transaction` keeps it up to date: each method that changes records also changes what is known.
Several threads may hold the same object, so it is copied before it is changed.
"""

import itertools
from typing import TYPE_CHECKING, Any, List, Mapping, NamedTuple, Optional, Sequence, TypedDict

from persipubsub.lmdb_engine.records.layouts import Header, Run, SubscriberRecord, unpack_id

if TYPE_CHECKING:
    import lmdb

#: The maximum number of subscribers whose records are kept, and of cursors.
KNOWN_SUBSCRIBERS = 16
KNOWN_CURSORS = 8

#: The maximum number of messages that are read ahead, and of their bytes. A first part of a long one is larger.
AHEAD_MESSAGES = 32
AHEAD_BYTES = 64 * 1000


class Span(NamedTuple):
    """A run of the log, and the first id of the next one."""

    run: Run
    end_id: int


class Ahead(NamedTuple):
    """Messages that were read ahead. Their ids have no gaps, and none is stored from ``start`` to before the first."""

    start: int
    ids: range
    payloads: Sequence[bytes]

    def without(self, bound: int) -> "Ahead":
        """Return the rest after the messages below an id were deleted."""
        if bound <= self.ids.start:
            return self
        kept = range(min(bound, self.ids.stop), self.ids.stop)
        return Ahead(bound, kept, self.payloads[len(self.ids) - len(kept):])


class Known(TypedDict):
    """What is known as of one commit. A dict, since nothing is copied faster. None means that it is not known."""

    number: int  # LMDB's number of the commit
    header: Header
    at_rest: bool  # whether a write transaction has nothing to do before its operations
    next_id: Optional[int]
    newest: Optional[Run]
    oldest: Optional[Run]
    room: Any  # within which bounds messages are simply appended: see rules.appending
    subscribers: Mapping[bytes, SubscriberRecord]  # some of them
    cursors: Optional[Mapping[int, int]]  # how many subscribers have their cursor at each id
    span: Optional[Span]
    ahead: Optional[Ahead]


def known_by(number: int, header: Header) -> Known:
    """Return what a transaction knows that has read the header only."""
    return Known(number=number,
                 header=header,
                 at_rest=False,
                 next_id=None,
                 newest=None,
                 oldest=None,
                 room=None,
                 subscribers={},
                 cursors=None,
                 span=None,
                 ahead=None)


def read_ahead(cursor: "lmdb.Cursor[bytes]", start: int) -> Optional[Ahead]:
    """Read short messages without gaps from the LMDB cursor on; return None if the first is long."""
    payloads: List[bytes] = []
    size_bytes, first_id = 0, unpack_id(cursor.key())
    for key, payload in itertools.islice(cursor, AHEAD_MESSAGES):
        size_bytes += len(payload)
        if size_bytes > AHEAD_BYTES or unpack_id(key) != first_id + len(payloads):
            break
        payloads.append(payload)
    return Ahead(start, range(first_id, first_id + len(payloads)), payloads) if payloads else None
