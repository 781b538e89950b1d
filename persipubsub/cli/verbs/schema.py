"""The verb ``schema``: print the form of a config."""

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command, example="persipubsub schema > persipubsub.schema.json")
def schema() -> None:
    """Print the JSON Schema of the configs that `persipubsub deploy` accepts.

    Exit status: 0; 2 for a usage error.
    """
    output.lines(deployment.schema().splitlines())
