"""The verb ``subscriber``: add, remove and list the subscribers of a queue."""

from typing import Optional

import click

from persipubsub.cli import Command
from persipubsub.cli.opening import complete_subscriber, opened_control, read_status


class _Group(Command, click.Group):
    """A group whose ``--help`` begins with an example."""


@click.group(cls=_Group, example="persipubsub subscriber list ./queue")
def subscriber() -> None:
    """Add, remove and list the subscribers of a queue."""


@subscriber.command(cls=Command, example="persipubsub subscriber add ./queue audit")
@click.argument("path", type=click.Path())
@click.argument("name")
@click.option("--shared/--not-shared", default=None, help="Whether workers share its messages.")
@click.option("--lease-s", type=float, help="Seconds after which a shared message goes to another worker.")
@click.option("--max-deliveries", type=int, help="How often a message is handed out before it is a dead letter.")
def add(path: str, name: str, shared: Optional[bool], lease_s: Optional[float], max_deliveries: Optional[int]) -> None:
    """Add the subscriber NAME, which gets what is sent from then on. Of one that exists, the options are set."""
    with opened_control(path) as control:
        control.add_subscriber(name, shared=shared, lease_s=lease_s, max_deliveries=max_deliveries)


@subscriber.command(cls=Command, example="persipubsub subscriber remove ./queue audit")
@click.argument("path", type=click.Path())
@click.argument("name", shell_complete=complete_subscriber)
def remove(path: str, name: str) -> None:
    """Remove the subscriber NAME. The messages that nobody else awaits are deleted."""
    with opened_control(path) as control:
        control.remove_subscriber(name)


@subscriber.command("list", cls=Command, example="persipubsub subscriber list ./queue")
@click.argument("path", type=click.Path())
def list_(path: str) -> None:
    """Write the names of the subscribers, one a line."""
    for name in sorted(read_status(path).subscribers):
        click.echo(name)
