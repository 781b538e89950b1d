"""The page ``docs/performance.rst``, written wholly from the figures."""

import itertools
import pathlib
import shutil
from typing import Callable, Dict, List, Optional, Sequence

from benchmarks import (floors, plots, results, tables, targets, workloads_details, workloads_protobuf,
                        workloads_shared, workloads_tasks)
from benchmarks.peer_table import peer_table
from benchmarks.results import OURS, Churn, Document, Drain, Duration, FileSize, Idle, Latency, Rate
from benchmarks.tables import per_s, us
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES

FIGURES_FILE = "figures.json"
TEMPLATE_FILE = pathlib.Path(__file__).with_name("performance.rst.txt")

ALTERNATIVE_TEXTS = {
    "throughput-by-batch": "Messages per second by the number of messages in a commit, beside raw py-lmdb",
    "throughput-by-subscribers": "Messages per second by the number of subscribers, beside raw py-lmdb",
    "throughput-by-backlog": "Messages per second by the number of messages in the queue, beside raw py-lmdb",
    "latency": "Microseconds until a waiting process has the message, beside multiprocessing.Pipe",
    "file-size": "Size of the file while messages are sent and received",
    "peers": "Messages per second of persipubsub and of its peers",
}


def write(file: pathlib.Path, docs: pathlib.Path) -> None:
    """Write the page, its pictures and the figures into a directory of documentation."""
    directory = docs / "performance"
    directory.mkdir(parents=True, exist_ok=True)
    document = results.read(file)
    pictures = plots.write(document, directory)
    if file.resolve() != (directory / FIGURES_FILE).resolve():
        shutil.copyfile(file, directory / FIGURES_FILE)
    (docs / "performance.rst").write_text(page(document, pictures), encoding="utf-8")


def page(document: Document, pictures: Sequence[str]) -> str:
    """Fill the template."""
    text = TEMPLATE_FILE.read_text(encoding="utf-8")
    for name in ALTERNATIVE_TEXTS:
        text = text.replace(f"@picture {name}@", _picture(name) if name in pictures else "")
    for name, make in PARTS.items():
        text = text.replace(f"@{name}@", make(document).rstrip("\n"))
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _picture(name: str) -> str:
    return f".. image:: performance/{name}.svg\n   :alt: {ALTERNATIVE_TEXTS[name]}"


def first_figures(document: Document) -> str:
    """Show what a user needs first in a table of three rows; what was not measured is left out."""
    rows = []
    for title, workload, batch in (("send one by one", "send", 1), ("send in batches of 1,000", "send-batch",
                                                                    BATCH_MESSAGES)):
        found = [_single(document, workload, durability, batch) for durability in DURABILITIES]
        rates_per_s = [f"{tables.count(one.messages_per_s)} messages/s" for one in found if one is not None]
        if len(rates_per_s) == len(found):
            rows.append([f"**{title}**", *rates_per_s])
    latencies = [
        document.find(Latency, "wake-up", OURS, waiting_processes=1, durability=durability)
        for durability in DURABILITIES
    ]
    times = [us(one.p50_us) for one in latencies if one is not None]
    if len(times) == len(latencies):
        rows.append(["**from send to a waiting process**", *times])
    return tables.table(["one thread, one subscriber", "durable", "relaxed"],
                        rows) if rows else "This run did not measure them."


def _single(document: Document, workload: str, durability: str, batch: int) -> Optional[Rate]:
    """Find our rate of messages of 100 bytes by one thread."""
    return document.find(Rate, workload, OURS, payload_bytes=100, durability=durability, batch_messages=batch)


def overview(document: Document) -> str:
    """Show the work of most users in one table, durable beside relaxed."""
    works = (("send one", "send", 1), ("receive one", "take", 1), ("send 1,000", "send-batch", BATCH_MESSAGES),
             ("receive 1,000", "take-batch", BATCH_MESSAGES))
    rows = []
    for work, workload, batch in works:
        found = [_single(document, workload, durability, batch) for durability in DURABILITIES]
        cells = [("", "") if one is None else (per_s(one.messages_per_s), tables.ratio(one.of_floor)) for one in found]
        if any(found):
            rows.append([work, *itertools.chain(*cells)])
    header = ["messages of 100 B, one thread", "durable", "of the floor", "relaxed", "of the floor"]
    return tables.table(header, rows) if rows else "This run did not measure single sends or receives.\n"


def machine_table(document: Document) -> str:
    """Describe the machine and the state of the code."""
    machine = document.machine
    commit = [["commit", machine.commit]] if machine.commit else []
    return tables.table(["", ""], [
        ["processor", f"{machine.cpu_model}, {machine.cores} cores"],
        ["memory", f"{machine.memory_gib:g} GiB"],
        ["kernel", machine.kernel],
        ["file system", machine.file_system],
        ["Python", machine.python],
        ["py-lmdb", f"{machine.py_lmdb} with LMDB {machine.lmdb}"],
        ["persipubsub", machine.persipubsub],
        *commit,
        ["the run", f"{document.scale}, {document.took_s / 60:.0f} minutes"],
    ])


