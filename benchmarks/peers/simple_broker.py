"""SimpleBroker: named queues in one file of SQLite."""

import contextlib
import importlib.metadata
import pathlib
import queue
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import simplebroker  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, waiting

FIRST_QUEUE = "subscriber-0"

#: A message is text; this makes some of any bytes.
ENCODING = "latin-1"

#: A watcher polls ever less often, and after this time at this interval, even where it sleeps for longer.
SLOWS_DOWN_FOR_S = 1.0
POLL_INTERVAL_S = 0.02

#: One latency takes a second.
LATENCIES_MAX = 5


def _opened(path: str, durable: bool) -> Any:
    """Open the queue of the first subscriber."""
    config = simplebroker.resolve_config(override={"BROKER_SYNC_MODE": "FULL" if durable else "NORMAL"})
    return simplebroker.Queue(FIRST_QUEUE, db_path=path, persistent=True, config=config)


class _Session:

    def __init__(self, path: str, durable: bool, subscribers: int, stack: contextlib.ExitStack) -> None:
        self._path = path
        self._durable = durable
        self._names = [f"subscriber-{number}" for number in range(subscribers)]
        self._first = stack.enter_context(contextlib.closing(_opened(path, durable)))
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Write it, or broadcast it to all queues, in one commit."""
        text = message.decode(ENCODING)
        if len(self._names) == 1:
            self._first.write(text)
            return
        with self._first.get_connection() as connection:
            # A queue without messages does not exist.
            connection.broadcast(text, queue_names=self._names, create_missing=True)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """There is no such call: what inserts many messages wants their ids, and making an id is a commit."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Peek at one message and delete it."""
        text, identifier = self._first.peek_one(with_timestamps=True)
        self._first.delete(message_id=identifier)
        message: bytes = text.encode(ENCODING)
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """Peek at many messages and delete them in one commit."""
        found = self._first.peek_many(count, with_timestamps=True)
        self._first.delete_many([identifier for _, identifier in found])
        return [text.encode(ENCODING) for text, _ in found]

    def wait_latencies(self, count: int) -> list[float]:
        """Measure a few, as each waits until the watcher polls as rarely as it ever does."""
        arguments = (self._path, self._durable)
        return waiting.latencies(self.publish, _receiving, arguments, min(count, LATENCIES_MAX),
                                 lambda: SLOWS_DOWN_FOR_S + random.uniform(0, POLL_INTERVAL_S))

    def close(self) -> None:
        """Close the queues and remove their file."""
        self._stack.close()


def _receiving(path: str, durable: bool) -> Iterator[bytes]:
    arrived: "queue.SimpleQueue[tuple[str, int]]" = queue.SimpleQueue()

    def handle(text: str, identifier: int) -> None:
        arrived.put((text, identifier))

    with contextlib.closing(_opened(path, durable)) as opened:
        with simplebroker.QueueWatcher(opened, handle, peek=True):
            while True:
                text, identifier = arrived.get(timeout=waiting.RECEIVE_TIMEOUT_S)
                yield text.encode(ENCODING)
                opened.delete(message_id=identifier)


class _Peer:
    name = "SimpleBroker"
    note = (
        f"simplebroker {importlib.metadata.version('simplebroker')}, SQLite {sqlite3.sqlite_version}: one persistent "
        "queue per subscriber, all in one file; keeps text, so bytes are decoded; BROKER_SYNC_MODE is FULL, its "
        "default, when durable, which calls fdatasync once per commit, else NORMAL, which leaves it to checkpoints; "
        "sends with write, or with broadcast to all queues in one commit; no batches of sends; takes with peek and "
        "delete, one commit, as read would lose what a process had received when it died; nothing wakes a watcher, it "
        f"polls every {POLL_INTERVAL_S * 1000:.0f} ms")
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open the file."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="simplebroker-", dir=directory))
            return _Session(f"{own}/broker.db", durable, subscribers, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
