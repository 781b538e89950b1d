"""Opening a queue that exists: no verb that looks after a queue makes one by a mistyped path."""

import contextlib
import os
import pathlib
from typing import Iterator

from persipubsub import environment, handle, status
from persipubsub.control import Control
from persipubsub.status import QueueStatus


@contextlib.contextmanager
def opened_control(path: str) -> Iterator[Control]:
    """Give the control of the queue at a path.

    :raise NotInitializedError: there is none
    """
    with environment.new_environment(path) as env:
        env.new_publisher()  # new_control would set up a queue where there is none
        yield env.new_control()


def read_status(path: str) -> QueueStatus:
    """Read the status of the queue at a path without a write, which a Control begins with.

    :raise NotInitializedError: there is none
    """
    directory = pathlib.Path(os.path.abspath(path))
    opened = handle.acquire(directory)
    try:
        return opened.read(lambda txn: status.read(txn, directory))
    finally:
        handle.release(opened)
