"""lmdb-queue, whose module is equeue: a queue of jobs in LMDB."""

import contextlib
import importlib.metadata
import pathlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import equeue  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, waiting

#: A process that waits polls at this interval.
POLL_INTERVAL_S = 0.01


def _opened(path: str) -> Any:
    """Open one queue."""
    return equeue.Queue(path)


class _Session:

    def __init__(self, queues: Sequence[Any], stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Put it into every queue, each with a commit of its own."""
        for queue in self._queues:
            queue.put(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """There is no such call: every put commits."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Get one message and acknowledge it: two commits."""
        record = self._queues[0].get(timeout=waiting.RECEIVE_TIMEOUT_S)
        record.ack()
        message: bytes = record.payload
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """There is no such call."""
        raise NotImplementedError

    def wait_latencies(self, count: int) -> list[float]:
        """Measure how soon a process in get finds a message."""
        return waiting.latencies(self.publish, _receiving, (self._queues[0].path, ), count,
                                 lambda: waiting.PAUSE_S + random.uniform(0, POLL_INTERVAL_S))

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


def _receiving(path: str) -> Iterator[bytes]:
    with contextlib.closing(_opened(path)) as opened:
        while True:
            record = opened.get(timeout=waiting.RECEIVE_TIMEOUT_S)
            yield record.payload
            record.ack()


class _Peer:
    name = "lmdb-queue"
    note = (f"lmdb-queue {importlib.metadata.version('lmdb-queue')}, lmdb {importlib.metadata.version('lmdb')}: one "
            "queue per subscriber; never durable: with sync=True it calls msync(MS_ASYNC), which waits for nothing, so "
            "sync=False, its default, which never syncs; takes with get and ack, two commits, and deletes what is "
            "acknowledged every 5 minutes; no batches; nothing wakes a process that waits, it polls every "
            f"{POLL_INTERVAL_S * 1000:.0f} ms")
    durabilities: tuple[bool, ...] = (False, )
    weaker = False

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        if durable:
            raise NotImplementedError("it never waits for the disk")
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="lmdb-queue-", dir=directory))
            queues = [
                stack.enter_context(contextlib.closing(_opened(f"{own}/{number}"))) for number in range(subscribers)
            ]
            return _Session(queues, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
