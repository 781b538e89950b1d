"""Waiting for input, or for room in the output, so that Ctrl-C always ends it."""

import select

#: How often who waits looks for Ctrl-C.
LOOK_S = 1


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
