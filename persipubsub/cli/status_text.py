"""Texts that ``status`` and ``top`` share."""

from typing import Iterator, Optional, Tuple

from persipubsub.status import LAG_COMMITS_MIN, QueueStatus


def age(age_s: Optional[float]) -> str:
    """Return an age in seconds, or a dash if there is none."""
    return "-" if age_s is None else f"{age_s:,.1f} s"


def of(limit: Optional[float], unit: str = "") -> str:
    """Return a limit as it follows a number, or nothing if there is no limit."""
    return "" if limit is None else f" of {limit:,}{unit}"


def can_be_full(one: QueueStatus) -> bool:
    """Return whether the queue has a limit at which it is full."""
    return one.high_watermark.max_messages is not None or one.high_watermark.hwm_db_size is not None


def facts(one: QueueStatus) -> Iterator[Tuple[str, str]]:
    """Return the name and the text of each fact that not every queue has."""
    if one.message_type is not None:
        yield "type", one.message_type
    if one.retention_s:
        yield "retained", f"{one.retained:,} of those messages, for {one.retention_s:g} s"
    if one.delayed:
        yield "delayed", f"{one.delayed:,}"
    if one.reader_lag >= LAG_COMMITS_MIN:
        yield "file grows", f"a process has been reading for {one.reader_lag:,} commits: is it stopped?"


def pruned(one: QueueStatus) -> str:
    """Return how many messages were pruned, for each reason."""
    counts = one.pruned
    return f"{counts.timeout:,} by timeout, {counts.overflow:,} by overflow, {counts.dangling:,} awaited by nobody"


def no_subscribers(one: QueueStatus) -> str:
    """Return what happens to messages of a queue without subscribers."""
    return f"no subscribers: what is sent is {'only retained' if one.retention_s else 'not stored'}"
