"""The verb ``migrate``: convert a queue of persipubsub 1.0.0."""

from typing import Iterator

import click

from persipubsub import migration
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.progress import progress_bar
from persipubsub.migration import Report


@click.command(cls=Command,
               example="persipubsub migrate ./old-queue ./queue",
               short_help="Convert a queue of persipubsub 1.0.0.")
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
def migrate(old: str, new: str) -> None:
    """Convert the queue of persipubsub 1.0.0 in the directory OLD into a queue in the directory NEW. OLD stays.

    The configuration, the subscribers and their pending messages are copied. Stop all publishers and subscribers of the
    old queue first: the new queue does not have what they send or acknowledge afterwards.
    """
    with progress_bar("migrate") as progress:
        report = migration.migrate(old, new, progress)
    for note in _notes(report):
        output.line(f"note: {note}", err=True)
    pending = ", ".join(f"{name!r} ({count:,} pending)" for name, count in report.pending.items()) or "none"
    output.line(f"{report.path}: {report.messages:,} messages migrated; subscribers {pending}")


def _notes(report: Report) -> Iterator[str]:
    for name, count in report.again.items():
        yield (f"the subscriber {name!r} also gets {count:,} messages that it had received or that were not meant for "
               "it, since they lie between its pending messages")
    if report.expired:
        yield (f"{report.expired:,} messages had exceeded the message timeout; they are kept, and their timeout starts "
               "again")
    if report.dangling:
        yield f"{report.dangling:,} messages were left out, since no subscriber awaits them"
    if report.missing:
        yield f"{report.missing:,} pending messages were missing from the old queue"
    if report.at_high_watermark:
        yield ("the queue is at its high-water mark: the next send drops about half of the messages, unless they are "
               "received or the mark is raised first")
