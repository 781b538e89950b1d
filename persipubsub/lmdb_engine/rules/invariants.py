"""The invariants of every queue after every transaction, and the check that they hold; on an open transaction."""

import collections
import itertools
import struct
from typing import Iterator, List, Optional, Tuple

from persipubsub import errors
from persipubsub.engine import checks, headers, values
from persipubsub.engine.policies import Policy
from persipubsub.engine.settings import require_retention_within_timeout
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord, unpack_id
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters, message_log, relaying
from persipubsub.lmdb_engine.rules.settings import stored_high_watermark
from persipubsub.queue import Durability, Strategy
from persipubsub.status import Violation

INVARIANTS = {
    "I0": "the pages of the file are sound, and every record can be read",
    "I1": "pending_db holds exactly the multiset of all cursors, and every subscriber has its own number",
    "I2": "no message is below the low-water mark, except those that are retained, those below `first` that wait to be "
    "deleted, which are counted, and small ones after the last multiple of 64, which wait to be deleted together",
    "I3": "every message is in the range of exactly one run, and the running totals of runs agree",
    "I4": "no cursor is beyond the next id",
    "I5": "the ranges of runs do not overlap",
    "I6": "every entry of index_db, due_db, letter_db and dead_letter_db belongs to a subscriber with a policy",
    "I7": "the configuration is one that can be set",
    "I8":
    "an entry of index_db is below the next id of its subscriber if that is shared, otherwise not; or it is requeued",
    "I9": "every part belongs to a long message, every long message has all its parts, and headers belong to a message",
    "I10": "due_db holds exactly the times at which the entries of shared subscribers in index_db can be claimed",
    "I11":
    "every payload in letter_db is of a dead letter or of a requeued message, and every one of these has all its "
    "parts",
    "I12": "a subscriber's record counts its entries in index_db and its dead letters, which are within their limit",
    "I13": "the delayed messages are counted, the first due time is that of the first, and each has all its parts",
    "I14": "once_db and once_order_db hold the same records, of messages that were sent",
    "I15": "the identity can be read, every route is of a subscriber, and how far each relay has come can be read",
}


def violation(invariant: str, found: str) -> Violation:
    """Return the violation of an invariant, by its name."""
    return Violation(invariant, found, INVARIANTS[invariant])


def check(txn: Transaction) -> Tuple[Violation, ...]:
    """Read the whole queue and return all violations. Bytes within messages are not verified."""
    parts = (_configuration, _cursors, _messages, _runs, _owners, _deliveries, _delayed, _deduplication, _relays)
    return tuple(violation(*found) for part in parts for found in _readable(part(txn)))


_Found = Iterator[Tuple[str, str]]


def _readable(found: _Found) -> _Found:
    """Report a record that cannot be decoded as a violation, too."""
    try:
        yield from found
    except (struct.error, ValueError, LookupError, OverflowError, errors.DamagedError) as error:
        yield "I0", f"{type(error).__name__}: {error}"


def _configuration(txn: Transaction) -> _Found:
    try:
        stored_high_watermark(txn.header)
        require_retention_within_timeout(txn.header.retention_us, txn.header.message_timeout_us)
        Strategy(txn.header.strategy)
        Durability(txn.header.durability)
        message_type = txn.message_type()
        if message_type is not None:
            checks.message_type(message_type)
    except ValueError as error:
        yield "I7", str(error)


def _cursors(txn: Transaction) -> _Found:
    records = [record for _, record in txn.subscribers()]
    counted = dict(txn.cursor_counts())
    if counted != collections.Counter(dead_letters.position(txn, record) for record in records):
        yield "I1", f"{counted} for {records}"
    numbers = [record.number for record in records]
    if len(set(numbers)) != len(numbers) or max(numbers, default=0) >= txn.header.next_subscriber_number:
        yield "I1", f"subscriber numbers {numbers}, next {txn.header.next_subscriber_number}"
    next_id = txn.log().next_id()
    if max(counted, default=0) > next_id:
        yield "I4", f"a cursor at {max(counted)}, next id {next_id}"


