"""Counting the failures of a subscriber that is not shared, but limits its deliveries; on an open transaction.

A delivery of such a subscriber counts when the block that received the message raises. When the last one that its
policy allows has raised, the message becomes a dead letter and the subscriber moves on behind it, so that it no longer
stops those that come after it.
"""

from typing import Sequence

from persipubsub import dead_letters, queue
from persipubsub.deliveries import Settled
from persipubsub.delivery_records import Failure
from persipubsub.queue import Subscription
from persipubsub.transaction import Transaction


def are_counted(txn: Transaction, subscription: Subscription) -> bool:
    """Tell whether a subscriber limits its deliveries. One that was removed does not."""
    place = queue.known_place(txn, subscription)
    return place is not None and place.policy is not None


def fail(txn: Transaction, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
    """Count that a block raised which had received messages; some may become dead letters."""
    place = queue.known_place(txn, subscription)
    if place is None or place.policy is None:
        return Settled()
    before = place.next_id
    place, dropped = dead_letters.fail(txn, place, ids, failure, queue.now_us(txn))
    queue.move(txn, subscription.identifier, place, before, place.next_id)
    return Settled(dropped=dropped)
