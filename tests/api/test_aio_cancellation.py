"""Cancelling tasks never loses a message, never acknowledges one that nobody handled, and never repeats one."""

import asyncio
import contextlib
import random
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Set, Tuple

import pytest

from persipubsub import HighWaterMark, errors
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.testing import Clock
from tests.api.test_aio import LOOPS, MakeLoop, receive_one, run_in
from tests.concurrency import Opened, drained

STEPS = 400
SENDERS = 3


def run(main: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine."""
    run_in(asyncio.new_event_loop, main)


async def until(condition: Callable[[], object]) -> None:
    """Let others go on until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def turns() -> None:
    """Let the loop iterate until whatever can run without waiting has run."""
    for _ in range(10):
        await asyncio.sleep(0)


# At each point

Send = Callable[[AsyncPublisher[bytes], bytes], Awaitable[object]]
#: What is sent for now comes at once, as what is sent.
SENDS: Dict[str, Send] = {
    "send": lambda pub, msg: pub.send(msg),
    "send_later": lambda pub, msg: pub.send_later(msg, delay_s=0),
}
each_send = pytest.mark.parametrize("send", SENDS.values(), ids=list(SENDS))


@each_send
def test_send_cancelled_before_the_loop_hands_it_over(opened: Opened, send: Send) -> None:
    """A send that is cancelled before the loop has handed it over is not sent; those beside it are."""

    async def main() -> None:
        pub = opened.environment.new_async_publisher()
        tasks = [asyncio.ensure_future(send(pub, b"%d" % number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert [
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*tasks, return_exceptions=True)
        ] == [False, True, False]

    run(main)
    assert opened.drain() == [b"0", b"2"]


@each_send
def test_send_cancelled_before_and_in_its_commit(opened: Opened, send: Send) -> None:
    """A send that waits behind a commit is withdrawn at once; one whose commit has begun ends with it, and is sent."""

    async def main() -> None:
        pub = opened.environment.new_async_publisher()
        with opened.writing():
            begun = asyncio.ensure_future(send(pub, b"begun"))
            await until(opened.queued)
            behind = asyncio.ensure_future(send(pub, b"behind"))
            await turns()
            begun.cancel()
            behind.cancel()
            with pytest.raises(asyncio.CancelledError):
                await behind
            begun.cancel()
            await turns()
            assert not begun.done()
        with pytest.raises(asyncio.CancelledError):
            await begun
        assert await pub.send(b"next") == 2

    run(main)
    assert opened.drain() == [b"begun", b"next"]


def test_withdrawal_cancelled_before_and_in_its_commit(opened: Opened) -> None:
    """Cancelling a delayed message is withdrawn, or ends with its commit, as a send."""

    async def main() -> None:
        pub = opened.environment.new_async_publisher()
        first, second = await pub.send_later(b"1", delay_s=1000), await pub.send_later(b"2", delay_s=1000)
        with opened.writing():
            begun = asyncio.ensure_future(pub.cancel(first))
            await until(opened.queued)
            behind = asyncio.ensure_future(pub.cancel(second))
            await turns()
            begun.cancel()
            behind.cancel()
            with pytest.raises(asyncio.CancelledError):
                await behind
            assert not begun.done()
        with pytest.raises(asyncio.CancelledError):
            await begun
        assert [await pub.cancel(first), await pub.cancel(second)] == [False, True]

    run(main)


@each_send
def test_cancelled_send_that_fails(opened: Opened, send: Send) -> None:
    """A cancelled send whose commit fails ends as cancelled, and says why it failed."""

    async def fail() -> None:
        # Caught in the task: Python 3.10 gives others a CancelledError of their own.
        with pytest.raises(asyncio.CancelledError) as caught:
            await send(opened.environment.new_async_publisher(), bytes(2000))
        assert isinstance(caught.value.__cause__, errors.MessageTooLargeError)

    async def main() -> None:
        opened.control.set_hwm(HighWaterMark(hwm_db_size=1000))
        with opened.writing():
            task = asyncio.ensure_future(fail())
            await until(opened.queued)
            task.cancel()
        await task

    run(main)
    assert opened.drain() == []


def test_timeout_of_asyncio(opened: Opened) -> None:
    """asyncio's own timeouts work around a wait and around a send that waits."""

    async def main() -> None:
        sub = opened.environment.new_async_subscriber("a")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(receive_one(sub), 0.05)
        pub = opened.environment.new_async_publisher()
        with opened.writing():
            first = asyncio.ensure_future(pub.send(b"1"))
            await until(opened.queued)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pub.send(b"2"), 0.05)
        assert await first == 1
        assert await receive_one(sub) == b"1"

    run(main)


def test_block_cancelled(opened: Opened) -> None:
    """A cancelled block brings its message back, unless it was cancelled during the acknowledgement."""

    async def handle(sub: AsyncSubscriber[bytes], entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with sub.receive():
            entered.set()
            await leave.wait()

    async def main() -> None:
        sub = opened.environment.new_async_subscriber("a")
        await opened.environment.new_async_publisher().send_many([b"1", b"2"])
        for leaves in (False, True):
            entered, leave = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(handle(sub, entered, leave))
            await entered.wait()
            assert await sub.front() == b"1"
            with opened.writing():
                if leaves:
                    leave.set()
                    await until(opened.queued)
                task.cancel()
                await turns()
                assert task.done() != leaves
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await sub.front() == b"2"

    run(main)


def test_block_cancels_itself(opened: Opened) -> None:
    """A block that ends, having asked for its own cancellation, acknowledges its message."""

    async def handle(sub: AsyncSubscriber[bytes]) -> None:
        async with sub.receive():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def main() -> None:
        sub = opened.environment.new_async_subscriber("a")
        await opened.environment.new_async_publisher().send(b"1")
        with pytest.raises(asyncio.CancelledError):
            await handle(sub)
        assert await sub.front() is None

    run(main)


# At random


class Consumer:
    """A task that receives messages in all ways there are, over and over, and notes what it has handled.

    What it has acknowledged is known unless a ``pop`` was cancelled. So it keeps all its possible cursors.
    """

    def __init__(self, sub: AsyncSubscriber[bytes], rng: random.Random) -> None:
        self.sub = sub
        self.rng = rng
        self.events: List[Tuple[str, List[bytes]]] = []

    async def step(self) -> None:
        """Receive in one of the ways."""
        await self.rng.choice([self.one, self.many, self.top, self.pop, self.loop])()

    async def work(self) -> None:
        """Handle what was received: one has to wait for it, or not."""
        for _ in range(self.rng.choice([0, 0, 1, 5])):
            await asyncio.sleep(0)

    async def one(self) -> None:
        """Receive a message."""
        async with self.sub.receive(timeout=0.01) as msg:
            await self.work()
            if msg is not None:
                self.events.append(("next", [msg]))

    async def many(self) -> None:
        """Receive some messages."""
        async with self.sub.receive_many(max_messages=self.rng.randint(1, 20), timeout=0.01) as msgs:
            await self.work()
            self.events.append(("next", msgs))

    async def top(self) -> None:
        """Receive the latest message."""
        async with self.sub.receive_to_top(timeout=0.01) as msg:
            await self.work()
            if msg is not None:
                self.events.append(("top", [msg]))

    async def pop(self) -> None:
        """Acknowledge a message unread."""
        try:
            await self.sub.pop()
            self.events.append(("popped", []))
        except errors.EmptyError:
            pass
        except asyncio.CancelledError:
            self.events.append(("perhaps popped", []))
            raise

    async def loop(self) -> None:
        """Loop over messages, and leave the loop at some time."""
        every, stop = self.rng.choice([1, 3]), self.rng.randint(1, 10)
        async with contextlib.aclosing(self.sub.messages(timeout=0.01, acknowledge_every=every)) as messages:
            async for msg in messages:
                await self.work()
                stop -= 1
                if not stop:
                    return
                self.events.append(("next", [msg]))

    def places(self, log: List[bytes]) -> Set[int]:
        """Return where its cursor may be; it must have handled everything before that in order, and once."""
        places = {0}
        for what, msgs in self.events:
            if what == "popped":
                places = {place + 1 for place in places}
            elif what == "perhaps popped":
                places |= {place + 1 for place in places}
            elif what == "top":
                places = {log.index(msgs[0]) + 1 for place in places if place <= log.index(msgs[0])}
            else:
                places = {place + len(msgs) for place in places if log[place:place + len(msgs)] == msgs}
            assert places, (what, msgs)
        return places


class Sender:
    """A task that sends, over and over, and notes what became of it."""

    def __init__(self, pub: AsyncPublisher[bytes], rng: random.Random, name: str) -> None:
        self.pub = pub
        self.rng = rng
        self.name = name
        self.count = 0
        self.sent: List[List[bytes]] = []
        self.unknown: List[List[bytes]] = []

    async def step(self) -> None:
        """Send something."""
        msgs = [f"{self.name}:{self.count + number}".encode() for number in range(self.rng.choice([1, 1, 5]))]
        self.count += len(msgs)
        try:
            await (self.pub.send(msgs[0]) if len(msgs) == 1 else self.pub.send_many(msgs))
            self.sent.append(msgs)
        except asyncio.CancelledError:
            self.unknown.append(msgs)
            raise
        await asyncio.sleep(self.rng.choice([0, 0.001]))

    def check(self, log: List[bytes]) -> None:
        """Compare the log with the notes: the batches are there in order, each wholly or not at all."""
        of_this = [msg for msg in log if msg.startswith(f"{self.name}:".encode())]
        batches = sorted(self.sent + [batch for batch in self.unknown if batch[0] in of_this],
                         key=lambda batch: int(batch[0].partition(b":")[2]))
        assert of_this == [msg for batch in batches for msg in batch]
        assert self.sent


FAR_S = 60


class Postponer:
    """A task that sends delayed messages and cancels some of them, over and over, and notes what became of each."""

    def __init__(self, pub: AsyncPublisher[bytes], rng: random.Random) -> None:
        self.pub = pub
        self.rng = rng
        self.count = 0
        self.sent: Set[bytes] = set()
        self.unknown: Set[bytes] = set()

    async def step(self) -> None:
        """Send a message that is due soon, or much later; cancel half of the latter."""
        msg = f"later:{self.count}".encode()
        self.count += 1
        delay_s = self.rng.choice([0, 0.001, FAR_S, FAR_S])
        self.unknown.add(msg)
        message = await self.pub.send_later(msg, delay_s)
        self.unknown.remove(msg)
        self.sent.add(msg)
        if delay_s == FAR_S and self.rng.random() < 0.5:
            self.sent.remove(msg)
            self.unknown.add(msg)
            assert await self.pub.cancel(message)
            self.unknown.remove(msg)
        await asyncio.sleep(self.rng.choice([0, 0.001]))

    def check(self, log: List[bytes]) -> None:
        """Compare the log, now that everything is due, with the notes."""
        assert self.sent
        assert self.sent <= {msg for msg in log if msg.startswith(b"later:")} <= self.sent | self.unknown


class Cancelled:
    """A task that continues after each cancellation, until it is told to end."""

    def __init__(self, step: Callable[[], Awaitable[None]]) -> None:
        self.ends = False
        self.cancellations = 0
        self._step = step
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while not self.ends:
            try:
                await self._step()
            except asyncio.CancelledError:
                self.cancellations += 1


async def cancel_at_random(rng: random.Random, tasks: List[Cancelled]) -> AsyncIterator[None]:
    """Cancel one of the tasks in each step, after some iterations of the loop or some time; at the end, all end."""
    await turns()  # a task that is cancelled before it has begun never begins
    for _ in range(STEPS):
        for _ in range(rng.choice([0, 1, 2, 3, 5, 8])):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.002)
        victim = rng.choice(tasks)
        for _ in range(rng.choice([1, 1, 2])):
            victim.task.cancel()
        yield
    for task in tasks:
        task.ends = True
    await asyncio.gather(*(task.task for task in tasks))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_cancelled_at_random(opened: Opened, make_loop: MakeLoop, seed: int, persipubsub_clock: Clock) -> None:
    """Tasks cancelled at random lose no message, acknowledge none unhandled, and get none twice."""
    rng = random.Random(seed)
    senders: List[Sender] = []
    consumers: List[Consumer] = []
    postponers: List[Postponer] = []

    async def main() -> None:
        environment = opened.environment
        senders.extend(Sender(environment.new_async_publisher(), rng, str(name)) for name in range(SENDERS))
        consumers.extend(Consumer(environment.new_async_subscriber(name), rng) for name in ("a", "b"))
        postponers.append(Postponer(environment.new_async_publisher(), rng))
        steps = [*(sender.step for sender in senders), *(consumer.step for consumer in consumers), postponers[0].step]
        tasks = list(map(Cancelled, steps))
        async for _ in cancel_at_random(rng, tasks):
            pass
        assert sum(task.cancellations for task in tasks) > STEPS / 4

    run_in(make_loop, main)
    persipubsub_clock.forward(FAR_S)
    log = opened.sent()
    postponers[0].check(log)
    assert len(log) == len(set(log))
    for sender in senders:
        sender.check(log)
    for consumer in consumers:
        left = drained(opened.environment.new_subscriber(consumer.sub.identifier))
        assert len(log) - len(left) in consumer.places(log)
        assert log[len(log) - len(left):] == left
        assert {what for what, _ in consumer.events} >= {"next", "top", "popped"}
