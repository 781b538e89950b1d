"""The options of ``send`` that say how messages are sent, and what they do."""

import datetime
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, TypeVar, Union

import click

from persipubsub import errors
from persipubsub.cli.positions import MOMENT
from persipubsub.cli.quantities import DURATION, DURATION_LIMIT
from persipubsub.message import Envelope
from persipubsub.publisher import Publisher

F = TypeVar("F", bound=Callable[..., Any])
Message = Union[bytes, "Envelope[bytes]"]

_OPTIONS = (
    click.option("--delay",
                 "delay_s",
                 metavar="DURATION",
                 type=DURATION,
                 help="Have the messages delivered after that time."),
    click.option("--at",
                 metavar="TIME",
                 type=MOMENT,
                 help="Have the messages delivered at that time, such as 2026-01-31T12:00:00Z."),
    click.option("--deduplication-id",
                 metavar="ID",
                 help="With --whole: do not send the message if the queue remembers one with this id."),
    click.option("--header", "headers", metavar="NAME=TEXT", multiple=True, help="Send a header; may be repeated."),
    click.option("--wait",
                 "wait_s",
                 metavar="DURATION",
                 type=DURATION_LIMIT,
                 default=0,
                 help="If the queue is full and refuses messages, wait up to that time for room; none for no limit."),
)


def sending_options(command: F) -> F:
    """Add the options to a command, which takes them as keyword arguments of :class:`Sending`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Sending:
    """How messages are sent."""

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
    def __init__(self, lines: bool, delay_s: Optional[float], at: Optional[datetime.datetime],
                 deduplication_id: Optional[str], headers: Sequence[str], wait_s: Optional[float]) -> None:
        """Check the options.

        :param lines: whether there may be more than one message
        :raise UsageError: they do not fit together
        """
        if delay_s is not None and at is not None:
            raise click.UsageError("Use either --delay or --at.")
        if lines and deduplication_id is not None:
            raise click.UsageError("--deduplication-id is for one message, so it needs --whole.")
        self._due = None if delay_s is None and at is None else (delay_s, at)
        self._deduplication_id = deduplication_id
        self._headers = _headers(headers)
        self._wait_s = wait_s

    def send(self, publisher: "Publisher[bytes]", batch: Sequence[bytes]) -> Iterator[int]:
        """Send messages; after each commit, yield how many it sent."""
        messages: Sequence[Message] = batch
        if self._headers or self._deduplication_id is not None:
            messages = [Envelope(message, self._headers, self._deduplication_id) for message in batch]
        if self._due is None:
            yield from self._send_now(publisher, messages)
            return
        delay_s, at = self._due
        for message in messages:
            publisher.send_later(message, delay_s, at, timeout=self._wait_s)
            yield 1

    def _send_now(self, publisher: "Publisher[bytes]", messages: Sequence[Message]) -> Iterator[int]:
        try:
            yield len(publisher.send_many(messages, self._wait_s))
        except errors.BatchTooLargeError:
            # They never fit into a queue that refuses messages, but perhaps one part after the other does.
            if self._wait_s == 0 or len(messages) == 1:
                raise
            half = len(messages) // 2
            yield from self._send_now(publisher, messages[:half])
            yield from self._send_now(publisher, messages[half:])


def _headers(given: Sequence[str]) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise click.BadParameter(f"{one!r:.60} has no '='. Write it as NAME=TEXT, such as traceparent=00-4bf9.",
                                     param_hint="--header")
        if name in headers:
            raise click.BadParameter(f"The header {name!r:.60} is given twice.", param_hint="--header")
        headers[name] = text
    return headers
