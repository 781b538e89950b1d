"""The verb ``recover``: save what can be read of a damaged queue."""

import click

from persipubsub import recovery
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command,
               example="persipubsub recover ./queue",
               short_help="Save what can be read of a damaged queue.")
@click.argument("path", type=click.Path())
def recover(path: str) -> None:
    """Replace the damaged queue in the directory PATH with a new one of everything that can still be read.

    The damaged file stays beside it, under the printed name; delete it when you no longer need it. No process may have
    the queue open. A message that was acknowledged just before the damage may be delivered again.

    The exit status is 0 if there is a new queue, even if part of the old one is lost, and 1 if there is none.
    """
    with progress_bar("recover") as progress:
        report = recovery.recover(path, progress)
    for problem in report.problems:
        output.line(f"not read: {problem}", err=True)
    if not report.subscribers:
        output.line(
            "Warning: no subscriber could be read, so the saved messages reach no one. Add the subscribers again: "
            "persipubsub subscriber add",
            err=True)
    perhaps = " and perhaps more" if report.problems else ""
    configuration = "as it was" if report.configuration else "lost, now the default"
    names = ", ".join(map(repr, report.subscribers)) or "none"
    output.line(f"{report.path}: {report.messages:,} messages saved, {report.delayed:,} delayed "
                f"ones, {report.messages_lost:,}{perhaps} lost; {report.in_flight:,} in flight with their deliveries "
                f"counted; {report.dead_letters:,} dead letters and {report.requeued:,} requeued ones saved, "
                f"{report.letters_lost:,}{perhaps} lost; subscribers {names}; configuration {configuration}; "
                f"the damaged file is {report.damaged_file}")
