"""Spans of messages, as the semantic conventions of OpenTelemetry for messaging name them, in their version 1.44.0.

- *Sending* is a span of the kind PRODUCER. Its context goes into the headers of each message, as the global propagator
  writes it, unless the program has put one there.
- *Processing* is a span of the kind CONSUMER: the block, or the iteration of the loop, that has the messages. It links
  to the contexts in their headers. A single message continues the trace of its sender, unless a span is current.

An error of OpenTelemetry is logged. It never keeps a message from being sent, received or acknowledged.
"""

import contextlib
import logging
from types import TracebackType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, Union

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

import persipubsub
from persipubsub import errors
from persipubsub.endpoints.receiving import Receiver
from persipubsub.endpoints.room import SendingCommand
from persipubsub.engine import checks, headers
from persipubsub.engine.commands import Put, PutLater, PutOnce
from persipubsub.engine.limits import MESSAGE_ID_END
from persipubsub.engine.values import Batch, Found, batch_of
from persipubsub.message import Reject, Retry

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SYSTEM = "persipubsub"
_MESSAGE_ID = "messaging.message.id"
_MESSAGE_COUNT = "messaging.batch.message_count"
_ERROR_TYPE = "error.type"
_OUTCOME = "messaging.persipubsub.outcome"
_RETRY_DELAY_S = "messaging.persipubsub.retry_delay_s"
_DELIVERY_COUNT = "messaging.persipubsub.message.delivery_count"
_LOGGER = logging.getLogger("persipubsub.tracing")

Attributes = Dict[str, Union[str, int, float]]


class _Survived:
    """A block that OpenTelemetry may fail in: the first error is logged, and later ones only for debugging."""

    def __init__(self) -> None:
        self._level = logging.WARNING

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # pylint: disable=broad-exception-caught  # of exporters, samplers and propagators
            level, self._level = self._level, logging.DEBUG
            _LOGGER.log(level,
                        "A trace is incomplete, but no message is lost. Later errors are logged as debug messages.",
                        exc_info=True)


_survived = _Survived().__call__


class MessagingTracer:
    """Makes the spans.

    :param provider: where they go; None for the global one, which may be set later
    """

    def __init__(self, provider: Optional[trace.TracerProvider]) -> None:
        self._tracer = trace.get_tracer("persipubsub", persipubsub.__version__, provider, SCHEMA_URL)

    def sending(self, location: object, command: SendingCommand) -> "_Sending":
        """Return the span of messages that a publisher of a queue sends. It has begun."""
        return _Sending(self._tracer, location, command)

    def processing(self, receiver: Receiver, found: Found, index: Optional[int] = None) -> "_Processing":
        """Return the span of messages that a subscriber found. It has begun."""
        return _Processing(self._tracer, receiver, found, index)

    def trace_id(self) -> Optional[str]:
        """Return the id of the current trace, in hexadecimal digits; None if there is none."""
        with _survived():
            current = trace.get_current_span(_current()).get_span_context()
            return trace.format_trace_id(current.trace_id) if current.is_valid else None
        return None


#: The key of the newest span of these in a context.
_NEWEST = context.create_key("persipubsub-span")


def _current() -> Context:
    """Return the current context.

    A loop that was left may be closed in another thread or task, where its context cannot be replaced. So it may still
    be current here, although its span has ended: it is replaced now.
    """
    current = context.get_current()
    newest = context.get_value(_NEWEST, current)
    while isinstance(newest, _Span) and newest.has_ended and trace.get_current_span(current) is newest.span:
        current = newest.outer
        context.attach(current)
        newest = context.get_value(_NEWEST, current)
    return current


class _Span:
    """A span that has begun and is current, until its block ends."""

    def __init__(self) -> None:
        self.span: trace.Span = trace.INVALID_SPAN
        self.has_ended = False
        #: The contexts outside and inside of its block.
        self.outer = self.inner = Context()

    def begin(self, tracer: trace.Tracer, parent: Context, kind: SpanKind, attributes: Attributes,
              links: Sequence[Link]) -> None:
        """Begin the span, and make it current."""
        name = f"{attributes['messaging.operation.name']} {attributes['messaging.destination.name']}"
        self.outer = context.get_current()
        self.span = tracer.start_span(name, parent, kind, attributes, links)
        self.inner = context.set_value(_NEWEST, self, trace.set_span_in_context(self.span, parent))
        context.attach(self.inner)

    def end(self) -> None:
        """End the span, and make the context outside of it current."""
        self.has_ended = True
        if context.get_current() is self.inner:
            context.attach(self.outer)  # not detach, which fails in another task
        self.span.end()

    def failed(self, error: BaseException, reason: str = "") -> None:
        """Record an error."""
        kind = type(error)
        self.span.set_attribute(_ERROR_TYPE, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))
        self.span.set_status(StatusCode.ERROR, reason or str(error))
        self.span.record_exception(error)


class _Sending(_Span):
    """The span of messages that are being sent."""

    def __init__(self, tracer: trace.Tracer, location: object, command: SendingCommand) -> None:
        super().__init__()
        self.command = command
        with _survived():
            attributes, count = _attributes("send", location), len(_headers(command))
            if count > 1:
                attributes[_MESSAGE_COUNT] = count
            given = [headers.decoded(one) for one in _headers(command)]
            own = [_creation_context(one) if one else None for one in given]
            links = [Link(one) for one in {one.span_id: one for one in own if one is not None}.values()]
            self.begin(tracer, _current(), SpanKind.PRODUCER, attributes, links)
            carrier: Dict[str, str] = {}
            propagate.inject(carrier, self.inner)
            if carrier:
                self.command = _with_headers(command, _merged(_headers(command), given, own, carrier))

    def sent(self, result: Any) -> Any:
        """Note the result of the command, and return it."""
        with _survived():
            if not isinstance(self.command, PutLater) and len(result) == 1 and result[0]:
                self.span.set_attribute(_MESSAGE_ID, str(result[0]))
        return result

    def __enter__(self) -> "_Sending":
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        with _survived():
            if exc is not None:
                self.failed(exc)
        with _survived():
            self.end()


