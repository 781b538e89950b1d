"""The speeds that the design promises, and whether they are reached."""

import statistics
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from benchmarks import floors, tables
from benchmarks.results import OURS, Document, Drain, Duration, Latency, Rate

#: A measured figure as text, and whether the promise is kept.
Found = Optional[Tuple[str, bool]]


class Target(NamedTuple):
    """A promise."""

    work: str
    promise: str
    find: Callable[[Document], Found]


def of_floor(workload: str, least: float, **setting: object) -> Callable[[Document], Found]:
    """Make a check of a ratio to the floor."""

    def find(document: Document) -> Found:
        found = document.find(Rate, workload, OURS, payload_bytes=100, **setting)
        if found is None:
            return None
        floor = next(one for one in document.of(Rate, workload) if one.setting == found.setting)
        figures = f"{tables.per_s(found.messages_per_s)}, floor {tables.per_s(floor.messages_per_s)}"
        return f"{found.of_floor:.2f} ({figures})", found.of_floor >= least

    return find


def ratio(mine: Rate, other: Rate) -> float:
    """Compare two contestants of one contest, round by round."""
    return statistics.median(own / its for own, its in zip(mine.rounds_messages_per_s, other.rounds_messages_per_s))


def _rates(document: Document, workload: str, name: str, values: Sequence[int],
           **setting: object) -> Optional[Tuple[Rate, Rate]]:
    """Find two of our rates that differ in one part of the setting."""
    found = [document.find(Rate, workload, OURS, **{name: value}, **setting) for value in values]
    first, second = found
    return None if first is None or second is None else (first, second)


def _subscribers(batch_messages: int, durability: str) -> Callable[[Document], Found]:

    def find(document: Document) -> Found:
        pair = _rates(document,
                      "subscribers-sent",
                      "subscribers", (100, 1),
                      batch_messages=batch_messages,
                      durability=durability)
        return None if pair is None else _compared(*pair, 0.9)

    return find


def _compared(mine: Rate, other: Rate, least: float) -> Tuple[str, bool]:
    kept = ratio(mine, other)
    return (f"{kept:.2f} ({tables.per_s(mine.messages_per_s)} against {tables.per_s(other.messages_per_s)})", kept
            >= least)


def _backlog(batch_messages: int, durability: str) -> Callable[[Document], Found]:

    def find(document: Document) -> Found:
        pair = _rates(document,
                      "backlog-sent",
                      "backlog_messages", (1_000_000, 0),
                      batch_messages=batch_messages,
                      durability=durability)
        return None if pair is None else _compared(*pair, 0.85)

    return find


def _backlog_beside_raw(document: Document) -> Found:
    pair = _rates(document, "backlog-sent", "backlog_messages", (1_000_000, 0), batch_messages=1, durability="relaxed")
    raw = [
        document.find(Rate,
                      "backlog-sent",
                      floors.RAW_LMDB,
                      backlog_messages=count,
                      batch_messages=1,
                      durability="relaxed") for count in (1_000_000, 0)
    ]
    if pair is None or raw[0] is None or raw[1] is None:
        return None
    kept, raw_kept = ratio(*pair), ratio(raw[0], raw[1])
    return f"{kept / raw_kept:.2f} (keeps {kept:.2f}, raw py-lmdb keeps {raw_kept:.2f})", kept >= 0.9 * raw_kept


def _longest_send(document: Document) -> Found:
    found = document.find(Latency, "overflow", OURS, mark_messages=65_536)
    floor = document.find(Latency, "overflow", floors.RAW_LMDB, mark_messages=65_536)
    if found is None or floor is None:
        return None
    return (f"{tables.us(found.longest_us)} of {found.samples:,} sends, floor {tables.us(floor.longest_us)}",
            found.longest_us <= 50_000)


def _shared_batch(document: Document) -> Found:
    found = document.find(Rate, "shared-taken", OURS, batch_messages=100)
    if found is None:
        return None
    return f"{tables.per_s(found.messages_per_s)} of processor time", found.messages_per_s >= 100_000


