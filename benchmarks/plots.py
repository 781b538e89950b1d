"""Pictures of the figures, as SVG. The only module that needs matplotlib."""

import importlib
import pathlib
from typing import Any, Callable, Dict, List, Sequence, Tuple

from benchmarks import floors, tables
from benchmarks.results import OURS, Churn, Document, Latency, Rate

# Not by an import statement: the types of matplotlib are installed only where the pictures are made.
matplotlib = importlib.import_module("matplotlib")
matplotlib.use("svg")
pyplot = importlib.import_module("matplotlib.pyplot")

STYLE = {
    # A white card: text on a transparent ground could not be read where the page is dark.
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "font.size": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    # So that the same figures make the same file.
    "svg.hashsalt": "persipubsub",
}
DURABLE_COLOUR, RELAXED_COLOUR, OTHER_COLOURS = "#1b6ca8", "#d1495b", ("#3a7d44", "#7b5ea7", "#8c6d31", "#555555")
COLOURS = {"durable": DURABLE_COLOUR, "relaxed": RELAXED_COLOUR}

#: A line of a picture: its label, its look, and its points.
Line = Tuple[str, Dict[str, str], List[Tuple[float, float]]]


def write(document: Document, directory: pathlib.Path) -> List[str]:
    """Write all pictures for which there are figures; return their names."""
    made = []
    with pyplot.rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure = draw(document)
            if figure is not None:
                figure.savefig(directory / f"{name}.svg", format="svg", metadata={"Date": None})
                pyplot.close(figure)
                made.append(name)
    return made


def _lines(document: Document, workload: str, vary: str, batches: Sequence[int]) -> List[Line]:
    """Make a line for each durability and batch, and a dashed one for its floor."""
    lines: List[Line] = []
    for durability, colour in COLOURS.items():
        for batch in batches:
            for name, style in ((OURS, "-"), (floors.RAW_LMDB, "--")):
                points = _points(document, workload, vary, name, durability, batch)
                what = "" if vary == "batch_messages" else ", single" if batch == 1 else f", batches of {batch:,}"
                if points:
                    look = {"color": colour, "linestyle": style, "marker": "o" if batch == 1 else "s"}
                    lines.append((f"{name}, {durability}{what}", look, points))
    return lines


def _points(document: Document, workload: str, vary: str, name: str, durability: str,
            batch: int) -> List[Tuple[float, float]]:
    points: List[Tuple[float, float]] = []
    values = {getattr(one.setting, vary) for one in document.of(Rate, workload)} - {None}
    for one in document.of(Rate, workload):
        same_batch = vary == "batch_messages" or one.setting.batch_messages == batch
        if one.contestant == name and one.setting.durability == durability and same_batch:
            value = getattr(one.setting, vary)
            # A floor to which it makes no difference is a level.
            points += [(x, one.messages_per_s) for x in (sorted(values) if value is None else [value])]
    return points


