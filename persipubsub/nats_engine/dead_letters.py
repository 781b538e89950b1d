"""Messages outside the stream of messages: dead letters and requeued messages, in the stream of state.

A dead letter is stored in one batch with the record that no longer awaits its message, so both happen or neither. A
requeued message stays where it is, and its subscriber's record has an entry for it.
"""

import asyncio
import json
from typing import AsyncIterator, Dict, Iterable, List, NamedTuple, Optional, Sequence

import msgspec

from persipubsub import errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine import headers as encoded_headers
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import NO_FAILURE, Failure
from persipubsub.nats_engine.client import Publication, parsed_header
from persipubsub.nats_engine.messages import Stored, headers_of, publication
from persipubsub.nats_engine.records import NOBODY, REQUEUED, Entry, SubscriberRecord, runs_of
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import Api, Names

#: The header of a dead letter that says why its message died.
DEATH = "Persipubsub-Death"
#: How many dead letters are read or deleted at the same time.
AT_ONCE_MAX = 50

RAISED = "raised"
LEASE_RAN_OUT = "lease ran out"
REJECTED = "rejected"


class Death(msgspec.Struct):
    """Why and when a message became a dead letter."""

    reason: str
    deliveries: int
    error_type: str
    error_text: str
    sent_us: int
    died_us: int
    error_traceback: str = ""


class Dying(NamedTuple):
    """A message that becomes a dead letter."""

    message: Stored
    reason: str
    failure: Failure
    died_us: int


