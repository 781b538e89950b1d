"""Build a new queue from what can still be read of a damaged one."""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import re
from typing import Callable, Iterator, List, Optional, Tuple, Union

from persipubsub import errors, os_errors
from persipubsub.engine.clusters import local_directory
from persipubsub.engine.values import NEVER_US, Batch, Configuration, batch_of
from persipubsub.lmdb_engine.process import files, opening_check, unclean_marker
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import DELAYED, Header, Run, SubscriberRecord
from persipubsub.lmdb_engine.records.page_file import PageFile
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.repair.orphan_pages import ID_MAX
from persipubsub.lmdb_engine.repair.recovered_subscribers import (SUBSCRIBER_NUMBER_MAX, RecoveredSubscriber, Step,
                                                                  dead_letters_of_nobody, recovered_subscribers)
from persipubsub.lmdb_engine.repair.salvage import Salvage
from persipubsub.lmdb_engine.rules import message_log, relaying
from persipubsub.lmdb_engine.rules.settings import fresh
from persipubsub.status import Violation

#: Limits of one transaction of the new queue.
MESSAGES_PER_STEP = 1000
BYTES_PER_STEP = 64 * 1024**2
#: Gets all messages if no subscriber can be read: without subscribers the queue would keep no messages.
STAND_IN = b"recovered"
PROBLEMS_MAX = 20

#: Called with the number of messages written so far, and the total.
Progress = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Report:  # pylint: disable=too-many-instance-attributes  # one per fact
    """What :func:`recover` saved and what it lost."""

    #: The directory of the queue.
    path: pathlib.Path
    #: The damaged file, unchanged.
    damaged_file: pathlib.Path
    #: Number of saved messages.
    messages: int
    #: Number of saved delayed messages.
    delayed: int
    #: Number of awaited messages that are known to be lost. The last messages may be lost without being counted.
    messages_lost: int
    #: Number of messages in flight whose number of deliveries is still known. Others that may have been in flight are
    #: handed out again as if for the first time.
    in_flight: int
    #: Number of saved dead letters.
    dead_letters: int
    #: Number of saved messages that had been dead letters and were requeued.
    requeued: int
    #: Number of dead letters and requeued ones that are known to be lost.
    letters_lost: int
    #: The saved subscribers. Their cursors were saved as well.
    subscribers: Tuple[str, ...]
    #: Whether the configuration was saved. Otherwise it is the default.
    configuration: bool
    #: What could not be read: at most 20 findings.
    problems: Tuple[str, ...]


def recover(path: Union[str, "os.PathLike[str]"], progress: Optional[Progress] = None) -> Report:
    """Replace a damaged queue with a new one that holds all that can still be read. The damaged file is kept beside it.

    If the recovery is interrupted, either the old queue or the new one is there.

    :param path: the directory of the queue
    :param progress: called regularly with the number of messages saved so far, and of those found
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: empty, or with a NUL
    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link, or this user may not access them
    :raise FormatError: it is a queue of persipubsub 1.0.0
    :raise InUseError: somebody has the queue open
    :raise DiskFullError: there is no room for the new queue; nothing was changed
    """
    directory = local_directory(
        path, "recover", "Replicas recover from each other; a lost stream comes back with: nats "
        "stream restore")
    with opening_check.exclusively(directory, "recovered"), PageFile(directory / files.DATA_FILE) as opened:
        mode = files.data_file_mode(directory)
        found = Salvage(opened)
        rebuilding = _Rebuilding(found, progress)
        with _kept(directory) as kept, files.new_data_file(directory, mode) as new_file:
            database.create(new_file.path, *rebuilding.beginning)
            database.fill(new_file.path, rebuilding.steps(), opened.size_bytes())
        unclean_marker.remove(directory)
    return Report(path=directory,
                  damaged_file=kept,
                  messages=rebuilding.saved,
                  delayed=rebuilding.delayed,
                  messages_lost=rebuilding.lost(),
                  in_flight=rebuilding.in_flight(),
                  dead_letters=sum(one.dead_letters for one in rebuilding.subscribers),
                  requeued=sum(one.requeued for one in rebuilding.subscribers),
                  letters_lost=dead_letters_of_nobody(found) + sum(one.letters_lost for one in rebuilding.subscribers),
                  subscribers=tuple(identifier.decode() for identifier in sorted(found.subscribers)),
                  configuration=found.header is not None,
                  problems=tuple(found.problems[:PROBLEMS_MAX]))


