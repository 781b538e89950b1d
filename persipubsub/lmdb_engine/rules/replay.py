"""Reading again what is still stored: moving a subscriber back, beginning in the past, looking without a subscriber.

What is stored are the messages that somebody awaits, and those that are retained (``rules.retention``). A time
is found by bisection of ``meta_db``. There a message has the time of its run, which began up to
``RUN_US_MAX`` before it was committed. So a search for a time begins as much earlier: rather a
message too many than one too few.
"""

import bisect
import itertools
from typing import List

from persipubsub import clock
from persipubsub.engine.values import Delivering, Position
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters, message_log, policies
from persipubsub.replay import StoredMessage

#: So much of the history is read in one transaction; one message in any case.
HISTORY_MESSAGES_MAX = 1000
HISTORY_BYTES_MAX = 16 * 1024**2


def resolved(txn: Transaction, position: Position) -> int:
    """Return the id of the first message after a position, or the next id where there is none."""
    if position.message_id is not None:
        return min(position.message_id, txn.log().next_id())
    return txn.log().first_id_since(position.time_us - RUN_US_MAX)


def add_subscriber(txn: Transaction, identifier: bytes, start: Position, given: Delivering) -> int:
    """Add a subscriber at a position, or where what is stored begins; or change how messages are handed out to it.

    One that exists stays at its place.

    :return: how many of its dead letters went, since they became too many
    :raise ArgumentError: what is given does not fit to the subscriber
    """
    is_new = txn.subscriber(identifier) is None
    dropped = policies.apply(txn, identifier, given)
    if is_new:
        rewind(txn, identifier, start)
    return dropped


def rewind(txn: Transaction, identifier: bytes, position: Position) -> int:
    """Move a subscriber back to a position, or to where what is stored begins; give how many messages it then awaits.

    One that is before the position already stays where it is, so that nothing is skipped.

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
    """Give the ids between two positions, of messages that are there or were."""
    kept_id = max(message_log.first_kept_id(txn, message_log.now_us(txn)), txn.header.first)
    # The end of a time takes in what may have been committed before it.
    end_id = resolved(txn, end) if end.message_id is not None else txn.log().first_id_since(end.time_us)
    return range(max(resolved(txn, start), kept_id), end_id)


def read(txn: Transaction, ids: range) -> List[StoredMessage]:
    """Read the first messages of a range that are there; none where there are none."""
    start = max(ids.start, txn.header.first)
    # Python cannot tell the length of a range of more than 2 ** 63 ids, which a damaged queue may have.
    count = min(HISTORY_MESSAGES_MAX, max(1, ids.stop - ids.start))
    found, payloads = txn.messages(start, count, HISTORY_BYTES_MAX)
    found = found[:bisect.bisect_left(found, ids.stop)]
    if not found:
        return []
    runs = list(itertools.takewhile(lambda run: run.first_id <= found[-1], txn.log().since(found[0])))
    begin = [run.first_id for run in runs]
    return [
        StoredMessage(message_id, clock.utc(runs[bisect.bisect_right(begin, message_id) - 1].time_us), payload)
        for message_id, payload in zip(found, payloads)
    ]
