"""Redis Streams: one stream, and a consumer group per subscriber."""

import contextlib
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import redis  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import Peer, Session, servers, waiting

STREAM = "messages"
FIELD = b"m"
CONSUMER = "consumer"
FIRST_GROUP = "subscriber-0"
TIMEOUT_S = 2 * waiting.RECEIVE_TIMEOUT_S


def _client(port: int) -> Any:
    # RESP2, as answers of RESP3 have another shape.
    return redis.Redis(host=servers.HOST, port=port, protocol=2, socket_timeout=TIMEOUT_S)


def _receive(client: Any, count: int) -> tuple[list[bytes], list[bytes]]:
    """Wait for at most a number of messages; return their ids and payloads."""
    answer = client.xreadgroup(FIRST_GROUP,
                               CONSUMER, {STREAM: ">"},
                               count=count,
                               block=int(waiting.RECEIVE_TIMEOUT_S * 1000))
    if not answer:
        raise TimeoutError("no message")
    entries = answer[0][1]
    return [identifier for identifier, _ in entries], [fields[FIELD] for _, fields in entries]


class _Session:

    def __init__(self, port: int, client: Any, stack: contextlib.ExitStack) -> None:
        self._port = port
        self._client = client
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """XADD."""
        self._client.xadd(STREAM, {FIELD: message})

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Send one XADD per message in a pipeline, which is a MULTI ... EXEC and so is kept as a whole."""
        pipeline = self._client.pipeline()
        for message in messages:
            pipeline.xadd(STREAM, {FIELD: message})
        pipeline.execute()

    def take(self) -> bytes:
        """XREADGROUP and XACK."""
        return self.take_batch(1)[0]

    def take_batch(self, count: int) -> list[bytes]:
        """XREADGROUP with COUNT, and one XACK for all."""
        identifiers, messages = _receive(self._client, count)
        self._client.xack(STREAM, FIRST_GROUP, *identifiers)
        return messages

    def wait_latencies(self, count: int) -> list[float]:
        """Wake a process in XREADGROUP with BLOCK."""
        return waiting.latencies(self.publish, _receiving, (self._port, ), count)

    def close(self) -> None:
        """Stop the server and remove its files."""
        self._stack.close()


def _receiving(port: int) -> Iterator[bytes]:
    with contextlib.closing(_client(port)) as client:
        while True:
            identifiers, messages = _receive(client, 1)
            yield messages[0]
            client.xack(STREAM, FIRST_GROUP, *identifiers)


class _Peer:
    name = "Redis Streams"
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def __init__(self, server: pathlib.Path) -> None:
        self._server = server
        parser = "with hiredis" if redis.utils.HIREDIS_AVAILABLE else "without hiredis"
        self.note = (
            f"redis-server {servers.version_of(server)}, redis-py {importlib.metadata.version('redis')} {parser}: one "
            "stream, a consumer group per subscriber; appendonly with appendfsync always when durable, else everysec, "
            "no RDB snapshots; a batch is a pipeline in MULTI; takes with XREADGROUP and XACK, two commands and so "
            "two syncs; everything is in memory as well, and messages stay in the stream once taken by all")

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Start a server and make a group per subscriber."""
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-", dir=directory))
            port = servers.free_port()
            options = {
                "bind": servers.HOST,
                "port": str(port),
                "dir": own,
                "save": "",
                "appendonly": "yes",
                "appendfsync": "always" if durable else "everysec",
            }
            command = [str(self._server)]
            for option, value in options.items():
                command += [f"--{option}", value]
            stack.enter_context(servers.running(command, pathlib.Path(own), port))
            client = stack.enter_context(contextlib.closing(_client(port)))
            for number in range(subscribers):
                client.xgroup_create(STREAM, f"subscriber-{number}", mkstream=True)
            return _Session(port, client, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer(servers.find("redis-server", "redis-server"))]
