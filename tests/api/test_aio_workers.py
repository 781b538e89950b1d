"""Tasks that share a subscriber, and tasks that wait for what comes by itself."""

import asyncio
import random
from typing import Any, Awaitable, Callable, List

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from persipubsub import Durability, Environment, clock, errors
from persipubsub.aio import AsyncSubscriber
from persipubsub.engine import limits
from tests.api.test_aio import LOOPS, receive_one, run_in
from tests.concurrency import wait_until

MakeEnvironment = Callable[..., Environment]
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(name="run", params=LOOPS, ids=["asyncio", "uvloop"])
def run_fixture(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine, once for each kind of loop."""
    return lambda main: run_in(request.param, main)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue with workers that does not wait for the disk."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    environment.new_control().add_subscriber("workers", shared=True, max_deliveries=2, retry_delay_s=0)
    return environment


def in_flight(environment: Environment) -> int:
    """Return how many messages workers hold or have given back."""
    return environment.new_control().status().subscribers["workers"].in_flight


def test_each_message_goes_to_one_task(environment: Environment, run: Run) -> None:
    """Of tasks that wait as workers exactly one gets each message, whichever way they receive."""

    async def one_by_one(sub: AsyncSubscriber[bytes]) -> List[bytes]:
        return [msg async for msg in sub.messages(timeout=0.2, acknowledge_every=3)]

    async def in_batches(sub: AsyncSubscriber[bytes]) -> List[bytes]:
        taken: List[bytes] = []
        while True:
            async with sub.receive_many(5, timeout=0.2) as msgs:
                taken += msgs
            if not msgs:
                return taken

    async def main() -> List[List[bytes]]:
        workers = [
            asyncio.ensure_future(receive(environment.new_async_subscriber("workers")))
            for receive in [one_by_one, in_batches] * 4
        ]
        pub = environment.new_async_publisher()
        for number in range(0, 200, 10):
            await pub.send_many([b"%d" % one for one in range(number, number + 10)])
        return list(await asyncio.gather(*workers))

    assert sorted(int(msg) for msgs in run(main) for msg in msgs) == list(range(200))
    assert in_flight(environment) == 0


def test_a_block_that_raises_gives_back(environment: Environment, run: Run) -> None:
    """A message whose block raised comes again, and becomes a dead letter; a cancellation is no failure."""

    async def main() -> None:
        sub = environment.new_async_subscriber("workers")
        await environment.new_async_publisher().send_many([b"bad", b"good"])
        for error in (asyncio.CancelledError, asyncio.CancelledError, ValueError, ValueError):
            with pytest.raises(error):
                async with sub.receive(timeout=0) as msg:
                    assert msg == b"bad"
                    raise error("text")
        assert await receive_one(sub, 0) == b"good"

    run(main)
    [letter] = environment.new_control().dead_letters("workers")
    assert (letter.payload, letter.deliveries, letter.error_type, letter.error_text) == (b"bad", 2, "ValueError",
                                                                                         "text")


def test_failures_of_a_plain_subscriber_are_counted(environment: Environment, run: Run) -> None:
    """A subscriber that limits its deliveries does so for tasks as well, in blocks and in loops."""
    environment.new_control().add_subscriber("a", max_deliveries=2)

    async def main() -> None:
        sub = environment.new_async_subscriber("a")
        await environment.new_async_publisher().send_many([b"bad", b"good"])
        with pytest.raises(ValueError):
            async with sub.receive(timeout=0):
                raise ValueError
        loop = sub.messages(timeout=0)
        assert await anext(loop) == b"bad"
        await loop.aclose()
        assert await sub.front() == b"good"

    run(main)
    assert [letter.payload for letter in environment.new_control().dead_letters("a")] == [b"bad"]


def test_a_lost_lease_is_an_error(environment: Environment, run: Run) -> None:
    """Acknowledging or extending a message that another worker holds by now raises LeaseLostError."""
    control = environment.new_control()

    async def main() -> None:
        sub = environment.new_async_subscriber("workers")
        await environment.new_async_publisher().send(b"x")
        with pytest.raises(errors.LeaseLostError):
            async with sub.receive(timeout=0):
                assert control.prune_all_messages_for("workers") == 1
                with pytest.raises(errors.LeaseLostError):
                    await sub.extend_lease()
        with pytest.raises(errors.SubscriberKindError):
            await environment.new_async_subscriber("a").extend_lease()
        with pytest.raises(errors.SubscriberKindError):
            await sub.front()

    run(main)


def test_leases_beside_a_lost_one_are_extended(environment: Environment, run: Run,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one lease was lost, those of the other tasks of the same subscriber begin again all the same."""
    now_us = clock.boottime_us()
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us)
    worker = environment.new_subscriber("workers")

    async def main() -> None:
        nonlocal now_us
        sub = environment.new_async_subscriber("workers")
        await environment.new_async_publisher().send_many([b"1", b"2"])
        with pytest.raises(KeyboardInterrupt), worker.receive(timeout=0):
            lost = sub.receive(timeout=0)
            assert await lost.__aenter__() == b"2"  # pylint: disable=unnecessary-dunder-call  # not in a block of its own
            raise KeyboardInterrupt
        async with sub.receive(timeout=0) as msg:
            assert msg == b"1"
            environment.new_control().rewind("workers", to=2)
            now_us += 20 * 10**6
            with pytest.raises(errors.LeaseLostError):
                await sub.extend_lease()
            now_us += 20 * 10**6
            with worker.receive_many(timeout=0) as msgs:
                assert msgs == [b"2"]
        with pytest.raises(errors.LeaseLostError):
            await lost.__aexit__(None, None, None)

    run(main)


