"""The display of ``top``: a block of lines for each queue."""

from typing import List, Optional, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persipubsub.cli import output, status_text, subscriber_cells
from persipubsub.cli.top_rates import Rates
from persipubsub.status import QueueStatus

BARS = "▁▂▃▄▅▆▇█"
#: The share of a limit from which on its line is red.
HIGH_SHARE = 0.9


def frame(all_rates: Sequence[Rates], width: int) -> Group:
    """Draw all queues.

    :param all_rates: one for each queue
    :param width: in columns
    """
    blocks: List[RenderableType] = []
    for rates in all_rates:
        blocks.append(Text(output.shown_path(rates.path), style="bold"))
        if rates.error is not None:
            blocks.append(Text(f"  {output.shown(rates.error)}", style="red"))
        else:
            blocks += [_figures(rates.latest()), _graphs(rates, width), _subscribers(rates)]
        blocks.append(Text())
    return Group(*blocks[:-1])


def sparkline(values: Sequence[float]) -> str:
    """Draw each value as a bar; the largest value is the highest bar, and 0 the lowest."""
    highest = max(values, default=0) or 1
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] for value in values)


def _figures(status: QueueStatus) -> RenderableType:
    """Show how close the limits are, and how many messages were pruned."""
    mark = status.high_watermark
    age_s = status.oldest_age_s
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value, limit, text in (
        ("messages", status.messages, mark.max_messages, f"{status.messages:,}{status_text.of(mark.max_messages)}"),
        ("bytes", status.size_bytes, mark.hwm_db_size, f"{status.size_bytes:,}{status_text.of(mark.hwm_db_size)}"),
        ("oldest", age_s
         or 0, mark.message_timeout, f"{status_text.age(age_s)}{status_text.of(mark.message_timeout, ' s')}"),
    ):
        share = 0 if limit is None else value / limit
        grid.add_row(f"  {name}",
                     text,
                     "" if limit is None else f"{share:.0%}",
                     style="red" if share >= HIGH_SHARE else "")
    for name, text in status_text.facts(status):
        grid.add_row(f"  {name}", Text(output.shown(text)))
    grid.add_row("  pruned", status_text.pruned(status))
    return grid


def _graphs(rates: Rates, width: int) -> RenderableType:
    """Draw the rates and the backlog of the last minutes."""
    rows = [(name, values, _number(values[-1] if values else None, unit))
            for name, values, unit in (("in", rates.sent_per_s(), "/s"), ("out", rates.taken_per_s(), "/s"),
                                       ("backlog", rates.backlogs(), ""))]
    number_width = max(len(number) for _, _, number in rows)
    # The newest ones that fit.
    bars = max(1, width - len("  backlog  ") - number_width - len("  "))
    return Text("\n".join(f"  {name:<7}  {number:>{number_width}}  {sparkline(values[-bars:])}"
                          for name, values, number in rows),
                no_wrap=True)


def _subscribers(rates: Rates) -> RenderableType:
    """Show each subscriber, the one that lags most first."""
    status, taken_per_s = rates.latest(), rates.taken_per_s_by_subscriber()
    if not status.subscribers:
        return Text(f"  {status_text.no_subscribers(status)}")
    head = ("pending", "oldest", "out", *subscriber_cells.head(status))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(overflow="fold")  # without enough space, names wrap, but not numbers
    for _ in head:
        grid.add_column(justify="right", no_wrap=True)
    grid.add_row("  subscriber", *head, style="dim")
    for identifier, subscriber in sorted(status.subscribers.items(), key=lambda item: (-item[1].pending, item[0])):
        grid.add_row(Text(f"  {identifier!r}"), f"{subscriber.pending:,}",
                     status_text.age(subscriber.oldest_pending_age_s), _number(taken_per_s.get(identifier), "/s"),
                     *subscriber_cells.of(status, subscriber))
    return grid


def _number(value: Optional[float], unit: str) -> str:
    return "-" if value is None else f"{value:,.0f}{unit}"
