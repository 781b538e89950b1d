"""The verb ``backup``: copy a queue while it is in use."""

import os
import pathlib

import click

from persipubsub import files, handle
from persipubsub.cli import Command
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub backup ./queue ./copy")
@click.argument("path", type=click.Path())
@click.argument("target", type=click.Path())
def backup(path: str, target: str) -> None:
    """Write a compact, consistent copy of the queue in the directory PATH into the directory TARGET.

    Everything may go on meanwhile. TARGET must be empty, or is made; it becomes a queue.

    The exit status is 0 if the copy is on the disk, and 1 if not.
    """
    directory = pathlib.Path(os.path.abspath(target))
    with progress_bar("back up"):
        # Not through a Control, which begins with a write.
        opened = handle.acquire(pathlib.Path(os.path.abspath(path)))
        try:
            opened.backup(directory)
        finally:
            handle.release(opened)
    click.echo(f"{click.format_filename(directory)}: {(directory / files.DATA_FILE).stat().st_size:,} bytes")