def _throughput(document: Document, workloads: Sequence[Tuple[str, str]], vary: str, label: str,
                batch_messages: Sequence[int]) -> Any:
    panels = [(title, _lines(document, workload, vary, batch_messages)) for workload, title in workloads]
    if not all(lines for _, lines in panels):
        return None
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.4), sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels):
        for name, look, points in lines:
            axis.plot(*zip(*points), label=name, markersize=4, **look)
        axis.set_title(title)
        axis.set_xscale("symlog", linthresh=1)
        _scale_by_powers(axis)
        axis.set_xlabel(label)
        _mark_values(axis, sorted({x for _, _, points in lines for x, _ in points}))
    axes[0][0].set_ylabel("messages per second, 100 B each")
    legend = axes[0][0].get_legend_handles_labels()
    figure.legend(*legend, loc="lower center", ncols=2)
    figure.tight_layout(rect=(0, 0.04 + 0.045 * ((len(legend[0]) + 1) // 2), 1, 1))
    return figure


def _mark_values(axis: Any, values: Sequence[float]) -> None:
    """Label the horizontal axis at the values that were measured."""
    axis.set_xticks(values, [_short(value) for value in values])
    axis.minorticks_off()


def _scale_by_powers(axis: Any) -> None:
    """Scale the vertical axis by powers of ten, in words that are short."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _position: _short(value))
    axis.yaxis.set_minor_formatter(lambda _value, _position: "")


def _short(number: float) -> str:
    for factor, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= factor:
            return f"{number / factor:g}{unit}"
    return f"{number:g}"


def _by_batch(document: Document) -> Any:
    return _throughput(document, [("batch-sizes-sent", "sent"), ("batch-sizes-taken", "taken")], "batch_messages",
                       "messages in a commit", [1])


def _by_subscribers(document: Document) -> Any:
    return _throughput(document, [("subscribers-sent", "sent"), ("subscribers-taken", "taken by one of them")],
                       "subscribers", "subscribers", [1, 1000])


def _by_backlog(document: Document) -> Any:
    return _throughput(document, [("backlog-sent", "sent"), ("backlog-taken", "taken")], "backlog_messages",
                       "messages in the queue", [1, 1000])


def _latency(document: Document) -> Any:
    found = document.of(Latency, "wake-up")
    if not found:
        return None
    found = sorted(found, key=lambda one: -(one.setting.waiting_processes or 0))
    figure, axis = pyplot.subplots(figsize=(8, 0.7 + 0.55 * len(found)))
    quantiles: Sequence[Tuple[str, Callable[[Latency], float], str]] = (
        ("p50", lambda one: one.p50_us, "o"),
        ("p99", lambda one: one.p99_us, "s"),
        ("p99.9", lambda one: one.p999_us, "D"),
    )
    for row, one in enumerate(found):
        colour = COLOURS.get(one.setting.durability or "", OTHER_COLOURS[-1])
        axis.plot([one.p50_us, one.p999_us], [row, row], color=colour, linewidth=1)
        for label, quantile, marker in quantiles:
            axis.plot(quantile(one), row, marker=marker, color=colour, linestyle="none", label=label if not row else "")
    axis.set_yticks(range(len(found)), [
        f"{one.contestant}{', ' + one.setting.durability if one.setting.durability else ''}\n"
        f"{one.setting.waiting_processes} waiting" for one in found
    ])
    axis.set_xscale("log")
    axis.set_xlabel("microseconds from the send until a waiting process has the message")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), labelcolor="black")
    figure.tight_layout()
    return figure


def _file_size(document: Document) -> Any:
    found = document.of(Churn, "churn")
    if not found:
        return None
    figure, axis = pyplot.subplots(figsize=(6.5, 3.6))
    for one, colour in zip(found, (DURABLE_COLOUR, RELAXED_COLOUR, *OTHER_COLOURS)):
        percents = [100 * sent / one.sent_messages[-1] for sent in one.sent_messages]
        label = f"{one.setting.detail}, {one.sent_messages[-1]:,} messages ({one.sent_bytes[-1] / 1e6:,.0f} MB)"
        axis.plot(percents, one.file_mb, color=colour, marker="o", markersize=3, label=label)
    _scale_by_powers(axis)
    axis.set_xlabel("percent of all messages sent and taken")
    axis.set_ylabel("size of the file, MB")
    axis.legend(loc="best")
    figure.tight_layout()
    return figure


def _peers(document: Document) -> Any:
    panels = [("single, durable", "peers-send", {
        "durability": "durable",
        "batch_messages": 1,
        "subscribers": None
    }),
              ("batches of 1,000, durable", "peers-send", {
                  "durability": "durable",
                  "batch_messages": 1000,
                  "subscribers": None
              }), ("100 subscribers, durable", "peers-send", {
                  "durability": "durable",
                  "subscribers": 100
              }), ("single, relaxed", "peers-send", {
                  "durability": "relaxed",
                  "batch_messages": 1,
                  "subscribers": None
              })]
    names = list(dict.fromkeys(one.contestant for one in document.of(Rate, "peers-send")))[::-1]
    if not names:
        return None
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 1.2 + 0.3 * len(names)), sharex=True, sharey=True)
    for axis, (title, workload, setting) in zip(axes, panels):
        for row, name in enumerate(names):
            found = document.find(Rate, workload, name, **setting)
            if found is not None:
                axis.barh(row, found.messages_per_s, color=DURABLE_COLOUR if name == OURS else "#b8b8b8")
                axis.text(1.3,
                          row,
                          tables.per_s(found.messages_per_s),
                          va="center",
                          fontsize=8,
                          color="white" if name == OURS else "black")
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
        axis.set_xscale("log")
        axis.set_xlim(1, 10_000_000)
        _mark_values(axis, [1, 100, 10_000, 1_000_000])
        axis.set_xlabel("messages sent per second")
    axes[0].set_yticks(range(len(names)),
                       [f"{name} (keeps less)" if name in document.weaker_peers else name for name in names])
    figure.tight_layout()
    return figure


PICTURES: Dict[str, Callable[[Document], Any]] = {
    "throughput-by-batch": _by_batch,
    "throughput-by-subscribers": _by_subscribers,
    "throughput-by-backlog": _by_backlog,
    "latency": _latency,
    "file-size": _file_size,
    "peers": _peers,
}
