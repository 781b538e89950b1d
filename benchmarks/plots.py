"""Pictures of the figures, as SVG. The only module that needs matplotlib.

They have no background, and colours that stand out from a light page and from a dark one. All of them are so wide that
their text is legible on a phone.
"""

import importlib
import pathlib
from typing import Any, Callable, Dict, List, Sequence, Tuple

from benchmarks import floors, tables
from benchmarks.results import OURS, Churn, Document, Latency, Rate

# Not by an import statement: the types of matplotlib are installed only where the pictures are made.
matplotlib = importlib.import_module("matplotlib")
matplotlib.use("svg")
pyplot = importlib.import_module("matplotlib.pyplot")

#: On a page of 400 pixels a point of the text is a little larger than a pixel.
WIDTH_IN, TEXT_PT = 5.5, 11.5
INK = "#7b7b7b"  # as far from white as from the page in dark mode
# Okabe and Ito chose these colours so that colour-blind readers can tell them apart.
DURABLE_COLOUR, RELAXED_COLOUR, THIRD_COLOUR = "#0072b2", "#d55e00", "#009e73"
COLOURS = {"durable": DURABLE_COLOUR, "relaxed": RELAXED_COLOUR}
OTHER_COLOUR = "#8c8c8c"

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "font.size": TEXT_PT,
    "axes.titlesize": TEXT_PT,
    "axes.titleweight": "bold",
    "axes.labelsize": TEXT_PT,
    "xtick.labelsize": TEXT_PT,
    "ytick.labelsize": TEXT_PT,
    "legend.fontsize": TEXT_PT,
    "legend.frameon": False,
    # So that the same figures make the same file.
    "svg.hashsalt": "persipubsub",
}

#: A line of a picture: its look, and its points.
Line = Tuple[Dict[str, str], List[Tuple[float, float]]]


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


def _panels(titles: Sequence[str], height_in: float, **shared: bool) -> Tuple[Any, Sequence[Any]]:
    """Make a figure of panels, one below the other."""
    figure, axes = pyplot.subplots(len(titles),
                                   1,
                                   figsize=(WIDTH_IN, height_in),
                                   squeeze=False,
                                   layout="constrained",
                                   **shared)
    for axis, title in zip(axes[:, 0], titles):
        axis.set_title(title, loc="left")
    return figure, axes[:, 0]


def _lines(document: Document, workload: str, vary: str, batches: Sequence[int]) -> List[Line]:
    """Make a line for each durability and batch, and a dashed one for its floor."""
    lines: List[Line] = []
    for durability, colour in COLOURS.items():
        for batch in batches:
            for name, style in ((OURS, "-"), (floors.RAW_LMDB, "--")):
                points = _points(document, workload, vary, name, durability, batch)
                if points:
                    lines.append(({"color": colour, "linestyle": style, "marker": _marker(batch)}, points))
    return lines


def _marker(batch: int) -> str:
    return "o" if batch == 1 else "s"


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
                batches: Sequence[int]) -> Any:
    panels = [_lines(document, workload, vary, batches) for workload, _ in workloads]
    if not all(panels):
        return None
    titles = [f"messages {title} per second, 100 B each" for _, title in workloads]
    figure, axes = _panels(titles, 7.4, sharex=True)
    for axis, lines in zip(axes, panels):
        for look, points in lines:
            axis.plot(*zip(*points), **look)
        axis.set_xscale("symlog", linthresh=1)
        _scale_by_powers(axis)
        _mark_values(axis, sorted({x for lines in panels for _, points in lines for x, _ in points}))
    axes[-1].set_xlabel(label)
    figure.legend(handles=_keys(batches), loc="outside lower center", ncols=2)
    return figure


def _keys(batches: Sequence[int]) -> List[Any]:
    """Explain colours, lines and markers each by itself, so that the legend is short."""
    looks: List[Tuple[str, Dict[str, Any]]] = [
        ("durable", {
            "color": DURABLE_COLOUR,
            "linewidth": 5
        }),
        ("relaxed", {
            "color": RELAXED_COLOUR,
            "linewidth": 5
        }),
        (OURS, {
            "color": INK
        }),
        (floors.RAW_LMDB, {
            "color": INK,
            "linestyle": "--"
        }),
    ]
    if len(batches) > 1:
        looks += [("single" if batch == 1 else f"batches of {batch:,}", {
            "color": INK,
            "marker": _marker(batch),
            "linestyle": "none"
        }) for batch in batches]
    line = importlib.import_module("matplotlib.lines").Line2D
    return [line([], [], label=label, **look) for label, look in looks]


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
    return _throughput(document, [("batch-sizes-sent", "sent"), ("batch-sizes-taken", "received")], "batch_messages",
                       "messages in a commit", [1])


