"""The options of ``create`` and ``set``: one for each setting of a queue."""

import re
from typing import Any, Callable, Dict, TypeVar

import click

from persipubsub.cli.quantities import COUNT, COUNT_LIMIT, DURATION, DURATION_LIMIT, SIZE_LIMIT, Quantity
from persipubsub.queue import UNCHANGED, Durability, HighWaterMark, Strategy

F = TypeVar("F", bound=Callable[..., Any])

DURABILITIES = {durability.name.lower(): durability for durability in Durability}


def _mode(text: str) -> int:
    if not re.fullmatch("(0o?)?[0-7]{3}", text):
        raise ValueError(f"{text!r:.40} is not a mode: write octal digits such as 0660.")
    return int(text, 8)


def _limit(name: str, kind: Quantity, metavar: str, text: str) -> Callable[[F], F]:
    return click.option(name, metavar=metavar, type=kind, default=UNCHANGED, help=f"{text}; none for no limit.")


_OPTIONS = (
    _limit("--message-timeout", DURATION_LIMIT, "DURATION",
           "Age at which a message expires that is not acknowledged, such as 7d"),
    _limit("--max-messages", COUNT_LIMIT, "N", "Number of messages at which the queue is full"),
    _limit("--hwm-db-size", SIZE_LIMIT, "SIZE", "Size at which the queue is full, such as 2GiB"),
    click.option("--strategy",
                 type=click.Choice([strategy.name for strategy in Strategy]),
                 help="What a send does when the queue is full: delete the oldest messages, delete the latest, or "
                 "refuse the new one."),
    click.option("--durability", type=click.Choice(list(DURABILITIES)), help="What a sent message survives."),
    click.option("--retention",
                 "retention_s",
                 metavar="DURATION",
                 type=DURATION,
                 help="How long messages are kept that all subscribers have acknowledged; 0 deletes them at once."),
    click.option("--deduplication-window",
                 "deduplication_window_s",
                 metavar="DURATION",
                 type=DURATION,
                 help="How long a deduplication id is remembered."),
    click.option("--deduplication-max", metavar="N", type=COUNT, help="How many deduplication ids are remembered."),
    click.option("--message-type",
                 metavar="NAME",
                 help="Full name of the type of all messages, such as shop.Order; other types are then refused."),
    click.option("--mode",
                 metavar="MODE",
                 type=Quantity("mode", _mode),
                 help="Permissions of the files in octal digits, such as 0660."),
)


def queue_options(command: F) -> F:
    """Add an option for each setting to a command, which takes them as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given_settings(message_timeout: Any, max_messages: Any, hwm_db_size: Any, **others: Any) -> Dict[str, Any]:
    """Return the arguments of ``Environment.new_control`` for the options that were given.

    :raise ArgumentError: a limit is outside its limits
    """
    mark = HighWaterMark(message_timeout, max_messages, hwm_db_size)
    given = {name: value for name, value in others.items() if value is not None}
    if "strategy" in given:
        given["strategy"] = Strategy[given["strategy"]]
    if "durability" in given:
        given["durability"] = DURABILITIES[given["durability"]]
    return {"high_watermark": mark, **given} if mark.given else given
