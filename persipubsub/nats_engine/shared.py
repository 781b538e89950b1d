"""The deliveries of a shared subscriber, from claim to acknowledgement.

A worker *claims* messages: each gets an entry in the record of the subscriber, with the token of the claim, the end of
the lease, and how often it was delivered. The worker *acknowledges* the messages, *gives them back*, or dies. After the
lease, or after the delay before a retry, another worker may claim them.

The time of leases is that of the servers, so the clocks of the workers' machines may differ.
"""

import asyncio
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import msgspec

from persipubsub.engine.commands import AcknowledgeClaimed, Extend, GiveBack
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import NEVER_US, NO_FAILURE, NOTHING, Found, Settled, Subscription
from persipubsub.nats_engine.client import Publication
from persipubsub.nats_engine.dead_letters import LEASE_RAN_OUT, RAISED, REJECTED, DeadLetters, Dying
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.messages import Stored, details_of
from persipubsub.nats_engine.plain import AGAIN, PlainSubscribers, is_own
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import NOBODY, REQUEUED, Entry, SubscriberRecord, new_token, runs_of
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import Api

#: Maximum messages per claim.
CLAIMED_MAX = 10_000
#: Maximum number of entries that one claim settles, because their messages were deleted or become dead letters.
SETTLED_MAX = 100
#: How many messages one change gives back, since some of them may become dead letters.
GIVEN_BACK_MAX = 500
#: How many messages that were delivered before are read at the same time.
READ_MAX = 100
#: No further message is claimed while the record has more runs of equal entries, so that it stays below the server's
#: limit for a message.
RUNS_MAX = 8000


class _Plan(NamedTuple):
    """What a claim would do to a record."""

    #: The messages to claim, and their entries before; None for those that were never delivered.
    claimed: Dict[int, Optional[Entry]]
    messages: List[Stored]
    #: Messages that were deleted, or that become dead letters, with their entries.
    settled: Dict[int, Tuple[Entry, Optional[Dying]]]
    #: The cursor that the claim starts from, and where it leaves it.
    next_id: int
    next_id_after: int
    due_us: int


