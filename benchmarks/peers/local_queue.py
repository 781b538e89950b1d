"""localqueue: a queue in SQLite, with an engine in Rust."""

import contextlib
import importlib.metadata
import pathlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import localqueue  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, waiting

#: Acknowledged messages stay in the table until purge deletes them.
TAKES_BETWEEN_PURGES = 1000

#: A process that waits polls ever less often, and after this time at this interval.
SLOWS_DOWN_FOR_S = 0.6
POLL_INTERVAL_S = 0.25

#: One latency takes most of a second.
LATENCIES_MAX = 5


class _Bytes:
    """A serializer that leaves messages as they are."""

    def dumps(self, obj: bytes, /) -> bytes:
        """Return the message."""
        return obj

    def loads(self, data: bytes, /) -> bytes:
        """Return the message."""
        return data


def _opened(path: str, durable: bool) -> Any:
    """Open one queue."""
    modes = localqueue.DurabilityMode
    return localqueue.SimpleQueue(path, durability=modes.DURABLE if durable else modes.RELAXED, serializer=_Bytes())


class _Session:

    def __init__(self, queues: Sequence[Any], durable: bool, stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._durable = durable
        self._stack = stack
        self._taken = 0

    def publish(self, message: bytes) -> None:
        """Put it into every queue, each with a commit of its own."""
        for queue in self._queues:
            queue.put(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Put them into every queue, each with one commit."""
        for queue in self._queues:
            queue.put_many(list(messages))

    def take(self) -> bytes:
        """Get one message and acknowledge it: two commits."""
        first = self._queues[0]
        job = first.get_nowait()
        first.ack(job)
        self._taken += 1
        if self._taken % TAKES_BETWEEN_PURGES == 0:
            first.purge(0)
        message: bytes = job.data
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """There is no such call."""
        raise NotImplementedError

    def wait_latencies(self, count: int) -> list[float]:
        """Measure a few, as each waits until the other process polls as rarely as it ever does."""
        arguments = (str(self._queues[0].path), self._durable)
        return waiting.latencies(self.publish, _receiving, arguments, min(count, LATENCIES_MAX),
                                 lambda: SLOWS_DOWN_FOR_S + random.uniform(0, POLL_INTERVAL_S))

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


def _receiving(path: str, durable: bool) -> Iterator[bytes]:
    with contextlib.closing(_opened(path, durable)) as opened:
        while True:
            job = opened.get(timeout=waiting.RECEIVE_TIMEOUT_S)
            yield job.data
            opened.ack(job)


class _Peer:
    name = "localqueue"
    note = (
        f"localqueue {importlib.metadata.version('localqueue')}, with an SQLite of its own: one SimpleQueue per "
        "subscriber, each in a file of its own, with a serializer that leaves bytes as they are; DURABLE, which calls "
        "fsync once per commit, or RELAXED, its default, which leaves it to checkpoints; put_many is one commit; takes "
        f"with get and ack, two commits, purged every {TAKES_BETWEEN_PURGES} takes; a get is slower the more messages "
        "are stored; takes no batches; its EventBus reaches all subscribers in one commit, but dispatches one event "
        f"at a time; nothing wakes a process that waits, it polls every {POLL_INTERVAL_S * 1000:.0f} ms")
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="localqueue-", dir=directory))
            queues = [
                stack.enter_context(contextlib.closing(_opened(f"{own}/{number}", durable)))
                for number in range(subscribers)
            ]
            return _Session(queues, durable, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
