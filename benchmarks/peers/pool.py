"""Lend each thread a connection of its own: that of a broker is often for one thread at a time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Connections that nobody uses at the moment; a new one is made where there is none."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: list[T] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[T]:
        """Lend a connection for the time of the block."""
        # Both calls on the list are atomic, and the last one used comes first.
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._make()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def close(self, close: Callable[[T], object]) -> None:
        """Close every connection; none may be lent."""
        while self._idle:
            close(self._idle.pop())