class DeadLetters:
    """The dead letters of a queue."""

    def __init__(self, api: Api, names: Names, records: Records) -> None:
        self._api = api
        self._names = names
        self._records = records

    # Within a change of a record

    def publication(self, number: int, message_id: int, dying: Dying, deliveries: int) -> Publication:
        """Return what is stored as a dead letter of a subscriber."""
        before = self.death_of(dying.message)
        failure = dying.failure
        death = Death(dying.reason, deliveries, failure.type, failure.text,
                      dying.message.time_us if before is None else before.sent_us, dying.died_us, failure.traceback)
        made = publication(self._subject(number, message_id), dying.message.payload, headers_of(dying.message))
        made.headers[DEATH] = json.dumps(msgspec.to_builtins(death))
        return made

    def failure(self, number: int, name: str, failure: Failure) -> Publication:
        """Return what is stored of an exception that a block raised, under a new name."""
        return Publication(f"{self._names.failures}.{number}.{name}", msgspec.json.encode(failure), {})

    # Reading

    @staticmethod
    def death_of(stored: Stored) -> Optional[Death]:
        """Return what a dead letter says; None for another message."""
        value = parsed_header(stored.header).get(DEATH.encode())
        return None if value is None else msgspec.json.decode(value, type=Death)

    def _subject(self, number: int, message_id: int) -> str:
        return f"{self._names.letters}.{number}.{message_id % REQUEUED}"

    async def get(self, number: int, message_id: int) -> Optional[Stored]:
        """Return a dead letter or a requeued message of a subscriber."""
        return await self._api.get(self._names.state, last_by_subj=self._subject(number, message_id))

    async def stored_failure(self, number: int, name: str) -> Failure:
        """Return what is stored of an exception."""
        subject = f"{self._names.failures}.{number}.{name}"
        stored = await self._api.get(self._names.state, last_by_subj=subject)
        return NO_FAILURE if stored is None else msgspec.json.decode(stored.payload, type=Failure)

    async def ids(self, number: int, record: SubscriberRecord) -> List[int]:
        """Return the ids of the dead letters of a subscriber, in rising order, without those that were requeued."""
        requeued = {message_id - REQUEUED for message_id in record.entries() if message_id >= REQUEUED}
        state = await self._api.state(self._names.state, f"{self._names.letters}.{number}.*")
        found = (int(subject.rpartition(".")[2]) for subject in state.subjects)
        return sorted(message_id for message_id in found if message_id not in requeued)

    async def counts(self) -> Dict[int, int]:
        """Return how many dead letters and requeued messages each subscriber has, by its number."""
        state = await self._api.state(self._names.state, f"{self._names.letters}.>")
        counts: Dict[int, int] = {}
        for subject in state.subjects:
            number = int(subject.split(".")[-2])
            counts[number] = counts.get(number, 0) + 1
        return counts

    async def read(self, number: int, record: SubscriberRecord) -> AsyncIterator[List[DeadLetter]]:
        """Iterate over the dead letters of a subscriber, some at a time."""
        ids = await self.ids(number, record)
        for start in range(0, len(ids), AT_ONCE_MAX):
            some = ids[start:start + AT_ONCE_MAX]
            found = await asyncio.gather(*(self.get(number, message_id) for message_id in some))
            yield [
                _shown(message_id, stored) for message_id, stored in zip(some, found)
                if stored is not None and self.death_of(stored) is not None
            ]

    # Changing

    async def delete(self, number: int, ids: Sequence[int]) -> None:
        """Delete dead letters or requeued messages."""
        for start in range(0, len(ids), AT_ONCE_MAX):
            await asyncio.gather(*(self._api.purge(self._names.state, filter=self._subject(number, message_id))
                                   for message_id in ids[start:start + AT_ONCE_MAX]))

    async def forget_failures(self, number: int, names: Iterable[str]) -> None:
        """Delete what is stored of exceptions."""
        for name in names:
            await self._api.purge(self._names.state, filter=f"{self._names.failures}.{number}.{name}")

    async def delete_all(self, number: int) -> None:
        """Delete all that belongs to a subscriber."""
        for kind in (self._names.letters, self._names.failures):
            await self._api.purge(self._names.state, filter=f"{kind}.{number}.*")

    async def trim(self, number: int, record: SubscriberRecord) -> int:
        """Delete the oldest dead letters if there are too many; return how many."""
        if record.policy is None:
            return 0
        ids = await self.ids(number, record)
        surplus = ids[:max(0, len(ids) - record.policy.dead_letters_max)]
        await self.delete(number, surplus)
        return len(surplus)

    async def requeue(self, identifier: bytes, number: int, ids: Optional[Sequence[int]], now_us: int) -> int:
        """Requeue dead letters, all if no ids are given; return how many."""
        record = await self._records.subscriber(identifier).get()
        if record is None or record.number != number:
            return 0
        found = await self.ids(number, record)
        chosen = found if ids is None else [message_id for message_id in sorted(set(ids)) if message_id in set(found)]
        if not chosen:
            return 0

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or record.number != number:
                return Change(None, 0)
            entries, more = record.entries(), 0
            for message_id in chosen:
                if message_id + REQUEUED not in entries:
                    entries[message_id + REQUEUED] = Entry(0, NOBODY, now_us if is_shared(record.policy) else 0)
                    more += 1
            return Change(msgspec.structs.replace(record, runs=runs_of(entries)), more)

        count: int = await self._records.subscriber(identifier).change(operation)
        return count

    async def discard(self, number: int, record: SubscriberRecord, ids: Optional[Sequence[int]]) -> int:
        """Delete dead letters, all if no ids are given; return how many."""
        found = await self.ids(number, record)
        chosen = found if ids is None else sorted(set(ids) & set(found))
        await self.delete(number, chosen)
        return len(chosen)


def is_shared(policy: Optional[Policy]) -> bool:
    """Return whether the policy is that of a shared subscriber."""
    return policy is not None and policy.shared


def _shown(message_id: int, stored: Stored) -> DeadLetter:
    found = parsed_header(stored.header)
    death = msgspec.json.decode(found[DEATH.encode()], type=Death)
    return DeadLetter(message_id, stored.payload, death.reason, death.deliveries, death.error_type,
                      death.error_text, death.sent_us / 1e6, death.died_us / 1e6,
                      encoded_headers.decoded(headers_of(stored)), death.error_traceback)


def no_dead_letters(identifier: bytes) -> errors.SubscriberKindError:
    """Return the error of a subscriber that cannot reject a message."""
    return errors.SubscriberKindError(
        f"The subscriber {identifier.decode()!r} has no dead letters, so it cannot reject a message, which stays. Set "
        "its max_deliveries with Control.add_subscriber.")
