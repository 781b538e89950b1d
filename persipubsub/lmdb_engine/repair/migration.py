"""Migrate a queue of persipubsub 1.0.0 into a new directory.

**Order and cursors.** In 1.0.0, each subscriber had its own list of pending messages. Now a subscriber has a cursor in
one log, and all messages from the cursor on are pending. So the log needs an order in which the pending messages of
each subscriber are the last ones. That is the order of sending (by the time in the key, then by the key). Or it is the
order of the keys' bytes, in which 1.0.0 delivered messages. The two differ where a time has fewer decimals than the
next.

There may be no such order: 1.0.0 let a subscriber acknowledge a later message before an earlier one was committed. And
a subscriber that was added later did not get what others sent. Then the cursor is set to the first pending message. The
subscriber loses no message and gets all in order. It also gets those in between, which it had acknowledged or was never
meant to get. A queue promises every message to every subscriber, in order, at least once, so both are allowed. Of the
two orders, the migration uses the one with fewer such messages, and :class:`Report` counts them.

**Times.** The old times come from a clock without a time zone, so the age of a message is uncertain by up to a day. The
message timeout of each message begins again with the migration, even where it had passed: the message was still
pending. The report counts these as well.
"""

import dataclasses
import decimal
import os  # pylint: disable=unused-import  # in an annotation
import pathlib
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Union

from persipubsub import clock, errors
from persipubsub.engine import limits
from persipubsub.engine.clusters import local_directory
from persipubsub.engine.values import Configuration
from persipubsub.lmdb_engine.process import files, filesystem, queue_file
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.layouts import SubDatabases, SubscriberRecord
from persipubsub.lmdb_engine.records.page_file import PageError, PageFile
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.repair.legacy import LegacyQueue
from persipubsub.lmdb_engine.rules import message_log
from persipubsub.lmdb_engine.rules.settings import fresh

#: Limits of one transaction of the new queue.
MESSAGES_PER_STEP = 1000
BYTES_PER_STEP = 64 * 1024**2

Path = Union[str, "os.PathLike[str]"]
#: Called with the number of messages written so far, and the total.
Progress = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Report:  # pylint: disable=too-many-instance-attributes  # each is a separate finding
    """What :func:`migrate` migrated, and what a user should know about it."""

    #: The directory of the new queue.
    path: pathlib.Path
    #: Number of messages in the new queue.
    messages: int
    #: Number of messages that each subscriber awaited in the old queue.
    pending: Mapping[str, int]
    #: Number of additional messages per subscriber, if any: it had acknowledged them, or they were not meant for it.
    again: Mapping[str, int]
    #: Whether the messages are in the order of sending. Otherwise they are in the order in which 1.0.0 delivered them.
    in_order_of_sending: bool
    #: Number of messages that had expired by the old clock. They are kept, and their timeout begins again.
    expired: int
    #: Number of messages in the old queue that nobody awaited. They were left out.
    dangling: int
    #: Number of awaited messages without a payload in the old queue.
    missing: int
    #: Whether the new queue is at its high-water mark. Then the next send drops about half of the messages.
    at_high_watermark: bool


def migrate(old: Path, new: Path, progress: Optional[Progress] = None) -> Report:
    """Create a new queue from one of persipubsub 1.0.0, with its configuration, subscribers and pending messages.

    The old directory stays as it is. Nobody may use it meanwhile. If the migration is interrupted, there is no queue at
    the new path, and it can be repeated.

    :param old: the directory of the queue of 1.0.0
    :param new: the directory of the new queue, which is created unless it exists and is empty
    :param progress: called regularly with the number of messages written so far, and the total
    :raise ArgumentTypeError: a path is not a str or PathLike
    :raise ArgumentError: a path is empty or has a NUL, or the new directory lies in the old one
    :raise NotInitializedError: there is no queue at the old path
    :raise FormatError: it is not a queue of 1.0.0, or a queue of this version cannot have its content
    :raise DamagedError: it is damaged
    :raise InUseError: a process changed it meanwhile
    :raise PathError: there is a queue or something else at the new path, or this user may not read or write
    :raise DiskFullError: there is no room for the new queue
    """
    source, target = (local_directory(path, "migrate", "Migrate into a directory, and forward its messages from there")
                      for path in (old, new))
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise errors.ArgumentError(
            f"The new directory {target} lies in the old one, which must not change. Use another directory.")
    files.queue_key(source)
    filesystem.require_local(target)
    data_file = source / files.DATA_FILE
    with PageFile(data_file) as opened:
        if not queue_file.is_of_1_0(opened):
            queue_file.require_queue(data_file, SubDatabases._fields)
            raise errors.FormatError(f"The queue at {source} is of this version already: there is nothing to migrate.")
        try:
            return _built(LegacyQueue(opened), source, target, opened.size_bytes(), progress)
        except PageError as error:
            raise errors.DamagedError(f"The queue at {source} is damaged: {error}. No new one was created. Restore it "
                                      "from a backup.") from error


