"""Traces: what the spans of messages say, how they hang together, and that they never cost a message."""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from persipubsub import Delivery, Envelope, Environment, HighWaterMark, Reject, Retry, Strategy, errors, tracing, worker
from persipubsub.relay import Relay
from tests.children import start_child, status_of

MakeEnvironment = Callable[..., Environment]

#: A context that a program has put into the headers of a message.
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OUTCOME, MESSAGE_ID = "messaging.persipubsub.outcome", "messaging.message.id"
MESSAGE_COUNT = "messaging.batch.message_count"


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of(self, operation: str) -> List[ReadableSpan]:
        """Return those of an operation, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(f"{operation} ")]

    def outcomes(self) -> List[object]:
        """Return what happened to the messages that were processed."""
        return [attributes(span)[OUTCOME] for span in self.of("process")]


def attributes(span: ReadableSpan) -> Dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> List[int]:
    """Return the ids of the spans that a span links to."""
    return [link.context.span_id for link in span.links]


def ids(spans: Sequence[ReadableSpan]) -> List[int]:
    """Return the ids of spans."""
    return [span.context.span_id for span in spans]


@pytest.fixture(name="spans")
def spans_fixture() -> Iterator[Spans]:
    """Trace what a test does."""
    spans = Spans()
    tracing.enable(spans.provider)
    yield spans
    tracing.disable()


def exchange(environment: Environment, subscriber: str) -> Optional[str]:
    """Send a message and receive it; return the id of the trace in which it is processed."""
    environment.new_publisher().send(b"1")
    with environment.new_subscriber(subscriber).receive_delivery() as delivery:
        assert delivery is not None and delivery.message == b"1"
        return tracing.current_trace_id()


def exchange_async(environment: Environment, subscriber: str) -> Optional[str]:
    """Do the same with endpoints for tasks."""

    async def main() -> Optional[str]:
        await environment.new_async_publisher().send(b"1")
        async with environment.new_async_subscriber(subscriber).receive() as msg:
            assert msg == b"1"
            return tracing.current_trace_id()

    return asyncio.run(main())


def exchange_in_loop(environment: Environment, subscriber: str) -> Optional[str]:
    """Do the same with a loop over messages."""
    environment.new_publisher().send(b"1")
    found = [tracing.current_trace_id() for _ in environment.new_subscriber(subscriber).messages(timeout=0)]
    return found[0]


def exchange_in_async_loop(environment: Environment, subscriber: str) -> Optional[str]:
    """Do the same with an asynchronous loop over deliveries."""

    async def main() -> Optional[str]:
        await environment.new_async_publisher().send(b"1")
        deliveries = environment.new_async_subscriber(subscriber).deliveries(timeout=0)
        return [tracing.current_trace_id() async for _ in deliveries][0]

    return asyncio.run(main())


EXCHANGES = [exchange, exchange_async, exchange_in_loop, exchange_in_async_loop]


@pytest.mark.parametrize("do", EXCHANGES)
@pytest.mark.parametrize("shared", [False, True])
def test_processing_continues_the_trace_of_the_sender(new_environment: MakeEnvironment, spans: Spans, shared: bool,
                                                      do: Callable[[Environment, str], Optional[str]]) -> None:
    """A message is sent and processed in one trace, whose spans say which message, queue and subscriber it is."""
    environment = new_environment(name="orders")
    environment.new_control().add_subscriber("a", shared=shared)
    trace_id = do(environment, "a")
    assert trace.get_current_span() is trace.INVALID_SPAN and tracing.current_trace_id() is None
    (sent, ), (processed, ) = spans.of("send"), spans.of("process")
    assert (sent.name, sent.kind, sent.parent) == ("send orders", trace.SpanKind.PRODUCER, None)
    assert (processed.name, processed.kind) == ("process orders", trace.SpanKind.CONSUMER)
    assert processed.parent is not None and processed.parent.span_id == sent.context.span_id
    assert linked(processed) == ids([sent])
    assert trace_id == trace.format_trace_id(sent.context.trace_id) == trace.format_trace_id(processed.context.trace_id)
    common = {
        "messaging.system": "persipubsub",
        "messaging.destination.name": "orders",
        "messaging.persipubsub.location": str(environment.path),
        MESSAGE_ID: "1"
    }
    assert attributes(sent) == {**common, "messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert attributes(processed) == {
        **common, "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.subscription.name": "a",
        "messaging.persipubsub.message.delivery_count": 1,
        OUTCOME: "acknowledged"
    }


def test_a_span_of_the_program_is_the_parent(new_environment: MakeEnvironment, spans: Spans) -> None:
    """Inside a span of the program, sends and processing belong to its trace, and processing links to the sender."""
    environment = new_environment("a")
    tracer = spans.provider.get_tracer("program")
    with tracer.start_as_current_span("request"):
        environment.new_publisher().send(b"1")
    with tracer.start_as_current_span("poll") as poll:
        with environment.new_subscriber("a").receive():
            pass
    request = next(span for span in spans.exporter.get_finished_spans() if span.name == "request")
    (sent, ), (processed, ) = spans.of("send"), spans.of("process")
    assert sent.parent == request.context and processed.parent == poll.get_span_context()
    assert linked(processed) == ids([sent])


def test_a_batch_is_one_span(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A batch is sent, and processed, in one span with their number, which links once to each sender."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    publisher.send_many([b"1", Envelope(b"2", {"shop": "7"})])
    publisher.send(b"3")
    publisher.send_many([])
    with environment.new_subscriber("a").receive_deliveries() as deliveries:
        assert [one.headers.get("shop") for one in deliveries] == [None, "7", None]
    sent, (processed, ) = spans.of("send"), spans.of("process")
    assert [attributes(span).get(MESSAGE_COUNT) for span in [*sent, processed]] == [2, None, 3]
    assert MESSAGE_ID not in attributes(processed) and processed.parent is None
    assert set(linked(processed)) == set(ids(sent))
    assert attributes(processed)[OUTCOME] == "acknowledged"


def test_the_latest_message_is_linked(new_environment: MakeEnvironment, spans: Spans) -> None:
    """Processing the latest message links to whoever sent that, not those before it."""
    environment = new_environment("a")
    for msg in (b"1", b"2"):
        environment.new_publisher().send(msg)
    with environment.new_subscriber("a").receive_to_top() as latest:
        assert latest == b"2"
    assert linked(spans.of("process")[0]) == ids(spans.of("send")[1:])


def test_a_loop_over_a_batch_has_a_span_for_each_message(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A loop processes each message in its own span, however many are received and acknowledged together."""
    environment = new_environment("a")
    environment.new_publisher(autosync=True).send_many([b"1", b"2", b"3"])
    for msg in environment.new_subscriber("a").messages(timeout=0, acknowledge_every=10):
        if msg == b"3":
            break
    sent = spans.of("send")
    assert [linked(span) for span in spans.of("process")] == [[one] for one in ids(sent)]
    assert spans.outcomes() == ["acknowledged", "acknowledged", "left"]
    assert tracing.current_trace_id() is None


