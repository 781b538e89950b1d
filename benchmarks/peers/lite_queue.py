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

#: A message is text; this makes some of any bytes.
ENCODING = "latin-1"


def _finish(queue: Any, message: Any) -> None:
    """Mark a message as done; newer versions want to know which claim on it is meant."""
    claim = {"claim_id": message.claim_id} if hasattr(message, "claim_id") else {}
    queue.done(message.message_id, **claim)


class _Session:

    def __init__(self, queues: Sequence[Any], stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._stack = stack
        self._taken_since_pruning = 0

    def publish(self, message: bytes) -> None:
        """Put it into every queue, each with a commit of its own."""
        text = message.decode(ENCODING)
        for queue in self._queues:
            queue.put(text)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Put them into every queue, each with one commit."""
        texts = [message.decode(ENCODING) for message in messages]
        for queue in self._queues:
            with queue.transaction():
                for text in texts:
                    queue.put(text)

    def take(self) -> bytes:
        """Pop one message and mark it as done: two commits."""
        message = self._queues[0].pop()
        _finish(self._queues[0], message)
        self._prune(1)
        text: str = message.data
        return text.encode(ENCODING)

    def take_batch(self, count: int) -> list[bytes]:
        """Pop them one by one, as each pop is a transaction, and mark them as done in one more."""
        messages = [self._queues[0].pop() for _ in range(count)]
        with self._queues[0].transaction():
            for message in messages:
                _finish(self._queues[0], message)
        self._prune(count)
        return [message.data.encode(ENCODING) for message in messages]

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
        "subscriber, each in a file of its own; keeps text, so bytes are decoded; synchronous=NORMAL, its default, or "
        f"FULL when durable; takes with pop and done, two commits, pruned every {TAKES_BETWEEN_PRUNINGS} takes; no "
        "call that waits")
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

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
    """Return the peer."""
    return [_Peer()]
