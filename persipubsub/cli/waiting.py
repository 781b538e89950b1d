"""Waiting for input, or for room in the output, so that Ctrl-C always ends it."""

import math
import select
from typing import Any, Optional

import click

#: How often who waits looks for Ctrl-C.
LOOK_S = 1


class Seconds(click.FloatRange):
    """A range of seconds, in which there is no NaN: it is neither below nor above any limit."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        """Read a number."""  # Any: as click has it
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


def wait_until_ready(descriptor: int, event: int) -> None:
    """Wait until a read, or a write of ``select.PIPE_BUF`` bytes, need not wait, or fails.

    A Ctrl-C that comes after Python has looked for one, and before the call that waits, does not end that call. So this
    looks again.

    :param event: ``select.POLLIN`` or ``select.POLLOUT``
    """
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(LOOK_S * 1000):
        pass
