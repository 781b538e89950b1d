"""Replay stored messages: move a subscriber back, begin in the past, or read the history; on an open transaction.

The stored messages are those that a subscriber awaits, and those that are retained (:mod:`.retention`). A time is found
by bisection of ``meta_db``. There a message has the time of its run, which began up to :data:`.runs.RUN_US_MAX` before
the message was committed. So a search begins that much before the wanted time: it may find a message too many, but
never one too few.
"""

import bisect
import itertools
from typing import List

from persipubsub import moments
from persipubsub.engine import headers
from persipubsub.engine.values import Delivering, Position
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters, message_log, policies
from persipubsub.replay import StoredMessage

#: The maximum number and size of the messages of the history that one transaction reads; it reads one in any case.
HISTORY_MESSAGES_MAX = 1000
HISTORY_BYTES_MAX = 16 * 1024**2


def resolved(txn: Transaction, position: Position) -> int:
    """Return the id of the first message after a position, or the next id if there is none."""
    if position.message_id is not None:
        return min(position.message_id, txn.log().next_id())
    return txn.log().first_id_since(position.time_us - RUN_US_MAX)


def add_subscriber(txn: Transaction, identifier: bytes, start: Position, given: Delivering) -> int:
    """Add a subscriber at a position, or at the first stored message if that is later; or change its policy.

    A subscriber that exists keeps its cursor.

    :return: how many of its dead letters were deleted because of a lower limit
    :raise ArgumentError: the subscriber cannot have this policy
    """
    is_new = txn.subscriber(identifier) is None
    dropped = policies.apply(txn, identifier, given)
    if is_new:
        rewind(txn, identifier, start)
    return dropped


def rewind(txn: Transaction, identifier: bytes, position: Position) -> int:
    """Move a subscriber back to a position, or to the first stored message if that is later.

    A subscriber that is already before the position stays there, so that it skips nothing.

    :return: how many messages it then awaits
    :raise UnknownSubscriberError: there is none
    """
    record = cursors.own_record(txn, cursors.subscribe(txn, identifier))
    kept_id = message_log.first_kept_id(txn, message_log.now_us(txn))
    start = message_log.first_live_id(txn, max(resolved(txn, position), kept_id))
    if start < record.next_id:
        before = dead_letters.position(txn, record)
        record = dead_letters.forget_from(txn, record, start)._replace(next_id=start)
        cursors.move(txn, identifier, record, before, dead_letters.position(txn, record))
        txn.published = True
    pending, _ = message_log.count_from(txn, max(record.next_id, kept_id))
    return pending if record.policy is None else pending + dead_letters.awaited(txn, record, kept_id).messages


def span(txn: Transaction, start: Position, end: Position) -> range:
    """Return the ids between two positions, of messages that are or were stored."""
    kept_id = max(message_log.first_kept_id(txn, message_log.now_us(txn)), message_log.deleted_below(txn))
    # An end that is a time includes the runs that began before it.
    end_id = resolved(txn, end) if end.message_id is not None else txn.log().first_id_since(end.time_us)
    return range(max(resolved(txn, start), kept_id), end_id)


def read(txn: Transaction, ids: range) -> List[StoredMessage]:
    """Read the first stored messages of a range of ids; the list is empty if there are none."""
    start = max(ids.start, message_log.deleted_below(txn))
    # Not len(ids): it fails for a range of more than 2 ** 63 ids, which a damaged queue may have.
    count = min(HISTORY_MESSAGES_MAX, max(1, ids.stop - ids.start))
    found, payloads = txn.messages(start, count, HISTORY_BYTES_MAX)
    found = found[:bisect.bisect_left(found, ids.stop)]
    if not found:
        return []
    runs = list(itertools.takewhile(lambda run: run.first_id <= found[-1], txn.log().since(found[0])))
    begin = [run.first_id for run in runs]
    parts = txn.parts()
    return [
        StoredMessage(message_id, moments.utc(runs[bisect.bisect_right(begin, message_id) - 1].time_us), payload,
                      headers.decoded(parts.headers(message_id))) for message_id, payload in zip(found, payloads)
    ]
