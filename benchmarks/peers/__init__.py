"""The queues that persipubsub is compared with, each set up as a user of it would set it up.

None of them is a dependency: ``available()`` lists those whose library and server are installed.
A durable session has every publish on the disk before it returns; a relaxed one loses nothing when a process dies, but
may when the machine does. Where a peer keeps less than that, or more, its note says so.
"""

import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Protocol

# One module per peer; each has a function peers(), which raises FileNotFoundError where its server is missing.
_MODULES = ("persist_queue", "lite_queue", "disk_cache", "local_queue", "simple_broker", "lean_queue", "lmdb_queue",
            "queue_lib", "redis_streams", "nats_jetstream", "rabbitmq")


class Session(Protocol):
    """A queue with its subscribers, until ``close()`` stops its server and removes its files.

    What a peer has no call of its own for raises NotImplementedError. ``publish`` may be called by several threads at a
    time, unless the note of the peer says otherwise; everything else is for the thread that opened the session.
    """

    def publish(self, message: bytes) -> None:
        """Publish to every subscriber, and return when the message is kept."""

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Publish all of them to every subscriber, and return when all are kept."""

    def take(self) -> bytes:
        """Receive and acknowledge the next message of the first subscriber; there must be one."""

    def take_batch(self, count: int) -> list[bytes]:
        """Receive and acknowledge the next messages of the first subscriber; there must be as many."""

    def wait_latencies(self, count: int) -> list[float]:
        """Measure the seconds from just before a publish to when another process, which waits for it, has received it.

        The first subscriber must have no messages, and this session must not have acknowledged any.
        """

    def close(self) -> None:
        """Close the queue, stop its server and remove its files. The session is of no use afterwards."""


class Peer(Protocol):
    """A library or a broker that one might use instead of persipubsub."""

    #: What the tables call it.
    name: str

    #: The versions, how it is set up, and where it keeps less, or more, than persipubsub does.
    note: str

    #: The values of ``durable`` that it can do.
    durabilities: tuple[bool, ...]

    #: Whether it keeps less than a relaxed queue of persipubsub: the death of a process loses messages.
    weaker: bool

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Set up a new queue for a number of subscribers in a directory of its own below ``directory``.

        A durability that it cannot do raises NotImplementedError.
        """


def available() -> list[Peer]:
    """List the peers that are installed here, and name the others on standard error."""
    peers: list[Peer] = []
    for name in _MODULES:
        try:
            peers.extend(importlib.import_module(f"{__name__}.{name}").peers())
        except (ModuleNotFoundError, FileNotFoundError) as error:
            print(f"peer {name} is left out: {error}", file=sys.stderr)
    return peers
