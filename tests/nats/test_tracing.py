"""Traces of messages on a cluster."""

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import persipubsub
from persipubsub import tracing


def test_processing_continues_the_trace_of_the_sender(location: str) -> None:
    """A message on a cluster is sent and processed in one trace, named by its queue, by every kind of subscriber."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["plain"]).add_subscriber("shared", shared=True)
        tracing.enable(provider)
        try:
            environment.new_publisher().send(b"1", headers={"shop": "7"})
            for name in ("plain", "shared"):
                with environment.new_subscriber(name).receive_delivery() as delivery:
                    assert delivery is not None and set(delivery.headers) == {"shop", "traceparent"}
            environment.new_publisher().send(b"2")
            with environment.new_subscriber("plain").receive_to_top() as latest:
                assert latest == b"2"
        finally:
            tracing.disable()
    queue = location.partition("?")[0].rpartition("/")[2]
    sent, plain, shared, later, top = exporter.get_finished_spans()
    assert [span.name for span in (sent, plain, top)] == [f"send {queue}", f"process {queue}", f"process {queue}"]
    assert plain.parent == shared.parent and plain.parent is not None and top.parent is not None
    assert (plain.parent.span_id, top.parent.span_id) == (sent.context.span_id, later.context.span_id)
