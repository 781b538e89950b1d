"""The verb ``backup``: copy a queue while it is in use."""

import os
import pathlib

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.opening import opened_control
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub backup ./queue ./copy", short_help="Copy a queue while it is in use.")
@click.argument("path", type=click.Path())
@click.argument("target", type=click.Path())
def backup(path: str, target: str) -> None:
    """Write a compact, consistent copy of the queue in the directory PATH into the directory TARGET.

    The queue may be in use meanwhile. TARGET must be empty, or is created; it becomes a queue.

    The exit status is 0 if the copy is on disk, and 1 if not.
    """
    directory = pathlib.Path(os.path.abspath(target))
    with progress_bar("back up"), opened_control(path) as control:
        control.backup(target)
    output.line(f"{directory}: {os.stat(directory / 'data.mdb').st_size:,} bytes")
