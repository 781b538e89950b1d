"""Open an existing queue: a mistyped path must not create one."""

import contextlib
import shlex
from typing import Iterator, List

import click

from persipubsub import environment, errors, status_reader
from persipubsub.control import Control
from persipubsub.status import QueueStatus
from persipubsub.status_reader import Location


@contextlib.contextmanager
def opened_control(path: str) -> Iterator[Control]:
    """Provide the control of the queue at a path.

    :raise NotInitializedError: there is none
    """
    with environment.new_environment(path) as env:
        yield env.new_control(create=False)


def read_status(path: str) -> QueueStatus:
    """Read the status of the queue at a path or a URL without writing.

    :raise NotInitializedError: there is none
    """
    return status_reader.read_status(located(path))


def located(path: str) -> Location:
    """Return the absolute path of a directory, or a URL without its secrets, which this process remembers.

    :raise ArgumentError: it cannot be the location of a queue
    """
    return environment.new_environment(path).location


def complete_subscriber(ctx: click.Context, _param: click.Parameter, incomplete: str) -> List[str]:
    """Return the subscribers of the queue that the user has typed; none if it cannot be read.

    The completion of click cannot quote, so names that need quotes are not offered.
    """
    try:
        names = sorted(read_status(str(ctx.params["path"])).subscribers)
    except errors.PersipubsubError:
        return []
    return [name for name in names if name.startswith(incomplete) and shlex.quote(name) == name]
