"""Publishers and subscribers for tasks of asyncio.

They do what :class:`Publisher` and :class:`Subscriber` do, with the same arguments and the same errors, and the loop
never waits for the disk or for other processes.

When an ``await`` has ended, by its result, by an error or by a cancellation, nothing of it goes on in the background.
"""

import datetime
import functools
from types import TracebackType
from typing import (Any, AsyncContextManager, AsyncGenerator, Callable, Generic, Iterable, List, Optional, Sequence,
                    Tuple, Type, TypeVar)

from persipubsub import clock
from persipubsub.bridge import Bridge, Seen
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import checks
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import Sent, Settled
from persipubsub.publisher import Publisher
from persipubsub.recorder import Recorder
from persipubsub.subscriber import Receipt, Subscriber

__all__ = ["AsyncPublisher", "AsyncReceipt", "AsyncSubscriber"]

# pylint: disable=protected-access  # this module is the other face of Publisher, Subscriber and Receipt

Msg = TypeVar("Msg")
T = TypeVar("T")


class AsyncPublisher(Generic[Msg]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_async_publisher`.

    Any number of tasks, in any number of loops, may use one publisher. What tasks send at the same time goes into one
    commit.
    """

    def __init__(self, publisher: Publisher, bridge: Bridge) -> None:
        """Take over a publisher.

        :param publisher: it checks and encodes; what it would write is committed by the bridge
        :param bridge: of its Environment
        """
        self._publisher = publisher
        self._bridge = bridge
        self._recorder = publisher._engine = Recorder(publisher._engine)

    async def send(self, msg: Msg, deduplication_id: Optional[str] = None) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability names.

        A send that is cancelled before its commit has begun is not sent. One that is cancelled later ends when the
        commit has ended, and is sent if that succeeds: whoever catches ``CancelledError`` cannot tell.

        :param msg: what :meth:`Publisher.send` takes
        :param deduplication_id: as for :meth:`Publisher.send`: so sending again after a cancellation is safe
        :return: the message id
        :raise PersipubsubError: as :meth:`Publisher.send`
        """
        message: Any = msg  # of the type that the publisher takes
        ids = await self._put(lambda: self._publisher.send(message, deduplication_id))
        return ids[0]

    async def send_many(self, msgs: Iterable[Msg]) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        A cancelled one is sent wholly or not at all, as with :meth:`send`; with ``autosync`` those before it are sent.

        :param msgs: what :meth:`Publisher.send_many` takes; iterated on the loop
        :return: the message ids, a range unless ``autosync``
        :raise PersipubsubError: as :meth:`Publisher.send_many`
        """
        messages: Any = msgs  # of the type that the publisher takes
        return await self._put(lambda: self._publisher.send_many(messages))

    async def _put(self, call: Callable[[], object]) -> Sequence[int]:
        all_ids: List[range] = []
        for write in self._recorder.recorded(call):
            sent: Sent = await self._bridge.write(write, withdraws=True)
            if not sent.awaited:
                self._publisher._warn()
            all_ids.append(sent.ids)
        if self._publisher._autosync:
            return [message_id for ids in all_ids for message_id in ids]
        return all_ids[0] if all_ids else range(0)

    async def send_later(self,
                         msg: Msg,
                         delay_s: Optional[float] = None,
                         at: Optional[datetime.datetime] = None) -> DelayedMessage:
        """Send a message that comes later. A cancelled one is delayed or not, as with :meth:`send`.

        :param msg: what :meth:`Publisher.send_later` takes, as the other arguments
        :return: by which it can be cancelled
        :raise PersipubsubError: as :meth:`Publisher.send_later`
        """
        message: Any = msg  # of the type that the publisher takes
        delayed: DelayedMessage = await self._write(lambda: self._publisher.send_later(message, delay_s, at))
        return delayed

    async def cancel(self, message: DelayedMessage) -> bool:
        """Take back what was sent for later.

        :param message: what :meth:`send_later` gave, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it has come, or was cancelled before
        :raise PersipubsubError: as :meth:`Publisher.cancel`
        """
        was_delayed: bool = await self._write(lambda: self._publisher.cancel(message))
        return was_delayed

    async def _write(self, call: Callable[[], object]) -> Any:
        [write] = self._recorder.recorded(call)
        return await self._bridge.write(write, withdraws=True)

    def close(self) -> None:
        """Close the publisher; more than once is fine. What is being sent is sent."""
        self._publisher.close()

    async def __aenter__(self) -> "AsyncPublisher[Msg]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        inner: Any = self._publisher.__reduce__()
        _make, (environment, *rest) = inner
        return type(environment).new_async_publisher, (environment, *rest)

    def __repr__(self) -> str:
        return repr(self._publisher).replace("<", "<Async", 1)


class AsyncReceipt(Generic[T]):
    """What an ``async with`` block receives: taken when the block ends, kept if it raises or is cancelled."""

    def __init__(self, wait: Callable[[], Any], end: "Callable[[Callable[[], object], bool], Any]") -> None:
        self._wait = wait
        self._end = end
        self._receipt: Optional[Receipt[T]] = None

    async def __aenter__(self) -> T:
        value: T
        self._receipt, value = await self._wait()
        return value

    async def __aexit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                        traceback: Optional[TracebackType]) -> None:
        receipt = self._receipt
        if receipt is not None:
            await self._end(lambda: receipt.__exit__(exc_type, exc, traceback), isinstance(exc, Exception))


def _is_one(value: object) -> bool:
    return value is not None


class AsyncSubscriber(Generic[Msg]):
    """Receives every message sent since the subscriber was added. Made by :meth:`Environment.new_async_subscriber`.

    Two tasks that receive as one subscriber may both get the same message; taking it twice is taking it once. However
    many tasks wait, they hold one thread.
    """

    def __init__(self, subscriber: Subscriber, bridge: Bridge) -> None:
        """Take over a subscriber.

        :param subscriber: it looks and decodes; what it would write is committed by the bridge
        :param bridge: of its Environment
        """
        self._subscriber = subscriber
        self._bridge = bridge
        self._recorder = subscriber._engine = Recorder(subscriber._engine)

    @property
    def identifier(self) -> str:
        """Give the name of the subscriber."""
        return self._subscriber.identifier

    def receive(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the next message, or None if none comes in time. It is taken when the ``async with`` block ends.

        If the block raises or is cancelled, the message comes again. A cancelled wait takes nothing.

        :param timeout: seconds to wait; 0 looks once, None waits for ever
        :raise PersipubsubError: as :meth:`Subscriber.receive`
        """
        return self._receipt(lambda: self._subscriber.receive(0), _is_one, timeout)

    def receive_to_top(self, timeout: Optional[float] = 60) -> AsyncContextManager[Optional[Msg]]:
        """Receive the latest message; everything up to it is taken when the ``async with`` block ends.

        What is sent during the block stays. Arguments and errors are those of :meth:`receive`.
        """
        return self._receipt(lambda: self._subscriber.receive_to_top(0), _is_one, timeout)

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     max_bytes: int = RECEIVE_BYTES_MAX) -> AsyncContextManager[List[Msg]]:
        """Receive what is there, in order, waiting only for the first message; all are taken in one commit.

        The other arguments and the errors are those of :meth:`receive`.

        :param max_messages: at most so many, and at most 10,000 for one of the workers of a shared subscriber
        :param max_bytes: at most so many bytes together, but always one message
        """
        self._subscriber.receive_many(max_messages, 0, max_bytes=max_bytes)  # so that a mistake is found here
        return self._receipt(lambda: self._subscriber.receive_many(max_messages, 0, max_bytes=max_bytes), bool, timeout)

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
        return self._messages(lambda: self._subscriber.receive_many(count, 0), timeout)

    async def _messages(self, look: Callable[[], Receipt[Any]], timeout: Optional[float]) -> AsyncGenerator[Msg, None]:
        while True:
            receipt, msgs = await self._wait(look, bool, timeout)
            found = receipt._found
            if not msgs or found is None:
                return
            inner, finished, begun = self._subscriber, 0, 0
            try:
                for msg in msgs:
                    if begun and clock.boottime_us() > found.expires_us:
                        break  # some have expired while the loop was at others before them: look again
                    begun += 1
                    yield msg
                    finished = begun
            finally:
                try:
                    if finished:
                        await self._end(functools.partial(inner._take, found, finished), False)
                finally:
                    await self._end(functools.partial(inner._abandon, found, finished, begun), begun > finished)

    async def front(self) -> Optional[Msg]:
        """Look at the next message without taking it; None if there is none.

        :raise PersipubsubError: as :meth:`Subscriber.front`
        """
        look: Any = self._subscriber.front
        message: Optional[Msg] = await self._bridge.read(look)
        return message

    async def pop(self) -> None:
        """Take the next message without reading it. If this is cancelled, it may be taken or not.

        :raise PersipubsubError: as :meth:`Subscriber.pop`
        """
        for write in await self._bridge.read(lambda: self._recorder.recorded(self._subscriber.pop)):
            await self._bridge.write(write, withdraws=True)

    async def extend_lease(self) -> None:
        """Have the lease of all messages that this object of a shared subscriber holds begin again now.

        :raise PersipubsubError: as :meth:`Subscriber.extend_lease`
        """
        await self._end(self._subscriber.extend_lease, False)

    def _receipt(self, look: Callable[[], Receipt[Any]], found: Callable[[Any], bool],
                 timeout: Optional[float]) -> AsyncReceipt[Any]:
        timeout = checks.timeout(timeout)
        return AsyncReceipt(lambda: self._wait(look, found, timeout), self._end)

    async def _wait(self, look: Callable[[], Receipt[T]], found: Callable[[T], bool],
                    timeout: Optional[float]) -> Tuple[Receipt[T], T]:

        def enter() -> Seen[Tuple[Receipt[T], T]]:
            receipt = look()
            msgs = receipt.__enter__()  # pylint: disable=unnecessary-dunder-call  # its exit comes later
            assert receipt._found is not None
            return Seen((receipt, msgs), found(msgs), receipt._found.due_us)

        def give_back(entered: Tuple[Receipt[T], T]) -> None:
            receipt, msgs = entered
            if found(msgs):
                self._bridge.write_later(self._recorder.recorded(receipt.give_back))

        return await self._bridge.wait_for(enter, timeout, give_back)

    async def _end(self, call: Callable[[], object], fails: bool) -> None:
        """Write what a call wants to write. It is not withdrawn: the program has done its work on the messages.

        :param call: of the subscriber
        :param fails: whether it says that the work has failed. Then it looks whether such failures are counted
        """
        off_loop = fails and not self._subscriber._subscription.shared
        writes = await self._bridge.read(lambda: self._recorder.recorded(call)) if off_loop else \
            self._recorder.recorded(call)
        for write in writes:
            settled: Optional[Settled] = await self._bridge.write(write, withdraws=False)
            if settled is not None:
                self._subscriber._end(settled)

    def close(self) -> None:
        """Close the subscriber; more than once is fine. Who waits gets ``ClosedError`` within a second."""
        self._subscriber.close()

    async def __aenter__(self) -> "AsyncSubscriber[Msg]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        inner: Any = self._subscriber.__reduce__()
        _make, (environment, *rest) = inner
        return type(environment).new_async_subscriber, (environment, *rest)

    def __repr__(self) -> str:
        return repr(self._subscriber).replace("<", "<Async", 1)