def rates(workloads: Dict[str, str], vary: str, header: str, floor: str = floors.RAW_LMDB) -> Callable[[Document], str]:
    """Make a table of our rates beside their floors, with a row for each setting."""

    def make(document: Document) -> str:
        rows: List[List[str]] = []
        for workload, work in workloads.items():
            for one in document.of(Rate, workload):
                if one.contestant == OURS:
                    rows.append(
                        [work, one.setting.durability or "", *_varied(one, vary), *_beside(document, one, floor)])
        varied = ["messages in a commit"] if vary == "batch_messages" else ["messages in a commit", header]
        return tables.table(["work", "durability", *varied, "persipubsub", floor, "ratio", floors.DISK], rows)

    return make


def _varied(one: Rate, vary: str) -> List[str]:
    batch, value = one.setting.batch_messages or 1, getattr(one.setting, vary)
    if vary == "batch_messages":
        return [f"{batch:,}"]
    return [f"{batch:,}", tables.size(value) if vary == "payload_bytes" else f"{value:,}"]


def _beside(document: Document, one: Rate, floor: str) -> List[str]:
    """Return our rate, that of the floor at the same or next best setting, their ratio, and what the disk can do."""
    setting = one.setting
    candidates = [its for its in document.of(Rate, one.workload) if its.contestant == floor]
    alike = [its for its in candidates if its.setting == setting]
    alike += [
        its for its in candidates
        if (its.setting.durability,
            its.setting.batch_messages) in {(setting.durability, setting.batch_messages), (None,
                                                                                           setting.batch_messages)}
    ]
    disk = [its for its in document.of(Rate, one.workload) if its.contestant == floors.DISK and its.setting == setting]
    return [
        per_s(one.messages_per_s),
        per_s(alike[0].messages_per_s),
        tables.ratio(targets.ratio(one, alike[0])),
        per_s(disk[0].messages_per_s) if disk else ""
    ]


def limit_table(document: Document) -> str:
    """Show single sends beside the least that a queue has to do."""
    rows = [[one.contestant, one.setting.durability or "",
             per_s(one.messages_per_s),
             tables.ratio(one.of_floor)] for one in document.of(Rate, "send-limit")]
    return tables.table(["contestant", "durability", "messages/s", "ratio"], rows)


def latencies(workload: str, vary: str, header: str) -> Callable[[Document], str]:
    """Make a table of latencies."""

    def make(document: Document) -> str:
        rows = [[
            f"{getattr(one.setting, vary):,}", one.contestant, one.setting.durability or "", f"{one.samples:,}",
            *map(us, (one.p50_us, one.p99_us, one.p999_us, one.p9999_us, one.longest_us))
        ] for one in document.of(Latency, workload)]
        return tables.table([header, "contestant", "durability", "samples", "p50", "p99", "p99.9", "p99.99", "longest"],
                            rows)

    return make


def idle_sentence(document: Document) -> str:
    """Describe what waiting costs."""
    ours, pipe = document.find(Idle, "idle"), document.find(Idle, "idle", floors.PIPE)
    if ours is None or pipe is None:
        return ""
    return (f"A waiting subscriber used {ours.cpu_ms_per_s:.2g} ms of processor time per second, and a process that "
            f"waited on a pipe {pipe.cpu_ms_per_s:.2g} ms.")


def tasks_table(document: Document) -> str:
    """Show tasks of asyncio beside plain calls, and what it costs when they wait."""
    table = rates({"tasks-sent": "sent", "tasks-taken": "received"}, "tasks", "tasks", workloads_tasks.PLAIN)(document)
    if not document.of(Rate, "tasks-sent"):
        return "Tasks were not measured in this run.\n"
    # Tasks share commits, so what one of them hands over is not what a commit holds.
    table = table.replace("messages in a commit", "messages in a call".ljust(len("messages in a commit")))
    idle = ", ".join(f"{one.cpu_ms_per_s:.2g} ms for {one.setting.tasks:,}"
                     for one in document.of(Idle, "tasks-waiting"))
    return f"{table}\nProcessor time per second, by the number of tasks that wait: {idle}.\n"


def shared_tables(document: Document) -> str:
    """Show workers of a shared subscriber beside plain ones, and what it costs that much is in flight."""
    taken, work = document.of(Rate, "shared-taken"), {"in-flight-sent": "sent", "in-flight-claimed": "claimed again"}
    if not taken:
        return "Shared subscribers were not measured in this run.\n"
    table = rates({"shared-taken": "received"}, "batch_messages", "", workloads_shared.PLAIN)(document)
    rows = [[
        name, f"{one.setting.batch_messages or 1:,}", f"{one.setting.inflight_messages or 0:,}",
        per_s(one.messages_per_s),
        tables.ratio(one.of_floor)
    ] for workload, name in work.items() for one in document.of(Rate, workload)]
    in_flight = tables.table(["work", "messages in a commit", "in flight", "persipubsub", "ratio"], rows)
    return f"{table}\nBy the number of messages that workers hold, of those that a queue of 100,000 has:\n\n{in_flight}"


