"""The verb ``deploy``: set up queues from a config."""

import sys

import click

from persipubsub import deployment
from persipubsub.cli import output
from persipubsub.cli.command import Command


@click.command(cls=Command,
               example="persipubsub deploy queues.json --plan",
               short_help="Bring queues to the state of a config.")
@click.argument("config", type=click.Path(allow_dash=True))
@click.option("--plan", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--remove-subscribers",
              is_flag=True,
              help="Remove subscribers that are not in a queue's list, and the messages that only they await.")
def deploy(config: str, plan: bool, remove_subscribers: bool) -> None:
    """Bring the queues to the state of the file CONFIG, and print each change.

    If CONFIG is -, it is read from standard input, and relative paths are relative to the current directory. Missing
    queues and subscribers are created, and settings that differ are changed. Everything is checked before anything is
    changed. `persipubsub schema` prints the form of a config.

    The exit status is 0 if the queues match CONFIG, or could with --plan, and 1 if CONFIG is wrong or a queue cannot be
    used.
    """
    path, text = ("standard input", _standard_input()) if config == "-" else (config, None)
    changes = (deployment.plan if plan else deployment.deploy)(path, remove_subscribers, text)
    for change in changes:
        output.line(str(change))
    if not changes:
        output.line("Nothing to change.")


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise click.ClickException("Standard input is closed. Name a file with the config.")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise click.FileError("standard input", error.strerror) from error
