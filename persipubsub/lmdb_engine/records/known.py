"""What is known of a queue's records as of one commit, so that the next transaction need not ask LMDB.

LMDB numbers its commits. If the number of a transaction shows that nobody has committed since, all of this still holds.
:class:`.transaction.Transaction` keeps it up to date: each method that changes records also changes what is known.
Several threads may hold the same object, so it is copied before it is changed.
"""

from typing import Any, Mapping, NamedTuple, Optional, Sequence, TypedDict

from persipubsub.lmdb_engine.records.layouts import Header, Run, SubscriberRecord

#: The maximum number of subscribers whose records are kept, and of cursors.
KNOWN_SUBSCRIBERS = 16
KNOWN_CURSORS = 8


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
    oldest_us: Optional[int]  # when the oldest run began
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
                 oldest_us=None,
                 room=None,
                 subscribers={},
                 cursors=None,
                 span=None,
                 ahead=None)
