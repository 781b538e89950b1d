"""What publishers and subscribers ask of a queue. The seam behind which another engine could store the messages."""

from typing import Optional, Protocol, Sequence

from persipubsub.delayed import DelayedMessage
from persipubsub.engine.values import Batch, Claims, DueTime, Failure, Found, Sent, Settled, Subscription


class Watch(Protocol):
    """One call that waits for messages."""

    def arm(self) -> None:
        """Note what has been published so far. To be called before looking into the queue."""

    def wait(self, timeout_s: float) -> None:
        """Return once something was published since arm(); also after the timeout, and sometimes for no reason."""

    def claim(self, due_us: int) -> bool:
        """Take it upon oneself to look for a delayed message that is due; False if another one who waits did."""


class Engine(Protocol):
    """The queue as its endpoints know it."""

    def put(self, batch: Batch) -> Sent:
        """Append messages, all or none."""

    def put_once(self, batch: Batch, deduplication_id: bytes) -> Sent:
        """Append a message, unless one was sent with the id; then give the id of that one."""

    def put_later(self, payload: bytes, due: DueTime) -> DelayedMessage:
        """Store a message that is to be appended when it is due."""

    def cancel(self, message: DelayedMessage) -> bool:
        """Delete a delayed message; tell whether it was not appended yet."""

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber, or raise UnknownSubscriberError."""

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them. None of them has expired."""

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""

    def take(self, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
        """Take messages that a subscriber was handed out, and those before them from an id on, which were skipped."""

    def counts_failures(self, subscription: Subscription) -> bool:
        """Tell whether a subscriber that is not shared has its failures counted."""

    def fail(self, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
        """Count that a block raised which was handed messages. To be called only where failures are counted."""

    # Of shared subscribers

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages out to one worker, for as long as the lease of the subscriber."""

    def acknowledge(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Settled:
        """Take messages that a worker has claimed."""

    def give_back(self, subscription: Subscription, ids: Sequence[int], token: bytes,
                  failure: Optional[Failure]) -> Settled:
        """Give messages back, which counts as a delivery if there was a failure."""

    def extend(self, subscription: Subscription, claims: Claims) -> Settled:
        """Have the lease of all messages of some claims begin now."""

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait; the bound holds where the wait has to poll."""
