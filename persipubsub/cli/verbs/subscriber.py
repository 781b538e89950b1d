"""The verb ``subscriber``: add, remove and list the subscribers of a queue."""

from typing import Any, Dict, Iterator

import click

from persipubsub.cli import output, subscriber_cells
from persipubsub.cli.command import Command, Group
from persipubsub.cli.formats import counted
from persipubsub.cli.opening import complete_subscriber, opened_control, read_status
from persipubsub.cli.positions import Position
from persipubsub.cli.quantities import COUNT, DURATION
from persipubsub.status import SubscriberStatus


@click.group(cls=Group, example="persipubsub subscriber list ./queue")
def subscriber() -> None:
    """Add, remove and list the subscribers of a queue."""


@subscriber.command(cls=Command,
                    example="persipubsub subscriber add ./queue workers --shared --lease 5m",
                    short_help="Add a subscriber, or change one.")
@click.argument("path", type=click.Path())
@click.argument("name")
@click.option(
    "--start",
    metavar="POSITION",
    type=Position("latest", "earliest"),
    help="Where a new subscriber begins: latest, which is the default; earliest, for all stored messages; or a "
    "time with a timezone, such as 2026-01-31T12:00:00Z, for those sent from then on.")
@click.option("--shared/--not-shared", default=None, help="Whether workers share its messages.")
@click.option("--lease",
              "--lease-s",
              "lease_s",
              metavar="DURATION",
              type=DURATION,
              help="Time after which a shared message is delivered to another worker.")
@click.option("--max-deliveries", metavar="N", type=COUNT, help="Deliveries before a message becomes a dead letter.")
@click.option("--retry-delay",
              "--retry-delay-s",
              "retry_delay_s",
              metavar="DURATION",
              type=DURATION,
              help="Time before a shared message that was given back is retried.")
@click.option("--retry-delay-max",
              "--retry-delay-max-s",
              "retry_delay_max_s",
              metavar="DURATION",
              type=DURATION,
              help="The longest such time; it doubles with each retry.")
@click.option("--dead-letters-max", metavar="N", type=COUNT, help="How many dead letters it keeps.")
def add(path: str, name: str, start: Any, **settings: Any) -> None:
    """Add the subscriber NAME to the queue in the directory PATH, or set the options of an existing one.

    A DURATION is a number of seconds, or has a unit: 30s, 15m, 12h, 7d.
    """
    with opened_control(path) as control:
        if start is not None and name in control.status().subscribers:
            output.line(
                f"Note: the subscriber {name!r} exists already, so it stays where it is. To move it back: persipubsub "
                "rewind",
                err=True)
        control.add_subscriber(name, "latest" if start is None else start, **settings)


@subscriber.command(cls=Command,
                    example="persipubsub subscriber remove ./queue audit",
                    short_help="Remove a subscriber.")
@click.argument("path", type=click.Path())
@click.argument("name", shell_complete=complete_subscriber)
@click.option("--yes", is_flag=True, help="Do not ask, even if there are pending messages or dead letters.")
def remove(path: str, name: str, yes: bool) -> None:
    """Remove the subscriber NAME, its dead letters, and the messages that no other subscriber awaits."""
    with opened_control(path) as control:
        found = control.status().subscribers.get(name)
        if found is not None and not yes and (what := _deleted_with(found)):
            output.confirm(f"Remove the subscriber {name!r}, which has {what}?")
        control.remove_subscriber(name)


def _deleted_with(one: SubscriberStatus) -> str:
    """Return what a subscriber has that may be deleted with it; empty if nothing."""
    pending = f"{counted(one.pending, 'message')} pending" if one.pending else ""
    dead = counted(one.dead_letters, "dead letter") if one.dead_letters else ""
    return " and ".join(filter(None, (pending, dead)))


@subscriber.command("list",
                    cls=Command,
                    example="persipubsub subscriber list ./queue",
                    short_help="Write the subscribers.")
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write a JSON array with an object for each subscriber.")
def list_(path: str, as_json: bool) -> None:
    """Write the subscribers, one per line: name, kind and settings.

    The kind is plain, shared by workers, or limited in its deliveries.
    """
    found = dict(sorted(read_status(path).subscribers.items()))
    if as_json:
        output.json_text([_as_json(name, one) for name, one in found.items()])
    else:
        output.lines(_as_lines(found))


def _as_json(name: str, one: SubscriberStatus) -> Dict[str, Any]:
    return {
        "identifier": name,
        "kind": subscriber_cells.kind(one),
        "policy": None if one.policy is None else one.policy.settings()
    }


def _as_lines(found: Dict[str, SubscriberStatus]) -> Iterator[str]:
    width = max((len(output.shown(name)) for name in found), default=0)
    for name, one in found.items():
        settings = {} if one.policy is None else one.policy.settings()
        described = ", ".join(f"{what} {value}" for what, value in settings.items() if what != "shared")
        yield f"{output.shown(name):<{width}}  {subscriber_cells.kind(one):<7}  {described}".rstrip()
