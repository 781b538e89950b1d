"""The speeds that the design asks for, and whether a run reached them."""

import dataclasses
import itertools
import statistics
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from benchmarks import floors, tables
from benchmarks.results import OURS, Document, Drain, Duration, Latency, Rate
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES

MILLION = 1_000_000
#: The peer that sends and receives single messages fastest without a server.
PERSIST_QUEUE = "persist-queue"

#: A measured figure as text, and whether the target is met; None where only a run of an older commit can say that.
Found = Optional[Tuple[str, Optional[bool]]]
Find = Callable[[Document], Found]


class Target(NamedTuple):
    """A speed that the design asks for."""

    work: str
    target: str
    find: Find


def ratio(mine: Rate, other: Rate) -> float:
    """Compare two contestants of one contest, round by round."""
    return statistics.median(own / its for own, its in zip(mine.rounds_messages_per_s, other.rounds_messages_per_s))


def _of_floor(workload: str, least: float, unit: str = "", **setting: object) -> Find:
    """Make a check of a rate beside the floor of its contest."""

    def find(document: Document) -> Found:
        ours = document.find(Rate, workload, OURS, payload_bytes=100, **setting)
        if ours is None:
            return None
        # Only the contestant has tasks; its floor makes plain calls.
        alike = dataclasses.replace(ours.setting, tasks=None)
        floor = next(one for one in document.of(Rate, workload) if one.setting == alike)
        figures = f"{tables.per_s(ours.messages_per_s)}, {floor.contestant} {tables.per_s(floor.messages_per_s)}{unit}"
        return f"{ours.of_floor:.3g} ({figures})", ours.of_floor >= least

    return find


def _of_persist_queue(workload: str, least: float) -> Find:
    """Make a check of relaxed single messages beside the faster queue of persist-queue, in the contest of peers."""

    def find(document: Document) -> Found:
        found = {
            one.contestant: one
            for one in document.of(Rate, workload)
            if (one.setting.durability, one.setting.batch_messages) == ("relaxed", 1)
        }
        theirs = [one for name, one in found.items() if name.startswith(PERSIST_QUEUE)]
        if OURS not in found or not theirs:
            return None
        return _compared(found[OURS], max(theirs, key=lambda one: one.messages_per_s), least)

    return find


def _compared(mine: Rate, other: Rate, least: float) -> Found:
    times = ratio(mine, other)
    name = "" if other.contestant == OURS else f"{other.contestant} "
    figures = f"{tables.per_s(mine.messages_per_s)} against {name}{tables.per_s(other.messages_per_s)}"
    return f"{times:.3g} ({figures})", times >= least


def _pair(document: Document, workload: str, name: str, values: Tuple[int, int],
          **setting: object) -> Optional[Tuple[Rate, Rate]]:
    """Find two of our rates that differ in one part of the setting."""
    first, second = (document.find(Rate, workload, OURS, **{name: value}, **setting) for value in values)
    return None if first is None or second is None else (first, second)


def _kept(workload: str, name: str, values: Tuple[int, int], least: float) -> Find:
    """Make a check that a part of the setting slows down no kind of send: single or batch, durable or relaxed."""

    def find(document: Document) -> Found:
        ratios: List[Tuple[float, str]] = []
        for batch_messages, durability in itertools.product((1, BATCH_MESSAGES), DURABILITIES):
            pair = _pair(document, workload, name, values, batch_messages=batch_messages, durability=durability)
            if pair is None:
                return None
            ratios.append((ratio(*pair), f"{durability}, {'single' if batch_messages == 1 else 'batches'}"))
        lowest, setting = min(ratios)
        return f"{lowest:.3g} ({setting}: the lowest of {len(ratios)})", lowest >= least

    return find


def _threads(document: Document) -> Found:
    pair = _pair(document, "threads", "threads", (16, 1))
    return None if pair is None else _compared(*pair, 4)


def _longest_send(document: Document) -> Found:
    ours = document.find(Latency, "overflow", OURS, mark_messages=65_536)
    floor = document.find(Latency, "overflow", floors.RAW_LMDB, mark_messages=65_536)
    if ours is None or floor is None:
        return None
    figures = f"{tables.us(ours.longest_us)} of {ours.samples:,} sends, floor {tables.us(floor.longest_us)}"
    return figures, ours.longest_us <= 50_000


