"""The verb ``status``: show the current status of queues."""

import dataclasses
import enum
import os
import pathlib
from typing import Iterable, Iterator, List, Mapping, Optional, Tuple, Union

import click

from persipubsub import errors
from persipubsub.cli import exit_status, output, status_text, subscriber_cells
from persipubsub.cli.command import Command
from persipubsub.cli.opening import located, read_status
from persipubsub.queue import HighWaterMark
from persipubsub.status import QueueStatus, SubscriberPolicy


@click.command(cls=Command,
               example="persipubsub status ./orders ./invoices",
               short_help="Show the current status of queues.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array with an object for each queue.")
@click.pass_context
def status(ctx: click.Context, paths: Tuple[str, ...], as_json: bool) -> None:
    """Show the current status of the queues at PATH, directories or URLs. Nothing is changed.

    If a queue cannot be read, its error is shown; the other queues are shown as usual.

    The exit status is 0 if all could be read, and 1 if not.
    """
    found = [_read(path) for path in paths]
    if as_json:
        output.json_text([_as_json(one) for one in found])
    else:
        output.lines(_joined(_as_text(one) for one in found if isinstance(one, QueueStatus)))
    for one in found:
        if isinstance(one, _Unreadable):
            output.line(f"Error: {one.error}", err=True)
    if any(isinstance(one, _Unreadable) for one in found):
        ctx.exit(exit_status.FAILED)


@dataclasses.dataclass
class _Unreadable:
    """Replaces the status of a queue that cannot be read."""

    path: str
    error: str


def _read(path: str) -> Union[QueueStatus, _Unreadable]:
    try:
        return read_status(path)
    except (errors.PersipubsubError, OSError) as error:
        if click.get_current_context().find_root().params["debug"]:
            raise
        return _Unreadable(_shown(path), " ".join(str(error).split()))


def _shown(path: str) -> str:
    """Return the location of a queue that cannot be read, without secrets."""
    try:
        return str(located(path))
    except errors.PersipubsubError:
        return os.path.abspath(path) if "://" not in path else f"{path.partition('://')[0]}://{path.rpartition('@')[2]}"


def _joined(blocks: Iterable[List[str]]) -> Iterator[str]:
    """Yield the lines of all blocks, with an empty line between two blocks."""
    for index, block in enumerate(blocks):
        yield from [""] * bool(index)
        yield from block


def _as_json(value: object) -> object:
    """Return a value for JSON; a status with all its fields, so that a new one is never left out."""
    facts = _facts(value)
    if facts is not None:
        return {name: _as_json(one) for name, one in facts.items()}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    return str(value) if isinstance(value, pathlib.Path) else value


def _facts(value: object) -> Optional[Mapping[str, object]]:
    if isinstance(value, SubscriberPolicy):
        return value.settings()
    if isinstance(value, HighWaterMark):
        return value.limits()
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(sorted(value.items())) if isinstance(value, Mapping) else None


def _as_text(one: QueueStatus) -> List[str]:
    mark = one.high_watermark
    lines = [
        str(one.path),
        f"  messages    {one.messages:,}{status_text.of(mark.max_messages)}",
        f"  bytes       {one.size_bytes:,}{status_text.of(mark.hwm_db_size)}",
        f"  oldest      {status_text.age(one.oldest_age_s)}{status_text.of(mark.message_timeout, ' s')}",
        f"  next id     {one.next_id:,}",
        *([f"  when full   {one.strategy.name}"] if status_text.can_be_full(one) else []),
        f"  durability  {one.durability.name.lower()}",
    ]
    if any(dataclasses.astuple(one.pruned)):
        lines.append(f"  pruned      {status_text.pruned(one)}")
    lines += [f"  {name:<10}  {text}" for name, text in status_text.facts(one)]
    return lines + (_table(one) if one.subscribers else [f"  {status_text.no_subscribers(one)}"])


def _table(one: QueueStatus) -> List[str]:
    """Return a header and a line for each subscriber."""
    rows = [("subscriber", "pending", "oldest", *subscriber_cells.head(one))]
    # As Python literals: a name may contain a line break.
    rows += [(repr(identifier), f"{subscriber.pending:,}", status_text.age(subscriber.oldest_pending_age_s),
              *subscriber_cells.of(one, subscriber)) for identifier, subscriber in sorted(one.subscribers.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(["", f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
