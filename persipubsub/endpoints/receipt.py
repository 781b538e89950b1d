"""What a ``with`` block receives."""

import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Generic, NoReturn, Optional, Type, TypeVar

from persipubsub.endpoints import spans
from persipubsub.endpoints.spans import ProcessingSpan
from persipubsub.engine.values import NOTHING, Found
from persipubsub.message import Reject, Retry

if TYPE_CHECKING:
    from persipubsub.subscriber import Patience, Subscriber

T = TypeVar("T")


def as_found(found: Found) -> Found:
    """Return what the engine found: messages that are passed on. Whoever processes them later makes a span of that."""
    return found


class Receipt(Generic[T]):
    """What a ``with`` block receives: acknowledged when the block ends, kept if it raises."""

    __slots__ = ("_subscriber", "_look", "_patience", "_value", "_skipping", "_found", "_span")

    def __init__(self,
                 subscriber: "Subscriber[Any]",
                 look: Callable[[], Found],
                 patience: "Patience",
                 value: Callable[[Found], T],
                 skipping: bool = False) -> None:
        self._subscriber = subscriber
        self._look = look
        self._patience = patience
        self._value = value
        self._skipping = skipping
        self._found: Found = NOTHING
        self._span: Optional[ProcessingSpan] = None
        # Last, since an interrupt may end this earlier.
        # pylint: disable-next=assigning-non-slot  # every object has a class
        self.__class__ = UnenteredReceipt  # pyright: ignore[reportAttributeAccessIssue]  # has the same fields

    def __enter__(self) -> T:
        # It was entered, even if the wait raises.
        self.__class__ = Receipt  # pyright: ignore[reportAttributeAccessIssue]  # as above
        # pylint: disable-next=protected-access  # of the other half of its subscriber
        self._found = found = self._subscriber._wait(self._look, self._patience)
        if spans.tracer is not None and found.ids and self._value is not as_found:
            # pylint: disable-next=protected-access  # of the other half of its subscriber
            self._span = spans.tracer.processing(self._subscriber._receiver, found)
        return self._value(found)

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> Optional[bool]:
        span, self._span = self._span, None
        if span is None:
            return self._end(exc)
        span.raised(exc)
        with span:
            return self._end(exc)

    def _end(self, exc: Optional[BaseException]) -> Optional[bool]:
        """Acknowledge what the block received, or keep it if the block raised; return whether that is swallowed."""
        found, receiver = self._found, self._subscriber._receiver  # pylint: disable=protected-access  # as above
        if not found.ids:
            return isinstance(exc, (Retry, Reject))
        if exc is None:
            receiver.run(receiver.acknowledge(found, len(found.ids)))
            return False
        if self._skipping and not isinstance(exc, (Retry, Reject)):
            return False
        ending = receiver.at_end(found, exc)
        receiver.run(ending.commands)
        return ending.swallows

    if not TYPE_CHECKING:  # a checker would accept any attribute

        def __getattr__(self, name: str) -> NoReturn:
            if name in self.__slots__:
                raise AttributeError(name)
            raise AttributeError(f"{self!r} has no attribute {name!r}.")

    def __repr__(self) -> str:
        return f"<What a with block of {self._subscriber!r} receives: with subscriber.receive() as message: ...>"

    def give_back(self, finished: int = 0) -> None:
        """Acknowledge the first messages, and give the others back as if they had not been received.

        Use this when work could not begin, or has stopped for a reason that no message caused. The end of the block
        then does nothing.

        :param finished: how many messages to acknowledge
        """
        found, self._found = self._found, NOTHING
        if self._span is not None:
            self._span.given_back()
        if found.ids:
            # pylint: disable-next=protected-access  # of the other half of its subscriber
            self._subscriber._leave(found, finished, finished)


class UnenteredReceipt(Receipt[T]):
    """A receipt before its block begins.

    The class changes then, so that Python calls no ``__del__`` after each block: an interrupt in it would be lost.
    """

    __slots__ = ()

    def __del__(self) -> None:
        warnings.warn(f"{self!r} was never entered, so it received nothing.", ResourceWarning, 2, self)
