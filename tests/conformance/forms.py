"""The two forms of endpoints, the plain ones and those for tasks, behind the same calls: a test is written once."""

import asyncio
import datetime
from types import TracebackType
from typing import (Any, AsyncContextManager, AsyncGenerator, ContextManager, Coroutine, Generic, Iterable, Iterator,
                    List, Mapping, Optional, Protocol, Sequence, Type, TypeVar, Union)

from persipubsub import Delivery, Envelope, Environment
from persipubsub.aio import AsyncPublisher, AsyncSubscriber
from persipubsub.delayed import DelayedMessage

T = TypeVar("T")
#: What may be sent.
Msg = Union[bytes, Envelope[bytes]]

#: The longest that any call takes unless something is broken.
WAIT_S = 60


class AnyPublisher(Protocol):
    """What a publisher can do in either form."""

    def send(self,
             msg: Msg,
             deduplication_id: Optional[str] = None,
             headers: Optional[Mapping[str, str]] = None,
             timeout: Optional[float] = 0) -> int:
        """Send a message."""

    def send_many(self, msgs: Iterable[Msg], timeout: Optional[float] = 0) -> Sequence[int]:
        """Send messages."""

    def send_later(self,
                   msg: Msg,
                   delay_s: Optional[float] = None,
                   at: Optional[datetime.datetime] = None,
                   *,
                   headers: Optional[Mapping[str, str]] = None,
                   deduplication_id: Optional[str] = None,
                   timeout: Optional[float] = 0) -> DelayedMessage:
        """Send a message that arrives later."""

    def cancel(self, message: DelayedMessage) -> bool:
        """Cancel a delayed message."""

    def stop(self) -> None:
        """End waits for room."""

    def close(self) -> None:
        """Close the publisher."""


