"""The engine for clusters: each command is run by a coroutine on the loop of this process."""

import asyncio
import contextlib
import threading
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Set, Type, TypeVar

from persipubsub import errors
from persipubsub.engine.commands import (Acknowledge, AcknowledgeClaimed, Cancel, Command, Extend, Fail, GiveBack,
                                         Outcome, Put, PutLater, PutOnce, PutRelayed)
from persipubsub.engine.protocols import Watch
from persipubsub.engine.values import NOTHING, Batch, Configuration, Found, Subscription
from persipubsub.nats_engine import connections, durability, loop_thread
from persipubsub.nats_engine.administration import NatsAdministration
from persipubsub.nats_engine.client import Lost, parsed_header
from persipubsub.nats_engine.connection import Connection
from persipubsub.nats_engine.dead_letters import DeadLetters
from persipubsub.nats_engine.deduplication import Deduplication
from persipubsub.nats_engine.delays import Delays
from persipubsub.nats_engine.keeping import Keeping
from persipubsub.nats_engine.plain import PlainSubscribers
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.relaying import Relaying
from persipubsub.nats_engine.sending import Sending
from persipubsub.nats_engine.settings import Settings
from persipubsub.nats_engine.shared import SharedSubscribers
from persipubsub.nats_engine.state import Records
from persipubsub.nats_engine.streams import Api, ApiError, Names, refused
from persipubsub.nats_engine.subscribers import Subscribers
from persipubsub.nats_engine.url import Target
from persipubsub.nats_engine.wakeup import Signal, SignalWatch
from persipubsub.queue import Strategy

T = TypeVar("T")


class Parts:  # pylint: disable=too-many-instance-attributes  # one per part
    """What works on a queue in one process. All of it runs on the loop."""

    def __init__(self, target: Target) -> None:
        self.shown = target.shown
        self.connection: Connection = connections.acquire(target)
        self.names = Names(target.queue)
        self.messages, self.room = Signal(), Signal()
        api = Api(self.connection)
        self.records = Records(api, self.names, self.messages, self.room)
        self.reading = Reading(api, self.names, self.records)
        self.keeping = Keeping(api, self.names, self.records, self.reading)
        self.sending = Sending(api, self.names, self.records, self.keeping)
        self.deduplication = Deduplication(api, self.names, self.records, self.reading, self.keeping, self.sending)
        self.delays = Delays(api, self.names, self.records, self.reading, self.sending, self.deduplication)
        self.letters = DeadLetters(api, self.names, self.records)
        self.settings = Settings(api, self.names, self.records, self.reading)
        self.subscribers = Subscribers(api, self.names, self.records, self.reading, self.keeping, self.letters)
        self.relaying = Relaying(api, self.names, self.records, self.keeping, self.sending, self.subscribers)
        self.plain = PlainSubscribers(api, self.records, self.reading, self.keeping, self.letters)
        self.shared = SharedSubscribers(api, self.records, self.reading, self.keeping, self.letters, self.plain)
        self._tasks: "Set[asyncio.Task[None]]" = set()
        self.runs: Dict[Type[Any], Callable[[Any], Coroutine[Any, Any, Any]]] = {
            Put: lambda command: self.sending.put(Batch(*command)),
            PutOnce: lambda command: self.deduplication.put(*command),
            PutLater: self.delays.put,
            PutRelayed: self.relaying.put,
            Cancel: lambda command: self.delays.cancel(command.message),
            Acknowledge: self.plain.acknowledge,
            Fail: self.plain.fail,
            AcknowledgeClaimed: self.shared.acknowledge,
            GiveBack: self.shared.give_back,
            Extend: self.shared.extend,
        }

    async def open(self) -> None:
        """Start using the queue.

        :raise NotInitializedError: there is none
        """
        await self.connection.subscribe(f"{self.names.pushed}.m.>", self._message_pushed)
        await self.connection.subscribe(f"{self.names.pushed}.r.>", self.records.push)
        self.connection.on_connection(self._reconnected)
        await self.records.settings()
        await self.records.all()

    def _message_pushed(self, subject: bytes, header: bytes, _data: bytes) -> None:
        """Wake all that wait for messages; a delayed message, which the server sends, may exceed the mark."""
        self.messages.wake()
        if subject.endswith(b".m.d"):
            message_id = int(parsed_header(header)[b"Nats-Sequence"])
            self._tasks.add(task := asyncio.get_running_loop().create_task(self._enforce(message_id)))
            task.add_done_callback(self._tasks.discard)

    async def _enforce(self, message_id: int) -> None:
        with contextlib.suppress(errors.PersipubsubError):
            settings = await self.records.settings()
            if settings.strategy == Strategy.prune_first.value:
                await self.keeping.enforce(settings, message_id, 1, 0)
            if not self.records.known:
                await self.keeping.drop_unawaited(message_id, 1)

    def _reconnected(self) -> None:
        """Wake all that wait, since what was pushed meanwhile is lost."""
        self.messages.wake()
        self.room.wake()

    async def close(self) -> None:
        """End the use of the queue."""
        await self.keeping.close()
        await self.connection.unsubscribe(f"{self.names.pushed}.m.>")
        await self.connection.unsubscribe(f"{self.names.pushed}.r.>")
        await connections.release(self.connection)

    async def run(self, command: Command) -> Any:
        """Run a command."""
        try:
            return await self.runs[type(command)](command)
        except ApiError as error:
            raise refused(error, self.shown) from error

    async def submit(self, commands: Sequence[Command]) -> List[Outcome]:
        """Run commands at the same time."""
        results = await asyncio.gather(*map(self.run, commands), return_exceptions=True)
        return [Outcome(None, result) if isinstance(result, Exception) else Outcome(result, None) for result in results]

    async def announce(self, number: int) -> bool:
        """Answer others who ask whether this process receives as a subscriber; return whether another process does."""
        subject = f"{self.names.readers}.{number}"
        try:
            await self.connection.request(subject, b"")
            found = True
        except Lost:
            found = False
        await self.connection.answer(subject)
        return found


