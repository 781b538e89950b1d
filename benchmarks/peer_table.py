"""The table of persipubsub and its peers."""

from typing import List, Sequence, Tuple

from benchmarks import tables
from benchmarks.results import OURS, Document, Latency, Rate
from benchmarks.tables import per_s, us

#: Columns: header, workload, and what of the setting is the same for durable and relaxed.
COLUMNS: Sequence[Tuple[str, str, Tuple[Tuple[str, object], ...]]] = (
    ("send 1", "peers-send", (("batch_messages", 1), )),
    ("send 1,000", "peers-send", (("batch_messages", 1000), ("subscribers", None))),
    ("take 1", "peers-take", (("batch_messages", 1), )),
    ("take 1,000", "peers-take", (("batch_messages", 1000), )),
    ("100 subscribers", "peers-send", (("subscribers", 100), )),
)


def peer_table(document: Document) -> str:
    """Lay out the table, what the best peer reaches, and the notes; empty where no peers were measured."""
    if not document.of(Rate, "peers-send"):
        return ""
    names = list(dict.fromkeys(one.contestant for one in document.results if one.workload.startswith("peers-")))
    header = ["messages/s, durable / relaxed", *(title for title, _, _ in COLUMNS), "4 threads", "wake-up p50"]
    rows = [[
        name, *(_pair(document, name, workload, setting) for _, workload, setting in COLUMNS),
        _threads(document, name),
        _wake_up(document, name)
    ] for name in names]
    notes = [f"- {name}: {note}" for name, note in document.peer_notes.items() if note]
    return tables.table(header, rows) + "\n" + "\n".join([
        "How many times the best peer of the same durability persipubsub reaches:", ""
    ]) + ("\n" + _lead_table(document, header) + "\n" + "\n".join(notes) + "\n")


def _pair(document: Document, name: str, workload: str, setting: Tuple[Tuple[str, object], ...]) -> str:
    found = [document.find(Rate, workload, name, durability=one, **dict(setting)) for one in ("durable", "relaxed")]
    return _joined(["" if one is None else per_s(one.messages_per_s) for one in found])


def _joined(cells: Sequence[str]) -> str:
    return " / ".join(cell or "–" for cell in cells) if any(cells) else ""


def _threads(document: Document, name: str) -> str:
    found = document.find(Rate, "peers-threads", name)
    return "" if found is None else per_s(found.messages_per_s)


def _wake_up(document: Document, name: str) -> str:
    found = [document.find(Latency, "peers-wake-up", name, durability=one) for one in ("durable", "relaxed")]
    return _joined(["" if one is None else us(one.p50_us) for one in found])


def _lead_table(document: Document, header: Sequence[str]) -> str:
    """Compare ours with the best peer of each column."""
    rows: List[List[str]] = []
    for durability in ("durable", "relaxed"):
        row = [durability]
        for _, workload, setting in COLUMNS:
            row.append(_lead(document, workload, {"durability": durability, **dict(setting)}))
        rows.append(row + [_lead(document, "peers-threads", {}) if durability == "durable" else ""])
    return tables.table(["durability", *header[1:-1]], rows)


def _lead(document: Document, workload: str, setting: "dict[str, object]") -> str:
    ours = document.find(Rate, workload, OURS, **setting)
    theirs = [
        document.find(Rate, workload, name, **setting) for name in document.peer_notes
        if name not in document.weaker_peers
    ]
    best = max((one for one in theirs if one is not None), key=lambda one: one.messages_per_s, default=None)
    if ours is None or best is None:
        return ""
    return f"{ours.messages_per_s / best.messages_per_s:.1f} × {best.contestant}"
