"""An engine that notes what an endpoint wants to write, so that it is committed elsewhere: by the bridge of asyncio."""

import threading
from typing import Callable, List, Optional, Sequence

from persipubsub.delayed import DelayedMessage
from persipubsub.engine.protocols import Engine, Watch
from persipubsub.engine.values import Batch, Claims, DueTime, Failure, Found, Sent, Settled, Subscription
from persipubsub.lmdb_engine.process.group_commit import Write
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, cursors, deduplication, delays, leases


class Recorder(threading.local):
    """The engine of endpoints whose writes are committed elsewhere: instead of writing, it notes what is to be written.

    So such an endpoint checks, encodes and refuses exactly as every other. Each thread has notes of its own. What an
    endpoint writes while it only looks, as giving back what it cannot read, is written at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writes: List[Write] = []
        self._is_recording = False

    def recorded(self, call: Callable[[], object]) -> List[Write]:
        """Run a call of an endpoint and give what it wants to write."""
        self._writes, self._is_recording = [], True
        try:
            call()
            return self._writes
        finally:
            self._is_recording = False

    def put(self, batch: Batch) -> Sent:
        """Note messages."""
        self._writes.append(Write(lambda txn: appending.put(txn, batch), len(batch.payloads), batch.size_bytes))
        return Sent(range(0), True)

    def put_once(self, batch: Batch, deduplication_id: bytes) -> Sent:
        """Note a message with its id."""
        self._writes.append(
            Write(lambda txn: deduplication.put(txn, batch, deduplication_id), len(batch.payloads), batch.size_bytes))
        return Sent(range(0), True)

    def put_later(self, payload: bytes, due: DueTime) -> DelayedMessage:
        """Note a message that is to be appended when it is due."""
        self._writes.append(Write(lambda txn: delays.put(txn, payload, due), 1, len(payload)))
        return DelayedMessage(0, 0)  # who writes it learns which it is

    def cancel(self, message: DelayedMessage) -> bool:
        """Note that a delayed message is to be deleted."""
        self._writes.append(Write(lambda txn: delays.cancel(txn, message)))
        return True  # who writes it learns whether it was

    def take(self, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
        """Note that messages are taken."""
        self._writes.append(Write(lambda txn: cursors.take(txn, subscription, ids, since)))

    def counts_failures(self, subscription: Subscription) -> bool:
        """Tell whether a subscriber that is not shared has its failures counted."""
        return self._engine.counts_failures(subscription)

    def fail(self, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
        """Note that a block raised which was handed messages."""
        if not self._is_recording:
            return self._engine.fail(subscription, ids, failure)
        return self._settle(lambda txn: cursors.fail(txn, subscription, ids, failure))

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages out to one worker, at once."""
        return self._engine.claim(subscription, max_messages, max_bytes)

    def acknowledge(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Settled:
        """Note that a worker takes messages."""
        return self._settle(lambda txn: leases.acknowledge(txn, subscription, ids, token))

    def give_back(self, subscription: Subscription, ids: Sequence[int], token: bytes,
                  failure: Optional[Failure]) -> Settled:
        """Note that a worker gives messages back."""
        if not self._is_recording:
            return self._engine.give_back(subscription, ids, token, failure)
        return self._settle(lambda txn: leases.give_back(txn, subscription, ids, token, failure))

    def extend(self, subscription: Subscription, claims: Claims) -> Settled:
        """Note that the lease of all messages of some claims is to begin anew."""
        return self._settle(lambda txn: leases.extend(txn, subscription, claims))

    def _settle(self, operation: Callable[[Transaction], Settled]) -> Settled:
        self._writes.append(Write(operation))
        return Settled()  # who writes it learns what it has come to

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber, or raise UnknownSubscriberError."""
        return self._engine.subscribe(identifier)

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them."""
        return self._engine.look(subscription, max_messages, max_bytes)

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""
        return self._engine.look_at_top(subscription)

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait; the bound holds where the wait has to poll."""
        return self._engine.watch(longest_sleep_s)
