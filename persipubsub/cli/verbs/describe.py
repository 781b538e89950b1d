"""The verb ``describe``: print the config of a queue."""

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command,
               example="persipubsub describe ./queue > queue.json",
               short_help="Print the config of a queue.")
@click.argument("path", type=click.Path())
def describe(path: str) -> None:
    """Print the config of the queue in the directory PATH.

    `persipubsub deploy` with this config changes nothing.
    """
    output.lines(deployment.describe(path).splitlines())
