"""leanqueue: a log in one file, with an engine in Rust."""

import contextlib
import importlib.metadata
import pathlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import leanqueuedb  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra, without types

from benchmarks.peers import Peer, Session, waiting

#: The interval of fsync when relaxed; when durable, each call has its own.
SYNC_INTERVAL_MS = 1000

#: A process that waits polls at this interval.
POLL_INTERVAL_S = 0.05


def _opened(path: str, durable: bool) -> Any:
    """Open one queue."""
    return leanqueuedb.Queue(path, sync_interval_ms=0 if durable else SYNC_INTERVAL_MS)


class _Session:

    def __init__(self, queues: Sequence[Any], durable: bool, stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._durable = durable
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Put it into every queue."""
        for queue in self._queues:
            queue.put(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Put them into every queue, each with one fsync."""
        for queue in self._queues:
            queue.put_many(list(messages))

    def take(self) -> bytes:
        """Get one message and acknowledge it."""
        taken = self._queues[0].get()
        taken.ack()
        message: bytes = taken.body
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """Get many messages and acknowledge them in one call."""
        taken = self._queues[0].get_many(count)
        self._queues[0].ack_many([one.seq for one in taken])
        return [one.body for one in taken]

    def wait_latencies(self, count: int) -> list[float]:
        """Measure how soon a process in get finds a message."""
        return waiting.latencies(self.publish, _receiving, (self._queues[0].path, self._durable), count,
                                 lambda: waiting.PAUSE_S + random.uniform(0, POLL_INTERVAL_S))

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


def _receiving(path: str, durable: bool) -> Iterator[bytes]:
    with contextlib.closing(_opened(path, durable)) as opened:
        while True:
            taken = opened.get(block=True, timeout=waiting.RECEIVE_TIMEOUT_S, poll_interval=POLL_INTERVAL_S)
            yield taken.body
            taken.ack()


class _Peer:
    name = "leanqueue"
    note = (f"leanqueue {importlib.metadata.version('leanqueue')}: one queue per subscriber; calls fsync in every call "
            f"when durable, its default; else with sync_interval_ms={SYNC_INTERVAL_MS}, where every batch still calls "
            "it; a batch of sends is no transaction, it writes message by message; takes with get and ack, two writes "
            "and two syncs; nothing wakes a process that waits, it polls every "
            f"{POLL_INTERVAL_S * 1000:.0f} ms")
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="leanqueue-", dir=directory))
            queues = [
                stack.enter_context(contextlib.closing(_opened(f"{own}/{number}", durable)))
                for number in range(subscribers)
            ]
            return _Session(queues, durable, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
