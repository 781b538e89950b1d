"""The verb ``set``: change the settings of a queue."""

import os
import pathlib
import stat
from typing import Any, Dict

import click

from persipubsub import environment
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.quantities import NONE
from persipubsub.cli.queue_options import given_settings, queue_options
from persipubsub.status import QueueStatus


@click.command(cls=Command,
               example="persipubsub set ./queue --max-messages 100000 --strategy refuse",
               short_help="Change the settings of a queue.")
@click.argument("path", type=click.Path())
@queue_options
def set(path: str, **settings: Any) -> None:  # pylint: disable=redefined-builtin  # the verb
    """Change the settings of the queue in the directory PATH, and print each change.

    Settings that are not given stay. All changes are made together, and apply to all processes at once. Unless the
    strategy is refuse, the next send deletes what exceeds a lower limit. A DURATION is a number of seconds, or has a
    unit: 30s, 15m, 12h, 7d. A SIZE is a number of bytes, or has a unit: 64KiB, 2GiB, 10MB.
    """
    # Before the queue is opened, so that invalid limits are refused first.
    given = given_settings(**settings)
    if not given:
        raise click.UsageError("There is nothing to set. Use at least one option.")
    with environment.new_environment(path) as env:
        control = env.new_control(create=False)
        before = _settings(control.status())
        env.new_control(create=False, **given)
        after = _settings(control.status())
    changes = [f"{name} {value} -> {after[name]}" for name, value in before.items() if value != after[name]]
    output.lines(changes or ["Nothing to change."])


def _settings(status: QueueStatus) -> Dict[str, str]:
    """Return the settings by their names in a config, as a user writes them."""
    settings: Dict[str, object] = {
        **status.high_watermark.limits(),
        "strategy": status.strategy.name,
        "durability": status.durability.name.lower(),
        "retention_s": status.retention_s,
        "deduplication_window_s": status.deduplication_window_s,
        "deduplication_max": status.deduplication_max,
        "message_type": status.message_type,
        "mode": None if isinstance(status.path, str) else f"{_mode(status.path):04o}",
    }
    return {name: NONE if value is None else str(value) for name, value in settings.items()}


def _mode(directory: pathlib.Path) -> int:
    return stat.S_IMODE(os.stat(directory / "data.mdb").st_mode)
