"""Wait for input, or for space in the output, so that Ctrl-C always ends the wait."""

import select
from typing import Callable, Optional

#: Interval in seconds between checks for Ctrl-C.
LOOK_S = 1


def wait_until_ready(descriptor: int, event: int, meanwhile: Optional[Callable[[], None]] = None) -> None:
    """Wait until a read, or a write of ``select.PIPE_BUF`` bytes, would not block, or would fail.

    A Ctrl-C that arrives after Python has checked for one, and before the call that waits, does not end that call. So
    the wait is repeated in intervals.

    :param event: ``select.POLLIN`` or ``select.POLLOUT``
    :param meanwhile: is called in each interval in which it was not ready
    """
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(LOOK_S * 1000):
        if meanwhile is not None:
            meanwhile()
