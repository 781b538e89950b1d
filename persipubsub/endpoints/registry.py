"""What an Environment has made, so that it can stop and close all of it."""

import weakref
from typing import List, Protocol, TypeVar, runtime_checkable


class Closeable(Protocol):
    """Whatever an Environment makes."""

    def close(self) -> None:
        """Close it; more than once is fine."""


@runtime_checkable
class Stoppable(Protocol):
    """What waits: publishers and subscribers."""

    def stop(self) -> None:
        """End its waits, now and later."""


T = TypeVar("T", bound=Closeable)


class Registry:
    """The endpoints that an Environment has made, as far as the program still has them."""

    def __init__(self) -> None:
        self._stopped = False
        #: By their id(). Unlike a WeakSet, it can be read while another thread adds to it.
        self._made: "weakref.WeakValueDictionary[int, Closeable]" = weakref.WeakValueDictionary()

    def keep(self, made: T) -> T:
        """Remember an endpoint, and stop it if all were stopped."""
        self._made[id(made)] = made
        if self._stopped:
            _stop(made)
        return made

    def stop(self) -> None:
        """Stop all endpoints, and those that are remembered later. A signal handler may call this."""
        self._stopped = True  # first, so that nothing that is made meanwhile is missed
        for made in self._all():
            _stop(made)

    def close(self) -> None:
        """Close all endpoints."""
        for made in self._all():
            made.close()

    def _all(self) -> List[Closeable]:
        return [made for made in [reference() for reference in self._made.valuerefs()] if made is not None]


def _stop(made: Closeable) -> None:
    if isinstance(made, Stoppable):
        made.stop()
