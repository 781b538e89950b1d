"""Wait until a queue that refuses messages at its high-water mark has room again."""

from typing import Any, Optional, Union

from persipubsub import clock, errors
from persipubsub.endpoints.sending import Sender
from persipubsub.engine import checks
from persipubsub.engine.commands import Put, PutLater, PutOnce
from persipubsub.engine.limits import SLEEP_S_MAX
from persipubsub.engine.protocols import Engine

SendingCommand = Union[Put, PutOnce, PutLater]


class Deadline:
    """When a sender stops waiting."""

    def __init__(self, sender: Sender, timeout: Optional[float]) -> None:
        self._sender = sender
        self._timeout_s = checks.timeout(timeout)
        self._ends_s = None if self._timeout_s is None else clock.monotonic_s() + self._timeout_s

    def sleep_s(self, error: errors.QueueFullError) -> float:
        """Return how long to sleep before the next attempt. If there is to be none, raise the error of the last one."""
        left_s = SLEEP_S_MAX if self._ends_s is None else self._ends_s - clock.monotonic_s()
        if self._sender.stopped or left_s <= 0:
            raise error
        if self._sender.closed:
            raise self._sender.closed_error()
        return min(SLEEP_S_MAX, left_s)


def run(engine: Engine, command: SendingCommand, sender: Sender, timeout: Optional[float]) -> Any:
    """Run a command, and wait for room if the queue refuses messages.

    :param timeout: seconds; None waits forever
    :raise QueueFullError: there was no room in time
    """
    deadline = Deadline(sender, timeout)
    try:
        return engine.run(command)
    except errors.QueueFullError as error:
        deadline.sleep_s(error)
    watch = engine.watch_room(SLEEP_S_MAX)
    try:
        while True:
            watch.arm()
            try:
                return engine.run(command)
            except errors.QueueFullError as error:
                sleep_s = deadline.sleep_s(error)
            watch.wait(sleep_s)
    finally:
        watch.close()