def _messages(txn: Transaction) -> _Found:
    header, low_water_mark, deleted_below = txn.header, txn.low_water_mark(), message_log.deleted_below(txn)
    ranges = collections.deque(_ranges(txn))
    waiting = live = 0
    ids_in_parts, ids_with_headers = set(txn.parts().ids()), set(_headers(txn))
    for message_id, size_bytes in _sizes(txn):
        while ranges[0].stop <= message_id:
            ranges.popleft()
        if message_id not in ranges[0]:
            yield "I3", f"message {message_id}"
        live += message_id >= deleted_below
        if message_id < header.first and header.waiting:
            waiting += 1
        elif not header.retention_us and not _may_be_stored(message_id, size_bytes or 0, low_water_mark):
            yield "I2", f"message {message_id}, low-water mark {low_water_mark}"
        if size_bytes is None and not (header.waiting and message_id < header.first):
            yield "I9", f"message {message_id} lacks a part"
        if size_bytes is None or layouts.is_long(size_bytes):
            ids_in_parts.discard(message_id)
        ids_with_headers.discard(message_id)
    if waiting != header.waiting:
        yield "I2", f"{waiting} messages wait to be deleted, the header counts {header.waiting}"
    counted = message_log.live_messages(txn)
    if counted != live:
        yield "I3", f"the totals of the log are {counted} messages, stored are {live}"
    if ids_in_parts:
        yield "I9", f"parts of no long message: {sorted(ids_in_parts)[:10]}"
    if ids_with_headers:
        yield "I9", f"headers of no message: {sorted(ids_with_headers)[:10]}"


def _headers(txn: Transaction) -> Iterator[int]:
    """Iterate over the ids of messages with headers, which can be read."""
    for message_id, encoded in txn.parts().all_headers():
        headers.decoded(encoded)
        yield message_id


def _sizes(txn: Transaction) -> Iterator[Tuple[int, Optional[int]]]:
    """Iterate over id and size of all messages. If a part is missing, the size is None."""
    for key, value in txn.lmdb_cursor("data_db"):
        try:
            yield unpack_id(key), len(txn.payload(key, value))
        except errors.DamagedError:
            yield unpack_id(key), None


def _delivery_keys(txn: Transaction) -> Iterator[Tuple[str, bytes]]:
    """Iterate over all keys that begin with the number of a subscriber, each with its sub-database."""
    for name in ("index_db", "due_db", "letter_db", "dead_letter_db"):
        for key in txn.lmdb_cursor(name).iternext(values=False):
            yield name, key


def _may_be_stored(message_id: int, size_bytes: int, low_water_mark: Optional[int]) -> bool:
    """Return whether a message may be stored in a queue without a retention."""
    if low_water_mark is None or message_id >= low_water_mark:
        return low_water_mark is not None
    waits = message_id // cursors.DELETED_TOGETHER == low_water_mark // cursors.DELETED_TOGETHER
    return waits and size_bytes <= cursors.SMALL_BYTES_MAX


def _ranges(txn: Transaction) -> List[range]:
    """List the range of message ids of each run, and last the range of unused ids."""
    runs = list(txn.log().all())
    ends = [run.first_id + later.messages_before - run.messages_before for run, later in zip(runs, runs[1:])]
    next_id = txn.log().next_id()
    return [*itertools.starmap(range, zip([run.first_id for run in runs], [*ends, next_id])), range(next_id, 2**64)]


def _runs(txn: Transaction) -> _Found:
    runs = list(txn.log().all())
    for run, later in zip(runs, runs[1:]):
        messages = later.messages_before - run.messages_before
        if not 0 <= messages <= later.first_id - run.first_id:
            yield "I5", f"{run} and {later}"
        if run.time_us > later.time_us or layouts.bytes_between(run, later) > messages * run.largest_bytes:
            yield "I3", f"{run} and {later}"


