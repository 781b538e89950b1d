"""The client of NATS JetStream, as publisher and as consumer."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import nats  # type: ignore[import,unused-ignore]  # pylint: disable=import-error  # an extra

from benchmarks.peers import servers

T = TypeVar("T")

#: The name of the stream and of its one subject.
STREAM = "messages"

#: A disk has slow spells.
TIMEOUT_S = 60.0

#: A client answers pings only while a call runs, so they must not come before the end of a benchmark.
PING_INTERVAL_S = 24 * 60 * 60


class Connection:
    """A connection whose event loop runs only during a call; for one thread at a time."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._client: Any = self.run(
            nats.connect(f"nats://{servers.HOST}:{port}", allow_reconnect=False, ping_interval=PING_INTERVAL_S))
        self.stream: Any = self._client.jetstream(timeout=TIMEOUT_S)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end."""
        return self._loop.run_until_complete(coroutine)

    async def publish_all(self, messages: Sequence[bytes]) -> None:
        """Publish without waiting for each acknowledgement, then wait for all."""
        await asyncio.gather(*[await self.stream.publish_async(STREAM, message) for message in messages])

    async def receive(self, consumer: Any, count: int) -> list[bytes]:
        """Fetch, and acknowledge the last message and with it those before."""
        messages: list[bytes] = []
        while len(messages) < count:
            fetched = await consumer.fetch(count - len(messages), timeout=TIMEOUT_S)
            messages += [message.data for message in fetched]
            await fetched[-1].ack()
        return messages

    def close(self) -> None:
        """Close the connection and its loop."""
        self.run(self._client.close())
        self._loop.close()
