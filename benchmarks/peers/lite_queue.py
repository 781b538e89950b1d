"""litequeue: a queue in a table of SQLite."""

import contextlib
import importlib.metadata
import pathlib
import sqlite3
import tempfile
from collections.abc import Sequence
from typing import Any

import litequeue  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra, without types

from benchmarks.peers import Peer, Session

#: Messages that are done stay in the table until prune deletes them.
TAKES_BETWEEN_PRUNINGS = 1000


class _Session:

    def __init__(self, queues: Sequence[Any], stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._stack = stack
        self._taken_since_pruning = 0

    def publish(self, message: bytes) -> None:
        """Put it into every queue, each with a commit of its own."""
        for queue in self._queues:
            queue.put(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Put them into every queue, each with one commit."""
        for queue in self._queues:
            with queue.transaction():
                for message in messages:
                    queue.put(message)

    def take(self) -> bytes:
        """Pop one message and mark it as done: two commits."""
        message = self._queues[0].pop()
        self._queues[0].done(message.message_id)
        self._prune(1)
        data: bytes = message.data
        return data

    def take_batch(self, count: int) -> list[bytes]:
        """Pop them one by one, as each pop is a transaction, and mark them as done in one more."""
        messages = [self._queues[0].pop() for _ in range(count)]
        with self._queues[0].transaction():
            for message in messages:
                self._queues[0].done(message.message_id)
        self._prune(count)
        return [message.data for message in messages]

    def _prune(self, taken: int) -> None:
        self._taken_since_pruning += taken
        if self._taken_since_pruning >= TAKES_BETWEEN_PRUNINGS:
            self._taken_since_pruning = 0
            self._queues[0].prune()

    def wait_latencies(self, count: int) -> list[float]:
        """There is no call that waits."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


class _Peer:
    name = "litequeue"
    note = (
        f"litequeue {importlib.metadata.version('litequeue')}, SQLite {sqlite3.sqlite_version}: one queue per "
        f"subscriber, each in a file of its own; synchronous=NORMAL, its default, or FULL when durable; takes with pop "
        f"and done, two commits, pruned every {TAKES_BETWEEN_PRUNINGS} takes; no call that waits")
    durabilities: tuple[bool, ...] = (True, False)

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="litequeue-", dir=directory))
            queues = []
            for number in range(subscribers):
                queue = stack.enter_context(contextlib.closing(litequeue.LiteQueue(f"{own}/{number}.db")))
                if durable:
                    queue.conn.execute("PRAGMA synchronous=FULL")
                queues.append(queue)
            return _Session(queues, stack.pop_all())


def peers() -> list[Peer]:
    """Give the peer."""
    return [_Peer()]
