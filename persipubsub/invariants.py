"""What is true of every queue after every transaction, and the check that it is."""

import collections
from typing import Iterator, NamedTuple, Tuple

from persipubsub import queue, records
from persipubsub.configuration import Durability, Strategy, stored_high_watermark
from persipubsub.transaction import Transaction

INVARIANTS = {
    "I1": "pending_db holds exactly the multiset of all places",
    "I2": "no message lies below the floor, but for those that wait below `first` to be deleted, and they are counted",
    "I3": "every message lies in the range of exactly one commit, and the running totals of commits agree",
    "I4": "every message id is below the next id",
    "I5": "the ranges of commits do not overlap",
    "I6": "every entry of index_db belongs to a subscriber",
    "I7": "the configuration is one that can be set",
    "I8": "an entry of index_db is below the next of its subscriber",
    "I9": "every part belongs to a long message, and every long message has all its parts",
}


class Violation(NamedTuple):
    """An invariant that does not hold, and where."""

    invariant: str
    found: str

    def __str__(self) -> str:
        return f"{self.invariant} ({INVARIANTS[self.invariant]}): {self.found}"


def check(txn: Transaction) -> Tuple[Violation, ...]:
    """Read the whole queue and give all violations; none means that all is well."""
    parts = (_configuration, _places, _messages, _commits, _index)
    return tuple(Violation(*found) for part in parts for found in part(txn))


_Found = Iterator[Tuple[str, str]]


def _configuration(txn: Transaction) -> _Found:
    try:
        stored_high_watermark(txn.header)
        Strategy(txn.header.strategy)
        Durability(txn.header.durability)
    except ValueError as error:
        yield "I7", str(error)


def _places(txn: Transaction) -> _Found:
    places = [place for _, place in txn.places()]
    counted = dict(txn.place_counts())
    if counted != collections.Counter(place.next_id for place in places):
        yield "I1", f"{counted} for {places}"
    numbers = [place.number for place in places]
    if len(set(numbers)) != len(numbers) or max(numbers, default=0) >= txn.header.next_subscriber_number:
        yield "I1", f"subscriber numbers {numbers}, next {txn.header.next_subscriber_number}"
    next_id = txn.commits().newest().end_id
    if max(counted, default=0) > next_id:
        yield "I4", f"a place at {max(counted)}, next id {next_id}"


def _messages(txn: Transaction) -> _Found:
    header, floor = txn.header, txn.floor()
    next_id = txn.commits().newest().end_id
    ranges = txn.commits().all()
    run = next(ranges, None)
    waiting = 0
    ids_in_parts = set(txn.part_ids())
    for message_id, size_bytes in txn.sizes():
        while run is not None and run.end_id <= message_id:
            run = next(ranges, None)
        if run is None or message_id < run.first_id:
            yield "I3", f"message {message_id}"
        if message_id >= next_id:
            yield "I4", f"message {message_id}, next id {next_id}"
        if message_id < header.first and header.waiting:
            waiting += 1
        elif floor is None or message_id < floor:
            yield "I2", f"message {message_id}, floor {floor}"
        if size_bytes is None and not (header.waiting and message_id < header.first):
            yield "I9", f"message {message_id} lacks a part"
        if size_bytes is None or records.is_long(size_bytes):
            ids_in_parts.discard(message_id)
    if waiting != header.waiting:
        yield "I2", f"{waiting} messages wait, counted are {header.waiting}"
    if ids_in_parts:
        yield "I9", f"parts of no long message: {sorted(ids_in_parts)[:10]}"


def _commits(txn: Transaction) -> _Found:
    before = None
    live_from = queue.first_live_id(txn)
    for commit in txn.commits().all():
        if before is not None:
            if before.end_id > commit.first_id:
                yield "I5", f"{before} and {commit}"
            if before.time_us > commit.time_us or before.bytes_before + before.size_bytes > commit.bytes_before:
                yield "I3", f"{before} and {commit}"
            if before.end_id > live_from and before.messages_before + before.messages != commit.messages_before:
                yield "I3", f"{before} and {commit}"
        before = commit
    counted, _ = queue.count_from(txn, 0)
    if counted != queue.live_messages(txn):
        yield "I3", f"the totals of commits tell {counted} messages, there are {queue.live_messages(txn)}"


def _index(txn: Transaction) -> _Found:
    next_ids = {place.number: place.next_id for _, place in txn.places()}
    for number, message_id in txn.index():
        if number not in next_ids:
            yield "I6", f"message {message_id} of subscriber number {number}"
        elif message_id >= next_ids[number]:
            yield "I8", f"message {message_id} of subscriber number {number}"
