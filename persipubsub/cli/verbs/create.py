"""The verb ``create``: set up a queue."""

from typing import Any, Tuple

import click

from persipubsub import environment
from persipubsub.cli import output, status_text
from persipubsub.cli.command import Command
from persipubsub.cli.formats import counted
from persipubsub.cli.queue_options import given_settings, queue_options
from persipubsub.status import QueueStatus

#: The maximum number of subscribers to name; a line with a thousand names says less than their number.
NAMES_MAX = 20


@click.command(cls=Command,
               example="persipubsub create ./queue --subscriber a --max-messages 10000",
               short_help="Set up a queue.")
@click.argument("path", type=click.Path())
@click.option("--subscriber", "subscribers", metavar="NAME", multiple=True, help="Add a subscriber; may be repeated.")
@click.option("--shared-subscriber",
              "shared",
              metavar="NAME",
              multiple=True,
              help="Add a subscriber that workers share, so that one of them receives each message; may be repeated.")
@queue_options
def create(path: str, subscribers: Tuple[str, ...], shared: Tuple[str, ...], **settings: Any) -> None:
    """Set up a queue in the directory PATH.

    If the queue exists, the given settings are changed, the missing subscribers are added, and everything else stays
    as it is. A new queue has no limits. A DURATION is a number of seconds, or has a unit: 30s, 15m, 12h, 7d. A SIZE is
    a number of bytes, or has a unit: 64KiB, 2GiB, 10MB.
    """
    for name in set(subscribers) & set(shared):
        raise click.UsageError(f"{name!r} is either a --subscriber or a --shared-subscriber.")
    with environment.new_environment(path) as queue:
        control = queue.new_control(subscribers, **given_settings(**settings))
        for name in shared:
            control.add_subscriber(name, shared=True)
        output.line(_described(control.status()))


def _described(status: QueueStatus) -> str:
    """Describe the queue in one line."""
    # As Python literals: a name may contain a line break or a comma.
    names = [repr(name) for name in sorted(status.subscribers)]
    if len(names) > NAMES_MAX:
        names[NAMES_MAX:] = [f"and {len(names) - NAMES_MAX} more"]
    described = (f"{status.path}: {counted(len(status.subscribers), 'subscriber')} ({', '.join(names) or 'none'}), "
                 f"{counted(status.messages, 'message')}")
    limits = [f"{name} {value:,}" for name, value in status.high_watermark.limits().items() if value is not None]
    if limits:
        described += f", limits: {', '.join(limits)}"
    return f"{described}, when full: {status.strategy.name}" if status_text.can_be_full(status) else described
