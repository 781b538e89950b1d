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

#: The most messages to acknowledge in one commit, after they are written to a file or a pipe.
BATCH_MESSAGES_MAX = 1000
BATCH_BYTES_MAX = 1024**2
#: Interval between the looks of a peek that waits.
PEEK_EVERY_S = 0.05
#: Interval between checks whether the output still has a reader.
LOOK_S = 1.0


@click.command(cls=Command, example="persipubsub receive ./queue audit --follow")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.option("--follow", is_flag=True, help="Wait for further messages.")
@click.option("--max", "max_messages", metavar="N", type=click.IntRange(1), help="End after N messages.")
@click.option("--peek", is_flag=True, help="Show the next message, or the next N with --max, without acknowledging it.")
@click.option("--timeout",
              metavar="S",
              type=Seconds(0),
              help="End when no message arrived for S seconds. The default is to end when nothing is pending; with "
              "--follow, never.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([*FORMATS, PROTOBUF_JSON]),
    default="lines",
    show_default=True,
    help="lines: each message and a line feed, with control characters escaped on a terminal; raw: the unchanged "
    "bytes; json: a line with an object that holds the text of the message or, if it is not UTF-8, its base64; "
    "hex: a line of digits; protobuf-json: a line of JSON, if the queue is bound to a message type.")
@click.option("--import",
              "modules",
              metavar="MODULE",
              multiple=True,
              help="For protobuf-json: import the module that protoc generated for the message type, such as shop_pb2.")
# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
def receive(path: str, subscriber: str, follow: bool, max_messages: Optional[int], peek: bool, timeout: Optional[float],
            format_name: str, modules: Tuple[str, ...]) -> None:
    """Write the messages that are pending for SUBSCRIBER in the queue in the directory PATH to standard output.

    A message is acknowledged once it is written. Messages that are not written because of Ctrl-C, a full disk or a
    closed pipe stay pending, as if they had not been delivered.
    """
    if peek and follow:
        raise click.UsageError("--peek looks once, so it cannot be combined with --follow.")
    out = Messages()
    if timeout is None and not follow:
        timeout = 0
    with environment.new_environment(path) as env, env.new_subscriber(subscriber) as opened:
        formatted = _format(env, format_name, modules)
        if peek:
            out.write(list(map(formatted, _peek(env, subscriber, max_messages or 1, timeout or 0))))
            return
        # On a terminal one by one, so that Ctrl-C leaves exactly the messages that the user has not seen. With protobuf
        # also one by one, so that a message that cannot be decoded does not hold back those before it.
        batch = 1 if sys.stdout.isatty() or format_name == PROTOBUF_JSON else BATCH_MESSAGES_MAX
        _drain(opened, max_messages, timeout, formatted, out, batch)


def _format(env: Environment, name: str, modules: Tuple[str, ...]) -> Format:
    if name == PROTOBUF_JSON:
        return _protobuf_json(env, modules)
    # A message must not control the terminal; the format raw writes its bytes unchanged.
    return formats.shown_lines if name == "lines" and sys.stdout.isatty() else FORMATS[name]


def _protobuf_json(env: Environment, modules: Tuple[str, ...]) -> Format:
    message_type = env.new_control(create=False).status().message_type
    if message_type is None:
        raise click.ClickException(f"The queue at {env.path} is not bound to a message type, so its messages cannot be "
                                   "written as protobuf-json. Bind it with message_type in its config, or use another "
                                   "format.")
    sys.path.insert(0, os.getcwd())  # where the module is, as for python -m
    return protobuf_json(str(env.path), message_type, modules)


def _peek(env: Environment, identifier: str, max_messages: int, timeout: float) -> List[bytes]:
    """Return the next messages, waiting for the first, without delivering them."""
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
                # Written messages are acknowledged; the rest do not count as delivered, since the error is not theirs.
                receipt.give_back(out.written)
                raise
        if messages:
            quiet_since_s = clock.monotonic_s()
            left = None if left is None else left - len(messages)
        elif wait_s < LOOK_S:
            return
