"""The records in the stream of state, and their JSON: one for the queue, one for each subscriber."""

import os
from typing import Dict, List, NamedTuple, Optional, Tuple, Type, TypeVar, Union

import msgspec

from persipubsub import errors
from persipubsub.engine.policies import Policy

#: Added to the id of a dead letter that was requeued: its message is outside the stream of messages.
REQUEUED = 2**63
#: The version of these records.
VERSION = 1
#: The token of messages that no worker holds.
NOBODY = ""


def new_token() -> str:
    """Return a random token."""
    return os.urandom(9).hex()


def new_identity() -> str:
    """Return the identity of a queue or of a relay: 16 random bytes, in hexadecimal digits."""
    return os.urandom(16).hex()


class QueueRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings and counters of a queue."""

    #: Tokens of the last writes, so that a writer whose answer was lost finds out whether it wrote.
    written: Tuple[str, ...] = ()
    version: int = VERSION
    #: By which relays know the queue.
    identity: str = ""
    message_timeout_us: Optional[int] = None
    max_messages: Optional[int] = None
    hwm_db_size: Optional[int] = None
    strategy: int = 0
    retention_us: int = 0
    deduplication_window_us: int = 120 * 10**6
    message_type: Optional[str] = None
    #: Messages with lower ids are deleted for everyone, though the server may still store them.
    first: int = 1
    pruned_timeout: int = 0
    pruned_overflow: int = 0
    pruned_dangling: int = 0
    #: How many messages were ever delayed: each has taken an id before it was due.
    delayed: int = 0


class Entry(NamedTuple):
    """A message that was delivered and is not acknowledged.

    For a shared subscriber, it counts the deliveries that have begun; for another one, those that failed.
    """

    deliveries: int
    #: Of the worker that holds it; :data:`NOBODY` if none does.
    token: str
    #: When it may be delivered again.
    due_us: int
    #: The name under which its last failure is stored beside the record; empty if there is none.
    failure: str = ""


#: The id of the first of several messages with equal entries, how many there are, and the entry.
Run = Tuple[int, int, int, str, int, str]


class SubscriberRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subscriber."""

    #: Distinguishes it from a later one with the same identifier.
    number: int
    #: The id of the next message that it receives for the first time.
    next_id: int
    #: As in :class:`QueueRecord`.
    written: Tuple[str, ...] = ()
    taken: int = 0
    policy: Optional[Policy] = None
    runs: Tuple[Run, ...] = ()
    #: Of a relay that receives as this subscriber: its own identity, and that of the queue to which it leads.
    route: Optional[Tuple[str, str]] = None
    #: Whether it was removed: the record then only tells others so.
    removed: bool = False

    def entries(self) -> Dict[int, Entry]:
        """Return the entries of its messages, by message id in rising order."""
        return {
            first + index: Entry(deliveries, token, due_us, failure)
            for first, count, deliveries, token, due_us, failure in self.runs
            for index in range(count)
        }

    def position(self) -> int:
        """Return the id of the first message that it has not acknowledged, or the next one."""
        shared = self.policy is not None and self.policy.shared
        return min(self.runs[0][0], self.next_id) if shared and self.runs else self.next_id

    def counts(self) -> Tuple[int, int]:
        """Return how many messages of the stream are in flight, and how many were requeued."""
        in_flight = sum(run[1] for run in self.runs if run[0] < REQUEUED)
        return in_flight, sum(run[1] for run in self.runs if run[0] >= REQUEUED)


def runs_of(entries: Dict[int, Entry]) -> Tuple[Run, ...]:
    """Return entries in the form of a record."""
    runs: List[List[object]] = []
    last_id, last = -2, None
    for message_id in sorted(entries):
        entry = entries[message_id]
        if message_id == last_id + 1 and entry == last and message_id != REQUEUED:
            runs[-1][1] += 1  # type: ignore[operator]  # an int
        else:
            runs.append([message_id, 1, *entry])
        last_id, last = message_id, entry
    return tuple(map(tuple, runs))  # type: ignore[arg-type]  # runs


R = TypeVar("R", bound=Union[QueueRecord, SubscriberRecord])
#: How many tokens of writes a record keeps.
WRITTEN_MAX = 8


def signed(record: R, token: str) -> R:
    """Return a record with the token of a write."""
    return msgspec.structs.replace(record, written=(*record.written, token)[-WRITTEN_MAX:])


def encoded(record: Union[QueueRecord, SubscriberRecord]) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def decoded(kind: Type[R], value: bytes, shown: str) -> R:
    """Return a record from its JSON.

    :raise FormatError: it is not of this version
    """
    try:
        record = msgspec.json.decode(value, type=kind)
    except msgspec.ValidationError as error:
        raise errors.FormatError(f"The state of the queue at {shown} is not of this version ({error}). It was not "
                                 "touched. Use the version of persipubsub that wrote it.") from error
    if isinstance(record, QueueRecord) and record.version != VERSION:
        raise errors.FormatError(f"The queue at {shown} has format {record.version}, and this version reads {VERSION}. "
                                 "It was not touched. Use a later version of persipubsub.")
    return record