def test_bytes_that_are_no_message(environment: Environment, run: Run) -> None:
    """Of a batch come the messages before the one that cannot be decoded; in the end that is a dead letter."""

    async def main() -> List[str]:
        await environment.new_async_publisher().send_many(
            [StringValue(value="1").SerializeToString(), b"\xff",
             StringValue(value="3").SerializeToString()])
        sub, taken = environment.new_async_subscriber("workers", message_type=StringValue), []
        for _ in range(8):
            try:
                async with sub.receive_many(timeout=0) as msgs:
                    taken += [msg.value for msg in msgs]
            except errors.DecodeError as error:
                assert error.payload == b"\xff"
        return taken

    assert run(main) == ["1", "3"]
    assert [letter.payload for letter in environment.new_control().dead_letters("workers")] == [b"\xff"]


@pytest.mark.parametrize("seed", range(4))
def test_cancelled_waits_lose_nothing(seed: int, environment: Environment, run: Run) -> None:
    """Wherever waits and blocks of workers are cancelled, each message is handled once, and none is left claimed."""
    numbers, handled = random.Random(seed), list[bytes]()

    async def handle(sub: AsyncSubscriber[bytes]) -> None:
        async with sub.receive(timeout=None) as msg:
            await asyncio.sleep(0)
            assert msg is not None
        handled.append(msg)

    async def main() -> None:
        subs = [environment.new_async_subscriber("workers") for _ in range(3)]
        pub = environment.new_async_publisher()
        for number in range(150):
            await pub.send(b"%d" % number)
            task = asyncio.ensure_future(handle(numbers.choice(subs)))
            await asyncio.sleep(numbers.choice([0, 0, 0.0002, 0.001]))
            task.cancel()
            await asyncio.wait([task])
        wait_until(lambda: environment.new_control().status().subscribers["workers"].pending + len(handled) <= 150)
        left = {msg async for msg in subs[0].messages(timeout=0.5)}
        # One that was cancelled while it was being acknowledged was acknowledged, and its task did not get to say so.
        assert len(handled) == len(set(handled)) and not left & set(handled)
        assert environment.new_control().status().subscribers["workers"].taken == 150

    run(main)
    assert in_flight(environment) == 0


# What comes by itself


def test_a_task_has_a_delayed_message_when_it_is_due(environment: Environment, run: Run,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting task wakes up for it, without looking now and then; also if it is delayed during the wait."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 1000.0)

    async def main() -> None:
        pub, sub = environment.new_async_publisher(), environment.new_async_subscriber("a")
        await pub.send_later(b"before", delay_s=0.1)
        assert await receive_one(sub) == b"before"
        waiting = asyncio.ensure_future(receive_one(sub))
        await asyncio.sleep(0.05)
        await pub.send_later(b"during", delay_s=0.1)
        assert await waiting == b"during"

    run(main)
    environment.new_publisher().send(b"so that the thread that waits ends")


def test_a_task_has_a_message_when_its_lease_ends(environment: Environment, run: Run,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting task wakes up for what a dead worker held, also where others wait for something else already."""
    monkeypatch.setattr(limits, "SLEEP_S_MAX", 1000.0)
    environment.new_control().add_subscriber("workers", lease_s=0.3)

    async def main() -> None:
        waiting = asyncio.ensure_future(receive_one(environment.new_async_subscriber("a")))
        await environment.new_async_publisher().send(b"x")
        assert await waiting == b"x"
        waiting = asyncio.ensure_future(receive_one(environment.new_async_subscriber("a")))
        dead = environment.new_subscriber("workers").receive(timeout=0)
        assert dead.__enter__() == b"x"  # pylint: disable=unnecessary-dunder-call  # its block never ends
        assert await receive_one(environment.new_async_subscriber("workers")) == b"x"
        waiting.cancel()

    run(main)
    environment.new_publisher().send(b"so that the thread that waits ends")
