"""The verb ``subscriber``: add, remove and list the subscribers of a queue."""

from typing import Any

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command, Group
from persipubsub.cli.formats import counted
from persipubsub.cli.opening import complete_subscriber, opened_control, read_status


@click.group(cls=Group, example="persipubsub subscriber list ./queue")
def subscriber() -> None:
    """Add, remove and list the subscribers of a queue."""


@subscriber.command(cls=Command, example="persipubsub subscriber add ./queue audit")
@click.argument("path", type=click.Path())
@click.argument("name")
@click.option("--shared/--not-shared", default=None, help="Whether workers share its messages.")
@click.option("--lease-s", type=float, help="Seconds after which a shared message is delivered to another worker.")
@click.option("--max-deliveries", type=int, help="Deliveries before a message becomes a dead letter.")
@click.option("--retry-delay-s", type=float, help="Seconds before a shared message that was given back is retried.")
@click.option("--retry-delay-max-s", type=float, help="The longest such delay; it doubles each time.")
@click.option("--dead-letters-max", type=int, help="How many dead letters it keeps.")
def add(path: str, name: str, **settings: Any) -> None:
    """Add the subscriber NAME, which receives messages sent from then on; or set the options of an existing one."""
    with opened_control(path) as control:
        control.add_subscriber(name, **settings)


@subscriber.command(cls=Command, example="persipubsub subscriber remove ./queue audit")
@click.argument("path", type=click.Path())
@click.argument("name", shell_complete=complete_subscriber)
@click.option("--yes", is_flag=True, help="Do not ask, even if there are dead letters.")
def remove(path: str, name: str, yes: bool) -> None:
    """Remove the subscriber NAME, its dead letters, and the messages that no other subscriber awaits."""
    with opened_control(path) as control:
        found = control.status().subscribers.get(name)
        if found is not None and found.dead_letters and not yes:
            letters = counted(found.dead_letters, "dead letter")
            output.confirm(f"Remove the subscriber {name!r}, and delete its {letters}?")
        control.remove_subscriber(name)


@subscriber.command("list", cls=Command, example="persipubsub subscriber list ./queue")
@click.argument("path", type=click.Path())
def list_(path: str) -> None:
    """Write the names of the subscribers, one per line."""
    output.lines(sorted(read_status(path).subscribers))
