"""The verb ``set``: change the settings of a queue."""

from typing import Dict, List, Optional, Union

import click

from persipubsub import environment
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.queue import Durability, HighWaterMark, Strategy
from persipubsub.status import QueueStatus


@click.command(cls=Command, example="persipubsub set ./queue --max-messages 100000")
@click.argument("path", type=click.Path())
@click.option("--message-timeout",
              metavar="S",
              type=float,
              help="Seconds after which an unacknowledged message expires.")
@click.option("--max-messages", metavar="N", type=int, help="Number of messages at which the queue overflows.")
@click.option("--hwm-db-size", metavar="BYTES", type=int, help="Bytes at which the queue overflows.")
@click.option("--strategy", type=click.Choice([strategy.name for strategy in Strategy]), help="Which are deleted then.")
@click.option("--durability",
              type=click.Choice([durability.name.lower() for durability in Durability]),
              help="What a sent message survives.")
# pylint: disable-next=redefined-builtin,too-many-arguments,too-many-positional-arguments  # the verb; one per option
def set(path: str, message_timeout: Optional[float], max_messages: Optional[int], hwm_db_size: Optional[int],
        strategy: Optional[str], durability: Optional[str]) -> None:
    """Change the settings of the queue in the directory PATH, and print each change.

    Settings that are not given stay. Changes apply to all processes at once; the next send deletes what exceeds them.
    """
    if all(value is None for value in (message_timeout, max_messages, hwm_db_size, strategy, durability)):
        raise click.UsageError("There is nothing to set. Use at least one option.")
    limits = {"message_timeout": message_timeout, "max_messages": max_messages, "hwm_db_size": hwm_db_size}
    given = {name: value for name, value in limits.items() if value is not None}
    # Before the queue is opened, so that invalid limits are refused first.
    HighWaterMark(message_timeout, max_messages, hwm_db_size)
    with environment.new_environment(path) as env:
        control = env.new_control(create=False)
        before = control.status()
        if given:
            control.set_hwm(message_timeout=message_timeout, max_messages=max_messages, hwm_db_size=hwm_db_size)
        env.new_control(strategy=None if strategy is None else Strategy[strategy],
                        durability=None if durability is None else Durability[durability.upper()],
                        create=False)
        changes = _changes(before, control.status())
    output.lines(changes or ["Nothing to change."])


def _changes(before: QueueStatus, after: QueueStatus) -> List[str]:
    then, now = _settings(before), _settings(after)
    return [f"{name} {value!r} -> {now[name]!r}" for name, value in then.items() if value != now[name]]


def _settings(status: QueueStatus) -> Dict[str, Union[float, str]]:
    """Return the settings as `persipubsub describe` writes them."""
    mark = status.high_watermark
    return {
        "message_timeout": mark.message_timeout,
        "max_messages": mark.max_messages,
        "hwm_db_size": mark.hwm_db_size,
        "strategy": status.strategy.name,
        "durability": status.durability.name.lower(),
    }
