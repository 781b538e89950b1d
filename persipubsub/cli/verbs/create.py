"""The verb ``create``: set up a queue."""

from typing import Tuple

import click

from persipubsub import environment
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.status import QueueStatus

#: The maximum number of subscribers to name; a line with a thousand names says less than their number.
NAMES_MAX = 20


@click.command(cls=Command, example="persipubsub create ./queue --subscriber a --subscriber b")
@click.argument("path", type=click.Path())
@click.option("--subscriber", "subscribers", metavar="NAME", multiple=True, help="Add a subscriber; may be repeated.")
def create(path: str, subscribers: Tuple[str, ...]) -> None:
    """Set up a queue in the directory PATH.

    If the queue exists, the missing subscribers are added and everything else stays as it is.
    """
    with environment.new_environment(path) as queue:
        output.line(_described(queue.new_control(subscribers).status()))


def _described(status: QueueStatus) -> str:
    """Describe the queue in one line."""
    # As Python literals: a name may contain a line break or a comma.
    names = [repr(name) for name in sorted(status.subscribers)]
    if len(names) > NAMES_MAX:
        names[NAMES_MAX:] = [f"and {len(names) - NAMES_MAX} more"]
    mark = status.high_watermark
    return (f"{status.path}: {len(status.subscribers)} subscribers ({', '.join(names) or 'none'}), "
            f"{status.messages:,} messages, high-water mark {mark.max_messages:,} messages, "
            f"{mark.hwm_db_size:,} bytes, {mark.message_timeout:,} s")
