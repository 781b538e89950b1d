"""Where a watcher reads a queue: in another process for a directory, through one connection for a cluster."""

import functools
import pathlib
from typing import Any, Callable, Optional, Protocol, TypeVar

from persipubsub import environment, errors
from persipubsub.control import Control
from persipubsub.environment import Environment
from persipubsub.status_reader import LOOK_S_MAX, StatusReader

T = TypeVar("T")


class Source(Protocol):
    """A queue that functions are called on, by one thread at a time."""

    def call(self, function: Callable[..., T], *arguments: Any, timeout_s: int = LOOK_S_MAX) -> T:
        """Return what a function of a module returns for the control of the queue and the arguments.

        :raise PersipubsubError: the function raised it, or the queue cannot be opened or read
        """

    def close(self) -> None:
        """Let the queue go."""


class LocalSource:
    """A queue in a directory. A child opens it for each call, since a damaged queue may end its reader."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._reader = StatusReader()

    def call(self, function: Callable[..., T], *arguments: Any, timeout_s: int = LOOK_S_MAX) -> T:
        """Call the function in the child, which is ended if it takes too long."""
        return self._reader.run(functools.partial(_call_at, function, arguments), self._path, timeout_s)

    def close(self) -> None:
        """End the child."""
        self._reader.close()


class ClusterSource:
    """A queue on a cluster, which stays open: the cluster's own time limit holds, not that of the caller."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._environment: Optional[Environment] = None
        self._control: Optional[Control] = None

    def call(self, function: Callable[..., T], *arguments: Any, timeout_s: int = LOOK_S_MAX) -> T:
        """Call the function in this thread. After an error of the queue itself, the next call opens it again."""
        del timeout_s
        try:
            if self._environment is None:
                self._environment = environment.new_environment(self._url)
            if self._control is None:
                self._control = self._environment.new_control(create=False)
            return function(self._control, *arguments)
        except (errors.ArgumentError, errors.UnavailableError, errors.UnknownSubscriberError):
            raise  # the queue stays open: a lost connection is made again by itself
        except errors.PersipubsubError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, unless another queue shares it."""
        opened, self._environment, self._control = self._environment, None, None
        if opened is not None:
            opened.close()


def _call_at(function: Callable[..., T], arguments: Any, path: pathlib.Path) -> T:
    """Open the queue at a path for one call. It must exist: nothing is set up."""
    with environment.new_environment(path) as opened:
        return function(opened.new_control(create=False), *arguments)


def source_of(location: str) -> Source:
    """Return the source of the queue at a path or URL; nothing is touched.

    :raise ArgumentError: it cannot be the location of a queue
    """
    found = environment.new_environment(location).location
    return ClusterSource(location) if isinstance(found, str) else LocalSource(found)
