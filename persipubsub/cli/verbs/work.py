"""The verb ``work``: handle the messages of a subscriber."""

import os
import sys
from typing import Optional

import click

from persipubsub import worker
from persipubsub.cli import warnings_shown
from persipubsub.cli.command import Command
from persipubsub.cli.opening import complete_subscriber
from persipubsub.cli.quantities import DURATION


@click.command(cls=Command,
               example="persipubsub work ./queue resizers pictures:resize --processes 4",
               short_help="Call a function with each message of a subscriber.")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.argument("handler", metavar="MODULE:FUNCTION")
@click.option("--processes", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--threads",
              metavar="N",
              type=click.IntRange(1),
              default=1,
              show_default=True,
              help="Messages that each process handles at a time: in threads, or in tasks if FUNCTION is async.")
@click.option("--message-type",
              metavar="MODULE:TYPE",
              help="The type of the messages, such as shop:Order, or builtins:dict for JSON. By default, bytes.")
@click.option("--grace",
              "grace_s",
              metavar="S",
              type=DURATION,
              default=30,
              show_default=True,
              help="Seconds that running functions have to finish at a stop.")
@click.option("--max-messages", metavar="N", type=click.IntRange(1), help="Replace a process after N messages.")
@click.option("--max-seconds", metavar="S", type=DURATION, help="Replace a process after S seconds.")
def work(path: str, subscriber: str, handler: str, processes: int, threads: int, message_type: Optional[str],
         grace_s: float, max_messages: Optional[int], max_seconds: Optional[float]) -> None:
    """Call FUNCTION with each message of a subscriber.

    A message is acknowledged when FUNCTION returns. While it works, the lease of its message is extended. If it raises
    an exception, the message is delivered again. If its parameter is annotated with Delivery, it gets the id, the time
    and the headers, too.

    SIGTERM or Ctrl-C stops it: functions that run can finish, no more messages are received, and the exit status is 0.
    A second signal ends it at once. More than one process or thread needs a shared subscriber.
    """
    sys.path.insert(0, os.getcwd())  # where the module is, as for python -m
    warnings_shown.leave_to_python()
    worker.run(path,
               subscriber,
               handler,
               message_type=message_type,
               processes=processes,
               threads=threads,
               grace_s=grace_s,
               max_messages=max_messages,
               max_seconds=max_seconds)