def _by_subscribers(document: Document) -> Any:
    return _throughput(document, [("subscribers-sent", "sent"), ("subscribers-taken", "received by one")],
                       "subscribers", "subscribers", [1, 1000])


def _by_backlog(document: Document) -> Any:
    return _throughput(document, [("backlog-sent", "sent"), ("backlog-taken", "received")], "backlog_messages",
                       "messages in the queue", [1, 1000])


def _latency(document: Document) -> Any:
    found = sorted(document.of(Latency, "wake-up"), key=lambda one: -(one.setting.waiting_processes or 0))
    if not found:
        return None
    figure, (axis, ) = _panels(["time until a waiting process has it"], 1.6 + 0.55 * len(found))
    quantiles: Sequence[Tuple[str, Callable[[Latency], float], str]] = (
        ("p50", lambda one: one.p50_us, "o"),
        ("p99", lambda one: one.p99_us, "s"),
        ("p99.9", lambda one: one.p999_us, "D"),
    )
    for row, one in enumerate(found):
        colour = COLOURS.get(one.setting.durability or "", OTHER_COLOUR)
        axis.plot([one.p50_us, one.p999_us], [row, row], color=colour)
        for label, quantile, marker in quantiles:
            axis.plot(quantile(one), row, marker=marker, color=colour, linestyle="none", label=label if not row else "")
    axis.set_yticks(range(len(found)), [
        f"{'Pipe' if one.contestant == floors.PIPE else one.setting.durability}, "
        f"{one.setting.waiting_processes} waiting" for one in found
    ])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _position: tables.us(value))
    axis.xaxis.set_minor_formatter(lambda _value, _position: "")
    figure.legend(loc="outside lower center", ncols=len(quantiles), labelcolor=INK)
    return figure


def _file_size(document: Document) -> Any:
    found = document.of(Churn, "churn")
    if not found:
        return None
    figure, (axis, ) = _panels(["size of the file"], 4)
    for one, colour, marker in zip(found, (DURABLE_COLOUR, RELAXED_COLOUR, THIRD_COLOUR), "osD"):
        percents = [100 * sent / one.sent_messages[-1] for sent in one.sent_messages]
        label = f"{one.sent_messages[-1]:,} messages of {one.setting.detail}, {one.sent_bytes[-1] / 1e6:,.0f} MB"
        axis.plot(percents, one.file_mb, color=colour, marker=marker, label=label)
    _scale_by_powers(axis)
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:g} MB")
    axis.set_xlabel("percent of all messages sent and received")
    figure.legend(loc="outside lower center")
    return figure


#: The panels of peers: workload, durability, messages in a commit, title.
PEER_PANELS: Sequence[Tuple[str, str, int, str]] = (
    ("peers-send", "durable", 1, "send 1, durable"),
    ("peers-send", "relaxed", 1, "send 1, relaxed"),
    ("peers-take", "relaxed", 1, "receive 1, relaxed"),
    ("peers-send", "durable", 1000, "send 1,000, durable"),
)
#: The bars end where the figures still have room.
PEER_AXIS = (10, 10**10)


def _peers(document: Document) -> Any:
    names = list(dict.fromkeys(one.contestant for one in document.of(Rate, "peers-send")))[::-1]
    if not names:
        return None
    figure, axes = pyplot.subplots(2,
                                   2,
                                   figsize=(WIDTH_IN, 1.8 + 0.46 * len(names)),
                                   sharex=True,
                                   sharey=True,
                                   layout="constrained")
    for axis, (workload, durability, batch, title) in zip(axes.flat, PEER_PANELS):
        axis.set_title(title, fontweight="normal")
        for row, name in enumerate(names):
            found = document.find(Rate, workload, name, durability=durability, batch_messages=batch, subscribers=None)
            if found is not None:
                axis.barh(row, found.messages_per_s, color=DURABLE_COLOUR if name == OURS else OTHER_COLOUR)
                axis.text(1.5 * found.messages_per_s, row, tables.per_s(found.messages_per_s), va="center")
        axis.grid(axis="y", visible=False)
        axis.set_xscale("log")
        axis.set_xlim(*PEER_AXIS)
        _mark_values(axis, [10, 1000, 100_000])
    axes[0][0].set_yticks(range(len(names)), [f"{name}*" if name in document.weaker_peers else name for name in names])
    weaker = "\n* keeps less than the title says" if document.weaker_peers else ""
    figure.supxlabel(f"messages per second{weaker}", fontsize=TEXT_PT)
    return figure


PICTURES: Dict[str, Callable[[Document], Any]] = {
    "throughput-by-batch": _by_batch,
    "throughput-by-subscribers": _by_subscribers,
    "throughput-by-backlog": _by_backlog,
    "latency": _latency,
    "file-size": _file_size,
    "peers": _peers,
}