class SharedSubscribers:
    """Subscribers whose workers share the messages."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # what it uses
    def __init__(self, api: Api, records: Records, reading: Reading, keeping: Keeping, letters: DeadLetters,
                 plain: PlainSubscribers) -> None:
        self._api = api
        self._records = records
        self._reading = reading
        self._keeping = keeping
        self._letters = letters
        self._plain = plain

    # Claiming

    async def claim(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool) -> Found:
        """Deliver messages to one worker, for the time of the lease."""
        cell, dropped = self._records.subscriber(subscription.identifier), 0
        while True:
            record = await self._plain.own(subscription)
            now_us, token = await self._reading.now_us(), new_token()
            plan = await self._planned(record, now_us, max_messages, max_bytes)
            if not plan.claimed and not plan.settled:
                await self._keeping.note_expired()
                return NOTHING._replace(due_us=plan.due_us, dropped=dropped)

            def operation(record: Optional[SubscriberRecord],
                          plan: _Plan = plan,
                          token: str = token,
                          now_us: int = now_us) -> Change:
                return self._claimed(record, subscription, plan, token, now_us)

            claimed = await cell.change(operation)
            if claimed is AGAIN:
                continue
            if plan.settled:
                self._keeping.purge_later()
                if cell.known is not None:
                    dropped += await self._letters.trim(subscription.number, cell.known)
            if plan.claimed:
                return await self._found(record, plan, token, now_us, detailed, dropped)

    async def _planned(self, record: SubscriberRecord, now_us: int, max_messages: int, max_bytes: int) -> _Plan:
        assert record.policy is not None
        policy, entries = record.policy, record.entries()
        most = 1 if policy.max_deliveries == 1 else min(max_messages, CLAIMED_MAX)
        plan = _Plan({}, [], {}, record.next_id, record.next_id, NEVER_US)
        due = sorted((entry.due_us, message_id) for message_id, entry in entries.items())
        ready = [message_id for due_us, message_id in due if due_us <= now_us]
        await self._plan_due(plan, record, entries, ready, most, max_bytes, now_us)
        if plan.claimed:
            return plan
        if len(record.runs) < RUNS_MAX:
            messages = await self._reading.unexpired(record.next_id, most, max_bytes)
            if messages:
                plan.claimed.update((message.seq, None) for message in messages)
                plan.messages.extend(messages)
                return plan._replace(next_id_after=messages[-1].seq + 1)
        # A claim of another worker from now on ends no earlier than this.
        first_due_us = due[0][0] if due else NEVER_US
        return plan._replace(due_us=self._api.time.since_boot_us(min(first_due_us, now_us + policy.lease_us)))

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # the state of a plan
    async def _plan_due(self, plan: _Plan, record: SubscriberRecord, entries: Dict[int, Entry], ready: Sequence[int],
                        most: int, max_bytes: int, now_us: int) -> None:
        """Plan to claim messages that were delivered before: one that was not acknowledged alone, others together."""
        assert record.policy is not None
        read: Dict[int, Optional[Stored]] = {}
        for index, message_id in enumerate(ready):
            if message_id not in read:
                some = ready[index:index + (READ_MAX if index or most > 1 else 1)]
                read.update(zip(some, await asyncio.gather(*(self._read(record.number, one) for one in some))))
            entry, message = entries[message_id], read[message_id]
            if message is None or entry.deliveries >= record.policy.max_deliveries:
                if plan.claimed or len(plan.settled) >= SETTLED_MAX:
                    break
                dying = None if message is None else await self._dying(record, entry, message, now_us)
                plan.settled[message_id] = entry, dying
                continue
            max_bytes -= len(message.payload)
            if plan.claimed and (entry.deliveries or max_bytes < 0):
                break
            plan.claimed[message_id] = entry
            plan.messages.append(message)
            if entry.deliveries or len(plan.claimed) == most:
                break

    async def _read(self, number: int, message_id: int) -> Optional[Stored]:
        if message_id >= REQUEUED:
            return await self._letters.get(number, message_id)
        return await self._reading.at(message_id)

    async def _dying(self, record: SubscriberRecord, entry: Entry, message: Stored, now_us: int) -> Dying:
        failure = NO_FAILURE
        if entry.failure:
            failure = await self._letters.stored_failure(record.number, entry.failure)
        reason = RAISED if entry.token == NOBODY and failure != NO_FAILURE else LEASE_RAN_OUT
        return Dying(message, reason, failure, now_us)

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # the state of a claim
    def _claimed(self, record: Optional[SubscriberRecord], subscription: Subscription, plan: _Plan, token: str,
                 now_us: int) -> Change:
        """Claim what was planned, unless the record has changed in what the plan is based on."""
        if record is None or not is_own(record, subscription) or record.policy is None:
            return Change(None, AGAIN)  # which then raises
        entries, beside = record.entries(), list[Publication]()
        for message_id, entry in plan.claimed.items():
            if entries.get(message_id) != entry:
                return Change(None, AGAIN)
        if plan.next_id not in (plan.next_id_after, record.next_id):
            return Change(None, AGAIN)
        for message_id, (entry, dying) in plan.settled.items():
            if entries.get(message_id) != entry:
                return Change(None, AGAIN)
            _settle(entries, message_id)
            if dying is not None:
                beside.append(self._letters.publication(record.number, message_id, dying, entry.deliveries))
        for message_id, before in plan.claimed.items():
            count, failure = (0, "") if before is None else (before.deliveries, before.failure)
            entries[message_id] = Entry(count + 1, token, now_us + record.policy.lease_us, failure)
        changed = msgspec.structs.replace(record,
                                          next_id=max(record.next_id, plan.next_id_after),
                                          runs=runs_of(entries))
        return Change(changed, None, beside)

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments,too-many-locals  # the state of a claim
    async def _found(self, record: SubscriberRecord, plan: _Plan, token: str, now_us: int, detailed: bool,
                     dropped: int) -> Found:
        assert record.policy is not None
        settings, ids = await self._records.settings(), list(plan.claimed)
        ends_us = now_us + record.policy.lease_us
        if settings.message_timeout_us is not None and ids[0] < REQUEUED:
            ends_us = min(ends_us, plan.messages[0].time_us + settings.message_timeout_us)
        found = Found(ids, [message.payload for message in plan.messages],
                      expires_us=self._api.time.since_boot_us(ends_us),
                      token=token.encode(),
                      dropped=dropped)
        if not detailed:
            return found
        details = []
        for (message_id, before), message in zip(plan.claimed.items(), plan.messages):
            death = self._letters.death_of(message)
            one = details_of(message, 1 + (0 if before is None else before.deliveries))
            if death is not None:
                one = one._replace(message_id=message_id % REQUEUED, sent_us=death.sent_us)
            details.append(one)
        return found._replace(details=details)

    # Ending

    async def acknowledge(self, command: AcknowledgeClaimed) -> Settled:
        """Acknowledge the messages of a claim that the worker still holds.

        The worker holds them as long as no other worker has claimed them, even after the lease has ended.
        """
        subscription, ids, token = command.subscription, command.ids, command.token.decode()

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or not is_own(record, subscription):
                return Change(None, ([], set()))
            entries, lost, failures = record.entries(), list[int](), set[str]()
            for message_id in ids:
                entry = entries.get(message_id)
                if entry is None or entry.token != token:
                    lost.append(message_id)
                    continue
                del entries[message_id]
                failures.add(entry.failure)
            failures -= {"", *(entry.failure for entry in entries.values())}
            count = len(ids) - len(lost)
            changed = msgspec.structs.replace(record, taken=record.taken + count, runs=runs_of(entries))
            return Change(changed if count else None, (lost, failures))

        lost, failures = await self._records.subscriber(subscription.identifier).change(operation)
        self._keeping.purge_later()
        await self._letters.forget_failures(subscription.number, failures)
        requeued = [message_id for message_id in ids if message_id >= REQUEUED and message_id not in lost]
        await self._letters.delete(subscription.number, requeued)
        return Settled(lost=lost)

    async def give_back(self, command: GiveBack) -> Settled:
        """Give back the messages of a claim that the worker still holds: for now, for later, or as dead letters."""
        dropped = 0
        for start in range(0, len(command.ids), GIVEN_BACK_MAX):
            some = command._replace(ids=command.ids[start:start + GIVEN_BACK_MAX])
            dropped += (await self._give_back(some)).dropped
        return Settled(dropped=dropped)

    async def _give_back(self, command: GiveBack) -> Settled:
        subscription = command.subscription
        cell, now_us = self._records.subscriber(subscription.identifier), await self._reading.now_us()
        read: Dict[int, Optional[Stored]] = {}

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or not is_own(record, subscription) or record.policy is None:
                return Change(None, [])
            dying = _dying_of(record, command)
            if any(message_id not in read for message_id in dying):
                return Change(None, dying)
            return self._given_back(record, command, read, now_us)

        while missing := await cell.change(operation):
            read.update(zip(missing, await asyncio.gather(*(self._read(subscription.number, one) for one in missing))))
        record = cell.known
        if not read or record is None:
            return Settled()
        self._keeping.purge_later()
        return Settled(dropped=await self._letters.trim(subscription.number, record))

    def _given_back(self, record: SubscriberRecord, command: GiveBack, read: Dict[int, Optional[Stored]],
                    now_us: int) -> Change:
        assert record.policy is not None
        entries, beside, token, failure = record.entries(), list[Publication](), command.token.decode(), new_token()
        for message_id in command.ids:
            entry = entries.get(message_id)
            if entry is None or entry.token != token:
                continue
            if command.failure is None:
                entries[message_id] = Entry(entry.deliveries - 1, NOBODY, now_us, entry.failure)
            elif entry.deliveries < record.policy.max_deliveries and not command.rejects:
                delay_us = command.delay_us
                if delay_us is None:
                    delay_us = _delay_us(record.policy, entry.deliveries)
                entries[message_id] = Entry(entry.deliveries, NOBODY, now_us + delay_us, failure)
            else:
                _settle(entries, message_id)
                message = read[message_id]
                if message is not None:
                    dying = Dying(message, REJECTED if command.rejects else RAISED, command.failure, now_us)
                    beside.append(self._letters.publication(record.number, message_id, dying, entry.deliveries))
        if command.failure is not None and any(entry.failure == failure for entry in entries.values()):
            beside.append(self._letters.failure(record.number, failure, command.failure))
        return Change(msgspec.structs.replace(record, runs=runs_of(entries)), [], beside)

    async def extend(self, command: Extend) -> Settled:
        """Restart the leases on the messages of some claims that the worker still holds."""
        subscription, now_us = command.subscription, await self._reading.now_us()

        def operation(record: Optional[SubscriberRecord]) -> Change:
            if record is None or not is_own(record, subscription) or record.policy is None:
                return Change(None, [message_id for ids in command.claims.values() for message_id in ids])
            entries, lost = record.entries(), list[int]()
            for token, ids in command.claims.items():
                for message_id in ids:
                    entry = entries.get(message_id)
                    if entry is None or entry.token != token.decode():
                        lost.append(message_id)
                    else:
                        entries[message_id] = entry._replace(due_us=now_us + record.policy.lease_us)
            return Change(msgspec.structs.replace(record, runs=runs_of(entries)), lost)

        return Settled(lost=await self._records.subscriber(subscription.identifier).change(operation))


def _settle(entries: Dict[int, Entry], message_id: int) -> None:
    """Delete the entry of a message, and that of a requeued copy of it."""
    entries.pop(message_id, None)
    if message_id < REQUEUED:
        entries.pop(message_id + REQUEUED, None)


def _dying_of(record: SubscriberRecord, command: GiveBack) -> List[int]:
    """Return the messages that become dead letters when they are given back."""
    assert record.policy is not None
    if command.failure is None:
        return []
    entries, token = record.entries(), command.token.decode()
    held = ((message_id, entries[message_id]) for message_id in command.ids if message_id in entries)
    return [
        message_id for message_id, entry in held
        if entry.token == token and (command.rejects or entry.deliveries >= record.policy.max_deliveries)
    ]


def _delay_us(policy: Policy, deliveries: int) -> int:
    """Return the delay before the next delivery, which doubles each time."""
    return min(policy.retry_delay_us << min(deliveries - 1, 63), policy.retry_delay_max_us)
