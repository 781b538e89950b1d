"""persist-queue: queues in SQLite, either plain or with an acknowledgement per message."""

import contextlib
import importlib.metadata
import pathlib
import queue
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import persistqueue  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, waiting

#: Acknowledged messages stay in the table, and each take reads past them, until clear_acked_data deletes them.
TAKES_BETWEEN_CLEARINGS = 1000

#: persistqueue.sqlbase.TICK_FOR_WAIT: a process that waits looks this often for what another process has put.
LOOK_EVERY_S = 10.0


def _opened(kind: str, path: str, durable: bool) -> Any:
    """Open one queue of either kind."""
    if kind == "FIFO":
        # Without auto_commit, task_done deletes what was received: a message comes again after a crash before it, and
        # many are deleted in one commit. A put commits in any case.
        opened: Any = persistqueue.FIFOSQLiteQueue(path, multithreading=True, auto_commit=False)
    else:
        opened = persistqueue.SQLiteAckQueue(path, multithreading=True)
    # There is no option for it. FULL is what SQLite does unless told otherwise.
    for connection in (opened._getter, opened._putter):  # pylint: disable=protected-access
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    return opened


class _Session:

    def __init__(self, kind: str, queues: Sequence[Any], durable: bool, stack: contextlib.ExitStack) -> None:
        self._kind = kind
        self._queues = queues
        self._durable = durable
        self._stack = stack
        self._taken = 0

    def publish(self, message: bytes) -> None:
        """Put it into every queue, each with a commit of its own."""
        for one in self._queues:
            one.put(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """There is no such call: every put commits."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Get one message and confirm it."""
        first = self._queues[0]
        if self._kind == "FIFO":
            message: bytes = first.get(block=False)
            first.task_done()
            return message
        item = first.get(block=False, raw=True)
        first.ack(id=item["pqid"])
        self._taken += 1
        if self._taken % TAKES_BETWEEN_CLEARINGS == 0:
            first.clear_acked_data(max_delete=TAKES_BETWEEN_CLEARINGS, keep_latest=0)
        taken: bytes = item["data"]
        return taken

    def take_batch(self, count: int) -> list[bytes]:
        """Get many messages and confirm them in one commit."""
        if self._kind != "FIFO":
            raise NotImplementedError
        messages = [self._queues[0].get(block=False) for _ in range(count)]
        self._queues[0].task_done()
        return messages

    def wait_latencies(self, count: int) -> list[float]:
        """Measure once, however many are asked for: a wait takes seconds."""
        if self._kind != "FIFO":
            raise NotImplementedError  # it waits as FIFO does
        arguments = (self._kind, self._queues[0].path, self._durable)
        # Nothing wakes the process that waits, so the moment of the publish decides: it is left to chance.
        return waiting.latencies(self.publish, _receiving, arguments, min(count, 1),
                                 lambda: random.uniform(0, LOOK_EVERY_S))

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


def _receiving(kind: str, path: str, durable: bool) -> Iterator[bytes]:
    with contextlib.closing(_opened(kind, path, durable)) as opened:
        with contextlib.suppress(queue.Empty):
            while True:
                yield opened.get(timeout=waiting.RECEIVE_TIMEOUT_S)
                opened.task_done()


class _Peer:
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def __init__(self, kind: str, taking: str) -> None:
        self._kind = kind
        self.name = f"persist-queue {kind}"
        self.note = (
            f"persist-queue {importlib.metadata.version('persist-queue')}, SQLite {sqlite3.sqlite_version}: one "
            f"queue per subscriber; synchronous=FULL when durable, else NORMAL, set on its private connections; "
            f"{taking}; nothing wakes a process that waits, it looks every {LOOK_EVERY_S:.0f} s")

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="persist-queue-", dir=directory))
            queues = [
                stack.enter_context(contextlib.closing(_opened(self._kind, f"{own}/{number}", durable)))
                for number in range(subscribers)
            ]
            return _Session(self._kind, queues, durable, stack.pop_all())


def peers() -> list[Peer]:
    """Return both kinds."""
    return [
        _Peer("FIFO", "FIFOSQLiteQueue without auto_commit, confirmed by task_done"),
        _Peer("ack", f"SQLiteAckQueue, two commits a take, cleared every {TAKES_BETWEEN_CLEARINGS} takes")
    ]