class _Processing(_Span):
    """The span of messages that a program processes."""

    def __init__(self, tracer: trace.Tracer, receiver: Receiver, found: Found, index: Optional[int]) -> None:
        super().__init__()
        self._exception: Optional[BaseException] = None
        self._given_back = False
        with _survived():
            if index is not None:
                found = found._replace(ids=found.ids[index:index + 1],
                                       payloads=found.payloads[index:index + 1],
                                       details=found.details[index:index + 1])
            attributes = _attributes("process", receiver.location)
            attributes["messaging.destination.subscription.name"] = receiver.identifier
            links, created = _links(found)
            if len(found.ids) > 1:
                attributes[_MESSAGE_COUNT] = len(found.ids)
            else:
                attributes[_MESSAGE_ID] = str(found.ids[0] % MESSAGE_ID_END)
                if found.details:
                    attributes[_DELIVERY_COUNT] = receiver.deliveries(found)[0].delivery_count
            current = _current()
            in_span = trace.get_current_span(current).get_span_context().is_valid
            parent = current if in_span or len(found.ids) > 1 else created
            self.begin(tracer, parent, SpanKind.CONSUMER, attributes, links)

    def raised(self, exception: Optional[BaseException]) -> None:
        """Note what the block of the messages raised, before they are acknowledged or given back."""
        self._exception = exception

    def given_back(self) -> None:
        """Note that the messages were given back as if they had not been received."""
        self._given_back = True

    def __enter__(self) -> "_Processing":
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]], exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        error = exc or self._exception
        with _survived():
            self.span.set_attribute(_OUTCOME, "given_back" if self._given_back else _outcome(error))
            if isinstance(error, Retry):
                if error.delay_s is not None:
                    self.span.set_attribute(_RETRY_DELAY_S, error.delay_s)
            elif error is not None and not isinstance(error, GeneratorExit):
                self.failed(error, error.reason if isinstance(error, Reject) else "")
        with _survived():
            self.end()


def _outcome(error: Optional[BaseException]) -> str:
    """Return what happens to messages whose block ended."""
    if isinstance(error, Retry):
        return "retried"
    if isinstance(error, Reject):
        return "rejected"
    if isinstance(error, GeneratorExit):  # a break and an exception look alike from inside of a loop
        return "left"
    if isinstance(error, Exception):
        return "failed"
    return "acknowledged" if error is None else "interrupted"


def _attributes(operation: str, location: object) -> Attributes:
    queue = str(location).partition("?")[0].rstrip("/").rpartition("/")[2]
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.persipubsub.location": str(location),
    }


def _links(found: Found) -> Tuple[List[Link], Context]:
    """Return a link to each context that messages have, and the context of the last one."""
    messages: Dict[bytes, List[int]] = {}
    for one in found.details[:len(found.ids)]:
        messages.setdefault(one.headers, []).append(one.message_id)
    links, created = [], Context()
    for encoded, ids in messages.items():
        created = propagate.extract(headers.decoded(encoded), Context())
        creation = trace.get_current_span(created).get_span_context()
        if creation.is_valid:
            about = {_MESSAGE_ID: str(ids[0])} if len(ids) == 1 else {_MESSAGE_COUNT: len(ids)}
            links.append(Link(creation, about))
    return links, created


def _creation_context(given: Mapping[str, str]) -> Optional[SpanContext]:
    """Return the context that headers have."""
    found = trace.get_current_span(propagate.extract(given, Context())).get_span_context()
    return found if found.is_valid else None


def _merged(encoded: Sequence[bytes], given: Sequence[Mapping[str, str]], own: Sequence[Optional[SpanContext]],
            carrier: Mapping[str, str]) -> List[bytes]:
    """Return the headers of messages, with a context where they have none and where it fits."""
    added = headers.encoded(carrier)
    merged = []
    for before, names, context_of_its_own in zip(encoded, given, own):
        after = before if context_of_its_own is not None else added
        if before and context_of_its_own is None:
            try:
                after = headers.encoded({**carrier, **names})
            except errors.ArgumentError:
                after = before
        merged.append(after)
    return merged


def _headers(command: SendingCommand) -> Sequence[bytes]:
    """Return the encoded headers of each message."""
    if isinstance(command, PutLater):
        return [command.headers]
    batch = _batch(command)
    return batch.headers or [b""] * len(batch.payloads)


def _batch(command: Union[Put, PutOnce]) -> Batch:
    return command.batch if isinstance(command, PutOnce) else Batch(*command)


def _with_headers(command: SendingCommand, encoded: Sequence[bytes]) -> SendingCommand:
    """Return a command with other headers; the same one if they would make it too large."""
    if isinstance(command, PutLater):
        return command._replace(headers=encoded[0])
    batch = batch_of(_batch(command).payloads, encoded)
    try:
        checks.require_batch(len(batch.payloads), batch.size_bytes)
    except errors.BatchTooLargeError:
        return command
    return command._replace(batch=batch) if isinstance(command, PutOnce) else Put(*batch)
