"""The verb ``clear``: delete all messages of a queue."""

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.opening import opened_control


@click.command(cls=Command, example="persipubsub clear ./queue --yes", short_help="Delete all messages of a queue.")
@click.argument("path", type=click.Path())
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(path: str, yes: bool) -> None:
    """Delete all messages of the queue in the directory PATH, including pending ones; subscribers stay."""
    with opened_control(path) as control:
        if not yes:
            messages = control.status().messages
            output.confirm(f"Delete all {messages:,} messages of {path}?")
        output.line(f"{control.clear_messages():,} messages deleted")
