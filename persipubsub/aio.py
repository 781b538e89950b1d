"""Publishers and subscribers for tasks of asyncio.

They do what :class:`Publisher` and :class:`Subscriber` do, with the same arguments and the same errors, and the loop
never waits for the disk or for other processes.

When an ``await`` has ended, by its result, by an error or by a cancellation, nothing of it goes on in the background.
"""

import datetime
import functools
from types import TracebackType
from typing import (Any, AsyncContextManager, AsyncGenerator, Awaitable, Callable, Generic, Iterable, List, Optional,
                    Sequence, Tuple, Type, TypeVar, Union)

from persipubsub import clock
from persipubsub.bridge import Bridge, Seen
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import checks
from persipubsub.engine.commands import Command, Put, PutOnce
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import Found, Origin, Sent
from persipubsub.receiving import Receiver
from persipubsub.sending import Sender

__all__ = ["AsyncPublisher", "AsyncReceipt", "AsyncSubscriber"]

Msg = TypeVar("Msg")
T = TypeVar("T")


class AsyncPublisher(Generic[Msg]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_async_publisher`.

    Any number of tasks, in any number of loops, may use one publisher. What tasks send at the same time goes into one
    commit.
    """

    def __init__(self, origin: Origin, sender: Sender, bridge: Bridge) -> None:
        """Prepare to send.

        :param sender: it checks and encodes
        :param bridge: of its Environment: it commits
        """
        self._origin = origin
        self._sender = sender
        self._bridge = bridge

    async def send(self, msg: Msg, deduplication_id: Optional[str] = None) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability names.

        A send that is cancelled before its commit has begun is not sent. One that is cancelled later ends when the
        commit has ended, and is sent if that succeeds: whoever catches ``CancelledError`` cannot tell.

        :param msg: what :meth:`Publisher.send` takes
        :param deduplication_id: as for :meth:`Publisher.send`: so sending again after a cancellation is safe
        :return: the message id
        :raise PersipubsubError: as :meth:`Publisher.send`
        """
        return (await self._put(self._sender.put(msg, deduplication_id))).start

    async def send_many(self, msgs: Iterable[Msg]) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        A cancelled one is sent wholly or not at all, as with :meth:`send`; with ``autosync`` those before it are sent.

        :param msgs: what :meth:`Publisher.send_many` takes; iterated on the loop
        :return: the message ids, a range unless ``autosync``
        :raise PersipubsubError: as :meth:`Publisher.send_many`
        """
        all_ids = [await self._put(command) for command in self._sender.put_many(msgs)]
        if self._sender.autosync:
            return [ids.start for ids in all_ids]
        return all_ids[0] if all_ids else range(0)

    async def _put(self, command: Union[Put, PutOnce]) -> range:
        sent: Sent = await self._bridge.write(command, withdraws=True)
        return self._sender.note(sent)

    async def send_later(self,
                         msg: Msg,
                         delay_s: Optional[float] = None,
                         at: Optional[datetime.datetime] = None) -> DelayedMessage:
        """Send a message that comes later. A cancelled one is delayed or not, as with :meth:`send`.

        :param msg: what :meth:`Publisher.send_later` takes, as the other arguments
        :return: by which it can be cancelled
        :raise PersipubsubError: as :meth:`Publisher.send_later`
        """
        delayed: DelayedMessage = await self._bridge.write(self._sender.put_later(msg, delay_s, at), withdraws=True)
        return delayed

    async def cancel(self, message: DelayedMessage) -> bool:
        """Take back what was sent for later.

        :param message: what :meth:`send_later` gave, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it has come, or was cancelled before
        :raise PersipubsubError: as :meth:`Publisher.cancel`
        """
        was_delayed: bool = await self._bridge.write(self._sender.cancel(message), withdraws=True)
        return was_delayed

    def close(self) -> None:
        """Close the publisher; more than once is fine. What is being sent is sent."""
        self._sender.closed = True

    async def __aenter__(self) -> "AsyncPublisher[Msg]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._sender.codec
        return self._origin.reopening("new_async_publisher", self._sender.autosync,
                                      None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._sender)


class AsyncReceipt(Generic[T]):
    """What an ``async with`` block receives: acknowledged when the block ends, kept if it raises or is cancelled."""

    def __init__(self, wait: Callable[[], Awaitable[Found]], value: Callable[[Found], T],
                 end: "Callable[[Found, Optional[BaseException]], Awaitable[None]]") -> None:
        self._wait = wait
        self._value = value
        self._end = end
        self._found: Optional[Found] = None

    async def __aenter__(self) -> T:
        self._found = await self._wait()
        return self._value(self._found)

    async def __aexit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                        traceback: Optional[TracebackType]) -> None:
        found = self._found
        if found is not None and found.ids:
            await self._end(found, exc)


def _one(found: Found) -> Any:
    return found.payloads[0] if found.payloads else None


def _all(found: Found) -> Any:
    return found.payloads


class AsyncSubscriber(Generic[Msg]):
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_async_subscriber`.

    Two tasks that receive as one subscriber may both get the same message; taking it twice is taking it once. However
    many tasks wait, they hold one thread.
    """

    def __init__(self, origin: Origin, receiver: Receiver, bridge: Bridge) -> None:
        """Prepare to receive.

        :param receiver: it looks and decodes
        :param bridge: of its Environment: it commits
        """
        self._origin = origin
        self._receiver = receiver
        self._bridge = bridge

    @property
    def identifier(self) -> str:
        """Give the name of the subscriber."""
        return self._receiver.identifier

    def receive(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the next message, or None if none comes in time. It is taken when the ``async with`` block ends.

        If the block raises or is cancelled, the message comes again. A cancelled wait takes nothing.

        :param timeout: seconds to wait; 0 looks once, None waits for ever
        :raise PersipubsubError: as :meth:`Subscriber.receive`
        """
        return self._receipt(functools.partial(self._receiver.look, 1), _one, timeout)

    def receive_to_top(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the latest message; everything up to it is taken when the ``async with`` block ends.

        What is sent during the block stays. Arguments and errors are those of :meth:`receive`.
        """
        self._receiver.require_plain("receive_to_top")
        return self._receipt(self._receiver.look_at_top, _one, timeout, skipping=True)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> AsyncContextManager[List[Msg]]:
        """Receive what is there, in order, waiting only for the first message; all are taken in one commit.

        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: at most so many, and at most 10,000 for one of the workers of a shared subscriber
        :param max_bytes: at most so many bytes together, but always one message
        """
        look = functools.partial(self._receiver.look, checks.at_least_one("max_messages", max_messages),
                                 checks.at_least_one("max_bytes", max_bytes))
        return self._receipt(look, _all, timeout)

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> AsyncGenerator[Msg, None]:
        """Iterate over messages; each is taken when the loop asks for the next one.

        Leaving the loop takes exactly those whose turn of the loop had ended. Where that is by ``break`` and with an
        ``acknowledge_every`` of more than one, asyncio closes the iterator, and so takes them, a moment later; with
        :func:`contextlib.aclosing` around it they are taken at once.

        :param timeout: seconds to wait for a message before the loop ends; None waits for ever
        :param acknowledge_every: take so many in one commit; after a crash at most so many come again
        :raise PersipubsubError: as :meth:`Subscriber.messages`
        """
        timeout = checks.timeout(timeout)
        count = checks.at_least_one("acknowledge_every", acknowledge_every)
        return self._messages(functools.partial(self._receiver.look, count), timeout)

    async def _messages(self, look: Callable[[], Found], timeout: Optional[float]) -> AsyncGenerator[Msg, None]:
        while True:
            found = await self._wait(look, timeout)
            if not found.ids:
                return
            finished = begun = 0
            try:
                for msg in _all(found):
                    if begun and clock.boottime_us() > found.expires_us:
                        break  # some have expired while the loop was at others before them: look again
                    begun += 1
                    yield msg
                    finished = begun
            finally:
                try:
                    if finished:
                        await self._run(self._receiver.acknowledge(found, finished))
                finally:
                    await self._run(self._receiver.leave(found, finished, begun))

    async def front(self) -> Optional[Msg]:
        """Look at the next message without taking it; None if there is none.

        :raise PersipubsubError: as :meth:`Subscriber.front`
        """
        self._receiver.require_plain("front")
        message: Optional[Msg] = _one(await self._bridge.read(self._receiver.front))
        return message

    async def pop(self) -> None:
        """Take the next message without reading it. If this is cancelled, it may be taken or not.

        :raise PersipubsubError: as :meth:`Subscriber.pop`
        """
        self._receiver.require_plain("pop")
        found = await self._bridge.read(self._receiver.undecoded)
        await self._run(self._receiver.acknowledge(found, 1), withdraws=True)

    async def extend_lease(self) -> None:
        """Have the lease of all messages that this object of a shared subscriber holds begin again now.

        :raise PersipubsubError: as :meth:`Subscriber.extend_lease`
        """
        for command in self._receiver.extend():
            self._receiver.settle_extension(await self._bridge.write(command, withdraws=False))

    def _receipt(self,
                 look: Callable[[], Found],
                 value: Callable[[Found], Any],
                 timeout: Optional[float],
                 skipping: bool = False) -> AsyncReceipt[Any]:
        timeout = checks.timeout(timeout)

        async def end(found: Found, error: Optional[BaseException]) -> None:
            if error is None:
                await self._run(self._receiver.acknowledge(found, len(found.ids)))
            elif not skipping:
                await self._run(self._receiver.fail(found, error))

        return AsyncReceipt(lambda: self._wait(look, timeout), value, end)

    async def _wait(self, look: Callable[[], Found], timeout: Optional[float]) -> Found:

        def seen() -> Seen[Found]:
            self._receiver.require_open()
            found = look()
            return Seen(found, bool(found.ids), found.due_us)

        def give_back(found: Found) -> None:
            self._bridge.write_later(self._receiver.leave(found, 0, 0))

        return await self._bridge.wait_for(seen, timeout, give_back)

    async def _run(self, commands: Sequence[Command], withdraws: bool = False) -> None:
        """Commit commands. They are not withdrawn where the program has done its work on the messages."""
        for command in commands:
            self._receiver.settle(await self._bridge.write(command, withdraws))

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Who waits gets ``ClosedError`` within a second."""
        self._receiver.closed = True

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
