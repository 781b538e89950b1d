"""Opening a queue that exists: no verb that looks after a queue makes one by a mistyped path."""

import contextlib
import os
import pathlib
import shlex
from typing import Iterator, List

import click

from persipubsub import environment, errors, handle, status
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
    with handle.Use(directory) as opened:
        return opened.read(lambda txn: status.read(txn, directory))


def complete_subscriber(ctx: click.Context, _param: click.Parameter, incomplete: str) -> List[str]:
    """Name the subscribers of the queue that the user has typed already; none if it cannot be read.

    The completion of click cannot quote, so a name that would need it is not offered.
    """
    try:
        names = sorted(read_status(str(ctx.params["path"])).subscribers)
    except errors.PersipubsubError:
        return []
    return [name for name in names if name.startswith(incomplete) and shlex.quote(name) == name]
