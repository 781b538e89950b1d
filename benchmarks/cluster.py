"""A queue on a cluster beside plain nats-py on the same servers: ``python -m benchmarks.cluster``.

Both take turns of a few hundred milliseconds, so that what else the machine does concerns both. The figure of a
workload is the median of all rounds, and that of the ratios of each round.
"""

import argparse
import asyncio
import contextlib
import itertools
import pathlib
import statistics
import tempfile
import time
from typing import Any, Callable, Coroutine, Dict, Iterator, List, NamedTuple, Tuple, TypeVar

import nats
import nats.js.api

import persipubsub
from tests.nats.servers import Servers

T = TypeVar("T")

MESSAGE = bytes(100)
BATCH_MESSAGES = 1000
STREAM = "plain"
TIMEOUT_S = 60.0
TURN_S = 0.3
ROUNDS = 9


class Plain:
    """A stream that is used by nats-py alone, whose loop runs during a call."""

    def __init__(self, servers: Servers, replicas: int) -> None:
        self._loop = asyncio.new_event_loop()
        hosts = [f"nats://127.0.0.1:{node.port}" for node in servers.nodes]
        # The loop runs only during a call, so pings would not be answered.
        self._client = self.run(nats.connect(hosts, ping_interval=10**6))
        self._stream = self._client.jetstream(timeout=TIMEOUT_S)
        self.run(self._stream.add_stream(name=STREAM, subjects=[STREAM], num_replicas=replicas, allow_direct=True))
        config = nats.js.api.ConsumerConfig(durable_name="a", ack_policy=nats.js.api.AckPolicy.ALL)
        self.run(self._stream.add_consumer(STREAM, config))
        self._consumer = self.run(self._stream.pull_subscribe_bind("a", STREAM))

    def run(self, coroutine: "Coroutine[Any, Any, T]") -> T:
        """Run it to its end."""
        return self._loop.run_until_complete(coroutine)

    def send(self) -> int:
        """Publish a message, and wait for the acknowledgement."""
        self.run(self._stream.publish(STREAM, MESSAGE))
        return 1

    def send_many(self) -> int:
        """Publish messages, and then wait for all acknowledgements."""

        async def publish() -> None:
            await asyncio.gather(*[await self._stream.publish_async(STREAM, MESSAGE) for _ in range(BATCH_MESSAGES)])

        self.run(publish())
        return BATCH_MESSAGES

    def take(self) -> int:
        """Fetch a message, and acknowledge it, which the server confirms."""

        async def take() -> None:
            message, = await self._consumer.fetch(1, timeout=TIMEOUT_S)
            await message.ack_sync(timeout=TIMEOUT_S)

        self.run(take())
        return 1

    def take_many(self) -> int:
        """Fetch messages, and acknowledge all with the last, which the server confirms."""

        async def take() -> None:
            left = BATCH_MESSAGES
            while left:
                messages = await self._consumer.fetch(left, timeout=TIMEOUT_S)
                left -= len(messages)
                await messages[-1].ack_sync(timeout=TIMEOUT_S)

        self.run(take())
        return BATCH_MESSAGES

    def close(self) -> None:
        """Close the connection."""
        self.run(self._client.close())
        self._loop.close()


class Queue:
    """A queue of persipubsub."""

    def __init__(self, servers: Servers, replicas: int) -> None:
        self._environment = persipubsub.new_environment(f"{servers.url}/queue?replicas={replicas}")
        self._environment.new_control(["a"])
        self._publisher = self._environment.new_publisher()
        self._subscriber = self._environment.new_subscriber("a")

    def send(self) -> int:
        """Send a message."""
        self._publisher.send(MESSAGE)
        return 1

    def send_many(self) -> int:
        """Send a batch."""
        self._publisher.send_many([MESSAGE] * BATCH_MESSAGES)
        return BATCH_MESSAGES

    def take(self) -> int:
        """Receive and acknowledge a message."""
        with self._subscriber.receive(timeout=TIMEOUT_S):
            return 1

    def take_many(self) -> int:
        """Receive and acknowledge messages."""
        with self._subscriber.receive_many(BATCH_MESSAGES, timeout=TIMEOUT_S) as msgs:
            return len(msgs)

    def close(self) -> None:
        """Close the queue."""
        self._environment.close()


class Workload(NamedTuple):
    """What is measured, and at least how fast persipubsub shall be, as a ratio to nats-py."""

    step: str
    #: What fills the stream before a turn, if anything: more than a turn takes.
    fill: int
    target: float


WORKLOADS: Dict[str, Workload] = {
    "single sends": Workload("send", 0, 0.8),
    "sends of 1,000": Workload("send_many", 0, 0.6),
    "takes of 1": Workload("take", 2, 0),
    "takes of 1,000": Workload("take_many", 30, 2),
}


def rate(side: Any, workload: Workload) -> float:
    """Return how many messages a second one side sends or takes in a turn."""
    step: Callable[[], int] = getattr(side, workload.step)
    for _ in range(workload.fill):
        side.send_many()
    count_max = (workload.fill - 1) * BATCH_MESSAGES if workload.fill else None
    step()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < TURN_S and (count_max is None or count < count_max):
        count += step()
    return count / (time.perf_counter() - begin)


def measured(nodes: int, rounds: int, names: List[str]) -> Iterator[Tuple[str, List[float], List[float]]]:
    """Yield the rates of persipubsub and of nats-py in each workload."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-benchmark-") as directory, \
            Servers(pathlib.Path(directory), nodes) as servers:
        with contextlib.closing(Queue(servers, nodes)) as ours, contextlib.closing(Plain(servers, nodes)) as plain:
            for name in names:
                sides: Dict[Any, List[float]] = {ours: [], plain: []}
                for number in range(rounds):
                    for side in (list(sides) if number % 2 else reversed(list(sides))):
                        sides[side].append(rate(side, WORKLOADS[name]))
                yield name, sides[ours], sides[plain]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="how many servers, each with a replica")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="run only this workload")
    arguments = parser.parse_args()
    print(f"{'messages/s':16}{'persipubsub':>14}{'nats-py':>12}{'ratio':>8}{'target':>8}")
    for name, ours, plain in measured(arguments.nodes, arguments.rounds, arguments.only or list(WORKLOADS)):
        ratio = statistics.median(itertools.starmap(lambda one, other: one / other, zip(ours, plain)))
        target = f"{WORKLOADS[name].target:.1f}" if WORKLOADS[name].target else ""
        print(f"{name:16}{statistics.median(ours):>14,.0f}{statistics.median(plain):>12,.0f}{ratio:>8.2f}{target:>8}",
              flush=True)


if __name__ == "__main__":
    main()
