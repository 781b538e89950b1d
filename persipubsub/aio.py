"""Publishers and subscribers for asyncio tasks.

They do what :class:`Publisher` and :class:`Subscriber` do, with the same arguments and the same errors. The event loop
never waits for the disk or for other processes.

Once an ``await`` has ended, by a result, an error or a cancellation, nothing of it continues in the background.
"""

import datetime
import functools
from typing import (TYPE_CHECKING, Any, AsyncContextManager, AsyncGenerator, Callable, Generic, Iterable, List, Mapping,
                    NoReturn, Optional, Sequence, Tuple, Union)

from persipubsub import clock, errors
from persipubsub.delayed import DelayedMessage
from persipubsub.endpoints import spans
from persipubsub.endpoints.async_receipt import AsyncReceipt
from persipubsub.endpoints.bridge import Bridge, Seen
from persipubsub.endpoints.receiving import Loop, Receiver
from persipubsub.endpoints.room import SendingCommand
from persipubsub.endpoints.sending import Sender
from persipubsub.engine import checks
from persipubsub.engine.commands import Command
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import NOTHING, Found, Msg, Origin, Sendable
from persipubsub.message import Delivery, Envelope, Reject, Retry

__all__ = ["AsyncPublisher", "AsyncReceipt", "AsyncSubscriber"]


