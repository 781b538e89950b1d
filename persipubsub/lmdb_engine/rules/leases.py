"""The deliveries of a shared subscriber, from claim to acknowledgement; on an open transaction.

Any number of workers receive as one shared subscriber, and each message is delivered to one of them at a time. A worker
*claims* messages (:func:`claim`). Each gets an entry in ``index_db``, which counts its deliveries and holds the token
of the claim, and an entry in ``due_db`` with the end of the lease. The worker *acknowledges* the messages
(:func:`acknowledge`), *gives them back* (:func:`give_back`), or dies. After the lease, or after the delay before a
retry, another worker may claim them. The entries of ``due_db`` are in the order of time, so finding the next one costs
the same however many there are.

A message that was not acknowledged is delivered again alone, so that others do not fail with it. Once it was delivered
as often as the policy allows, it becomes a dead letter. If that is once, each message is delivered alone.

A message may be deleted from the log while a worker holds it: it expires, an overflow drops it, or ``clear`` deletes
it. Its entry stays until the worker acknowledges it, or until its lease has ended.
"""

import itertools
import os
from typing import List, NamedTuple, Optional, Sequence, Tuple

from persipubsub import clock, errors
from persipubsub.engine.policies import Policy
from persipubsub.engine.values import NEVER_US, NO_FAILURE, NOTHING, Claims, Failure, Found, Settled, Subscription
from persipubsub.lmdb_engine.records.delivery_layouts import (LEASE_RAN_OUT, NO_TOKEN, RAISED, REJECTED, REQUEUED,
                                                              Death, Delivery)
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import cursors, dead_letters, details, message_log
from persipubsub.lmdb_engine.rules.dead_letters import policy_of

#: Maximum messages per claim, since they are acknowledged or given back in one transaction, too.
CLAIMED_MAX = 10_000
#: Maximum number of entries that one claim settles, because their messages were deleted or become dead letters, and the
#: maximum size of these messages.
SETTLED_MAX = 1000
SETTLED_BYTES_MAX = 64 * 1024**2


def _new_tokens() -> None:
    """Begin the tokens of this process at a random number: at import, and in a forked child."""
    global _tokens  # pylint: disable=global-statement  # so that each claim need not ask the kernel
    _tokens = itertools.count(int.from_bytes(os.urandom(len(NO_TOKEN)), "big") or 1)


_tokens = itertools.count()  # pylint: disable=invalid-name  # it is not a constant
_new_tokens()
os.register_at_fork(after_in_child=_new_tokens)


def due_us(txn: Transaction, subscription: Subscription) -> int:
    """Return when there may be a message to claim even if none is sent, as time since boot; 0 if there is one now.

    :raise UnknownSubscriberError: the subscriber was removed
    """
    record = cursors.own_record(txn, subscription)
    if txn.first_id(max(record.next_id, txn.header.first)) is not None:
        return 0
    # A claim wakes no waiting worker, but no claim made from now on ends earlier than this.
    found_us = min(cursors.delayed_until_us(txn), clock.boottime_us() + policy_of(record).lease_us)
    due = txn.in_flight(record).next_due()
    if due is not None:
        if txn.header.boot_id != clock.boot_id():
            return 0  # the queue's time may stand still until the next write, which a claim is
        found_us = min(found_us, max(0, due.due_us - message_log.now_us(txn) + clock.boottime_us()))
    return found_us


def claim(txn: Transaction,
          subscription: Subscription,
          max_messages: int,
          max_bytes: int,
          detailed: bool = False) -> Found:
    """Deliver messages to one worker, for the time of the lease.

    :param max_messages: the maximum number of messages
    :param max_bytes: the maximum size of their payloads; one message is delivered in any case
    :raise UnknownSubscriberError: the subscriber was removed
    """
    record = cursors.own_record(txn, subscription)
    now_us = message_log.now_us(txn)
    if txn.oldest().time_us < now_us - txn.header.message_timeout_us:
        message_log.expire(txn)
    claiming = _Claiming(txn, record, now_us, max_messages, max_bytes)
    claiming.claim_due()
    if not claiming.ids:
        claiming.claim_next()
    cursors.move(txn, subscription.identifier, claiming.record, claiming.before,
                 dead_letters.position(txn, claiming.record))
    found = claiming.found()
    return found._replace(details=details.read(txn, claiming.record, found.ids)) if detailed else found


