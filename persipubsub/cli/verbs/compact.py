"""The verb ``compact``: make the file of a queue smaller."""

import click

from persipubsub import compaction
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub compact ./queue", short_help="Shrink the file of a queue.")
@click.argument("path", type=click.Path())
def compact(path: str) -> None:
    """Shrink the file of the queue in the directory PATH to its contents.

    The file never shrinks by itself: free space is reused. No process may have the queue open, and the disk needs space
    for a second file meanwhile. Every page is verified first; a damaged queue is refused.

    The exit status is 0 if the file was compacted, and 1 if not; then the queue is unchanged.
    """
    with progress_bar("compact"):
        before, after = compaction.compact(path)
    output.line(f"{path}: {before:,} bytes before, {after:,} now")
