"""The verb ``rewind``: move a subscriber back, so that it receives messages again."""

from typing import Any

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.formats import counted
from persipubsub.cli.opening import complete_subscriber, opened_control
from persipubsub.cli.positions import Position


@click.command(cls=Command,
               example="persipubsub rewind ./queue audit 2026-01-31T12:00:00Z",
               short_help="Move a subscriber back, to receive messages again.")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.argument("to", type=Position("earliest", ids=True))
def rewind(path: str, subscriber: str, to: Any) -> None:
    """Move SUBSCRIBER of the queue in the directory PATH back, so that it receives stored messages again.

    TO is a message id; a time with a timezone, such as 2026-01-31T12:00:00Z; or the word earliest. Messages are stored
    until all subscribers have acknowledged them, and for the retention of the queue. The subscriber never moves
    forward. `persipubsub history` shows the messages and their ids.
    """
    with opened_control(path) as control:
        pending = control.rewind(subscriber, to)
    output.line(f"{counted(pending, 'message')} pending for {subscriber!r}")
