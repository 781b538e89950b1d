"""The verb ``top``: watch queues."""

import contextlib
import os
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
from persipubsub.cli.opening import located
from persipubsub.cli.quantities import Quantity, seconds
from persipubsub.cli.top_rates import Rates
from persipubsub.status_reader import Location, StatusReader

#: The width without a terminal.
WIDTH = 120
#: Signals that end the program; the terminal must be restored first.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@click.command(cls=Command,
               example="persipubsub top ./orders ./invoices",
               short_help="Watch queues: their rates and their lag.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--interval",
              metavar="DURATION",
              type=Quantity("duration", seconds, least=0.1),
              default="1s",
              show_default=True,
              help="Time between two refreshes.")
def top(paths: Tuple[str, ...], interval: float) -> None:
    """Watch the queues at PATH, directories or URLs, until q or Ctrl-C: their rates, and the lag of their subscribers.

    The subscriber that lags most is first. The graphs show the last 120 samples. A queue is open only while it is read,
    in a separate process, so a damaged queue does not end the program.

    If standard output is not a terminal, two samples are taken and their result is written once.
    """
    output.require_stdout()
    all_rates = [Rates(path if isinstance(path, str) else typed) for typed, path in _located(paths)]
    if sys.stdout.isatty():
        _watch(all_rates, interval)
    else:
        _write(all_rates, interval)


def _located(paths: Tuple[str, ...]) -> Iterator[Tuple[str, Location]]:
    return ((path, located(path)) for path in dict.fromkeys(paths))


def _look(looker: StatusReader, all_rates: List[Rates]) -> None:
    for rates in all_rates:
        try:
            rates.add(clock.monotonic_s(), looker.read_status(located(rates.path)))
        except errors.PersipubsubError as error:
            rates.fail(" ".join(str(error).split()))


def _write(all_rates: List[Rates], interval_s: float) -> None:
    """Write the result of one interval, and end."""
    from persipubsub.cli.top_frame import frame
    looker = StatusReader()
    _look(looker, all_rates)
    clock.sleep(interval_s)
    _look(looker, all_rates)
    output.console(width=WIDTH).print(frame(all_rates, WIDTH))
    if any(rates.error is not None for rates in all_rates):
        click.get_current_context().exit(exit_status.FAILED)


def _watch(all_rates: List[Rates], interval_s: float) -> None:
    """Draw repeatedly until the user ends it."""
    from rich.live import Live

    from persipubsub.cli.top_frame import frame
    with contextlib.suppress(KeyboardInterrupt), _stopped_by_exit(), _keys() as keys:
        console, looker = output.console(), StatusReader()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            next_look_s = clock.monotonic_s()
            while True:
                _look(looker, all_rates)
                live.update(frame(all_rates, console.width), refresh=True)
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