def check(path: Union[str, "os.PathLike[str]"]) -> Tuple[Violation, ...]:
    """Verify the pages and the records of a queue that nobody has open. Nothing is changed.

    :param path: the directory of the queue
    :return: the violations of invariants, empty if there are none
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: empty, or with a NUL
    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link, or this user may not access them
    :raise FormatError: it is a queue of persipubsub 1.0.0
    :raise InUseError: somebody has the queue open
    """
    directory = local_directory(path, "check", "The servers verify what they read; see: nats server check stream")
    with opening_check.exclusively(directory, "verified"):
        return opening_check.violations(directory)


@contextlib.contextmanager
def _kept(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Link the damaged file under a second name. Unlink it if the block fails before it replaces the file."""
    kept = _link(path)
    try:
        yield kept
    except BaseException:
        with contextlib.suppress(OSError):  # on a failing disk this fails as well
            if kept.samefile(path / files.DATA_FILE):
                kept.unlink()
        raise


def _link(path: pathlib.Path) -> pathlib.Path:
    """Link the damaged file under a second name durably. Reuse the link of an earlier attempt."""
    data_file = path / files.DATA_FILE
    with os_errors.errors_about(path):
        names = [entry for entry in path.iterdir() if re.fullmatch(r"damaged-[0-9]+\.mdb", entry.name)]
        for entry in names:
            if entry.samefile(data_file):
                return entry
        number = 1 + max((int(entry.stem[len("damaged-"):]) for entry in names), default=0)
        kept = path / f"damaged-{number}.mdb"
        os.link(data_file, kept)
        files.sync(path)
        return kept


class _Rebuilding:  # pylint: disable=too-many-instance-attributes  # the parts of a queue
    """Creates the records of the new queue from those that were found."""

    def __init__(self, found: Salvage, progress: Optional[Progress]) -> None:
        self.saved = 0
        self.delayed = 0
        self._found = found
        self._progress = progress
        self.subscribers = recovered_subscribers(found)
        header, first_run = fresh(Configuration())
        if found.header is not None:
            header = found.header
        self._runs = _plausible(found.runs[first_id] for first_id in sorted(found.runs))
        next_id = self._first_unused_id()
        low_water_mark = min((one.position for one in self.subscribers), default=0)
        # A larger one is damaged, or all messages were deleted. In both cases no message may be left out.
        first = header.first if header.first <= next_id else 0
        self._next_id = max(next_id, min(header.first, ID_MAX))
        self._start = first if header.retention_us else max(low_water_mark, first)
        self._ids = sorted(message_id for message_id in found.messages if message_id >= self._start)
        self._saved_ids: List[int] = []
        if not self.subscribers and self._ids:
            self.subscribers = [RecoveredSubscriber(STAND_IN, SubscriberRecord(1, self._ids[0]), 1, found)]
        delayed_numbers = [0, *(number for _, number in found.delayed)]
        number = max([header.next_subscriber_number, *(one.record.number + 1 for one in self.subscribers)])
        header = header._replace(
            first=first,
            waiting=0,
            next_subscriber_number=min(number, SUBSCRIBER_NUMBER_MAX),
            delayed=0,
            next_due_us=NEVER_US,
            # A program that can cancel a lost message must not cancel another one.
            next_delayed_number=max(1 + max(delayed_numbers), min(header.next_delayed_number, ID_MAX)))
        self.beginning: Tuple[Header, Run] = header, first_run

    def _first_unused_id(self) -> int:
        """Return an id above the ids in all records, so that no id is reused."""
        found = self._found
        return 1 + max([
            0,
            *(run.first_id - 1 for run in self._runs),
            *(one.next_id - 1 for one in self.subscribers),
            *found.messages,
            *(next_id - 1 for next_id in found.cursors),
            # Include subscribers that are lost.
            *(message_id % REQUEUED for ids in found.ids_by_subscriber() for message_id in ids),
            *(sent.message_id for sent in found.deduplicated.values() if sent.message_id < ID_MAX),
        ])

    def steps(self) -> Iterator[Step]:
        """Return the transactions that fill the new queue."""
        yield self._put_settings
        for first_id, batch in self._batches():
            yield self._appending(first_id, batch)
            self.saved += len(batch.payloads)
            if self._progress is not None:
                self._progress(self.saved, len(self._ids))
        yield lambda txn: txn.mark_end(self._next_id)
        yield self._put_deduplication_ids
        for subscriber in self.subscribers:
            yield from subscriber.steps()
        for key in sorted(self._found.delayed):
            try:
                payload, headers = self._found.delayed_payload(key), self._found.delayed_headers(key)
                yield functools.partial(_put_delayed, *key, payload, headers)
                self.delayed += 1
            except errors.DamagedError as error:
                self._found.problems.append(str(error))

    def _put_settings(self, txn: Transaction) -> None:
        if self._found.message_type is not None:
            txn.put_message_type(self._found.message_type)
        relays = relaying.of(txn)
        if self._found.identity is not None:
            relays.put_identity(self._found.identity)
        for identifier, route in self._found.routes.items():
            if identifier in self._found.subscribers:
                relays.put_route(identifier, route)
        for origin, relayed in self._found.relayed.items():
            relays.put_relayed(origin, relayed)

    def _put_deduplication_ids(self, txn: Transaction) -> None:
        ids = txn.deduplication_ids()
        # Each message was sent with one id. If there are two, one record is damaged.
        by_message = {sent: identifier for identifier, sent in self._found.deduplicated.items()}
        due_us_by_number = {number: due_us for due_us, number in self._found.delayed}
        for sent, identifier in by_message.items():
            if sent.message_id >= DELAYED:
                ids.put(identifier, sent._replace(due_us=due_us_by_number.get(sent.message_id - DELAYED, 0)))
            elif 0 < sent.message_id < self._next_id:
                ids.put(identifier, sent)

    def _batches(self) -> Iterator[Tuple[int, Batch]]:
        """Return messages with consecutive ids of one run, for one transaction each."""
        payloads: List[bytes] = []
        headers: List[bytes] = []
        first_id, size_bytes, run = 0, 0, -1
        for message_id in self._ids:
            try:
                payload = self._found.payload(message_id)
            except errors.DamagedError as error:
                self._found.problems.append(str(error))
                continue
            run_of_it = self._run(message_id)
            fits = len(payloads) < MESSAGES_PER_STEP and size_bytes + len(payload) <= BYTES_PER_STEP
            if payloads and (message_id != first_id + len(payloads) or run_of_it != run or not fits):
                yield first_id, batch_of(payloads, headers)
                payloads, headers, size_bytes = [], [], 0
            if not payloads:
                first_id, run = message_id, run_of_it
            payloads.append(payload)
            headers.append(self._found.headers(message_id))
            size_bytes += len(payload)
            self._saved_ids.append(message_id)
        if payloads:
            yield first_id, batch_of(payloads, headers)

    def _run(self, message_id: int) -> int:
        """Return the index of the run of a message, or -1 if it is unknown."""
        return bisect.bisect_right(self._runs, message_id, key=lambda run: run.first_id) - 1

    def _appending(self, first_id: int, batch: Batch) -> Step:
        # Rather too late than too early: a message whose time is unknown must not expire at once.
        runs = itertools.islice(self._runs, max(0, self._run(first_id)), None)
        time_us = next((run.time_us for run in runs if run.time_us), None)

        def append(txn: Transaction) -> None:
            txn.mark_end(first_id)
            newest_us = txn.log().newest().time_us
            txn.begin_run(max(message_log.now_us(txn) if time_us is None else time_us, newest_us), batch.largest_bytes)
            txn.append(first_id, batch.payloads, batch.largest_bytes, batch.headers)

        return append

    def in_flight(self) -> int:
        """Return how many messages in flight were saved with their number of deliveries."""
        saved = set(self._saved_ids)
        return sum(len(saved.intersection(one.counted)) for one in self.subscribers)

    def lost(self) -> int:
        """Return how many awaited messages the log contains that were not saved."""
        lost = 0
        for run, later in zip(self._runs, self._runs[1:]):
            stop = min(run.first_id + max(0, later.messages_before - run.messages_before), later.first_id)
            start = max(run.first_id, self._start)
            if stop > start:
                between = bisect.bisect_left(self._saved_ids, stop) - bisect.bisect_left(self._saved_ids, start)
                lost += stop - start - between
        start = max(self._runs[-1].first_id if self._runs else 1, self._start)
        saved = len(self._saved_ids) - bisect.bisect_left(self._saved_ids, start)
        return lost + max(0, self._next_id - start - saved)


def _put_delayed(due_us: int, number: int, payload: bytes, headers: bytes, txn: Transaction) -> None:
    txn.delayed_messages().put(due_us, number, payload, headers)
    header = txn.header
    txn.put_header(header._replace(delayed=header.delayed + 1, next_due_us=min(due_us, header.next_due_us)))


def _plausible(runs: Iterator[Run]) -> List[Run]:
    """Leave out the runs that contradict earlier ones."""
    plausible: List[Run] = []
    for run in runs:
        if not plausible or run.time_us >= plausible[-1].time_us:
            plausible.append(run)
    return plausible
