"""The verb ``set``: change the settings of a queue."""

import os
import pathlib
from typing import Dict, List, Optional, Union

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.engine.values import Configuration
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records.layouts import Header
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import settings
from persipubsub.lmdb_engine.rules.settings import stored_high_watermark
from persipubsub.queue import Durability, HighWaterMark, Strategy


@click.command(cls=Command, example="persipubsub set ./queue --max-messages 100000")
@click.argument("path", type=click.Path())
@click.option("--message-timeout",
              metavar="S",
              type=float,
              help="Seconds after which a message that was not taken goes.")
@click.option("--max-messages", metavar="N", type=int, help="Number of messages at which the queue overflows.")
@click.option("--hwm-db-size", metavar="BYTES", type=int, help="Bytes at which the queue overflows.")
@click.option("--strategy", type=click.Choice([strategy.name for strategy in Strategy]), help="Which messages go then.")
@click.option("--durability",
              type=click.Choice([durability.name.lower() for durability in Durability]),
              help="What a sent message survives.")
# pylint: disable-next=redefined-builtin,too-many-arguments,too-many-positional-arguments  # the verb; one per option
def set(path: str, message_timeout: Optional[float], max_messages: Optional[int], hwm_db_size: Optional[int],
        strategy: Optional[str], durability: Optional[str]) -> None:
    """Change the settings of the queue in the directory PATH, and print each change.

    What is not given stays. It holds at once for everybody, and from the next send on: what is over a mark goes then.
    """
    if all(value is None for value in (message_timeout, max_messages, hwm_db_size, strategy, durability)):
        raise click.UsageError("There is nothing to set. Give at least one option.")
    # Before the queue is opened: what is impossible is refused here.
    given = HighWaterMark(message_timeout, max_messages, hwm_db_size)

    def change(txn: Transaction) -> List[str]:
        """Read and write in one transaction, so that what somebody else sets at this moment is not lost."""
        before = txn.header
        stored = stored_high_watermark(before)
        mark = HighWaterMark(stored.message_timeout if message_timeout is None else given.message_timeout,
                             stored.max_messages if max_messages is None else given.max_messages,
                             stored.hwm_db_size if hwm_db_size is None else given.hwm_db_size)
        wanted = Configuration(mark, None if strategy is None else Strategy[strategy],
                               None if durability is None else Durability[durability.upper()])
        txn.put_header(settings.applied(wanted, before))
        return _changes(before, txn.header)

    with open_queues.LmdbAccess(pathlib.Path(os.path.abspath(path))) as opened:
        changes = opened.change(change)
    output.lines(changes or ["Nothing to change."])


def _changes(before: Header, after: Header) -> List[str]:
    then, now = _settings(before), _settings(after)
    return [f"{name} {value!r} -> {now[name]!r}" for name, value in then.items() if value != now[name]]


def _settings(header: Header) -> Dict[str, Union[float, str]]:
    """Give the settings as `persipubsub describe` writes them."""
    mark = stored_high_watermark(header)
    return {
        "message_timeout": mark.message_timeout,
        "max_messages": mark.max_messages,
        "hwm_db_size": mark.hwm_db_size,
        "strategy": Strategy(header.strategy).name,
        "durability": Durability(header.durability).name.lower(),
    }
