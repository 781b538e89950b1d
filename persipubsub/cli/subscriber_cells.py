"""What ``status`` and ``top`` tell of subscribers that are shared or limit their deliveries.

A queue that has none of them needs no room for it.
"""

from typing import Tuple

from persipubsub.status import QueueStatus, SubscriberStatus


def head(one: QueueStatus) -> Tuple[str, ...]:
    """Give the heads of the columns."""
    return ("kind", "in flight", "dead letters") if _has_policies(one) else ()


def of(one: QueueStatus, subscriber: SubscriberStatus) -> Tuple[str, ...]:
    """Give the cells of a subscriber of the queue."""
    if not _has_policies(one):
        return ()
    kind = "shared" if subscriber.policy is not None and subscriber.policy.shared else "plain"
    return kind, f"{subscriber.in_flight:,}", f"{subscriber.dead_letters:,}"


def _has_policies(one: QueueStatus) -> bool:
    return any(subscriber.policy is not None for subscriber in one.subscribers.values())
