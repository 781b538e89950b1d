"""The verb ``deploy``: set up queues from a config."""

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command, example="persipubsub deploy queues.json --plan")
@click.argument("config", type=click.Path())
@click.option("--plan", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--remove-subscribers",
              is_flag=True,
              help="Remove subscribers that are not in a queue's list, and the messages that only they await.")
def deploy(config: str, plan: bool, remove_subscribers: bool) -> None:
    """Bring the queues to the state of the file CONFIG, and print each change.

    Missing queues and subscribers are created, and settings that differ are changed. Everything is checked before
    anything is changed. `persipubsub schema` prints the form of a config.

    Exit status: 0 if the queues match CONFIG, or could with --plan; 1 if the config is wrong or a queue cannot be used;
    2 for a usage error.
    """
    changes = (deployment.plan if plan else deployment.deploy)(config, remove_subscribers)
    for change in changes:
        output.line(str(change))
    if not changes:
        output.line("Nothing to change.")
