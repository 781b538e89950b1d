"""queuelib: the disk queue of Scrapy, in plain files."""

import contextlib
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import queuelib  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session


class _Session:

    def __init__(self, queues: Sequence[Any], stack: contextlib.ExitStack) -> None:
        self._queues = queues
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Push it into every queue."""
        for queue in self._queues:
            queue.push(message)

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """There is no such call."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Pop the first message."""
        message: bytes = self._queues[0].pop()
        return message

    def take_batch(self, count: int) -> list[bytes]:
        """There is no such call."""
        raise NotImplementedError

    def wait_latencies(self, count: int) -> list[float]:
        """There is no call that waits, and no second process may open the queue."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the queues and remove their files."""
        self._stack.close()


class _Peer:
    name = "queuelib"
    note = (f"queuelib {importlib.metadata.version('queuelib')}, FifoDiskQueue: one queue per subscriber; weaker than "
            "relaxed: it writes down where the queue begins and ends only when closed, so a process that dies loses "
            "it; never syncs; for one process and one thread; nothing to acknowledge; no batches")
    durabilities: tuple[bool, ...] = (False, )
    weaker = True

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Open one queue per subscriber."""
        if durable:
            raise NotImplementedError("it never syncs")
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="queuelib-", dir=directory))
            queues = [
                stack.enter_context(contextlib.closing(queuelib.FifoDiskQueue(f"{own}/{number}")))
                for number in range(subscribers)
            ]
            return _Session(queues, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer()]
