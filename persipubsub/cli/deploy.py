"""The verb ``deploy``: set up queues from a config."""

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command, example="persipubsub deploy queues.json --plan")
@click.argument("config", type=click.Path())
@click.option("--plan", is_flag=True, help="Tell what would change, and change nothing.")
@click.option("--remove-subscribers",
              is_flag=True,
              help="Remove subscribers that are not in a queue's list, with what only they await.")
def deploy(config: str, plan: bool, remove_subscribers: bool) -> None:
    """Make the queues of the file CONFIG what it says, and print each change.

    What is missing is made, what differs is changed, what is right stays. Everything is checked before anything is
    changed. `persipubsub schema` tells what a config may have.

    Exit status: 0 if all is as CONFIG says, or could be with --plan; 1 if the config is wrong or a queue cannot be
    used; 2 for a mistake of usage.
    """
    changes = (deployment.plan if plan else deployment.deploy)(config, remove_subscribers)
    for change in changes:
        output.line(str(change))
    if not changes:
        output.line("Nothing to change.")