def create(target: Target, configuration: Configuration) -> None:
    """Set up a queue, unless it exists."""
    parts = Parts(target)
    try:
        loop_thread.call(parts.settings.create, configuration)
    finally:
        loop_thread.call(parts.close)


class NatsEngine:
    """The access of one process to one queue, shared by all its Environments: see the protocol :class:`.Engine`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._parts: Optional[Parts] = None
        self._opening = threading.Lock()
        self._announced: Dict[int, int] = {}
        self._closed = False

    def open(self) -> None:
        """Connect, and find the queue, unless it is open.

        :raise NotInitializedError: there is no queue
        """
        if self._closed:
            raise errors.ClosedError(f"The queue at {self._target.shown} is closed. Open it with a new Environment.")
        if self._parts is None:
            with self._opening:
                if self._parts is None:
                    parts = Parts(self._target)
                    try:
                        loop_thread.call(parts.open)
                    except BaseException:
                        loop_thread.call(parts.close)
                        raise
                    self._parts = parts
                    durability.check(self._target)

    @property
    def parts(self) -> Parts:
        """Return what works on the queue in this process. A forked child makes its own."""
        self.open()
        assert self._parts is not None
        return self._parts

    def close(self) -> None:
        """End the use of the queue in this process."""
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            loop_thread.call(parts.close)
            self._report(parts, at_once=True)

    def after_fork_in_child(self) -> None:
        """Leave alone what belongs to the parent."""
        loop_thread.abandon(self._parts)
        self._parts, self._opening, self._announced = None, threading.Lock(), {}

    def call(self, coroutine: "Coroutine[Any, Any, T]") -> T:
        """Run a coroutine on the loop, wait for its result, and report what was dropped."""

        async def run() -> T:
            try:
                return await coroutine
            except ApiError as error:
                raise refused(error, self._target.shown) from error

        result = loop_thread.call(run)
        if self._parts is not None:
            self._report(self._parts)
        return result

    @staticmethod
    def _report(parts: Parts, at_once: bool = False) -> None:
        for losses in (parts.keeping.expired, parts.keeping.overflowed, parts.keeping.unawaited):
            losses.report(parts.shown, at_once)

    @property
    def administration(self) -> NatsAdministration:
        """Return the administration of the queue."""
        return NatsAdministration(self)

    # Commands

    def run(self, command: Command) -> Any:
        """Run a command."""
        return self.call(self.parts.run(command))

    def submit(self, commands: Sequence[Command]) -> List[Outcome]:
        """Run commands at the same time; those that send are sent together, in their order."""
        try:
            return self.call(self.parts.submit(commands))
        except errors.PersipubsubError as error:  # the queue is closed, or cannot be opened in a forked child
            return [Outcome(None, error)] * len(commands)

    # Looking

    def subscribe(self, identifier: bytes) -> Subscription:
        """Return the subscription of a subscriber."""
        return self.call(self.parts.subscribers.subscribe(identifier))

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Return the next messages of a subscriber without delivering them."""
        return self.call(self.parts.plain.look(subscription, max_messages, max_bytes, detailed))

    def glance(self, subscription: Subscription) -> Found:
        """Return nothing: each look waits for the server."""
        del subscription
        return NOTHING

    def look_at_top(self, subscription: Subscription, detailed: bool = False) -> Found:
        """Return the latest message of a subscriber without delivering it."""
        return self.call(self.parts.plain.look_at_top(subscription, detailed))

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Lease messages of a shared subscriber to one worker."""
        return self.call(self.parts.shared.claim(subscription, max_messages, max_bytes, detailed))

    # Waiting

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait for messages of the queue; the wait never polls."""
        del longest_sleep_s
        return SignalWatch(self.parts.messages)

    def watch_room(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait until messages are deleted."""
        del longest_sleep_s
        return SignalWatch(self.parts.room)

    def interrupt(self) -> None:
        """Let all waits of this process return now."""
        parts = self._parts
        if parts is not None:
            parts.messages.interrupt()
            parts.room.interrupt()

    def announce(self, subscription: Subscription) -> bool:
        """Announce that this process receives as a subscriber; return whether another process does, too."""
        self._announced[subscription.number] = self._announced.get(subscription.number, 0) + 1
        if self._announced[subscription.number] > 1:
            return False
        return self.call(self.parts.announce(subscription.number))

    def renounce(self, subscription: Subscription) -> None:
        """Withdraw one announcement."""
        count = self._announced.get(subscription.number, 0) - 1
        parts = self._parts
        if count > 0:
            self._announced[subscription.number] = count
        elif count == 0:
            del self._announced[subscription.number]
            if parts is not None:
                self.call(parts.connection.unsubscribe(f"{parts.names.readers}.{subscription.number}"))
