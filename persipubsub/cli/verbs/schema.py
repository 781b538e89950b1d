"""The verb ``schema``: print the form of a config."""

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command,
               example="persipubsub schema > persipubsub.schema.json",
               short_help="Print the JSON Schema of a config.")
def schema() -> None:
    """Print the JSON Schema of the configs that `persipubsub deploy` accepts."""
    output.lines(deployment.schema().splitlines())