def details_table(document: Document) -> str:
    """Show what headers and deliveries cost beside plain messages."""
    rows = [[
        work, one.setting.detail or "", f"{one.setting.batch_messages or 1:,}",
        *_beside(document, one, workloads_details.PLAIN)[:3]
    ] for workload, work in (("details-sent", "sent"), ("details-taken", "received"))
            for one in document.of(Rate, workload) if one.contestant == OURS]
    header = ["work", "how", "messages in a commit", "persipubsub", workloads_details.PLAIN, "ratio"]
    return tables.table(header, rows) if rows else "Headers and deliveries were not measured in this run.\n"


def durations(workload: str) -> Callable[[Document], str]:
    """Make a table of what happens once."""

    def make(document: Document) -> str:
        rows = []
        for one in document.of(Duration, workload):
            backlog = one.setting.backlog_messages
            rows.append([
                one.contestant, one.setting.detail or "", "" if backlog is None else f"{backlog:,}",
                us(one.median_ms * 1000),
                us(min(one.rounds_ms) * 1000),
                us(max(one.rounds_ms) * 1000)
            ])
        return tables.table(["contestant", "what", "messages in the queue", "median", "shortest", "longest"], rows)

    return make


def drain_table(document: Document) -> str:
    """Show what it takes to empty a queue."""
    rows = [[
        one.contestant, one.setting.detail or "", f"{one.setting.backlog_messages or 0:,}", f"{one.drain_s:.2f} s",
        f"{one.rss_anon_mib:.1f} MiB"
    ] for one in document.of(Drain, "drain")]
    return tables.table(["contestant", "by", "messages", "time", "anonymous memory"], rows)


def file_size_table(document: Document) -> str:
    """Show what the messages take on the disk."""
    rows = [[
        tables.size(one.setting.payload_bytes or 0), one.contestant, f"{one.stored_bytes / 1e6:,.0f} MB",
        f"{one.file_bytes / 1e6:,.0f} MB", f"{one.file_to_payload:.2f}"
    ] for one in document.of(FileSize, "file-size")]
    return tables.table(["size of a message", "contestant", "messages", "file", "ratio"], rows)


def churn_table(document: Document) -> str:
    """Show how the file grows while as much is received as is sent."""
    rows = [[
        one.setting.detail or "", f"{one.setting.backlog_messages or 0:,}", f"{one.sent_messages[-1]:,}",
        f"{one.sent_bytes[-1] / 1e6:,.0f} MB", f"{one.file_mb[1]:,.1f} MB",
        f"{one.file_mb[len(one.file_mb) // 2]:,.1f} MB", f"{one.file_mb[-1]:,.1f} MB"
    ] for one in document.of(Churn, "churn")]
    return tables.table([
        "size of a message", "always in the queue", "sent and received", "together", "file at 5 %", "at half",
        "at the end"
    ], rows)


PARTS: Dict[str, Callable[[Document], str]] = {
    "first-figures":
    first_figures,
    "overview":
    overview,
    "machine":
    machine_table,
    "note":
    lambda document: document.note,
    "targets":
    targets.table,
    "send-limit":
    limit_table,
    "sizes":
    rates({
        "send": "sent",
        "send-batch": "sent",
        "take": "received",
        "take-batch": "received"
    }, "payload_bytes", "size of a message"),
    "batches":
    rates({
        "batch-sizes-sent": "sent",
        "batch-sizes-taken": "received"
    }, "batch_messages", ""),
    "subscribers":
    rates({
        "subscribers-sent": "sent",
        "subscribers-taken": "received by one"
    }, "subscribers", "subscribers"),
    "backlog":
    rates({
        "backlog-sent": "sent",
        "backlog-taken": "received"
    }, "backlog_messages", "messages in the queue"),
    "details":
    details_table,
    "protobuf":
    rates({
        "protobuf-sent": "sent",
        "protobuf-taken": "received"
    }, "batch_messages", "", workloads_protobuf.BY_HAND),
    "shared":
    shared_tables,
    "threads":
    rates({"threads": "sent"}, "threads", "threads"),
    "processes":
    rates({"processes": "sent"}, "processes", "processes"),
    "tasks":
    tasks_table,
    "end-to-end":
    rates({"end-to-end": "received"}, "batch_messages", "", floors.PIPE),
    "wake-up":
    latencies("wake-up", "waiting_processes", "waiting"),
    "wake-up-means":
    latencies("wake-up-means", "waiting_processes", "waiting"),
    "fork":
    durations("fork"),
    "idle":
    idle_sentence,
    "overflow":
    latencies("overflow", "mark_messages", "limit"),
    "expired":
    durations("expired"),
    "drain":
    drain_table,
    "opening":
    durations("opening"),
    "import":
    durations("import"),
    "file-size":
    file_size_table,
    "churn":
    churn_table,
    "peers":
    lambda document: peer_table(document) or "The peers were not measured in this run.\n",
}
