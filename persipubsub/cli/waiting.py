"""Wait for input, or for space in the output, so that Ctrl-C always ends the wait."""

import math
import select
from typing import Any, Optional

import click

#: Interval in seconds between checks for Ctrl-C.
LOOK_S = 1


class Seconds(click.FloatRange):
    """A range of seconds that refuses NaN, which is neither below nor above any limit."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        """Read a number."""  # Any: as in click
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


def wait_until_ready(descriptor: int, event: int) -> None:
    """Wait until a read, or a write of ``select.PIPE_BUF`` bytes, would not block, or would fail.

    A Ctrl-C that arrives after Python has checked for one, and before the call that waits, does not end that call. So
    the wait is repeated in intervals.

    :param event: ``select.POLLIN`` or ``select.POLLOUT``
    """
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(LOOK_S * 1000):
        pass