class AsyncPublisher(Generic[Sendable]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_async_publisher`.

    Any number of tasks, in any number of loops, may use one publisher. Messages that tasks send at the same time share
    one commit.
    """

    def __init__(self, origin: Origin, sender: Sender, bridge: Bridge) -> None:
        """Prepare to send.

        :param sender: checks and encodes messages
        :param bridge: of the Environment; commits them
        """
        self._origin = origin
        self._sender = sender
        self._bridge = bridge

    async def send(self,
                   msg: Union[Sendable, Envelope[Sendable]],
                   deduplication_id: Optional[str] = None,
                   headers: Optional[Mapping[str, str]] = None,
                   timeout: Optional[float] = 0) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability promises.

        If the send is cancelled before its commit has begun, nothing is sent. If it is cancelled later, it ends with
        the commit, and the message is sent if that succeeds. A handler of ``CancelledError`` cannot know which.

        :param msg: what :meth:`Publisher.send` accepts, as the other arguments
        :param deduplication_id: it makes sending again after a cancellation safe
        :return: the message id
        :raise PersipubsubError: as :meth:`Publisher.send`
        """
        ids: Sequence[int] = await self._put(self._sender.put(msg, deduplication_id, headers), timeout)
        return ids[0]

    async def send_many(self,
                        msgs: Iterable[Union[Sendable, Envelope[Sendable]]],
                        timeout: Optional[float] = 0) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        If this is cancelled, all or none are sent, as with :meth:`send`; with ``autosync`` the first ones may be sent.

        :param msgs: what :meth:`Publisher.send_many` accepts; iterated on the event loop
        :param timeout: as that of :meth:`Publisher.send_many`
        :return: the message ids, a range unless ``autosync`` or a message has a ``deduplication_id``
        :raise PersipubsubError: as :meth:`Publisher.send_many`
        """
        timeout = checks.timeout(timeout)
        all_ids = [await self._put(command, timeout) for command in self._sender.put_many(msgs)]
        if self._sender.autosync:
            return [ids[0] for ids in all_ids]
        return all_ids[0] if all_ids else range(0)

    async def _put(self, command: SendingCommand, timeout: Optional[float]) -> Any:
        if spans.tracer is None:
            return await self._bridge.send(command, self._sender, timeout)
        with spans.tracer.sending(self._sender.location, command) as span:
            try:
                return span.sent(await self._bridge.send(span.command, self._sender, timeout))
            except spans.TOO_LARGE:
                return span.sent(await self._bridge.send(command, self._sender, timeout))

    async def send_later(self,
                         msg: Union[Sendable, Envelope[Sendable]],
                         delay_s: Optional[float] = None,
                         at: Optional[datetime.datetime] = None,
                         headers: Optional[Mapping[str, str]] = None,
                         deduplication_id: Optional[str] = None,
                         timeout: Optional[float] = 0) -> DelayedMessage:
        """Send a message that subscribers receive later. Cancellation is as with :meth:`send`.

        :param msg: what :meth:`Publisher.send_later` accepts, as the other arguments
        :return: what :meth:`cancel` needs
        :raise PersipubsubError: as :meth:`Publisher.send_later`
        """
        command = self._sender.put_later(msg, delay_s, at, headers, deduplication_id)
        delayed: DelayedMessage = await self._put(command, timeout)
        return delayed

    async def cancel(self, message: DelayedMessage) -> bool:
        """Cancel a delayed message.

        :param message: what :meth:`send_later` returned, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it was due already, or was cancelled before
        :raise PersipubsubError: as :meth:`Publisher.cancel`
        """
        was_delayed: bool = await self._bridge.write(self._sender.cancel(message), withdraws=True)
        return was_delayed

    def stop(self) -> None:
        """End waits for room now: they raise QueueFullError. Any thread and a signal handler may call this."""
        self._sender.stopped = True
        self._bridge.interrupt()

    def close(self) -> None:
        """Close the publisher; more than once is fine. Sends that have begun are completed."""
        self._sender.closed = True

    async def __aenter__(self) -> "AsyncPublisher[Sendable]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._sender.codec
        return self._origin.reopening("new_async_publisher", self._sender.autosync,
                                      None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._sender)


def _one(found: Found) -> Any:
    return found.payloads[0] if found.payloads else None


def _all(found: Found) -> Any:
    return found.payloads


class AsyncSubscriber(Generic[Msg]):
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_async_subscriber`.

    One name is one reader: two tasks that receive as one subscriber may both get the same message. Acknowledging it
    twice has the same effect as once. All tasks that wait share one thread.
    """

    def __init__(self, origin: Origin, receiver: Receiver, bridge: Bridge) -> None:
        """Prepare to receive.

        :param receiver: finds and decodes messages
        :param bridge: of the Environment; commits acknowledgements
        """
        self._origin = origin
        self._receiver = receiver
        self._bridge = bridge

    @property
    def identifier(self) -> str:
        """Return the name of the subscriber."""
        return self._receiver.identifier

    def receive(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the next message, or None if none arrives in time. The end of the block acknowledges it.

        If the ``async with`` block raises or is cancelled, the message is delivered again. A cancelled wait
        acknowledges nothing.

        :param timeout: seconds to wait; 0 looks once, None waits forever
        :raise PersipubsubError: as :meth:`Subscriber.receive`
        """
        return self._receipt(self._receiver.look, _one, timeout, glance=self._receiver.glance)

    def receive_to_top(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the latest message. The end of the block acknowledges it and all messages before it.

        Messages that are sent during the block stay. Arguments and errors are those of :meth:`receive`.
        """
        self._receiver.require_plain("receive_to_top")
        return self._receipt(self._receiver.look_at_top, _one, timeout, skipping=True)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> AsyncContextManager[List[Msg]]:
        """Receive the available messages in order, waiting only for the first; one commit acknowledges all of them.

        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: the most messages; at most 10,000 for a worker of a shared subscriber
        :param max_bytes: the most bytes of all messages together; the first message may exceed it
        """
        look = functools.partial(self._receiver.look, checks.at_least_one("max_messages", max_messages),
                                 checks.at_least_one("max_bytes", max_bytes))
        return self._receipt(look, _all, timeout)

    def receive_delivery(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Delivery[Msg]]]:
        """Receive the next message as a :class:`.Delivery`. Otherwise this is :meth:`receive`."""
        look = functools.partial(self._receiver.look, detailed=True)
        return self._receipt(look, self._one_delivery, timeout)

    def _one_delivery(self, found: Found) -> Any:
        return self._receiver.deliveries(found)[0] if found.ids else None

    def receive_deliveries(self,
                           max_messages: int = 1000,
                           timeout: Optional[float] = 60,
                           max_bytes: int = RECEIVE_BYTES_MAX) -> AsyncContextManager[List[Delivery[Msg]]]:
        """Receive the available messages as deliveries. Otherwise this is :meth:`receive_many`."""
        look = functools.partial(self._receiver.look, checks.at_least_one("max_messages", max_messages),
                                 checks.at_least_one("max_bytes", max_bytes), True)
        return self._receipt(look, self._receiver.deliveries, timeout)

    def deliveries(self,
                   timeout: Optional[float] = None,
                   acknowledge_every: int = 1) -> AsyncGenerator[Delivery[Msg], None]:
        """Iterate over messages as deliveries. Otherwise this is :meth:`messages`."""
        timeout = checks.timeout(timeout)
        count = checks.at_least_one("acknowledge_every", acknowledge_every)
        look = functools.partial(self._receiver.look, count, detailed=True)
        return self._iterate(look, timeout, self._receiver.deliveries)

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> AsyncGenerator[Msg, None]:
        """Iterate over messages; each is acknowledged when the loop asks for the next one.

        Leaving the loop acknowledges exactly the messages whose iteration has ended. After a ``break`` with an
        ``acknowledge_every`` above one, asyncio closes the iterator, which acknowledges them, a moment later. Wrap the
        iterator in :func:`contextlib.aclosing` to acknowledge them at once.

        :param timeout: seconds to wait for a message before the loop ends; None waits forever
        :param acknowledge_every: how many messages one commit acknowledges; after a crash, at most that number of
            messages is delivered again
        :raise PersipubsubError: as :meth:`Subscriber.messages`
        """
        timeout = checks.timeout(timeout)
        count = checks.at_least_one("acknowledge_every", acknowledge_every)
        return self._iterate(functools.partial(self._receiver.look, count), timeout, _all)

    async def _iterate(self, look: Callable[[], Found], timeout: Optional[float],
                       values: Callable[[Found], List[Any]]) -> AsyncGenerator[Any, None]:
        loop, loops = Loop(), self._receiver.loops
        loops[loop] = None
        try:
            while True:
                found = await self._wait(look, timeout)
                if not found.ids:
                    return
                begun = 0
                loop.begin(found)
                try:
                    for value in values(found):
                        if begun and clock.boottime_us() > found.expires_us:
                            break  # some have expired while the loop handled those before them: look again
                        if begun and self._receiver.stopped:
                            break
                        begun += 1
                        if spans.tracer is None:
                            yield value
                        else:
                            with spans.tracer.processing(self._receiver, found, begun - 1):
                                yield value
                        loop.finished = begun
                finally:
                    if loop.end() is not None:
                        await self._leave(found, loop.finished, begun)
        finally:
            loops.pop(loop, None)

    async def _leave(self, found: Found, finished: int, begun: int) -> None:
        """Acknowledge the messages of a batch whose iteration has ended; the next iteration may have begun."""
        try:
            if finished:
                await self._run(self._receiver.acknowledge(found, finished))
        finally:
            await self._run(self._receiver.leave(found, finished, begun))

    if not TYPE_CHECKING:  # a checker would accept a loop

        def __aiter__(self) -> NoReturn:
            raise errors.ArgumentTypeError(f"{self!r} cannot be iterated over. Iterate over its messages(), which ends "
                                           "after a timeout, or over its deliveries().")

        __iter__ = __aiter__

    async def front(self) -> Optional[Msg]:
        """Return the next message without acknowledging it; None if there is none.

        :raise PersipubsubError: as :meth:`Subscriber.front`
        """
        self._receiver.require_plain("front")
        message: Optional[Msg] = _one(await self._bridge.read(self._receiver.front))
        return message

    async def front_delivery(self) -> Optional[Delivery[Msg]]:
        """Return the next message as a delivery, as :meth:`Subscriber.front_delivery` does."""
        self._receiver.require_plain("front_delivery")
        look = functools.partial(self._receiver.front, detailed=True)
        delivery: Optional[Delivery[Msg]] = self._one_delivery(await self._bridge.read(look))
        return delivery

    async def pop(self) -> None:
        """Acknowledge the next message without reading it. If this is cancelled, it may or may not be acknowledged.

        :raise PersipubsubError: as :meth:`Subscriber.pop`
        """
        self._receiver.require_plain("pop")
        found = await self._bridge.read(self._receiver.undecoded)
        await self._run(self._receiver.acknowledge(found, 1), withdraws=True)

    async def extend_lease(self) -> None:
        """Restart the lease of all messages that this object of a shared subscriber holds.

        :raise PersipubsubError: as :meth:`Subscriber.extend_lease`
        """
        for command in self._receiver.extend():
            self._receiver.settle_extension(await self._bridge.write(command, withdraws=False))

    def _receipt(self,
                 look: Callable[[], Found],
                 value: Callable[[Found], Any],
                 timeout: Optional[float],
                 skipping: bool = False,
                 glance: Callable[[], Found] = lambda: NOTHING) -> AsyncReceipt[Any]:
        timeout = checks.timeout(timeout)

        async def end(found: Found, error: Optional[BaseException]) -> bool:
            if error is None:
                await self._run(self._receiver.acknowledge(found, len(found.ids)))
                return False
            if skipping and not isinstance(error, (Retry, Reject)):
                return False
            ending = self._receiver.at_end(found, error)
            await self._run(ending.commands)
            return ending.swallows

        async def wait() -> Found:
            found = glance()
            return found if found.ids else await self._wait(look, timeout)

        return AsyncReceipt(wait, value, end, self, self._receiver)

    async def _wait(self, look: Callable[[], Found], timeout: Optional[float]) -> Found:

        def seen() -> Seen[Found]:
            self._receiver.require_open()
            found = look()
            return Seen(found, bool(found.ids) or self._receiver.stopped, found.due_us)

        def give_back(found: Found) -> None:
            self._bridge.write_later(self._receiver.leave(found, 0, 0))

        return await self._bridge.wait_for(seen, timeout, give_back)

    async def _run(self, commands: Sequence[Command], withdraws: bool = False) -> None:
        """Commit commands. They are not withdrawn once the program has processed the messages."""
        for command in commands:
            self._receiver.settle(await self._bridge.write(command, withdraws))

    def stop(self) -> None:
        """Stop receiving, as :meth:`Subscriber.stop` does."""
        self._receiver.stop()

    @property
    def stopped(self) -> bool:
        """Return whether stop() was called."""
        return self._receiver.stopped

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Waiting tasks get ``ClosedError`` within a second.

        Messages whose iteration in a loop over :meth:`messages` has ended are acknowledged first; the loop waits for
        that. A block that runs can end normally, unless the Environment is closed as well.
        """
        self._receiver.close()

    async def __aenter__(self) -> "AsyncSubscriber[Msg]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._receiver.codec
        return self._origin.reopening("new_async_subscriber", self.identifier,
                                      None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._receiver).replace("<", "<Async", 1)
