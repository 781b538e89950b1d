"""The records of a queue, as this process knows them, and their changes.

Each change is a compare-and-set: it is computed from a record, and stored only if the record is still that one.
Otherwise it is computed again from the newer record. The changes of all threads of this process to one record are
gathered while an earlier one is being stored, and are stored together.

The server pushes each new record to all processes. A record that was pushed or written within the last second is used
without asking for it. If it is outdated nevertheless, the next change finds out.
"""

import asyncio
from typing import Any, Callable, Dict, Generic, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar, Union

from persipubsub import errors
from persipubsub.nats_engine.client import Publication, parsed_header
from persipubsub.nats_engine.records import (NOBODY, REQUEUED, QueueRecord, SubscriberRecord, decoded, encoded,
                                             new_token, signed)
from persipubsub.nats_engine.streams import NO_STREAM, WRONG_LAST, Api, ApiError, Names, identifier_of, not_initialized
from persipubsub.nats_engine.wakeup import Signal

#: How long a record is used without asking for it again.
FRESH_S = 1.0
#: For how long the servers may tell an outdated revision: until a leader that was cut off knows that it is none.
BEHIND_S = 15.0
#: The pause before a change is computed again though no other revision is known.
PAUSE_S = 0.1
#: No further change joins those that store more than this beside a record.
BESIDE_MAX = 200
#: How many records are asked for at the same time.
ASKED_MAX = 200

R = TypeVar("R", bound=Union[QueueRecord, SubscriberRecord])


class Change(NamedTuple):
    """What becomes of a record."""

    #: None: it stays as it is.
    record: Any
    result: Any = None
    #: What is stored together with it.
    beside: Sequence[Publication] = ()


Operation = Callable[[Optional[R]], Change]


class _Job(NamedTuple):
    operation: Callable[[Any], Change]
    future: "asyncio.Future[Any]"


