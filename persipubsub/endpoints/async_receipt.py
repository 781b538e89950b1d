"""What an ``async with`` block receives."""

import warnings
from types import TracebackType
from typing import Awaitable, Callable, Generic, NoReturn, Optional, Type, TypeVar

from persipubsub import errors
from persipubsub.endpoints import spans
from persipubsub.endpoints.receiving import Receiver
from persipubsub.endpoints.spans import ProcessingSpan
from persipubsub.engine.values import NOTHING, Found
from persipubsub.message import Reject, Retry

T = TypeVar("T")


class AsyncReceipt(Generic[T]):  # pylint: disable=too-many-instance-attributes  # as a block has many ends
    """What an ``async with`` block receives: acknowledged when the block ends, kept if it raises or is cancelled."""

    def __init__(self, wait: Callable[[], Awaitable[Found]], value: Callable[[Found], T],
                 end: "Callable[[Found, Optional[BaseException]], Awaitable[bool]]", subscriber: object,
                 receiver: Receiver) -> None:
        self._wait = wait
        self._value = value
        self._end = end
        self._subscriber = subscriber
        self._receiver = receiver
        self._found: Found = NOTHING
        self._span: Optional[ProcessingSpan] = None
        # Last, since an interrupt may end this earlier.
        self.__class__ = UnenteredAsyncReceipt  # pyright: ignore[reportAttributeAccessIssue]  # has the same fields

    async def __aenter__(self) -> T:
        # It was entered, even if the wait raises.
        self.__class__ = AsyncReceipt  # pyright: ignore[reportAttributeAccessIssue]  # as above
        self._found = found = await self._wait()
        if spans.tracer is not None and found.ids:
            self._span = spans.tracer.processing(self._receiver, found)
        return self._value(found)

    async def __aexit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                        traceback: Optional[TracebackType]) -> Optional[bool]:
        found, span, self._span = self._found, self._span, None
        if not found.ids:
            return isinstance(exc, (Retry, Reject))
        if span is None:
            return await self._end(found, exc)
        span.raised(exc)
        with span:
            return await self._end(found, exc)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} has no attribute {name!r}.")

    def __enter__(self) -> NoReturn:
        raise errors.ArgumentTypeError(f"{self!r} needs async with, in place of with.")

    def __exit__(self, *exc_info: object) -> None:
        """Never called, since entering raises; without it Python raises its own error."""

    def __await__(self) -> NoReturn:
        raise errors.ArgumentTypeError(f"{self!r} cannot be awaited.")

    def __repr__(self) -> str:
        return (f"<What an async with block of {self._subscriber!r} receives: "
                "async with subscriber.receive() as message: ...>")


class UnenteredAsyncReceipt(AsyncReceipt[T]):
    """A receipt before its block begins; see :class:`persipubsub.endpoints.receipt.UnenteredReceipt`."""

    def __del__(self) -> None:
        warnings.warn(f"{self!r} was never entered, so it received nothing.", ResourceWarning, 2, self)