class AnySubscriber(Protocol):
    """What a subscriber can do in either form."""

    @property
    def identifier(self) -> str:
        """Return the name."""

    def receive(self, timeout: Optional[float] = 60) -> ContextManager[Optional[bytes]]:
        """Receive the next message."""

    def receive_to_top(self, timeout: Optional[float] = 60) -> ContextManager[Optional[bytes]]:
        """Receive the latest message."""

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     *,
                     max_bytes: int = 64 * 1024**2) -> ContextManager[List[bytes]]:
        """Receive what is there."""

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[bytes]:
        """Iterate over messages."""

    def receive_delivery(self, timeout: Optional[float] = 60) -> ContextManager[Optional[Delivery[bytes]]]:
        """Receive the next message as a delivery."""

    def receive_deliveries(self,
                           max_messages: int = 1000,
                           timeout: Optional[float] = 60,
                           *,
                           max_bytes: int = 64 * 1024**2) -> ContextManager[List[Delivery[bytes]]]:
        """Receive the available messages as deliveries."""

    def deliveries(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[Delivery[bytes]]:
        """Iterate over deliveries."""

    def front(self) -> Optional[bytes]:
        """Look at the next message."""

    def front_delivery(self) -> Optional[Delivery[bytes]]:
        """Look at the next message as a delivery."""

    def pop(self) -> None:
        """Acknowledge the next message unread."""

    def extend_lease(self) -> None:
        """Restart the leases."""

    def stop(self) -> None:
        """Stop receiving."""

    @property
    def stopped(self) -> bool:
        """Return whether it was stopped."""

    def close(self) -> None:
        """Close the subscriber."""


class Form(Protocol):
    """How endpoints are made, and how they are used."""

    def publisher(self, environment: Environment, autosync: bool) -> AnyPublisher:
        """Make a publisher."""

    def subscriber(self, environment: Environment, identifier: str) -> AnySubscriber:
        """Make a subscriber."""

    def close(self) -> None:
        """Release what the form needs."""


class Plain:
    """The plain endpoints."""

    def publisher(self, environment: Environment, autosync: bool) -> AnyPublisher:
        """Make a publisher."""
        return environment.new_publisher(autosync)

    def subscriber(self, environment: Environment, identifier: str) -> AnySubscriber:
        """Make a subscriber."""
        return environment.new_subscriber(identifier)

    def close(self) -> None:
        """Do nothing."""


class Tasks:
    """The endpoints for tasks: each call is a task of one loop, which runs until the call ends."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    @property
    def closed(self) -> bool:
        """Return whether the loop is closed."""
        return self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, for a bounded time."""
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, WAIT_S))

    def publisher(self, environment: Environment, autosync: bool) -> AnyPublisher:
        """Make a publisher."""
        return _TaskPublisher(self, environment.new_async_publisher(autosync))

    def subscriber(self, environment: Environment, identifier: str) -> AnySubscriber:
        """Make a subscriber."""
        return _TaskSubscriber(self, environment.new_async_subscriber(identifier))

    def close(self) -> None:
        """Close the loop."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _TaskPublisher(AnyPublisher):

    def __init__(self, tasks: Tasks, inner: AsyncPublisher[bytes]) -> None:
        self._run = tasks.run
        self._inner = inner

    def send(self,
             msg: Msg,
             deduplication_id: Optional[str] = None,
             headers: Optional[Mapping[str, str]] = None,
             timeout: Optional[float] = 0) -> int:
        return self._run(self._inner.send(msg, deduplication_id, headers, timeout))

    def send_many(self, msgs: Iterable[Msg], timeout: Optional[float] = 0) -> Sequence[int]:
        return self._run(self._inner.send_many(msgs, timeout))

    def send_later(self,
                   msg: Msg,
                   delay_s: Optional[float] = None,
                   at: Optional[datetime.datetime] = None,
                   **others: Any) -> DelayedMessage:
        return self._run(self._inner.send_later(msg, delay_s, at, **others))

    def cancel(self, message: DelayedMessage) -> bool:
        return self._run(self._inner.cancel(message))

    def stop(self) -> None:
        self._inner.stop()

    def close(self) -> None:
        self._inner.close()


class _Block(Generic[T]):
    """The ``async with`` of a receive as a ``with``."""

    def __init__(self, tasks: Tasks, inner: AsyncContextManager[T]) -> None:
        self._run = tasks.run
        self._inner = inner

    def __enter__(self) -> T:
        return self._run(_entered(self._inner))

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> Optional[bool]:
        return self._run(_left(self._inner, exc_type, exc, traceback))


async def _entered(block: AsyncContextManager[T]) -> T:
    return await block.__aenter__()  # pylint: disable=unnecessary-dunder-call  # its exit is another call


async def _left(block: AsyncContextManager[Any], *exc_info: Any) -> Optional[bool]:
    return await block.__aexit__(*exc_info)


class _TaskSubscriber(AnySubscriber):

    def __init__(self, tasks: Tasks, inner: AsyncSubscriber[bytes]) -> None:
        self._tasks = tasks
        self._inner = inner

    @property
    def identifier(self) -> str:
        return self._inner.identifier

    def receive(self, timeout: Optional[float] = 60) -> ContextManager[Optional[bytes]]:
        return _Block(self._tasks, self._inner.receive(timeout))

    def receive_to_top(self, timeout: Optional[float] = 60) -> ContextManager[Optional[bytes]]:
        return _Block(self._tasks, self._inner.receive_to_top(timeout))

    def receive_many(self,
                     max_messages: int = 1000,
                     timeout: Optional[float] = 60,
                     *,
                     max_bytes: int = 64 * 1024**2) -> ContextManager[List[bytes]]:
        return _Block(self._tasks, self._inner.receive_many(max_messages, timeout, max_bytes))

    def receive_delivery(self, timeout: Optional[float] = 60) -> ContextManager[Optional[Delivery[bytes]]]:
        return _Block(self._tasks, self._inner.receive_delivery(timeout))

    def receive_deliveries(self,
                           max_messages: int = 1000,
                           timeout: Optional[float] = 60,
                           *,
                           max_bytes: int = 64 * 1024**2) -> ContextManager[List[Delivery[bytes]]]:
        return _Block(self._tasks, self._inner.receive_deliveries(max_messages, timeout, max_bytes))

    def messages(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[bytes]:
        return self._iterated(self._inner.messages(timeout, acknowledge_every))

    def deliveries(self, timeout: Optional[float] = None, acknowledge_every: int = 1) -> Iterator[Delivery[bytes]]:
        return self._iterated(self._inner.deliveries(timeout, acknowledge_every))

    def _iterated(self, messages: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                try:
                    msg = self._tasks.run(_next(messages))
                except StopAsyncIteration:
                    return
                yield msg
        finally:
            if not self._tasks.closed:  # as it is where a test failed: then the loop has closed it
                self._tasks.run(messages.aclose())

    def front(self) -> Optional[bytes]:
        return self._tasks.run(self._inner.front())

    def front_delivery(self) -> Optional[Delivery[bytes]]:
        return self._tasks.run(self._inner.front_delivery())

    def pop(self) -> None:
        self._tasks.run(self._inner.pop())

    def extend_lease(self) -> None:
        self._tasks.run(self._inner.extend_lease())

    def stop(self) -> None:
        self._inner.stop()

    @property
    def stopped(self) -> bool:
        return self._inner.stopped

    def close(self) -> None:
        self._inner.close()


async def _next(messages: AsyncGenerator[T, None]) -> T:
    return await messages.__anext__()  # pylint: disable=unnecessary-dunder-call  # one iteration of the loop