def _in_flight(workload: str, batch_messages: int) -> Callable[[Document], Found]:

    def find(document: Document) -> Found:
        pair = _rates(document, workload, "inflight_messages", (100_000, 10), batch_messages=batch_messages)
        return None if pair is None else _compared(*pair, 0.9)

    return find


def _threads(document: Document) -> Found:
    pair = _rates(document, "threads", "threads", (16, 1))
    return None if pair is None else _compared(*pair, 4)


def _wake_up(document: Document) -> Found:
    ours = document.find(Latency, "wake-up", OURS, waiting_processes=1, durability="relaxed")
    pipe = document.find(Latency, "wake-up", floors.PIPE, waiting_processes=1)
    if ours is None or pipe is None:
        return None
    times = ours.p50_us / pipe.p50_us
    return f"{times:.2f} ({tables.us(ours.p50_us)}, pipe {tables.us(pipe.p50_us)})", times <= 1.5


def _drain(document: Document) -> Found:
    drains = [one for one in document.of(Drain, "drain") if one.contestant == OURS]
    if not drains:
        return None
    most = max(one.rss_anon_mib for one in drains)
    return f"{most:.1f} MiB", most * 1024**2 < 50e6


def _import(document: Document) -> Found:
    bare, ours = document.find(Duration, "import", "bare Python"), document.find(Duration, "import")
    if bare is None or ours is None:
        return None
    over_ms = statistics.median(own - its for own, its in zip(ours.rounds_ms, bare.rounds_ms))
    return f"{over_ms:.0f} ms over {bare.median_ms:.0f} ms", over_ms <= 60


TARGETS: Sequence[Target] = (
    Target("durable single send", "0.85 of the floor", of_floor("send", 0.85, durability="durable")),
    Target("single send without fsync", "0.55", of_floor("send", 0.55, durability="relaxed")),
    Target("durable batch of 1,000", "0.7", of_floor("send-batch", 0.7, durability="durable")),
    Target("relaxed batch of 1,000", "0.6", of_floor("send-batch", 0.6, durability="relaxed")),
    Target("batch taken, pruning included, durable", "0.6", of_floor("take-batch", 0.6, durability="durable")),
    Target("batch taken, pruning included, relaxed", "0.6", of_floor("take-batch", 0.6, durability="relaxed")),
    Target("publish with 100 subscribers against 1, single durable", "0.9", _subscribers(1, "durable")),
    Target("the same, single relaxed", "0.9", _subscribers(1, "relaxed")),
    Target("the same, batches durable", "0.9", _subscribers(1000, "durable")),
    Target("the same, batches relaxed", "0.9", _subscribers(1000, "relaxed")),
    Target("send on a backlog of a million against an empty queue, single durable", "0.85", _backlog(1, "durable")),
    Target("the same, batches durable", "0.85", _backlog(1000, "durable")),
    Target("the same, batches relaxed", "0.85", _backlog(1000, "relaxed")),
    Target("the same, single relaxed", "0.9 of what raw py-lmdb keeps", _backlog_beside_raw),
    Target("batch of 100 taken from a shared subscriber, relaxed", "100,000/s", _shared_batch),
    Target("send with 100,000 messages in flight against 10, single", "0.9", _in_flight("in-flight-sent", 1)),
    Target("the same, batches", "0.9", _in_flight("in-flight-sent", 1000)),
    Target("the next lease that ended, with 100,000 in flight against 10", "0.9", _in_flight("in-flight-claimed", 1)),
    Target("longest send while the mark of 65,536 is reached again and again", "50 ms at most", _longest_send),
    Target("16 threads sending durably against one", "4 times", _threads),
    Target("send to a waiting process, no fsync, p50", "1.5 times the pipe at most", _wake_up),
    Target("anonymous memory while a backlog of a million is drained", "under 50 MB", _drain),
    Target("import over bare Python, median", "60 ms at most", _import),
)


def table(document: Document) -> str:
    """Lay out the promises, what was measured, and whether they are kept."""
    rows: List[List[str]] = []
    for target in TARGETS:
        found = target.find(document)
        measured, verdict = ("", "not measured") if found is None else (found[0], "met" if found[1] else "NOT MET")
        rows.append([target.work, target.promise, measured, verdict])
    return tables.table(["work", "at least", "measured", "verdict"], rows)
