"""What the page gets of each queue, as values for JSON."""

from typing import Any, Dict, Iterable, List, Optional

from persipubsub.dashboard import findings
from persipubsub.dashboard.findings import ERROR, Finding
from persipubsub.dashboard.history import History, Sample, oldest_awaited_s
from persipubsub.dashboard.watching import Watcher
from persipubsub.status import QueueStatus, SubscriberStatus

#: How many samples the small graph of a queue has.
TREND_SAMPLES_MAX = 60
#: How many subscribers the page of a queue shows: those that lag most.
SUBSCRIBERS_MAX = 500
#: How many findings one queue shows.
FINDINGS_MAX = 20

Json = Dict[str, Any]

#: What the name of an error means for the page.
STATES = {
    "DamagedError": "damaged",
    "NotInitializedError": "missing",
    "ReplacedError": "missing",
    "FormatError": "not a queue",
    "UnavailableError": "unreachable",
}


def brief(watcher: Watcher, now_s: float) -> Json:
    """Return what the list of all queues shows of one."""
    error, found = watcher.error, watcher.found
    shown: Json = {
        "id": watcher.id,
        "location": watcher.location,
        "name": watcher.location.partition("?")[0].rstrip("/").rpartition("/")[2] or watcher.location,
    }
    if error is not None:
        state = STATES.get(error[0], "unreadable")
        kept = found is not None and state not in ("missing", "not a queue")
        shown.update(state=state, findings=[_finding(Finding(ERROR, state, error[1]))])
        # The last numbers, with their age, help to see what happened; of a queue that is gone, they are false.
        return {**shown, **(_numbers(watcher.history, found[1], found[0]) if kept and found is not None else {})}
    if found is None:
        return {**shown, "state": "waiting", "findings": []}
    judged = findings.of(found[1], watcher.history, now_s)
    levels = [one.level for one in judged]
    shown["state"] = levels[0] if levels else "ok"
    shown["findings"] = [_finding(one) for one in judged[:FINDINGS_MAX]]
    return {**shown, **_numbers(watcher.history, found[1], found[0])}


def full(watcher: Watcher, now_s: float, after_s: float) -> Json:
    """Return what the page of one queue shows, with the samples after a time."""
    shown = brief(watcher, now_s)
    if "backlog" in shown and watcher.found is not None:
        status = watcher.found[1]
        shown["subscribers"] = _subscribers(status, watcher.history)
        shown["subscribers_left_out"] = max(0, len(status.subscribers) - SUBSCRIBERS_MAX)
        shown["settings"] = _settings(status)
        shown["samples"] = [_sample(one) for one in watcher.history.after(after_s)]
    return shown


def _finding(one: Finding) -> Json:
    return one._asdict()


def _numbers(history: History, status: QueueStatus, read_s: float) -> Json:
    mark, subscribers = status.high_watermark, status.subscribers
    rates = [history.taken_per_s(name) for name in subscribers]
    known = [rate for rate in rates if rate is not None]
    return {
        "read_s": read_s,
        "backlog": status.messages - status.retained,
        "messages": status.messages,
        "size_bytes": status.size_bytes,
        "oldest_s": oldest_awaited_s(status) or None,
        "sent": status.sent,
        "sent_per_s": history.sent_per_s(),
        "taken_per_s": sum(known) if known else None,
        "last_sent_s": history.sent_s,
        "max_messages": mark.max_messages,
        "max_bytes": mark.hwm_db_size,
        "timeout_s": mark.message_timeout,
        "strategy": status.strategy.name,
        "retained": status.retained,
        "delayed": status.delayed,
        "reader_lag": status.reader_lag,
        "in_flight": sum(one.in_flight for one in subscribers.values()),
        "dead_letters": sum(one.dead_letters for one in subscribers.values()),
        "dropped": status.pruned.overflow + status.pruned.timeout,
        "subscriber_count": len(subscribers),
        "laggard": _laggard(status),
        "trend": [one.backlog for one in list(history.samples)[-TREND_SAMPLES_MAX:]],
    }


def _laggard(status: QueueStatus) -> Optional[Json]:
    """Return the subscriber with most pending messages; None if all have acknowledged all."""
    name, one = min(status.subscribers.items(), key=lambda item: (-item[1].pending, item[0]), default=(None, None))
    return None if one is None or not one.pending else {"name": name, "pending": one.pending}


def _subscribers(status: QueueStatus, history: History) -> List[Json]:
    order = sorted(status.subscribers.items(), key=lambda item: (-item[1].pending, item[0]))
    return [_subscriber(name, one, history) for name, one in order[:SUBSCRIBERS_MAX]]


def _subscriber(name: str, one: SubscriberStatus, history: History) -> Json:
    kind = "plain" if one.policy is None else "shared" if one.policy.shared else "limited"
    return {
        "name": name,
        "kind": kind,
        "next_id": one.next_id,
        "pending": one.pending,
        "oldest_s": one.oldest_pending_age_s,
        "taken": one.taken,
        "taken_per_s": history.taken_per_s(name),
        "progress_s": history.progress_s.get(name),
        "in_flight": one.in_flight,
        "dead_letters": one.dead_letters,
        "policy": None if one.policy is None else one.policy.settings(),
    }


def _settings(status: QueueStatus) -> Json:
    return {
        "durability": status.durability.name.lower(),
        "message_type": status.message_type,
        "retention_s": status.retention_s,
        "deduplication_window_s": status.deduplication_window_s,
        "deduplication_max": status.deduplication_max,
        "next_id": status.next_id,
        "low_water_mark": status.floor,
        "pruned": vars(status.pruned),
    }


def _sample(one: Sample) -> Iterable[object]:
    return (one.time_s, one.backlog, one.sent, one.taken, one.oldest_age_s, one.in_flight, one.dead_letters,
            one.pending)