class _Claiming:  # pylint: disable=too-many-instance-attributes  # the state of a claim in its two steps
    """A claim in progress."""

    def __init__(self, txn: Transaction, record: SubscriberRecord, now_us: int, max_messages: int,
                 max_bytes: int) -> None:
        self._txn = txn
        self._now_us = now_us
        self._boottime_us = clock.boottime_us()
        self._policy = policy_of(record)
        # For the last delivery, a message is claimed alone, so that no other becomes a dead letter with it.
        self._max_messages = 1 if self._policy.max_deliveries == 1 else min(max_messages, CLAIMED_MAX)
        self._max_bytes = max_bytes
        self._deliveries = txn.in_flight(record)
        self._token = (next(_tokens) % 2**64).to_bytes(len(NO_TOKEN), "big")
        self.record = record
        self.before = dead_letters.position(txn, record)
        self.ids: Sequence[int] = []
        self.payloads: List[bytes] = []
        self._settled = self._settled_bytes = 0
        self._dropped = 0

    def claim_due(self) -> None:
        """Claim messages that were delivered before or requeued.

        A message that was not acknowledged is claimed alone, and those without a counted delivery together.
        """
        ids: List[int] = []
        while (due := self._deliveries.next_due()) is not None and due.due_us <= self._now_us:
            entry = self._deliveries.get(due.message_id)
            if entry is None:
                raise errors.DamagedError(f"Subscriber number {self.record.number} has no entry of a message: {due}.")
            payload = dead_letters.payload_of(self._txn, self.record, due.message_id)
            if payload is None or entry.deliveries >= self._policy.max_deliveries:
                if ids or self._settled >= SETTLED_MAX or self._settled_bytes >= SETTLED_BYTES_MAX:
                    break
                self._settled_bytes += len(payload or b"")
                payload = None  # _settle() reads it again: a long one must not be in memory twice
                self._settle(due.message_id, entry)
                continue
            self._max_bytes -= len(payload)
            if ids and (entry.deliveries or self._max_bytes < 0):
                break
            ids.append(due.message_id)
            self.payloads.append(payload)
            self._deliveries.put(due.message_id, self._claimed(entry), entry)
            if entry.deliveries or len(ids) == self._max_messages:
                break
        self.ids = ids

    def _settle(self, message_id: int, entry: Delivery) -> None:
        """End the deliveries of a message that was deleted from the log, or that becomes a dead letter."""
        reason = RAISED if entry.token == NO_TOKEN and entry.failure != NO_FAILURE else LEASE_RAN_OUT
        death = Death(reason, entry.deliveries, self._now_us, entry.failure)
        self.record, dropped = _add_or_forget(self._txn, self.record, message_id, entry, death)
        self._dropped += dropped
        self._settled += 1

    def claim_next(self) -> None:
        """Claim messages that were not delivered before."""
        start = max(self.record.next_id, self._txn.header.first)
        self.ids, self.payloads = self._txn.messages(start, self._max_messages, self._max_bytes)
        if self.ids:
            self._deliveries.put_many(self.ids, Delivery(1, self._token, self._now_us + self._policy.lease_us))
            number, _, taken, policy, in_flight, *others = self.record
            self.record = SubscriberRecord(number, self.ids[-1] + 1, taken, policy, in_flight + len(self.ids), *others)

    def _claimed(self, entry: Delivery) -> Delivery:
        return Delivery(entry.deliveries + 1, self._token, self._now_us + self._policy.lease_us, entry.failure)

    def found(self) -> Found:
        """Return what was claimed."""
        if not self.ids:
            return NOTHING._replace(dropped=self._dropped)
        expires_us = NEVER_US
        if self.ids[0] < REQUEUED:
            expires_us = self._txn.run_of(self.ids[0]).time_us + self._txn.header.message_timeout_us
        ends_us = min(expires_us, self._now_us + self._policy.lease_us) - self._now_us + self._boottime_us
        return Found(self.ids, self.payloads, expires_us=ends_us, token=self._token, dropped=self._dropped)


class _Held(NamedTuple):
    """The messages of a claim: those that the worker still holds, with their entries, and those that it lost."""

    groups: List[Tuple[List[int], Delivery]]  # of messages with equal entries
    lost: List[int]


def _held(txn: Transaction, record: SubscriberRecord, ids: Sequence[int], token: bytes) -> _Held:
    held = _Held([], [])
    for message_id, entry in zip(ids, txn.in_flight(record).get_many(ids)):
        if entry is None or entry.token != token:
            held.lost.append(message_id)
        elif held.groups and held.groups[-1][1] == entry:
            held.groups[-1][0].append(message_id)
        else:
            held.groups.append(([message_id], entry))
    return held


