"""diskcache.Deque: a double-ended queue in SQLite."""

import contextlib
import importlib.metadata
import pathlib
import sqlite3
import tempfile
from collections.abc import Sequence
from typing import Any

import diskcache  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra, without types

from benchmarks.peers import Peer, Session

# The values of SQLite's PRAGMA synchronous.
SYNCHRONOUS_NORMAL = 1
SYNCHRONOUS_FULL = 2


class _Session:

    def __init__(self, deques: Sequence[Any], stack: contextlib.ExitStack) -> None:
        self._deques = deques
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Append it to every deque, each with a commit of its own."""
        for deque in self._deques:
            deque.append(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Append them to every deque, each with one commit."""
        for deque in self._deques:
            with deque.transact():
                deque.extend(messages)

    def take(self) -> bytes:
        """Remove the first message."""
        message: bytes = self._deques[0].popleft()
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """Remove the first messages in one transaction."""
        with self._deques[0].transact():
            return [self._deques[0].popleft() for _ in range(count)]

    def wait_latencies(self, count: int) -> list[float]:
        """There is no call that waits."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the deques and remove their files."""
        self._stack.close()


class _Peer:
    name = "diskcache.Deque"
    note = (
        f"diskcache {importlib.metadata.version('diskcache')}, SQLite {sqlite3.sqlite_version}: one deque per "
        f"subscriber; sqlite_synchronous=1, its default, or 2 when durable; nothing to acknowledge: a message that was "
        f"taken is gone; values from 32 KiB on are files of their own, which are never synced; no call that waits")
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one deque per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="diskcache-", dir=directory))
            deques = []
            for number in range(subscribers):
                cache = diskcache.Cache(f"{own}/{number}",
                                        eviction_policy="none",
                                        sqlite_synchronous=SYNCHRONOUS_FULL if durable else SYNCHRONOUS_NORMAL)
                stack.callback(cache.close)
                deques.append(diskcache.Deque.fromcache(cache))
            return _Session(deques, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
