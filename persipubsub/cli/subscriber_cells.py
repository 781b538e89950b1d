"""Columns of ``status`` and ``top`` for subscribers that are shared or limit their deliveries.

A queue without such subscribers does not have these columns.
"""

from typing import Tuple

from persipubsub.status import QueueStatus, SubscriberStatus


def kind(subscriber: SubscriberStatus) -> str:
    """Return the kind of a subscriber: plain, shared by workers, or limited in its deliveries."""
    if subscriber.policy is None:
        return "plain"
    return "shared" if subscriber.policy.shared else "limited"


def head(one: QueueStatus) -> Tuple[str, ...]:
    """Return the headers of the columns."""
    return ("kind", "in flight", "dead letters") if _has_policies(one) else ()


def of(one: QueueStatus, subscriber: SubscriberStatus) -> Tuple[str, ...]:
    """Return the cells of a subscriber of the queue."""
    if not _has_policies(one):
        return ()
    return kind(subscriber), f"{subscriber.in_flight:,}", f"{subscriber.dead_letters:,}"


def _has_policies(one: QueueStatus) -> bool:
    return any(subscriber.policy is not None for subscriber in one.subscribers.values())
