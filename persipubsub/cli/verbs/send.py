"""The verb ``send``: send the lines of a file, or a whole file."""

import os
import select
import stat
import sys
from typing import Any, Callable, Iterator, List, Optional

import click

from persipubsub import environment, errors
from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.formats import counted
from persipubsub.cli.progress import progress_bar
from persipubsub.cli.sending import Sending, sending_options
from persipubsub.cli.waiting import wait_until_ready
from persipubsub.queue import BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX

#: The maximum number of bytes of one read, which are sent in one commit. A pipe may return less. They are within the
#: limit of a batch even if all lines are empty.
READ_BYTES = BATCH_MESSAGES_MAX // 2


@click.command(cls=Command,
               example="persipubsub send ./queue access.log",
               short_help="Send the lines of a file, or of standard input.")
@click.argument("path", type=click.Path())
@click.argument("file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--lines/--whole",
              default=True,
              show_default=True,
              help="Send each line as a message, without its line feed; or the whole file as one message.")
@sending_options
def send(path: str, file: str, lines: bool, **how: Any) -> None:
    """Send the lines of FILE, or of standard input, to the queue in the directory PATH.

    Lines from a pipe are sent as they arrive. All lines of one commit are sent, or none. A DURATION is a number of
    seconds, or has a unit: 30s, 15m, 12h, 7d.
    """
    sent = 0
    sending = Sending(lines, **how)
    with environment.new_environment(path) as env, env.new_publisher() as publisher:
        try:
            with progress_bar("send", in_bytes=True) as progress:
                chunks = _chunks(file, progress)
                for batch in _split(chunks) if lines else _joined(chunks):
                    for count in sending.send(publisher, batch):
                        sent += count
        except (errors.PersipubsubError, click.ClickException):
            output.line(_summary(sent) + " before the error")
            raise
        except KeyboardInterrupt:
            output.line("at least " + _summary(sent))
            raise
    output.line(_summary(sent))


def _summary(sent: int) -> str:
    return f"{counted(sent, 'message')} sent"


def _chunks(file: str, progress: Callable[[Optional[int], Optional[int]], None]) -> Iterator[bytes]:
    """Yield the chunks of a file until its end."""
    done = 0
    standard_input = file == "-"
    if standard_input and sys.stdin is None:
        raise click.ClickException("Standard input is closed. Name a file to send.")
    try:
        # Unbuffered, since a buffer would wait until it is full.
        with open(sys.stdin.fileno() if standard_input else file, "rb", buffering=0,
                  closefd=not standard_input) as opened:
            found = os.fstat(opened.fileno())
            total = found.st_size if stat.S_ISREG(found.st_mode) else None
            # Not opened.read, which cannot distinguish the end from no data at the moment.
            while chunk := _read(opened.fileno()):
                yield chunk
                done += len(chunk)
                progress(done, total)
    except OSError as error:
        raise click.FileError("standard input" if standard_input else file, error.strerror) from error


def _read(descriptor: int) -> bytes:
    """Wait for data and read it; empty bytes mean the end."""
    wait_until_ready(descriptor, select.POLLIN)
    return os.read(descriptor, READ_BYTES)


def _split(chunks: Iterator[bytes]) -> Iterator[List[bytes]]:
    """Yield the lines that each chunk completes; the last one needs no line feed."""
    begun: List[bytes] = []
    begun_bytes = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        begun_bytes += len(first)
        if others:
            if begun_bytes > READ_BYTES:
                # By itself: with others it could exceed the limit of a batch.
                yield [b"".join(begun)]
                yield others[:-1]
            else:
                yield [b"".join(begun), *others[:-1]]
            begun, begun_bytes = others[-1:], len(others[-1])
        elif begun_bytes > MESSAGE_BYTES_MAX:
            break  # the send refuses it, so the rest need not be read
    if begun_bytes:
        yield [b"".join(begun)]


def _joined(chunks: Iterator[bytes]) -> Iterator[List[bytes]]:
    """Yield all chunks as one message."""
    whole: List[bytes] = []
    whole_bytes = 0
    for chunk in chunks:
        whole.append(chunk)
        whole_bytes += len(chunk)
        if whole_bytes > MESSAGE_BYTES_MAX:
            break  # the send refuses it, so the rest need not be read
    yield [b"".join(whole)]
