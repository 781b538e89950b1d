"""Results as text: lines of the terminal, and tables of reStructuredText."""

from typing import Sequence

from benchmarks.results import Drain, Duration, FileSize, Idle, Latency, Rate, Result


def line(result: Result) -> str:
    """Describe a result in one line."""
    return f"{result.workload:18} {result.contestant:20} {_figures(result):46} {result.setting}".rstrip()


def _figures(result: Result) -> str:  # pylint: disable=too-many-return-statements  # one per kind
    if isinstance(result, Rate):
        return f"{per_s(result.messages_per_s):>12} {result.of_floor:7.2f} of the floor"
    if isinstance(result, Latency):
        return (f"p50 {us(result.p50_us)}, p99 {us(result.p99_us)}, p99.9 {us(result.p999_us)}, "
                f"longest {us(result.longest_us)}")
    if isinstance(result, Duration):
        return f"{result.median_ms:.4g} ms"
    if isinstance(result, Drain):
        return f"{result.drain_s:.3g} s, {result.rss_anon_mib:.3g} MiB anonymous"
    if isinstance(result, Idle):
        return f"{result.cpu_ms_per_s:.3g} ms of processor time a second"
    if isinstance(result, FileSize):
        return f"{result.file_to_payload:.3g} times the payload"
    return f"{result.file_mb[-1]:,.4g} MB at the end, {result.second_half_growth:.3g} times that at half"


def per_s(rate: float) -> str:
    """Show messages per second."""
    if rate >= 1e6:
        return f"{rate / 1e6:.2f} M/s"
    if rate >= 1e5:
        return f"{rate / 1e3:.0f} k/s"
    if rate >= 1e4:
        return f"{rate / 1e3:.1f} k/s"
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def count(rate: float) -> str:
    """Show a number of messages in a sentence."""
    if rate >= 1e6:
        return f"{rate / 1e6:.3g} million"
    return f"{float(f'{rate:.3g}'):,.0f}"


def us(time_us: float) -> str:
    """Show a time."""
    if time_us >= 1e6:
        return f"{time_us / 1e6:.3g} s"
    return f"{time_us / 1000:.3g} ms" if time_us >= 1000 else f"{time_us:.3g} µs"


def ratio(value: float) -> str:
    """Show a ratio."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def size(count_bytes: int) -> str:
    """Show the size of a message."""
    for unit, factor in (("MiB", 1024**2), ("KiB", 1024)):
        if count_bytes >= factor and count_bytes % factor == 0:
            return f"{count_bytes // factor} {unit}"
    return f"{count_bytes} B"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table of reStructuredText; a column without content is left out. The first one must have content."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    shown = [[row[column] or "–" for column in kept] for row in rows]
    titles = [header[column] for column in kept]
    widths = [max(len(row[number]) for row in [titles, *shown]) for number in range(len(kept))]
    rule = "  ".join("=" * width for width in widths)
    head = [_row(titles, widths), rule] if any(titles) else []
    return "\n".join([rule, *head, *(_row(row, widths) for row in shown), rule]) + "\n"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
