"""The rules of the state machine for tasks of asyncio: they do what the plain endpoints do."""

import asyncio
import contextlib
import itertools
from typing import List

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import errors
from persipubsub.aio import AsyncSubscriber
from tests.model.lasting_machine import DELAYS, IDENTIFIERS, LastingMachine
from tests.model.machine import Interrupted, first_of, payloads_of, within
from tests.model.rules import NAMES, SIZES_BYTES, WHICH, WORKERS, uses
from tests.model.shared_machine import SharedMachine


class TaskMachine(SharedMachine, LastingMachine):
    """A queue that tasks use as well. Each rule has a loop of its own."""

    @rule(which=WHICH, sizes_bytes=st.lists(SIZES_BYTES, min_size=1, max_size=12))
    @uses("Environment.new_async_publisher", "AsyncPublisher.send")
    def send_from_tasks(self, which: int, sizes_bytes: List[int]) -> None:
        """What many tasks send at once is appended in the order of the tasks, as if each had sent alone."""
        pub, payloads = self.some(which).environment.new_async_publisher(), self.payloads(sizes_bytes)

        async def send() -> List[int]:
            return await asyncio.gather(*(pub.send(payload) for payload in payloads))

        self.model.write()  # one commit
        assert asyncio.run(send()) == [self.model.append([payload])[0] for payload in payloads]

    @rule(which=WHICH, sizes_bytes=st.lists(SIZES_BYTES, min_size=1, max_size=5), autosync=st.booleans())
    @uses("Environment.new_async_publisher", "AsyncPublisher.send_many", "AsyncPublisher.close")
    def send_many_from_a_task(self, which: int, sizes_bytes: List[int], autosync: bool) -> None:
        """A batch is appended, unless the publisher is closed."""
        pub, payloads = self.some(which).environment.new_async_publisher(autosync), self.payloads(sizes_bytes)
        sent = list(asyncio.run(pub.send_many(payloads)))
        assert sent == ([self.model.put([payload])[0]
                         for payload in payloads] if autosync else self.model.put(payloads))
        pub.close()
        with pytest.raises(errors.ClosedError):
            asyncio.run(pub.send_many(payloads))

    @rule(which=WHICH, size_bytes=SIZES_BYTES, delay_s=DELAYS, absolute=st.booleans())
    @uses("AsyncPublisher.send_later")
    def send_later_from_a_task(self, which: int, size_bytes: int, delay_s: float, absolute: bool) -> None:
        """A delayed message of a task comes as those of others do."""
        pub = self.some(which).environment.new_async_publisher()
        self.send_for_later(lambda *args, **kwargs: asyncio.run(pub.send_later(*args, **kwargs)), size_bytes, delay_s,
                            absolute, False)

    @precondition(lambda self: self.delayed_messages)
    @rule(which=WHICH, message=st.integers(0, 30))
    @uses("AsyncPublisher.cancel")
    def cancel_from_a_task(self, which: int, message: int) -> None:
        """A task cancels a delayed message of any sender, unless it has come."""
        sent = self.delayed_messages[message % len(self.delayed_messages)]
        pub = self.some(which).environment.new_async_publisher()
        assert asyncio.run(pub.cancel(sent)) == self.model.cancel(sent.due_us, sent.number)

    @rule(which=WHICH, size_bytes=SIZES_BYTES, identifier=IDENTIFIERS)
    @uses("AsyncPublisher.send")
    def send_once_from_a_task(self, which: int, size_bytes: int, identifier: str) -> None:
        """A message is known by its id, whoever sends it."""
        pub, payload = self.some(which).environment.new_async_publisher(), self.payloads([size_bytes])[0]
        assert asyncio.run(pub.send(payload, identifier)) == self.model.put_once(payload, identifier)

    @uses("Environment.new_async_subscriber")
    def async_subscriber(self, which: int, name: str) -> AsyncSubscriber[bytes]:
        """Open a subscriber of the queue, whichever there is: an unknown one is refused."""
        environment = self.some(which).environment
        if name not in self.model.places:
            with pytest.raises(errors.UnknownSubscriberError):
                environment.new_async_subscriber(name)
            self.model.write()
            self.model.add(name)
            self.some(which).control.add_subscriber(name)
        return environment.new_async_subscriber(name)

    def take_from_model(self, name: str, ids: List[int]) -> None:
        """Acknowledge messages."""
        if ids:
            self.model.take(name, self.model.places[name].number, ids[-1], ids)

    @rule(which=WHICH, name=NAMES, fails=st.booleans(), timeout=st.sampled_from([0, 0.001]))
    @uses("AsyncSubscriber.receive", "AsyncSubscriber.identifier")
    def receive_in_a_task(self, which: int, name: str, fails: bool, timeout: float) -> None:
        """The next message is acknowledged when the block ends, unless it raises."""
        sub = self.async_subscriber(which, name)
        assert sub.identifier == name
        found = self.model.look(name)[:1]

        async def receive() -> None:
            async with sub.receive(timeout) as msg:
                assert msg == first_of(found)
                if fails:
                    raise Interrupted

        with pytest.raises(Interrupted) if fails else contextlib.nullcontext():
            asyncio.run(receive())
        ids = [message.id for message in found]
        self.take_from_model(name, [] if fails else ids)
        self.model.fail(name, self.model.places[name].number, ids if fails else [])

    @rule(which=WHICH, name=NAMES)
    @uses("AsyncSubscriber.receive_to_top")
    def receive_to_top_in_a_task(self, which: int, name: str) -> None:
        """The end of the block acknowledges the latest message and all before it."""
        sub = self.async_subscriber(which, name)
        found = self.model.look(name, top=True)

        async def receive() -> None:
            async with sub.receive_to_top(timeout=0) as msg:
                assert msg == first_of(found)

        asyncio.run(receive())
        self.take_from_model(name, sorted({message.id for message in self.model.log}) if found else [])

    @rule(which=WHICH,
          name=NAMES,
          max_messages=st.integers(1, 6),
          max_bytes=st.sampled_from([2**26, 2**26, 1, 16, 65_528]))
    @uses("AsyncSubscriber.receive_many")
    def receive_many_in_a_task(self, which: int, name: str, max_messages: int, max_bytes: int) -> None:
        """A batch is acknowledged when the block ends."""
        sub = self.async_subscriber(which, name)
        found = within(self.model.look(name)[:max_messages], max_bytes)

        async def receive() -> None:
            async with sub.receive_many(max_messages, timeout=0, max_bytes=max_bytes) as msgs:
                assert msgs == payloads_of(found)

        asyncio.run(receive())
        self.take_from_model(name, [message.id for message in found])

    @rule(which=WHICH, name=NAMES, every=st.integers(1, 4), stop=st.integers(0, 5))
    @uses("AsyncSubscriber.messages")
    def loop_in_a_task(self, which: int, name: str, every: int, stop: int) -> None:
        """Leaving a loop acknowledges exactly the messages whose iteration had ended."""
        sub = self.async_subscriber(which, name)
        got: List[bytes] = []

        async def loop() -> None:
            async with contextlib.aclosing(sub.messages(timeout=0, acknowledge_every=every)) as messages:
                async for msg in messages:
                    if len(got) == stop:
                        break
                    got.append(msg)

        asyncio.run(loop())
        expected = self.messages_of_model(name, self.model.places[name].number, every)
        assert list(itertools.islice(expected, stop)) == got
        next(expected, None)  # the loop was left in its turn
        expected.close()

    @rule(which=WHICH, name=NAMES)
    @uses("AsyncSubscriber.front", "AsyncSubscriber.pop", "AsyncSubscriber.close")
    def pop_in_a_task(self, which: int, name: str) -> None:
        """The next message can be looked at and acknowledged unread; without one, and when closed, it is an error."""
        sub = self.async_subscriber(which, name)
        found = self.model.look(name)[:1]
        assert asyncio.run(sub.front()) == first_of(found)
        with contextlib.nullcontext() if found else pytest.raises(errors.EmptyError):
            asyncio.run(sub.pop())
        self.take_from_model(name, [message.id for message in found])
        sub.close()
        with pytest.raises(errors.ClosedError):
            asyncio.run(sub.front())

    @precondition(lambda self: self.workers())
    @rule(which=WHICH, max_messages=st.integers(1, 4), fails=st.booleans())
    @uses("AsyncSubscriber.receive_many", "AsyncSubscriber.extend_lease")
    def work_in_a_task(self, which: int, max_messages: int, fails: bool) -> None:
        """What a worker claims is acknowledged when its block ends, and given back where that raises."""
        sub, place = self.some(which).environment.new_async_subscriber(WORKERS), self.workers()
        assert place is not None
        number, found = self.model.claim(WORKERS, max_messages, 2**26)

        async def work() -> None:
            async with sub.receive_many(max_messages, timeout=0) as msgs:
                assert msgs == payloads_of(found)
                await sub.extend_lease()
                if fails:
                    raise Interrupted

        with pytest.raises(Interrupted) if fails else contextlib.nullcontext():
            asyncio.run(work())
        held = self.model.held(place, number, found)
        assert len(held) == len(found)
        if found and fails:
            self.model.give_back(place, held, failed=True)
        elif found:
            self.model.acknowledge(place, held)
