"""The verb ``migrate``: take over a queue of persipubsub 1.0.0."""

from typing import Iterator

import click

from persipubsub import migration
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.progress import progress_bar
from persipubsub.migration import Report


@click.command(cls=Command, example="persipubsub migrate ./old-queue ./queue")
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
def migrate(old: str, new: str) -> None:
    """Make a queue in the directory NEW of the queue of persipubsub 1.0.0 in the directory OLD, which stays as it is.

    Configuration, subscribers and the pending messages of each are taken over. End all publishers and subscribers of
    the old queue first: what they send or take afterwards is not in the new one.
    """
    with progress_bar("migrate") as progress:
        report = migration.migrate(old, new, progress)
    for note in _notes(report):
        output.line(f"note: {note}", err=True)
    pending = ", ".join(f"{name!r} ({count:,} pending)" for name, count in report.pending.items()) or "none"
    output.line(f"{report.path}: {report.messages:,} messages migrated; subscribers {pending}")


def _notes(report: Report) -> Iterator[str]:
    for name, count in report.again.items():
        yield (f"the subscriber {name!r} also gets {count:,} messages that it had taken or that were not meant for it, "
               "since they lie between those that it awaits")
    if report.expired:
        yield (f"{report.expired:,} messages were beyond the message timeout; they are there, and their timeout begins "
               "anew")
    if report.dangling:
        yield f"{report.dangling:,} messages were left out, since nobody awaits them"
    if report.missing:
        yield f"{report.missing:,} awaited messages were not in the old queue any more"
    if report.at_high_watermark:
        yield ("the queue is at its high-water mark: the next send drops about half of the messages, unless they are "
               "received or the mark is raised before")