def _built(found: LegacyQueue, source: pathlib.Path, target: pathlib.Path, size_bytes: int,
           progress: Optional[Progress]) -> Report:
    building = _Building(found, progress)
    with files.new_queue(target, limits.MODE_DEFAULT, source) as new_file:
        header, first_run = fresh(Configuration(found.high_watermark, found.strategy))
        header = header._replace(next_subscriber_number=len(found.pending) + 1)
        database.create(new_file.path, header, first_run)
        database.fill(new_file.path, building.steps(), size_bytes)
        if found.changed():
            raise errors.InUseError("A process changed the old queue while it was read. End all its publishers and "
                                    "subscribers, then try again.")
    return building.report(target)


class _Plan(NamedTuple):
    """The messages of the new queue, and their order."""

    order: Sequence[bytes]
    in_order_of_sending: bool
    pending: Mapping[str, Set[bytes]]  # only messages in the order
    missing: int


def _planned(found: LegacyQueue) -> _Plan:
    awaited: Set[bytes] = set().union(*found.pending.values())
    pending = {name: keys & found.messages.keys() for name, keys in sorted(found.pending.items())}
    by_key = sorted(awaited & found.messages.keys())
    # With equal times, messages stay in the order of their keys.
    by_sending = sorted(by_key, key=lambda key: found.messages[key].sent_s)
    order = min(by_sending, by_key, key=lambda one: sum(_again(one, pending).values()))
    return _Plan(order, order is by_sending, pending, len(awaited) - len(order))


class _Building:
    """Creates the records of the new queue from those of the old one."""

    def __init__(self, found: LegacyQueue, progress: Optional[Progress]) -> None:
        self._found = found
        self._progress = progress
        self._plan = _planned(found)
        self._time_us = clock.wall_us()
        self._at_high_watermark = False

    def steps(self) -> Iterator[Callable[[Transaction], None]]:
        """Return the transactions that fill the new queue."""
        yield self._put_subscribers
        written = 0
        for payloads in self._batches():
            yield self._appending(payloads)
            written += len(payloads)
            if self._progress is not None:
                self._progress(written, len(self._plan.order))
        yield self._check_high_watermark

    def _put_subscribers(self, txn: Transaction) -> None:
        for number, (name, keys) in enumerate(self._plan.pending.items(), 1):
            record = SubscriberRecord(number, 1 + _first_awaited(self._plan.order, keys))
            txn.put_subscriber(name.encode(), record)
            txn.count_cursor(record.next_id, 1)

    def _batches(self) -> Iterator[List[bytes]]:
        """Iterate over the payloads, in one list for each transaction."""
        payloads: List[bytes] = []
        size_bytes = 0
        for key in self._plan.order:
            payload = self._found.payload(key)
            if payloads and (len(payloads) >= MESSAGES_PER_STEP or size_bytes + len(payload) > BYTES_PER_STEP):
                yield payloads
                payloads, size_bytes = [], 0
            payloads.append(payload)
            size_bytes += len(payload)
        if payloads:
            yield payloads

    def _appending(self, payloads: List[bytes]) -> Callable[[Transaction], None]:
        largest_bytes = max(map(len, payloads))

        def append(txn: Transaction) -> None:
            txn.begin_run(self._time_us, largest_bytes)
            txn.append(txn.next_id(), payloads, largest_bytes)

        return append

    def _check_high_watermark(self, txn: Transaction) -> None:
        header = txn.header
        self._at_high_watermark = (message_log.live_messages(txn) >= header.max_messages
                                   or message_log.live_bytes(txn) >= header.hwm_db_size)

    def report(self, path: pathlib.Path) -> Report:
        """Return what was done."""
        plan, messages, timeout_s = self._plan, self._found.messages, self._found.high_watermark.message_timeout
        oldest_s = decimal.Decimal(self._time_us) / 10**6 - decimal.Decimal(timeout_s or "Infinity")
        return Report(path=path,
                      messages=len(plan.order),
                      pending={
                          name: len(keys)
                          for name, keys in plan.pending.items()
                      },
                      again={
                          name: count
                          for name, count in _again(plan.order, plan.pending).items() if count
                      },
                      in_order_of_sending=plan.in_order_of_sending,
                      expired=sum(messages[key].sent_s < oldest_s for key in plan.order),
                      dangling=len(messages) - len(plan.order),
                      missing=plan.missing,
                      at_high_watermark=self._at_high_watermark)


def _first_awaited(order: Sequence[bytes], awaited: Set[bytes]) -> int:
    """Return the index of the first awaited message, or the length if there is none."""
    return next((index for index, key in enumerate(order) if key in awaited), len(order))


def _again(order: Sequence[bytes], pending: Mapping[str, Set[bytes]]) -> Dict[str, int]:
    """Count the messages that each subscriber gets in an order though it does not await them."""
    return {name: len(order) - _first_awaited(order, keys) - len(keys) for name, keys in pending.items()}