def _owners(txn: Transaction) -> _Found:
    with_policy = {record.number for _, record in txn.subscribers() if record.policy is not None}
    for name, key in _delivery_keys(txn):
        number = int.from_bytes(key[:4], "big")
        if number not in with_policy:
            yield "I6", f"{name}: {key.hex()} of subscriber number {number}"


def _deliveries(txn: Transaction) -> _Found:
    for _, record in txn.subscribers():
        if record.policy is not None:
            yield from _deliveries_of(txn, record, record.policy)


def _deliveries_of(txn: Transaction, record: SubscriberRecord, policy: Policy) -> _Found:
    entries = dict(txn.in_flight(record).all())
    for message_id in entries:
        if message_id < REQUEUED and (message_id < record.next_id) != policy.shared:
            yield "I8", f"message {message_id} of subscriber number {record.number}, next id {record.next_id}"
    due = sorted((entry.due_us, message_id) for message_id, entry in entries.items()) if policy.shared else []
    found = list(txn.in_flight(record).due())
    if due != found:
        yield "I10", f"{found[:10]} for {due[:10]} of subscriber number {record.number}"
    requeued = {message_id - REQUEUED for message_id in entries if message_id >= REQUEUED}
    outside = txn.dead_letters(record.number)
    dead, stored = list(outside.dead_ids()), list(outside.ids())
    if sorted([*dead, *requeued]) != stored:
        yield "I11", f"payloads {stored[:10]}, dead letters {dead[:10]}, requeued {sorted(requeued)[:10]}"
    for message_id in stored:
        headers.decoded(outside.get(message_id).headers)
    for message_id in dead:
        outside.death(message_id)
    in_flight = len(entries) - len(requeued) if policy.shared else 0
    counted = (record.in_flight, record.requeued, record.dead_letters)
    if counted != (in_flight, len(requeued), len(dead)) or len(dead) > policy.dead_letters_max:
        yield "I12", (f"{(in_flight, len(requeued), len(dead))}, the record counts {counted}, "
                      f"the limit of dead letters is {policy.dead_letters_max}")


def _delayed(txn: Transaction) -> _Found:
    header, count, next_due_us = txn.header, 0, values.NEVER_US
    for message in txn.delayed_messages().all():
        count, next_due_us = count + 1, min(next_due_us, message.due_us)
        if not message.is_whole or message.number >= header.next_delayed_number:
            yield "I13", f"delayed message {message.number}, due at {message.due_us}"
        headers.decoded(message.headers)
    if count != header.delayed:
        yield "I13", f"{count} messages are delayed, the header counts {header.delayed}"
    if next_due_us != header.next_due_us:
        yield "I13", f"the first is due at {next_due_us}, the header says {header.next_due_us}"


def _deduplication(txn: Transaction) -> _Found:
    ids, next_id = txn.deduplication_ids(), txn.log().next_id()
    by_id, by_time = {key: found._replace(due_us=0) for key, found in ids.by_id()}, dict(ids.by_time())
    if by_id != by_time or txn.deduplication_count() != sum(1 for _ in ids.by_time()):
        yield "I14", f"{len(by_id)} ids, of which {len(by_id.items() & by_time.items())} are the same in both"
    for identifier, found in by_id.items():
        delayed_number = found.message_id - layouts.DELAYED
        if not (0 < found.message_id < next_id or 0 < delayed_number < txn.header.next_delayed_number):
            yield "I14", f"message {found.message_id} with {identifier!r}"


def _relays(txn: Transaction) -> _Found:
    relays = relaying.of(txn)
    identity = relays.identity()
    if identity is not None and len(identity) != layouts.IDENTITY_BYTES:
        yield "I15", f"the identity {identity.hex()}"
    for identifier, _ in relays.routes():
        if txn.subscriber(identifier) is None:
            yield "I15", f"a route of {identifier!r}"
    for origin, found in relays.all_relayed():
        if len(origin) != layouts.IDENTITY_BYTES:
            yield "I15", f"{found} of {origin.hex()}"
