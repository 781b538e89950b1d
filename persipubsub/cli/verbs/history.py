"""The verb ``history``: write the stored messages of a queue to standard output."""

from typing import Any

import click

from persipubsub.cli.command import Command
from persipubsub.cli.format_options import chosen_format, format_options
from persipubsub.cli.message_output import Messages
from persipubsub.cli.opening import opened_control
from persipubsub.cli.positions import Position

POSITION = Position(ids=True)


@click.command(cls=Command,
               example="persipubsub history ./queue --from 2026-01-31T12:00:00Z --format json",
               short_help="Write the stored messages of a queue.")
@click.argument("path", type=click.Path())
@click.option("--from", "start", metavar="ID|TIME", type=POSITION, help="Begin with this message, or at this time.")
@click.option("--to", "end", metavar="ID|TIME", type=POSITION, help="End before this message, or before this time.")
@format_options
def history(path: str, start: Any, end: Any, **how: Any) -> None:
    """Write the messages that the queue in the directory PATH stores to standard output; none is acknowledged.

    Messages are stored until all subscribers have acknowledged them, and for the retention of the queue. A TIME has a
    timezone, such as 2026-01-31T12:00:00Z. With the format json, each line also has the id and the time of the message.
    """
    out = Messages()
    with opened_control(path) as control:
        written = chosen_format(control, **how)
        for message in control.history(start, end):
            out.write(
                [written(message.payload, message.headers, {
                    "id": message.id,
                    "sent_at": message.time.isoformat()
                })])
