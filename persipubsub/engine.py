"""What publishers and subscribers ask of a queue. The seam behind which another engine could store the messages."""

from typing import Optional, Protocol, Sequence

from persipubsub.delivery_records import Failure
from persipubsub.queue import Batch, Found, Sent, Subscription


class Watch(Protocol):
    """One call that waits for messages."""

    def arm(self) -> None:
        """Note what has been published so far. To be called before looking into the queue."""

    def wait(self, timeout_s: float) -> None:
        """Return once something was published since arm(); also after the timeout, and sometimes for no reason."""


class Engine(Protocol):
    """The queue as its endpoints know it."""

    def put(self, batch: Batch) -> Sent:
        """Append messages, all or none."""

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber, or raise UnknownSubscriberError."""

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them. None of them has expired."""

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""

    def take(self, subscription: Subscription, ids: Sequence[int], skipping: bool = False) -> None:
        """Take messages that a subscriber was handed out, and those before them: read before, or skipped."""

    def fail(self, subscription: Subscription, ids: Sequence[int], failure: Failure) -> int:
        """Count that a block raised which was handed messages; give how many dead letters went, being too many."""

    # Of shared subscribers

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages out to one worker, for as long as the lease of the subscriber."""

    def acknowledge(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Sequence[int]:
        """Take messages that a worker has claimed; give those that were not its own any more."""

    def give_back(self, subscription: Subscription, ids: Sequence[int], token: bytes,
                  failure: Optional[Failure]) -> int:
        """Give messages back, which counts as a delivery if there was a failure; give the number that fail gives."""

    def extend(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Sequence[int]:
        """Have the lease of messages begin now; give those that are not the worker's own any more."""

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait; the bound holds where the wait has to poll."""