def acknowledge(txn: Transaction, subscription: Subscription, ids: Sequence[int], token: bytes) -> Settled:
    """Acknowledge the messages of a claim that the worker still holds.

    The worker holds them as long as no other worker has claimed them, even after the lease has ended. If the subscriber
    was removed, nothing is changed.
    """
    record = cursors.known_record(txn, subscription)
    if record is None:
        return Settled()
    before, deliveries, held = dead_letters.position(txn, record), txn.in_flight(record), _held(txn, record, ids, token)
    for own_ids, entry in held.groups:
        deliveries.delete_many(own_ids, entry)
        requeued = [message_id for message_id in own_ids if message_id >= REQUEUED] if record.requeued else ()
        for message_id in requeued:
            txn.dead_letters(record.number).delete(message_id - REQUEUED)
        record = SubscriberRecord(record.number, record.next_id, record.taken + len(own_ids), record.policy,
                                  record.in_flight - len(own_ids) + len(requeued), record.requeued - len(requeued),
                                  record.dead_letters)
    if held.groups:
        cursors.move(txn, subscription.identifier, record, before, dead_letters.position(txn, record))
    return Settled(lost=held.lost)


# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # the fields of a command
def give_back(txn: Transaction,
              subscription: Subscription,
              ids: Sequence[int],
              token: bytes,
              failure: Optional[Failure],
              delay_us: Optional[int] = None,
              rejects: bool = False) -> Settled:
    """Give back the messages of a claim that the worker still holds, and wake the waiting workers.

    :param failure: why the worker failed; None if it did not begin, so that the delivery does not count
    :param delay_us: the delay before the next delivery; None for that of the policy
    :param rejects: whether they become dead letters at once
    """
    back = _Back(failure, delay_us, rejects)
    record = cursors.known_record(txn, subscription)
    if record is None:
        return Settled()
    before, dropped = dead_letters.position(txn, record), 0
    for own_ids, entry in _held(txn, record, ids, token).groups:
        record, more = _give_back_equal(txn, record, own_ids, entry, back)
        dropped += more
        txn.published = True
    cursors.move(txn, subscription.identifier, record, before, dead_letters.position(txn, record))
    return Settled(dropped=dropped)


class _Back(NamedTuple):
    """How messages are given back."""

    failure: Optional[Failure]
    delay_us: Optional[int]
    rejects: bool


def _give_back_equal(txn: Transaction, record: SubscriberRecord, ids: Sequence[int], entry: Delivery,
                     back: _Back) -> dead_letters.Added:
    """Give back messages with equal entries: they can be claimed again at once, later or never."""
    now_us, policy, dropped = message_log.now_us(txn), policy_of(record), 0
    failure = back.failure
    if failure is None:
        waiting = Delivery(entry.deliveries - 1, NO_TOKEN, now_us, entry.failure)
        txn.in_flight(record).put_many(ids, waiting, entry)
    elif entry.deliveries < policy.max_deliveries and not back.rejects:
        delay_us = _delay_us(policy, entry.deliveries) if back.delay_us is None else back.delay_us
        waiting = Delivery(entry.deliveries, NO_TOKEN, now_us + delay_us, failure)
        txn.in_flight(record).put_many(ids, waiting, entry)
    else:
        death = Death(REJECTED if back.rejects else RAISED, entry.deliveries, now_us, failure)
        for message_id in ids:
            if txn.in_flight(record).get(message_id) is None:
                continue  # requeued; the same message of the log became a dead letter in this loop
            record, more = _add_or_forget(txn, record, message_id, entry, death)
            dropped += more
    return dead_letters.Added(record, dropped)


def _add_or_forget(txn: Transaction, record: SubscriberRecord, message_id: int, entry: Delivery,
                   death: Death) -> dead_letters.Added:
    """Make a message a dead letter, or delete only its entry if the message was deleted from the log."""
    if dead_letters.is_stored(txn, message_id):
        return dead_letters.add_dead_letter(txn, record, message_id, death, entry)
    txn.in_flight(record).delete_many((message_id, ), entry)
    return dead_letters.Added(record._replace(in_flight=record.in_flight - 1), 0)


def _delay_us(policy: Policy, deliveries: int) -> int:
    """Return the delay before the next delivery, which doubles each time."""
    return min(policy.retry_delay_us << min(deliveries - 1, 63), policy.retry_delay_max_us)


def extend(txn: Transaction, subscription: Subscription, claims: Claims) -> Settled:
    """Restart the leases on the messages of some claims that the worker still holds."""
    record, lost = cursors.known_record(txn, subscription), list[int]()
    for token, ids in claims.items():
        if record is None:
            lost += ids
            continue
        held = _held(txn, record, ids, token)
        due_us = message_log.now_us(txn) + policy_of(record).lease_us
        for own_ids, entry in held.groups:
            txn.in_flight(record).put_many(own_ids, entry._replace(due_us=due_us), entry)
        lost += held.lost
    return Settled(lost=lost)