class Cell(Generic[R]):  # pylint: disable=too-many-instance-attributes  # what is known of a record, and since when
    """One record."""

    def __init__(self, api: Api, subject: str, stream: str, kind: Type[R], noted: Callable[[Optional[R], R],
                                                                                           None]) -> None:
        """Prepare to read and to change a record.

        :param noted: is called with the record as it was known before, and with a newer one
        """
        self._api = api
        self._subject = subject
        self._stream = stream
        self._kind = kind
        self._noted = noted
        self._shown = api.connection.target.shown
        #: None: there is none, or it is not known.
        self._record: Optional[R] = None
        self._revision = 0
        self._known_s = -FRESH_S
        self._epoch = -1
        #: Since when the servers have told an older revision than the one that is known.
        self._behind_s: Optional[float] = None
        self._jobs: List[_Job] = []
        self._worker: "Optional[asyncio.Task[None]]" = None

    # Reading

    @property
    def known(self) -> Optional[R]:
        """Return the record as it was known last."""
        return self._record

    @property
    def revision(self) -> int:
        """Return the sequence number of the record as it was known last; 0 if there is none."""
        return self._revision

    @property
    def is_fresh(self) -> bool:
        """Return whether the record is known well enough to be used."""
        now_s = asyncio.get_running_loop().time()
        return self._epoch == self._api.connection.epoch and now_s - self._known_s < FRESH_S

    async def get(self) -> Optional[R]:
        """Return the record; None if there is none."""
        return self._record if self.is_fresh else await self.read()

    async def read(self) -> Optional[R]:
        """Return the record as the server knows it; None if there is none."""
        epoch = self._api.connection.epoch
        try:
            stored = await self._api.get(self._stream, last_by_subj=self._subject)
        except ApiError as error:
            if error.code == NO_STREAM:
                raise not_initialized(self._shown) from error
            raise
        if stored is None:
            self._record, self._revision = None, 0
        else:
            self._forget_lost(stored.seq)
            self._note(decoded(self._kind, stored.payload, self._shown), stored.seq)
        self._confirm(epoch)
        return self._record

    def _forget_lost(self, revision: int) -> None:
        """Forget what is known if the servers have told an older revision for longer than a leader may be outdated.

        They have then lost what they had confirmed.
        """
        now_s = asyncio.get_running_loop().time()
        if revision >= self._revision:
            self._behind_s = None
        elif self._behind_s is None:
            self._behind_s = now_s
        elif now_s - self._behind_s >= BEHIND_S:
            self._record, self._revision, self._behind_s = None, 0, None

    def push(self, value: bytes, revision: int) -> None:
        """Note a record that the server pushed."""
        if revision >= self._revision:
            self._note(decoded(self._kind, value, self._shown), revision)
            self._confirm(self._api.connection.epoch)

    def _confirm(self, epoch: int) -> None:
        self._known_s, self._epoch = asyncio.get_running_loop().time(), epoch

    def _note(self, record: R, revision: int) -> None:
        if revision > self._revision or self._record is None:
            before, self._record, self._revision = self._record, record, revision
            self._noted(before, record)

    # Changing

    async def change(self, operation: "Operation[R]") -> Any:
        """Change the record; return the result of the operation.

        :param operation: may be called several times; its last call counts
        """
        job = _Job(operation, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        return await job.future

    async def _work(self) -> None:
        while self._jobs:
            jobs, self._jobs = self._jobs, []
            try:
                await self._run(jobs)
            except Exception as error:  # pylint: disable=broad-exception-caught  # raised where the change was asked for
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
        self._worker = None

    async def _run(self, jobs: List[_Job]) -> None:
        is_read = not self.is_fresh
        if is_read:
            await self.read()
        while True:
            before, revision = self._record, self._revision
            record, outcomes, beside = _applied(jobs, before)
            if record is not before:
                assert record is not None
                is_stored = await self._store(record, revision, beside)
                if not is_stored and self._revision == revision:
                    await asyncio.sleep(PAUSE_S)
            else:
                is_stored = is_read
                if not is_read:
                    await self.read()  # nothing may be concluded from a record that may be outdated
                    is_read = True
            if is_stored:
                break
        self._jobs = [*jobs[len(outcomes):], *self._jobs]
        for job, outcome in zip(jobs, outcomes):
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    async def _store(self, record: R, revision: int, beside: Sequence[Publication]) -> bool:
        """Store a record in place of a revision; return whether it was still that one."""
        token = new_token()
        record = signed(record, token)
        epoch = self._api.connection.epoch

        async def attempt() -> bool:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
            try:
                if beside:
                    copies = [one._replace(headers=dict(one.headers)) for one in beside]
                    batch = [*copies, Publication(self._subject, encoded(record), headers)]
                    ack = await self._api.publish_batch(new_token(), batch)
                else:
                    ack = await self._api.publish(self._subject, encoded(record), headers)
            except ApiError as error:
                if error.code in WRONG_LAST:
                    found = await self.read()  # perhaps an earlier try has stored it
                    return found is not None and token in found.written
                raise
            self._note(record, ack.seq)
            self._confirm(epoch)
            return True

        return await self._api.connection.persist(attempt, writes=True)


def _applied(jobs: Sequence[_Job], record: Optional[Any]) -> Tuple[Optional[Any], List[Any], List[Publication]]:
    """Return a record after the first changes, their results or errors, and what is stored beside it."""
    outcomes: List[Any] = []
    beside: List[Publication] = []
    for job in jobs:
        if len(beside) > BESIDE_MAX:
            break
        try:
            change = job.operation(record)
        except Exception as error:  # pylint: disable=broad-exception-caught  # raised where the change was asked for
            outcomes.append(error)
            continue
        outcomes.append(change.result)
        beside += change.beside
        if change.record is not None:
            record = change.record
    return record, outcomes, beside


class Records:  # pylint: disable=too-many-instance-attributes  # what it uses
    """All records of a queue."""

    def __init__(self, api: Api, names: Names, messages: Signal, room: Signal) -> None:
        """Prepare to use the records.

        :param messages: is woken when a subscriber may find something that was not sent now
        :param room: is woken when messages may have been deleted
        """
        self._api = api
        self._names = names
        self._messages = messages
        self._room = room
        self.queue: Cell[QueueRecord] = Cell(api, names.queue, names.state, QueueRecord, self._queue_noted)
        self._subscribers: Dict[bytes, Cell[SubscriberRecord]] = {}
        self._listed_s = -FRESH_S
        self._listed_epoch = -1

    def subscriber(self, identifier: bytes) -> Cell[SubscriberRecord]:
        """Return the record of a subscriber."""
        cell = self._subscribers.get(identifier)
        if cell is None:
            subject = self._names.subscriber(identifier)
            cell = Cell(self._api, subject, self._names.state, SubscriberRecord, self._subscriber_noted)
            self._subscribers[identifier] = cell
        return cell

    async def settings(self) -> QueueRecord:
        """Return the record of the queue.

        :raise NotInitializedError: there is no queue
        """
        record = await self.queue.get()
        if record is None:
            raise not_initialized(self._api.connection.target.shown)
        return record

    @property
    def known(self) -> Dict[bytes, SubscriberRecord]:
        """Return the subscribers as they were known last."""
        return {
            identifier: cell.known
            for identifier, cell in self._subscribers.items() if cell.known is not None and not cell.known.removed
        }

    async def all(self, fresh: bool = True) -> Dict[bytes, SubscriberRecord]:
        """Return all subscribers by identifier.

        :param fresh: False: those that were listed or pushed within the last second will do
        """
        epoch, now_s = self._api.connection.epoch, asyncio.get_running_loop().time()
        if fresh or self._listed_epoch != epoch or now_s - self._listed_s >= FRESH_S:
            state = await self._state()
            found = [identifier_of(subject) for subject in state.subjects]
            for identifier in set(self._subscribers) - set(found):
                found.append(identifier)
            for start in range(0, len(found), ASKED_MAX):
                await asyncio.gather(*(self.subscriber(one).read() for one in found[start:start + ASKED_MAX]))
            self._listed_epoch, self._listed_s = epoch, now_s
        return dict(sorted(self.known.items()))

    async def _state(self) -> Any:
        try:
            return await self._api.state(self._names.state, f"{self._names.subscribers}.*")
        except ApiError as error:
            if error.code == NO_STREAM:
                raise not_initialized(self._api.connection.target.shown) from error
            raise

    def push(self, subject: bytes, header: bytes, data: bytes) -> None:
        """Note a record that the server pushed."""
        kind, _, _ = subject[len(self._names.pushed) + 3:].decode().partition(".")
        revision = int(parsed_header(header)[b"Nats-Sequence"])
        try:
            if kind == "queue":
                self.queue.push(data, revision)
            else:
                self.subscriber(identifier_of(subject.decode())).push(data, revision)
        except errors.FormatError:
            pass  # raised where it is read

    def _queue_noted(self, before: Optional[QueueRecord], after: QueueRecord) -> None:
        if before is not None and before != after:
            self._room.wake()

    def _subscriber_noted(self, before: Optional[SubscriberRecord], after: SubscriberRecord) -> None:
        if before is None or _wakes(before, after):
            self._messages.wake()
        if before is None or after.removed or after.position() > before.position():
            self._room.wake()


def _wakes(before: SubscriberRecord, after: SubscriberRecord) -> bool:
    """Return whether the subscriber may find more than before, or must find out that it was removed."""
    if after.removed or after.number != before.number or after.next_id < before.next_id:
        return True
    waiting = {run for run in after.runs if run[3] == NOBODY or run[0] >= REQUEUED}
    return bool(waiting - set(before.runs))
