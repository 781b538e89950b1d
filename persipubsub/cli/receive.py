"""The verb ``receive``: write the messages of a subscriber to standard output."""

import os
import select
import sys
from typing import Callable, List, Optional, Tuple

import click

from persipubsub import clock, environment
from persipubsub.cli import Command
from persipubsub.cli.formats import FORMATS, PROTOBUF_JSON, Format, protobuf_json
from persipubsub.cli.opening import complete_subscriber
from persipubsub.cli.waiting import wait_until_ready
from persipubsub.environment import Environment
from persipubsub.subscriber import Subscriber

#: So many messages are taken in one commit, after they are written to a file or a pipe.
BATCH_MESSAGES_MAX = 1000
BATCH_BYTES_MAX = 1024**2
#: How often a wait looks whether somebody still reads the output.
LOOK_S = 1.0
#: The messages that ``--peek`` shows are not read in batches, so only their number counts.
PEEK_BYTES_MAX = sys.maxsize


class _Peeked(Exception):
    """Leave the block of a receive so that nothing is taken."""


@click.command(cls=Command, example="persipubsub receive ./queue audit --follow")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.option("--follow", is_flag=True, help="Wait for further messages.")
@click.option("--max", "max_messages", metavar="N", type=click.IntRange(1), help="End after N messages.")
@click.option("--peek", is_flag=True, help="Show the next message, or the next N with --max, and take none.")
@click.option("--timeout",
              metavar="S",
              type=click.FloatRange(0),
              help="End when no message came for S seconds. Otherwise the end is where nothing is pending; with "
              "--follow there is none.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([*FORMATS, PROTOBUF_JSON]),
    default="lines",
    show_default=True,
    help="lines: each message and a line feed; raw: the bytes as they are; json: a line with an object that "
    "has the text of the message or, where it is not UTF-8, its base64; hex: a line of digits; protobuf-json: "
    "a line of JSON, where the queue is bound to a message type.")
@click.option("--import",
              "modules",
              metavar="MODULE",
              multiple=True,
              help="For protobuf-json: import the module that protoc generated for the message type, such as shop_pb2.")
# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
def receive(path: str, subscriber: str, follow: bool, max_messages: Optional[int], peek: bool, timeout: Optional[float],
            format_name: str, modules: Tuple[str, ...]) -> None:
    """Write the messages that SUBSCRIBER has not taken from the queue in the directory PATH to standard output.

    A message is taken once it is written: what is in hand at Ctrl-C, or when the reader of a pipe is gone, comes
    again.
    """
    if peek and follow:
        raise click.UsageError("--peek looks once, so it does not go with --follow.")
    if sys.stdout is None:
        raise click.ClickException("Standard output is closed.")
    if timeout is None and not follow:
        timeout = 0
    with environment.new_environment(path) as env, env.new_subscriber(subscriber) as opened:
        write = _writer(FORMATS.get(format_name) or _protobuf_json(env, modules))
        # On a terminal one by one, so that what Ctrl-C leaves there is what the user has not seen. And one that is no
        # protobuf message is to keep back none before it.
        batch = 1 if sys.stdout.isatty() or format_name == PROTOBUF_JSON else BATCH_MESSAGES_MAX
        if peek:
            _peek(opened, max_messages or 1, timeout, write)
        else:
            _drain(opened, max_messages, timeout, write, batch)


def _protobuf_json(env: Environment, modules: Tuple[str, ...]) -> Format:
    message_type = env.new_control().status().message_type
    if message_type is None:
        raise click.ClickException(f"The queue at {env.path} is bound to no message type, so its messages cannot be "
                                   "written as protobuf-json. Bind it with message_type in its config, or use another "
                                   "format.")
    sys.path.insert(0, os.getcwd())  # where the module lies, as for python -m
    return protobuf_json(str(env.path), message_type, modules)


def _writer(formatted: Format) -> Callable[[List[bytes]], None]:
    """Give a function that has written messages when it returns."""
    descriptor = sys.stdout.fileno()
    # Who made it not wait gets an error where there is no room.
    waits = os.get_blocking(descriptor)

    def write(messages: List[bytes]) -> None:
        # Not through sys.stdout, which may write a part only where it is unbuffered, and otherwise writes the rest of
        # what Ctrl-C has stopped when the program ends, or waits for ever with it.
        left = memoryview(b"".join(map(formatted, messages)))
        while left:
            if waits:
                wait_until_ready(descriptor, select.POLLOUT)
            left = left[os.write(descriptor, left[:select.PIPE_BUF] if waits else left):]

    return write


def _peek(subscriber: Subscriber, max_messages: int, timeout: Optional[float], write: Callable[[List[bytes]],
                                                                                               None]) -> None:
    try:
        with subscriber.receive_many(max_messages, timeout, max_bytes=PEEK_BYTES_MAX) as messages:
            write(messages)
            raise _Peeked
    except _Peeked:
        pass


def _drain(subscriber: Subscriber, left: Optional[int], timeout: Optional[float], write: Callable[[List[bytes]], None],
           batch: int) -> None:
    quiet_since_s = clock.monotonic_s()
    while left is None or left > 0:
        _require_reader()
        wait_s = LOOK_S if timeout is None else min(LOOK_S, max(0, quiet_since_s + timeout - clock.monotonic_s()))
        max_messages = batch if left is None else min(batch, left)
        with subscriber.receive_many(max_messages, wait_s, max_bytes=BATCH_BYTES_MAX) as messages:
            write(messages)
        if messages:
            quiet_since_s = clock.monotonic_s()
            left = None if left is None else left - len(messages)
        elif wait_s < LOOK_S:
            return


def _require_reader() -> None:
    """Notice that nobody reads the output any more, also where there is nothing to write."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError
