"""What is wrong with a queue, judged by its status and its last hour: what the page shows first."""

from typing import Iterator, List, NamedTuple, Optional

from persipubsub.dashboard.history import History
from persipubsub.queue import Strategy
from persipubsub.status import LAG_COMMITS_MIN, QueueStatus, SubscriberStatus

#: The share of a limit from which on it is almost reached.
HIGH_SHARE = 0.9
#: A subscriber is stuck if its oldest message is that old, in seconds, and nothing was acknowledged for that long.
STUCK_S = 60.0
#: So soon after its start, the dashboard trusts that nothing is acknowledged, if the oldest message is old enough.
WATCHED_S = 10.0

ERROR, WARNING = "error", "warning"


class Finding(NamedTuple):
    """Something that needs a person's attention."""

    level: str
    #: A short name of the kind, such as ``full``.
    kind: str
    #: What is wrong, and what it means.
    text: str
    subscriber: Optional[str] = None


def of(status: QueueStatus, history: History, now_s: float) -> List[Finding]:
    """Return all findings, the severe ones first."""
    found = [*_limits(status, history), *_subscribers(status, history, now_s), *_queue(status)]
    return sorted(found, key=lambda one: one.level != ERROR)


def _limits(status: QueueStatus, history: History) -> Iterator[Finding]:
    mark = status.high_watermark
    for value, limit, unit in ((status.messages, mark.max_messages, "messages"), (status.size_bytes, mark.hwm_db_size,
                                                                                  "bytes")):
        if limit is None or value < HIGH_SHARE * limit:
            continue
        # A queue that drops never stays at its limit: it goes down to half.
        if value >= limit and status.strategy is Strategy.refuse:
            yield Finding(ERROR, "full", f"Full: {value:,} of {limit:,} {unit}. Sends are refused until there is room.")
        else:
            follows = "then sends are refused" if status.strategy is Strategy.refuse else "then messages are dropped"
            yield Finding(WARNING, "nearly full", f"Almost full: {value:,} of {limit:,} {unit}, {follows}.")
    dropped = history.risen("dropped")
    if dropped:
        yield Finding(
            ERROR, "dropped", f"{_count(dropped, 'message')} dropped in the last hour, before all "
            "subscribers had acknowledged them.")
    age_s, timeout_s = status.oldest_age_s or 0, mark.message_timeout
    if timeout_s is not None and age_s >= HIGH_SHARE * timeout_s and status.messages > status.retained:
        yield Finding(WARNING, "expiring", f"The oldest message is {age(age_s)} old, and expires at {age(timeout_s)}.")


def _subscribers(status: QueueStatus, history: History, now_s: float) -> Iterator[Finding]:
    for name, one in sorted(status.subscribers.items()):
        stuck = _stuck(one, now_s - history.progress_s.get(name, now_s))
        if stuck is not None:
            yield Finding(ERROR, "stuck", stuck, name)
        if one.dead_letters:
            yield Finding(
                ERROR, "dead letters", f"{_count(one.dead_letters, 'dead letter')}: not acknowledged in any "
                "of the allowed deliveries, or rejected.", name)


def _stuck(one: SubscriberStatus, idle_s: float) -> Optional[str]:
    """Return why a subscriber seems to be stuck; None if it works.

    :param idle_s: seconds for which it was seen to acknowledge nothing
    """
    age_s = one.oldest_pending_age_s or 0
    lease_s = (one.policy.lease_s if one.policy is not None else None) or 0
    if not one.pending or age_s < max(STUCK_S, 2 * lease_s):
        return None
    if idle_s >= WATCHED_S:
        text = (f"Nothing acknowledged for at least {age(idle_s)}, {one.pending:,} pending, the oldest for "
                f"{age(age_s)}. ")
        return text + ("A worker holds a message and may be stuck." if one.in_flight else
                       f"No process receives, or one is stuck or fails at message {one.next_id}: look at that message.")
    if one.in_flight and one.pending == one.in_flight:
        return (
            f"A message has been in flight for {age(age_s)}, longer than the lease: a worker that holds it is stuck, "
            "or it fails again and again.")
    return None


def _queue(status: QueueStatus) -> Iterator[Finding]:
    if status.reader_lag >= LAG_COMMITS_MIN:
        yield Finding(
            WARNING, "old read", f"A process has been reading for {status.reader_lag:,} commits. If it was "
            "stopped, the file grows.")
    if not status.subscribers:
        kept = "only retained" if status.retention_s else "not stored"
        yield Finding(WARNING, "no subscribers", f"The queue has no subscribers: what is sent is {kept}.")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def age(seconds: float) -> str:
    """Return an age for people to read, such as ``3 min``."""
    for unit_s, unit, most_s in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172800)):
        if seconds < most_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
