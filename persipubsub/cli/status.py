"""The verb ``status``: tell what queues look like at this moment."""

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import click

from persipubsub.cli import Command, subscriber_cells
from persipubsub.cli.opening import read_status
from persipubsub.database import LAG_COMMITS_MIN
from persipubsub.status import QueueStatus


@click.command(cls=Command, example="persipubsub status ./orders ./invoices")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array with an object for each queue.")
def status(paths: Tuple[str, ...], as_json: bool) -> None:
    """Tell what the queues in the directories PATH look like at this moment. Nothing is changed."""
    found = [read_status(path) for path in paths]
    if as_json:
        import json
        click.echo(json.dumps([_as_json(one) for one in found], indent=2))
    else:
        click.echo("\n\n".join(_as_text(one) for one in found))


def _as_json(one: QueueStatus) -> Dict[str, Any]:
    mark = one.high_watermark
    return {
        "path": str(one.path),
        "messages": one.messages,
        "size_bytes": one.size_bytes,
        "oldest_age_s": one.oldest_age_s,
        "next_id": one.next_id,
        "sent": one.sent,
        "pruned": dataclasses.asdict(one.pruned),
        "floor": one.floor,
        "high_watermark": {
            "message_timeout": mark.message_timeout,
            "max_messages": mark.max_messages,
            "hwm_db_size": mark.hwm_db_size
        },
        "strategy": one.strategy.name,
        "durability": one.durability.name.lower(),
        "message_type": one.message_type,
        "retention_s": one.retention_s,
        "retained": one.retained,
        "delayed": one.delayed,
        "reader_lag": one.reader_lag,
        "subscribers": {
            identifier: {
                "next_id": subscriber.next_id,
                "pending": subscriber.pending,
                "oldest_pending_age_s": subscriber.oldest_pending_age_s,
                "taken": subscriber.taken,
                "in_flight": subscriber.in_flight,
                "dead_letters": subscriber.dead_letters,
                "policy": None if subscriber.policy is None else subscriber.policy.settings()
            }
            for identifier, subscriber in sorted(one.subscribers.items())
        }
    }


def _as_text(one: QueueStatus) -> str:
    mark = one.high_watermark
    lines = [
        click.format_filename(one.path),
        f"  messages    {one.messages:,} of {mark.max_messages:,}",
        f"  bytes       {one.size_bytes:,} of {mark.hwm_db_size:,}",
        f"  oldest      {_age(one.oldest_age_s)} of {mark.message_timeout:,} s",
        f"  next id     {one.next_id:,}",
        f"  overflow    {one.strategy.name}",
        f"  durability  {one.durability.name.lower()}",
    ]
    if any(dataclasses.astuple(one.pruned)):
        pruned = one.pruned
        lines.append(
            f"  pruned      {pruned.timeout:,} by timeout, {pruned.overflow:,} by overflow, {pruned.dangling:,} "
            "awaited by nobody")
    if one.message_type is not None:
        lines.append(f"  type        {one.message_type}")
    if one.retention_s:
        lines.append(f"  retained    {one.retained:,} of those messages, for {one.retention_s:g} s")
    if one.delayed:
        lines.append(f"  delayed     {one.delayed:,}")
    if one.reader_lag >= LAG_COMMITS_MIN:
        lines.append(f"  file grows  a process has been reading for {one.reader_lag:,} commits: is it stopped?")
    if not one.subscribers:
        kept = "only retained" if one.retention_s else "not stored"
        return "\n".join(lines + [f"  no subscribers: what is sent is {kept}"])
    return "\n".join(lines + _table(one))


def _table(one: QueueStatus) -> List[str]:
    """Give a line for each subscriber, below their head."""
    rows = [("subscriber", "pending", "oldest", *subscriber_cells.head(one))]
    # As Python writes them: a name may have a line break.
    rows += [(repr(identifier), f"{subscriber.pending:,}", _age(subscriber.oldest_pending_age_s),
              *subscriber_cells.of(one, subscriber)) for identifier, subscriber in sorted(one.subscribers.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(["", f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def _age(age_s: Optional[float]) -> str:
    return "-" if age_s is None else f"{age_s:,.1f} s"
