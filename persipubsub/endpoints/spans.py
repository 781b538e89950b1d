"""The hook for traces: what endpoints tell of messages that they send and that a program processes.

While nobody traces, the hook is None, and endpoints do nothing but look at it.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Protocol, Type

from persipubsub import errors

if TYPE_CHECKING:
    from persipubsub.endpoints.receiving import Receiver
    from persipubsub.endpoints.room import SendingCommand
    from persipubsub.engine.values import Found

#: A message that was refused because of its size is sent again without what a trace has added to its headers.
TOO_LARGE = (errors.BatchTooLargeError, errors.MessageTooLargeError)


class Span(Protocol):
    """A part of a trace. It has begun, is current, and ends with its ``with`` block. It raises nothing of its own."""

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        ...


class SendingSpan(Span, Protocol):
    """Messages that are being sent."""

    #: What to run: the messages with the context of the span in their headers.
    command: "SendingCommand"

    def __enter__(self) -> "SendingSpan":
        ...

    def sent(self, result: Any) -> Any:
        """Note the result of the command, and return it."""


class ProcessingSpan(Span, Protocol):
    """Messages that a program is processing."""

    def __enter__(self) -> "ProcessingSpan":
        ...

    def raised(self, exception: Optional[BaseException]) -> None:
        """Note what the block of the messages raised, before they are acknowledged or given back."""

    def given_back(self) -> None:
        """Note that the messages were given back as if they had not been received."""


class Tracer(Protocol):
    """What makes spans."""

    def sending(self, location: object, command: "SendingCommand") -> SendingSpan:
        """Return the span of messages that a publisher of a queue sends."""

    def processing(self, receiver: "Receiver", found: "Found", index: Optional[int] = None) -> ProcessingSpan:
        """Return the span of messages that a subscriber found.

        :param index: of the message, if they are processed one by one
        """

    def trace_id(self) -> Optional[str]:
        """Return the id of the current trace, in hexadecimal digits; None if there is none."""


#: What traces now.
tracer: Optional[Tracer] = None  # pylint: disable=invalid-name  # it changes
