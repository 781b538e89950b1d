"""The verb ``receive``: write the messages of a subscriber to standard output."""

import os
import sys
from typing import List, Optional, Tuple

import click

from persipubsub import clock, environment
from persipubsub.cli import formats
from persipubsub.cli.command import Command
from persipubsub.cli.formats import FORMATS, PROTOBUF_JSON, Format, protobuf_json
from persipubsub.cli.message_output import Messages
from persipubsub.cli.opening import complete_subscriber
from persipubsub.cli.waiting import Seconds
from persipubsub.environment import Environment
from persipubsub.subscriber import Subscriber

#: So many messages are taken in one commit, after they are written to a file or a pipe.
BATCH_MESSAGES_MAX = 1000
BATCH_BYTES_MAX = 1024**2
#: How often a wait looks whether somebody still reads the output.
#: A peek that waits looks this often.
PEEK_EVERY_S = 0.05
LOOK_S = 1.0


@click.command(cls=Command, example="persipubsub receive ./queue audit --follow")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.option("--follow", is_flag=True, help="Wait for further messages.")
@click.option("--max", "max_messages", metavar="N", type=click.IntRange(1), help="End after N messages.")
@click.option("--peek", is_flag=True, help="Show the next message, or the next N with --max, and take none.")
@click.option("--timeout",
              metavar="S",
              type=Seconds(0),
              help="End when no message came for S seconds. Otherwise the end is where nothing is pending; with "
              "--follow there is none.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([*FORMATS, PROTOBUF_JSON]),
    default="lines",
    show_default=True,
    help="lines: each message and a line feed, on a terminal with its control characters escaped; raw: the bytes as "
    "they are; json: a line with an object that has the text of the message or, where it is not UTF-8, its base64; "
    "hex: a line of digits; protobuf-json: a line of JSON, where the queue is bound to a message type.")
@click.option("--import",
              "modules",
              metavar="MODULE",
              multiple=True,
              help="For protobuf-json: import the module that protoc generated for the message type, such as shop_pb2.")
# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
def receive(path: str, subscriber: str, follow: bool, max_messages: Optional[int], peek: bool, timeout: Optional[float],
            format_name: str, modules: Tuple[str, ...]) -> None:
    """Write the messages that SUBSCRIBER has not taken from the queue in the directory PATH to standard output.

    A message is taken once it is written. What is not written at Ctrl-C, on a full disk, or when the reader of a pipe
    is gone, stays as if it had not been handed out.
    """
    if peek and follow:
        raise click.UsageError("--peek looks once, so it does not go with --follow.")
    out = Messages()
    if timeout is None and not follow:
        timeout = 0
    with environment.new_environment(path) as env, env.new_subscriber(subscriber) as opened:
        formatted = _format(env, format_name, modules)
        if peek:
            out.write(list(map(formatted, _peek(env, subscriber, max_messages or 1, timeout or 0))))
            return
        # On a terminal one by one, so that what Ctrl-C leaves there is what the user has not seen. And one that is no
        # protobuf message is to keep back none before it.
        batch = 1 if sys.stdout.isatty() or format_name == PROTOBUF_JSON else BATCH_MESSAGES_MAX
        _drain(opened, max_messages, timeout, formatted, out, batch)


def _format(env: Environment, name: str, modules: Tuple[str, ...]) -> Format:
    if name == PROTOBUF_JSON:
        return _protobuf_json(env, modules)
    # On a terminal a message must not do what it likes; the format raw gives its bytes all the same.
    return formats.shown_lines if name == "lines" and sys.stdout.isatty() else FORMATS[name]


def _protobuf_json(env: Environment, modules: Tuple[str, ...]) -> Format:
    message_type = env.new_control(create=False).status().message_type
    if message_type is None:
        raise click.ClickException(f"The queue at {env.path} is bound to no message type, so its messages cannot be "
                                   "written as protobuf-json. Bind it with message_type in its config, or use another "
                                   "format.")
    sys.path.insert(0, os.getcwd())  # where the module lies, as for python -m
    return protobuf_json(str(env.path), message_type, modules)


def _peek(env: Environment, identifier: str, max_messages: int, timeout: float) -> List[bytes]:
    """Look at the next messages, waiting for the first; nothing is handed out, so nothing counts."""
    deadline = clock.monotonic_s() + timeout
    control = env.new_control(create=False)
    while True:
        found = control.peek(identifier, max_messages)
        left_s = deadline - clock.monotonic_s()
        if found or left_s <= 0:
            return found
        clock.sleep(min(PEEK_EVERY_S, left_s))


def _drain(subscriber: Subscriber, left: Optional[int], timeout: Optional[float], formatted: Format, out: Messages,
           batch: int) -> None:
    quiet_since_s = clock.monotonic_s()
    while left is None or left > 0:
        out.require_reader()
        wait_s = LOOK_S if timeout is None else min(LOOK_S, max(0, quiet_since_s + timeout - clock.monotonic_s()))
        max_messages = batch if left is None else min(batch, left)
        receipt = subscriber.receive_many(max_messages, wait_s, max_bytes=BATCH_BYTES_MAX)
        with receipt as messages:
            written = list(map(formatted, messages))
            try:
                out.write(written)
            except BaseException:
                # The messages are not to blame: what is written is taken, and the rest does not count as handed out.
                receipt.give_back(out.written)
                raise
        if messages:
            quiet_since_s = clock.monotonic_s()
            left = None if left is None else left - len(messages)
        elif wait_s < LOOK_S:
            return