def test_messages_of_a_type_are_traced(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A message of a type, a delayed one and one with a deduplication id have the context of their sender."""
    environment = new_environment("a")
    publisher = environment.new_publisher(message_type=dict)
    publisher.send({"number": 1})
    publisher.send_later({"number": 2}, delay_s=0)
    publisher.send({"number": 3}, deduplication_id="three")
    with environment.new_subscriber("a", dict).receive_many() as msgs:
        assert msgs == [{"number": 1}, {"number": 2}, {"number": 3}]
    processed, = spans.of("process")
    assert set(linked(processed)) == set(ids(spans.of("send")))


def test_what_was_read_ahead_is_traced(new_environment: MakeEnvironment, spans: Spans) -> None:
    """Tasks that receive one by one link each message to its sender, also those that the first look has read."""
    environment = new_environment("a")
    environment.new_publisher(autosync=True).send_many([b"1", b"2", b"3"])

    async def main() -> None:
        subscriber = environment.new_async_subscriber("a")
        for _ in range(3):
            async with subscriber.receive():
                pass

    asyncio.run(main())
    assert [linked(span) for span in spans.of("process")] == [[one] for one in ids(spans.of("send"))]


def test_tasks_keep_their_traces_apart(new_environment: MakeEnvironment, spans: Spans) -> None:
    """Tasks that send at the same time share a commit, and each message has the context of its own task."""
    environment = new_environment("a")
    tracer = spans.provider.get_tracer("program")

    async def request(number: int) -> None:
        with tracer.start_as_current_span(f"request {number}"):
            await environment.new_async_publisher().send(b"%d" % number)

    async def main() -> None:
        await asyncio.gather(*map(request, range(10)))

    asyncio.run(main())
    traces = {span.name: span.context.trace_id for span in spans.exporter.get_finished_spans() if not span.links}
    for delivery in environment.new_subscriber("a").deliveries(timeout=0):
        expected = trace.format_trace_id(traces[f"request {int(delivery.message)}"])
        assert tracing.current_trace_id() == expected and expected in delivery.headers["traceparent"]


@pytest.mark.parametrize("error, outcome, kind", [
    (Retry(0), "retried", None),
    (Reject("no stock"), "rejected", "persipubsub.message.Reject"),
    (ValueError("no"), "failed", "ValueError"),
    (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_outcome_is_on_the_span(new_environment: MakeEnvironment, spans: Spans, error: BaseException, outcome: str,
                                    kind: Optional[str], is_async: bool) -> None:
    """The span says what became of a message; of an error it has the type and the traceback."""
    environment = new_environment()
    environment.new_control().add_subscriber("a", shared=True, retry_delay_s=0)
    environment.new_publisher().send(b"1")

    def plain() -> None:
        with environment.new_subscriber("a").receive():
            raise error

    async def tasks() -> None:
        async with environment.new_async_subscriber("a").receive():
            raise error

    with contextlib.suppress(ValueError, KeyboardInterrupt):
        if is_async:
            asyncio.run(tasks())
        else:
            plain()
    processed, = spans.of("process")
    assert attributes(processed)[OUTCOME] == outcome and attributes(processed).get("error.type") == kind
    assert processed.status.is_ok == (kind is None)
    assert [event.name for event in processed.events] == ([] if kind is None else ["exception"])
    if outcome == "retried":
        with environment.new_subscriber("a").receive(timeout=60):
            pass
        assert attributes(spans.of("process")[1])["messaging.persipubsub.message.delivery_count"] == 2


def test_errors_of_acknowledging_and_sending_are_on_the_span(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A lost lease is an error of the span that processed the message, and a full queue one of the span that sent."""
    environment = new_environment(high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    control = environment.new_control()
    control.add_subscriber("a", shared=True)
    publisher = environment.new_publisher()
    publisher.send(b"1")
    with pytest.raises(errors.QueueFullError):
        publisher.send(b"2")
    with pytest.raises(errors.LeaseLostError):
        with environment.new_subscriber("a").receive():
            control.prune_all_messages_for("a")
    assert attributes(spans.of("send")[1])["error.type"] == "persipubsub.errors.QueueFullError"
    processed, = spans.of("process")
    assert (attributes(processed)[OUTCOME],
            attributes(processed)["error.type"]) == ("failed", "persipubsub.errors.LeaseLostError")


def test_what_is_given_back_is_not_acknowledged(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A message that was given back says so on its span."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1")
    receipt = environment.new_subscriber("a").receive()
    with receipt:
        receipt.give_back()
    assert spans.outcomes() == ["given_back"]


def test_a_context_that_the_program_gave_stays(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A context in the headers of a message is not replaced, and both spans link to it."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1", headers={"traceparent": GIVEN, "tracestate": "shop=7"})
    with environment.new_subscriber("a").receive_delivery() as delivery:
        assert delivery is not None and delivery.headers == {"traceparent": GIVEN, "tracestate": "shop=7"}
    (sent, ), (processed, ) = spans.of("send"), spans.of("process")
    span_id = int(GIVEN.split("-")[2], 16)
    assert linked(sent) == linked(processed) == [span_id]
    assert processed.parent is not None and processed.parent.trace_state == {"shop": "7"}


@pytest.mark.parametrize("headers", [{f"h{number}": "" for number in range(64)}, {"h": "x" * 65_500}])
def test_full_headers_stay_as_they_are(new_environment: MakeEnvironment, spans: Spans, headers: Dict[str, str]) -> None:
    """A message whose headers have no room for the context is sent without it."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1", headers=headers)
    with environment.new_subscriber("a").receive_delivery() as delivery:
        assert delivery is not None and delivery.headers == headers
    assert len(spans.of("send")) == 1


def test_a_message_that_just_fits_is_sent_without_context(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A message that is too large for the queue with a context is sent without it, by threads and by tasks."""
    environment = new_environment("a", high_watermark=HighWaterMark(hwm_db_size=8192))
    publisher, largest, too_large = environment.new_publisher(), 0, 100_000
    tracing.disable()
    while too_large - largest > 1:
        middle = (largest + too_large) // 2
        try:
            publisher.send(b"x" * middle)
            largest = middle
        except errors.MessageTooLargeError:
            too_large = middle
    tracing.enable(spans.provider)
    publisher.send(b"1" * largest)
    asyncio.run(send_async(environment, b"2" * largest))
    with environment.new_subscriber("a").receive_deliveries() as deliveries:
        assert [(one.message[:1], one.headers) for one in deliveries] == [(b"2", {})]
    assert [attributes(span).get("error.type") for span in spans.of("send")] == [None, None]


async def send_async(environment: Environment, msg: bytes) -> None:
    """Send a message from a task."""
    await environment.new_async_publisher().send(msg)


class Broken:
    """A sampler and a propagator that always fail."""

    fields = {"traceparent"}

    def fail(self, *_args: object, **_kwargs: object) -> Any:
        """Fail."""
        raise RuntimeError("broken")

    inject = extract = should_sample = get_description = fail


@pytest.mark.parametrize("is_propagator", [False, True])
def test_a_broken_library_costs_no_message(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture, is_propagator: bool) -> None:
    """If OpenTelemetry fails everywhere, messages are sent, processed and acknowledged, and one warning says so."""
    environment, broken = new_environment("a", "b"), Broken()
    if is_propagator:
        monkeypatch.setattr(propagate, "inject", broken.fail)
        monkeypatch.setattr(propagate, "extract", broken.fail)
        tracing.enable(TracerProvider())
    else:
        tracing.enable(TracerProvider(sampler=broken))  # type: ignore[arg-type]  # it has what is called
    try:
        environment.new_publisher().send_many([b"1", b"2"])
        environment.new_publisher().send(b"3", headers={"shop": "7"})
        with environment.new_subscriber("a").receive_many() as msgs:
            assert msgs == [b"1", b"2", b"3"]
        assert list(environment.new_subscriber("b").messages(timeout=0)) == [b"1", b"2", b"3"]
        assert tracing.current_trace_id() is None
    finally:
        tracing.disable()
    assert environment.new_control().status().messages == 0
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


def test_unsampled_messages_carry_that_they_are(new_environment: MakeEnvironment) -> None:
    """A trace that is not sampled goes on unsampled with the message."""
    spans, environment = Spans(), new_environment("a")
    spans.provider.sampler = ALWAYS_OFF
    tracing.enable(spans.provider)
    try:
        environment.new_publisher().send(b"1")
        with environment.new_subscriber("a").receive_delivery() as delivery:
            assert delivery is not None and not int(delivery.headers["traceparent"].split("-")[3], 16) & 1
    finally:
        tracing.disable()
    assert not spans.exporter.get_finished_spans()


def test_endpoints_that_exist_follow_the_switch(new_environment: MakeEnvironment) -> None:
    """Publishers and subscribers that exist already are traced when traces are enabled, and no more when disabled."""
    environment, spans = new_environment("a"), Spans()
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    for enabled in (False, True, False):
        if enabled:
            tracing.enable(spans.provider)
        else:
            tracing.disable()
        publisher.send(b"1")
        with subscriber.receive_delivery() as delivery:
            assert delivery is not None and ("traceparent" in delivery.headers) is enabled
    assert (len(spans.of("send")), len(spans.of("process"))) == (1, 1)


def test_a_loop_may_end_in_another_thread(new_environment: MakeEnvironment, spans: Spans,
                                          caplog: pytest.LogCaptureFixture) -> None:
    """A loop that another thread closes ends its span, and leaves the context of that thread alone."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1")
    messages = environment.new_subscriber("a").messages(timeout=0)
    next(messages)
    closing = threading.Thread(target=messages.close)  # type: ignore[attr-defined]  # it is a generator
    closing.start()
    closing.join()
    assert spans.outcomes() == ["left"]
    assert caplog.records == []
    assert tracing.current_trace_id() is None


def test_a_loop_of_a_task_may_be_left(new_environment: MakeEnvironment, spans: Spans,
                                      caplog: pytest.LogCaptureFixture) -> None:
    """A task that leaves a loop, which asyncio closes later, leaves the trace of the message as well."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1")

    async def main() -> None:
        async for _ in environment.new_async_subscriber("a").messages():
            break
        while not spans.of("process"):
            await asyncio.sleep(0)
        assert tracing.current_trace_id() is None
        await environment.new_async_publisher().send(b"2")

    asyncio.run(main())
    assert spans.outcomes() == ["left"]
    assert [span.parent for span in spans.of("send")] == [None, None]
    assert caplog.records == []


def test_a_relay_passes_the_context_on(new_environment: MakeEnvironment, spans: Spans) -> None:
    """A relay makes no spans: whoever processes the message at its target continues the trace of the sender."""
    source, target = new_environment("relay", name="source"), new_environment("a", name="target")
    source.new_publisher().send(b"1")
    with Relay(source, target) as relay:
        relay.run(timeout=0)
    with target.new_subscriber("a").receive():
        pass
    (sent, ), (processed, ) = spans.of("send"), spans.of("process")
    assert processed.name == "process target" and linked(processed) == ids([sent])


def test_a_forked_child_goes_on_tracing(new_environment: MakeEnvironment, spans: Spans, tmp_path: pathlib.Path) -> None:
    """A child that is forked inside a span sends and processes in the trace of its parent."""
    environment = new_environment("a")
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    output = tmp_path / "traces"
    with spans.provider.get_tracer("program").start_as_current_span("parent") as parent:

        def child() -> int:
            publisher.send(b"1")
            with subscriber.receive():
                pass
            found = [trace.format_trace_id(span.context.trace_id) for span in spans.exporter.get_finished_spans()]
            output.write_text(json.dumps(found), encoding="utf-8")
            return 0

        assert status_of(start_child(child)) == 0
    expected = trace.format_trace_id(parent.get_span_context().trace_id)
    assert json.loads(output.read_text(encoding="utf-8")) == [expected, expected]


CONSUMER = """
import sys
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as env, env.new_subscriber("a").receive() as msg:
    print("got", msg)
"""


@pytest.mark.slow  # starts a process that loads all of OpenTelemetry
def test_opentelemetry_instrument_traces_a_program(new_environment: MakeEnvironment, spans: Spans) -> None:
    """The command opentelemetry-instrument traces a program that says nothing of traces, in another process."""
    environment = new_environment("a")
    environment.new_publisher().send(b"1")
    done = subprocess.run([
        pathlib.Path(sys.executable).with_name("opentelemetry-instrument"), "--traces_exporter", "console",
        "--metrics_exporter", "none", "--logs_exporter", "none", sys.executable, "-c", CONSUMER,
        str(environment.path)
    ],
                          env={
                              **os.environ, "OTEL_SERVICE_NAME": "consumer"
                          },
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=60)
    greeting, _, printed = done.stdout.partition("\n")
    sent, = spans.of("send")
    processed = json.loads(printed)
    assert greeting == "got b'1'" and processed["name"] == "process queue"
    assert processed["context"]["trace_id"] == f"0x{trace.format_trace_id(sent.context.trace_id)}"
    assert processed["parent_id"] == f"0x{trace.format_span_id(sent.context.span_id)}"


def fail_and_stop(delivery: "Delivery[bytes]") -> None:
    """Fail on a message, and stop the worker."""
    os.kill(os.getpid(), signal.SIGTERM)
    raise ValueError(delivery.message)


async def fail_and_stop_async(delivery: "Delivery[bytes]") -> None:
    """Do the same in a task."""
    fail_and_stop(delivery)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("handler", [fail_and_stop, fail_and_stop_async])
def test_logs_of_a_worker_name_message_and_trace(new_environment: MakeEnvironment, caplog: pytest.LogCaptureFixture,
                                                 traced: bool, handler: Callable[..., Any]) -> None:
    """The log of a failed handler has message id, subscriber, delivery count and trace, as text and as fields."""
    environment, spans = new_environment(), Spans()
    environment.new_control().add_subscriber("a", shared=True)
    if traced:
        tracing.enable(spans.provider)
    try:
        environment.new_publisher().send(b"1")
        worker.run(environment.path, "a", handler)
    finally:
        tracing.disable()
    record, = [record for record in caplog.records if record.levelno >= logging.WARNING]
    trace_id = trace.format_trace_id(spans.of("send")[0].context.trace_id) if traced else None
    text = f", trace {trace_id}" if traced else ""
    assert record.getMessage().endswith(f" failed on message 1 of the subscriber 'a' (delivery 1{text}).")
    fields = {name: getattr(record, name) for name in ("message_id", "subscriber", "delivery_count", "trace_id")}
    assert fields == {"message_id": 1, "subscriber": "a", "delivery_count": 1, "trace_id": trace_id}
    assert spans.outcomes() == (["failed"] if traced else [])


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from persipubsub import errors, tracing
try:
    tracing.enable()
except errors.UnsupportedError as error:
    print(error)
assert tracing.current_trace_id() is None
"""


def test_the_error_says_what_to_install() -> None:
    """Where OpenTelemetry is not installed, enable() says how to install it."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert "pip install 'persipubsub[otel]'" in done.stdout
