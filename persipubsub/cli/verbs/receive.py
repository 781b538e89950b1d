"""The verb ``receive``: write the messages of a subscriber to standard output."""

import sys
from typing import Any, Callable, List, Optional, Tuple

import click

from persipubsub import clock, environment
from persipubsub.cli.command import Command
from persipubsub.cli.format_options import MessageFormat, chosen_format, format_options
from persipubsub.cli.formats import PROTOBUF_JSON
from persipubsub.cli.message_output import Messages
from persipubsub.cli.opening import complete_subscriber
from persipubsub.cli.quantities import DURATION
from persipubsub.subscriber import Receipt, SharedSubscriber, Subscriber

#: The most messages to acknowledge in one commit, after they are written to a file or a pipe.
BATCH_MESSAGES_MAX = 1000
BATCH_BYTES_MAX = 1024**2
#: A reader that takes longer for a batch gets a smaller one next, so that other workers get the rest.
BATCH_S_MAX = 0.1
#: Interval between checks whether the output still has a reader.
LOOK_S = 1.0


@click.command(cls=Command,
               example="persipubsub receive ./queue audit --follow",
               short_help="Write the pending messages of a subscriber.")
@click.argument("path", type=click.Path())
@click.argument("subscriber", shell_complete=complete_subscriber)
@click.option("--follow", is_flag=True, help="Wait for further messages.")
@click.option("--max", "max_messages", metavar="N", type=click.IntRange(1), help="End after N messages.")
@click.option("--peek", is_flag=True, help="Show the next message, or the next N with --max, without acknowledging it.")
@click.option("--timeout",
              metavar="DURATION",
              type=DURATION,
              help="End when no message arrived for that time, such as 30s. The default is to end when nothing is "
              "pending; with --follow, never.")
@format_options
# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
def receive(path: str, subscriber: str, follow: bool, max_messages: Optional[int], peek: bool, timeout: Optional[float],
            with_headers: bool, **how: Any) -> None:
    """Write the messages that are pending for SUBSCRIBER in the queue in the directory PATH to standard output.

    A message is acknowledged once it is written. Messages that are not written because of Ctrl-C, a full disk or a
    closed pipe stay pending, as if they had not been delivered.
    """
    if peek and (follow or with_headers):
        raise click.UsageError("--peek looks once, so it cannot be combined with --follow."
                               if follow else "--peek shows no headers. Use persipubsub history --headers.")
    out = Messages()
    if timeout is None and not follow:
        timeout = 0
    with environment.new_environment(path) as env:
        control = env.new_control(create=False)
        written = chosen_format(control, with_headers=with_headers, **how)
        if peek:
            out.write([written(message, {}, {}) for message in control.peek(subscriber, max_messages or 1, timeout)])
            return
        # On a terminal one by one, so that Ctrl-C leaves exactly the messages that the user has not seen. With protobuf
        # also one by one, so that a message that cannot be decoded does not hold back those before it.
        one_by_one = sys.stdout.isatty() or how["format_name"] == PROTOBUF_JSON
        with env.new_subscriber(subscriber) as opened:
            receiving = _Receiving(opened, written, with_headers, 1 if one_by_one else BATCH_MESSAGES_MAX)
            receiving.drain(out, max_messages, timeout)


class _Receiving:
    """Receives messages and writes them, in batches of a size that suits the reader of the output."""

    def __init__(self, subscriber: "Subscriber[bytes]", written: MessageFormat, with_headers: bool,
                 batch_max: int) -> None:
        self._subscriber = subscriber
        self._written = written
        self._with_headers = with_headers
        self._batch_max = batch_max
        self._batch = 1

    def drain(self, out: Messages, left: Optional[int], timeout: Optional[float]) -> None:
        """Write and acknowledge messages until there are no more.

        :param left: the maximum number of messages
        :param timeout: seconds without a message after which this ends; None for no end
        """
        if isinstance(self._subscriber, SharedSubscriber):
            out.meanwhile = self._subscriber.extend_lease
        quiet_since_s = clock.monotonic_s()
        while left is None or left > 0:
            out.require_reader()
            wait_s = LOOK_S if timeout is None else min(LOOK_S, max(0, quiet_since_s + timeout - clock.monotonic_s()))
            count = self._pass_on(out, self._batch if left is None else min(self._batch, left), wait_s)
            if count:
                quiet_since_s = clock.monotonic_s()
                left = None if left is None else left - count
            elif wait_s < LOOK_S:
                return

    def _pass_on(self, out: Messages, max_messages: int, wait_s: float) -> int:
        """Write messages and acknowledge what was written; return how many there were."""
        out.forget_written()  # before anything is received: an interrupt may come before the write begins
        receipt, formatted = self._receipt(max_messages, wait_s)
        with receipt as found:
            begun_s = clock.monotonic_s()
            messages = list(map(formatted, found))
            try:
                out.write(messages)
            except BaseException:
                # Written messages are acknowledged; the rest do not count as delivered, since the error is not theirs.
                receipt.give_back(out.written)
                raise
            is_quick = clock.monotonic_s() - begun_s < BATCH_S_MAX
        self._batch = min(2 * self._batch, self._batch_max) if is_quick else max(1, self._batch // 2)
        return len(messages)

    def _receipt(self, max_messages: int, wait_s: float) -> "Tuple[Receipt[List[Any]], Callable[[Any], bytes]]":
        """Return the receipt of some messages, and what writes one of them."""
        if self._with_headers:
            return (self._subscriber.receive_deliveries(max_messages, wait_s, max_bytes=BATCH_BYTES_MAX),
                    lambda one: self._written(one.message, one.headers, {}))
        return (self._subscriber.receive_many(max_messages, wait_s, max_bytes=BATCH_BYTES_MAX),
                lambda message: self._written(message, {}, {}))
