"""The client of RabbitMQ, as publisher and as consumer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pika  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra, without types

from benchmarks.peers import servers, waiting

EXCHANGE = "messages"
FIRST_QUEUE = "subscriber-0"

#: Maximum messages on their way to a consumer before it acknowledges the first.
PREFETCH = 1000

#: The server blocks publishers where it runs out of disk or memory.
BLOCKED_TIMEOUT_S = 60.0


def parameters(port: int) -> Any:
    """Return the parameters of a connection, without heartbeats: a client answers them only while a call runs."""
    return pika.ConnectionParameters(servers.HOST, port, heartbeat=0, blocked_connection_timeout=BLOCKED_TIMEOUT_S)


class Publisher:
    """Publishes with confirms, as pika's asynchronous example does; its loop runs only during a call."""

    def __init__(self, port: int) -> None:
        self._channel: Any = None
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._first_unconfirmed = 1
        self._connection = pika.SelectConnection(
            parameters(port),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._channel_opened),
            on_open_error_callback=self._stop,
            on_close_callback=self._stop)
        self._connection.ioloop.start()
        if self._channel is None:
            raise ConnectionError("RabbitMQ opens no channel")

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._confirmed, callback=self._stop)

    def _stop(self, *_: Any) -> None:
        self._connection.ioloop.stop()

    def _confirmed(self, frame: Any) -> None:
        refused = isinstance(frame.method, pika.spec.Basic.Nack)
        tag: int = frame.method.delivery_tag
        if not refused:
            # What lies before the range was confirmed by an earlier one.
            first = self._first_unconfirmed if frame.method.multiple else tag
            self._unconfirmed.difference_update(range(first, tag + 1))
            if frame.method.multiple:
                self._first_unconfirmed = tag + 1
        if refused or not self._unconfirmed:
            self._stop()

    def publish(self, messages: Sequence[bytes]) -> None:
        """Publish them and wait until all are confirmed."""
        persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        for message in messages:
            self._channel.basic_publish(EXCHANGE, "", message, persistent)
            self._published += 1
            self._unconfirmed.add(self._published)
        self._connection.ioloop.start()
        if self._unconfirmed:
            raise ConnectionError(f"RabbitMQ did not confirm {len(self._unconfirmed)} messages")

    def close(self) -> None:
        """Close the connection."""
        if self._connection.is_open:
            self._connection.close()
            self._connection.ioloop.start()
        self._connection.ioloop.close()


def received(channel: Any) -> Iterator[tuple[int, bytes]]:
    """Return the delivery tags and the messages of the first queue."""
    channel.basic_qos(prefetch_count=PREFETCH)
    for method, _, body in channel.consume(FIRST_QUEUE, inactivity_timeout=waiting.RECEIVE_TIMEOUT_S):
        if method is None:
            raise TimeoutError("no message")
        yield method.delivery_tag, body