def _wake_up(document: Document) -> Found:
    ours = document.find(Latency, "wake-up", OURS, waiting_processes=1, durability="relaxed")
    pipe = document.find(Latency, "wake-up", floors.PIPE, waiting_processes=1)
    if ours is None or pipe is None:
        return None
    times = ours.p50_us / pipe.p50_us
    return f"{times:.3g} ({tables.us(ours.p50_us)}, pipe {tables.us(pipe.p50_us)})", times <= 4


def _drain(document: Document) -> Found:
    drains = [
        one for one in document.of(Drain, "drain") if one.contestant == OURS and one.setting.backlog_messages == MILLION
    ]
    if not drains:
        return None
    most_mib = max(one.rss_anon_mib for one in drains)
    return f"{most_mib:.1f} MiB", most_mib * 1024**2 < 50e6


def _end_to_end(document: Document) -> Found:
    """Show the rate; how fast it was before, only a run of the older commit on the same machine can say."""
    ours = document.find(Rate, "end-to-end", OURS, batch_messages=1, durability="relaxed")
    return None if ours is None else (tables.per_s(ours.messages_per_s), None)


def _import(document: Document) -> Found:
    """Show the time; how long it was before, only a run of the older commit on the same machine can say."""
    bare, ours = document.find(Duration, "import", "bare Python"), document.find(Duration, "import")
    if bare is None or ours is None:
        return None
    over_ms = statistics.median(own - its for own, its in zip(ours.rounds_ms, bare.rounds_ms))
    return f"{over_ms:.0f} ms over {bare.median_ms:.0f} ms", None


TARGETS: Sequence[Target] = (
    Target("single send, relaxed", "0.40 of the floor", _of_floor("send", 0.40, durability="relaxed")),
    Target("single send, relaxed", "2 times persist-queue", _of_persist_queue("peers-send", 2)),
    Target("single receive, relaxed", "0.27 of the floor", _of_floor("take", 0.27, durability="relaxed")),
    Target("single receive, relaxed", "1.4 times persist-queue", _of_persist_queue("peers-take", 1.4)),
    Target("single send, durable", "0.88 of the floor", _of_floor("send", 0.88, durability="durable")),
    Target("single receive, durable", "0.75 of the floor", _of_floor("take", 0.75, durability="durable")),
    Target("batch of 1,000 sent, durable", "0.8 of the floor", _of_floor("send-batch", 0.8, durability="durable")),
    Target("batch of 1,000 sent, relaxed", "0.65 of the floor", _of_floor("send-batch", 0.65, durability="relaxed")),
    Target("batch of 1,000 received and deleted, durable", "0.65 of the floor",
           _of_floor("take-batch", 0.65, durability="durable")),
    Target("batch of 1,000 received and deleted, relaxed", "0.65 of the floor",
           _of_floor("take-batch", 0.65, durability="relaxed")),
    Target("one message of a shared subscriber, claimed and acknowledged", "0.5 of a plain subscriber",
           _of_floor("shared-taken", 0.5, " of processor time", batch_messages=1)),
    Target("one task that receives one by one, durable", "0.45 of plain calls",
           _of_floor("tasks-taken", 0.45, batch_messages=1, durability="durable")),
    Target("one task that receives one by one, relaxed", "0.45 of plain calls",
           _of_floor("tasks-taken", 0.45, batch_messages=1, durability="relaxed")),
    Target("one process sends singly, another receives singly, relaxed", "1.7 times an older commit", _end_to_end),
    Target("send to 100 subscribers against 1", "0.9", _kept("subscribers-sent", "subscribers", (100, 1), 0.9)),
    Target("send behind a backlog of a million against none", "0.9",
           _kept("backlog-sent", "backlog_messages", (MILLION, 0), 0.9)),
    Target("16 threads that send durably against one", "4 times", _threads),
    Target("longest send at a limit of 65,536 messages, reached again and again", "at most 50 ms", _longest_send),
    Target("send to a waiting process, relaxed, p50", "at most 4 times the pipe", _wake_up),
    Target("import over bare Python", "at most 0.7 of an older commit", _import),
    Target("anonymous memory while a backlog of a million is received", "under 50 MB", _drain),
)


def table(document: Document) -> str:
    """Lay out the targets, what was measured, and whether they are met."""
    rows: List[List[str]] = []
    for target in TARGETS:
        found = target.find(document)
        measured, met = ("", None) if found is None else found
        verdict = "not measured" if found is None else "by hand" if met is None else "met" if met else "missed"
        rows.append([target.work, target.target, measured, verdict])
    return tables.table(["work", "target", "measured", "verdict"], rows)
