"""The verb ``prune``: delete messages that have expired or that no subscriber awaits."""

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.opening import opened_control


@click.command(cls=Command,
               example="persipubsub prune ./queue",
               short_help="Delete messages that expired or that nobody awaits.")
@click.argument("path", type=click.Path())
def prune(path: str) -> None:
    """Delete the messages of the queue in the directory PATH that have expired or that no subscriber awaits."""
    with opened_control(path) as control:
        output.line(f"{control.prune_dangling_messages():,} messages deleted")
