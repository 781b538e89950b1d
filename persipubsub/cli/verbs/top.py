"""The verb ``top``: watch queues."""

import contextlib
import os
import pathlib
import select
import signal
import sys
import termios
import tty
from typing import Iterator, List, NoReturn, Optional, Tuple

import click

from persipubsub import clock, errors
from persipubsub.cli import exit_status, output
from persipubsub.cli.command import Command
from persipubsub.cli.verbs.history import History
from persipubsub.cli.waiting import Seconds
from persipubsub.status_reader import StatusReader

#: The width without a terminal.
WIDTH = 120
#: Signals that end the program; the terminal must be restored first.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@click.command(cls=Command, example="persipubsub top ./orders ./invoices")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--interval",
              metavar="S",
              type=Seconds(0.1, 3600),
              default=1,
              show_default=True,
              help="Refresh every S seconds.")
def top(paths: Tuple[str, ...], interval: float) -> None:
    """Watch the queues in the directories PATH until q or Ctrl-C: their rates, and the lag of their subscribers.

    The subscriber that lags most is first. The graphs show the last 120 samples. A queue is open only while it is read,
    in a separate process, so a damaged queue does not end the program.

    If standard output is not a terminal, two samples are taken and their result is written once.
    """
    output.require_stdout()
    histories = [History(path) for path in dict.fromkeys(paths)]
    if sys.stdout.isatty():
        _watch(histories, interval)
    else:
        _write(histories, interval)


def _look(looker: StatusReader, histories: List[History]) -> None:
    for history in histories:
        try:
            history.add(clock.monotonic_s(), looker.read_status(pathlib.Path(os.path.abspath(history.path))))
        except errors.PersipubsubError as error:
            history.fail(" ".join(str(error).split()))


def _write(histories: List[History], interval_s: float) -> None:
    """Write the result of one interval, and end."""
    from persipubsub.cli.top_frame import frame
    looker = StatusReader()
    _look(looker, histories)
    clock.sleep(interval_s)
    _look(looker, histories)
    output.console(width=WIDTH).print(frame(histories, WIDTH))
    if any(history.error is not None for history in histories):
        click.get_current_context().exit(exit_status.FAILED)


def _watch(histories: List[History], interval_s: float) -> None:
    """Draw repeatedly until the user ends it."""
    from rich.live import Live

    from persipubsub.cli.top_frame import frame
    with contextlib.suppress(KeyboardInterrupt), _stopped_by_exit(), _keys() as keys:
        console, looker = output.console(), StatusReader()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            next_look_s = clock.monotonic_s()
            while True:
                _look(looker, histories)
                live.update(frame(histories, console.width), refresh=True)
                # A slow look is not caught up on.
                next_look_s = max(next_look_s + interval_s, clock.monotonic_s())
                if _quit_pressed(keys, next_look_s):
                    return


@contextlib.contextmanager
def _stopped_by_exit() -> Iterator[None]:
    """Turn signals that end the program into an exception, so that the terminal is restored."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(exit_status.SIGNALLED + number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _keys() -> Iterator[Optional[int]]:
    """Read each key at once, without echo; None if there is no keyboard."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quit_pressed(keys: Optional[int], until_s: float) -> bool:
    """Wait until a moment; return whether the user wants to quit before."""
    watched = [] if keys is None else [keys]
    while (left_s := until_s - clock.monotonic_s()) > 0:
        if select.select(watched, [], [], left_s)[0] and os.read(watched[0], 1) in (b"q", b"Q", b""):
            return True
    return False
