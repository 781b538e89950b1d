"""The verb ``compact``: make the file of a queue smaller."""

import click

from persipubsub import compaction
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub compact ./queue")
@click.argument("path", type=click.Path())
def compact(path: str) -> None:
    """Make the file of the queue in the directory PATH as small as what is in it.

    It never shrinks by itself: what messages leave free is used again. Nobody may have the queue open, and the disk
    needs room for a second file meanwhile. Every page is verified first: a damaged queue is refused.

    The exit status is 0 if it was done, and 1 if not: then the queue is as before.
    """
    with progress_bar("compact"):
        before, after = compaction.compact(path)
    output.line(f"{path}: {before:,} bytes before, {after:,} now")
