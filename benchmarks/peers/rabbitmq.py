"""RabbitMQ: a fanout exchange, and a queue per subscriber."""

import contextlib
import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pika  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra, without types

from benchmarks.peers import Peer, Session, pool, rabbitmq_client, servers, waiting

#: Debian's command of this name on the PATH would change to another user.
SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"

#: What strace shows to be synced before a confirm: in a quorum queue every message; in a classic one of version 2 none
#: up to 4 KiB, though a kill of the server loses none either. (Version 1 syncs every publish, but no acknowledgement.)
DURABLE_QUEUE = {"x-queue-type": "quorum"}
RELAXED_QUEUE = {"x-queue-type": "classic", "x-queue-version": 2}


class _Session:

    def __init__(self, port: int, channel: Any, stack: contextlib.ExitStack) -> None:
        self._port = port
        self._channel = channel
        self._deliveries = rabbitmq_client.received(channel)
        self._publishers = pool.Pool(lambda: rabbitmq_client.Publisher(port))
        self._stack = stack

    def publish(self, message: bytes) -> None:
        """Publish and wait for the confirm."""
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[bytes]) -> None:
        """Publish all and wait for the confirms."""
        with self._publishers.lent() as publisher:
            publisher.publish(messages)

    def take(self) -> bytes:
        """Return the next delivery and acknowledge it."""
        return self.take_batch(1)[0]

    def take_batch(self, count: int) -> list[bytes]:
        """Return the next deliveries and acknowledge all with the last, or more often if they exceed the prefetch."""
        messages = []
        for number in range(1, count + 1):
            tag, message = next(self._deliveries)
            messages.append(message)
            if number == count or number % rabbitmq_client.PREFETCH == 0:
                self._channel.basic_ack(tag, multiple=True)
        return messages

    def wait_latencies(self, count: int) -> list[float]:
        """Wake a process that consumes."""
        return waiting.latencies(self.publish, _receiving, (self._port, ), count)

    def close(self) -> None:
        """Stop the server and remove its files."""
        with self._stack:
            self._publishers.close(rabbitmq_client.Publisher.close)


def _receiving(port: int) -> Iterator[bytes]:
    with pika.BlockingConnection(rabbitmq_client.parameters(port)) as connection:
        channel = connection.channel()
        for tag, message in rabbitmq_client.received(channel):
            yield message
            channel.basic_ack(tag)


@contextlib.contextmanager
def _running(server: pathlib.Path, epmd: pathlib.Path, own: pathlib.Path) -> Iterator[int]:
    """Keep a server running with everything of its own, the daemon that knows the names of Erlang's nodes included."""
    port, names_port = servers.free_port(), servers.free_port()
    environment = {
        "HOME": str(own),
        "ERL_EPMD_ADDRESS": servers.HOST,
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(own / "advanced"),
        "RABBITMQ_CONFIG_FILES": str(own / "conf.d"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_DIST_PORT": str(servers.free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_MNESIA_BASE": str(own / "mnesia"),
        "RABBITMQ_NODENAME": "peer@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": servers.HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(own / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    with servers.running([str(epmd)], own, names_port, environment):
        with servers.running([str(server)], own, port, environment):
            yield port


class _Peer:
    name = "RabbitMQ"
    durabilities: tuple[bool, ...] = (True, False)
    weaker = False

    def __init__(self, server: pathlib.Path, epmd: pathlib.Path) -> None:
        self._server = server
        self._epmd = epmd
        self.note = (
            f"rabbitmq-server {servers.version(str(server.resolve()))}, pika {importlib.metadata.version('pika')}: a "
            "fanout exchange, one queue per subscriber; quorum queues when durable, else classic ones of version 2, "
            "which sync messages of more than 4 KiB all the same; persistent messages, confirmed, in batches "
            f"asynchronously; consumes with a prefetch of {rabbitmq_client.PREFETCH}; the server does not confirm "
            "acknowledgements")

    def open(self, directory: pathlib.Path, durable: bool, subscribers: int) -> Session:
        """Start a server and make a queue per subscriber."""
        with contextlib.ExitStack() as stack:
            own = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rabbitmq-", dir=directory)))
            port = stack.enter_context(_running(self._server, self._epmd, own))
            channel = stack.enter_context(pika.BlockingConnection(rabbitmq_client.parameters(port))).channel()
            channel.exchange_declare(rabbitmq_client.EXCHANGE, "fanout", durable=True)
            for number in range(subscribers):
                queue = f"subscriber-{number}"
                channel.queue_declare(queue, durable=True, arguments=DURABLE_QUEUE if durable else RELAXED_QUEUE)
                channel.queue_bind(queue, rabbitmq_client.EXCHANGE)
            return _Session(port, channel, stack.pop_all())


def peers() -> list[Peer]:
    """Return the peer."""
    return [_Peer(servers.find(SERVER, "rabbitmq-server"), servers.find("epmd", "erlang-base"))]
