"""Tracing with OpenTelemetry, which needs the extra ``[otel]``: one trace leads from a send to whoever processes it.

``enable()`` turns tracing on for all queues of the process. Until then, OpenTelemetry is not loaded.
"""

from typing import TYPE_CHECKING, Any, Optional

from persipubsub import errors, lazy_imports
from persipubsub.endpoints import spans

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Instrumentor", "current_trace_id", "disable", "enable"]


def enable(tracer_provider: "Optional[TracerProvider]" = None) -> None:
    """Trace all publishers and subscribers of this process from now on, including those that exist already.

    A forked process goes on tracing. Any other process has to call this itself.

    :param tracer_provider: where spans go; without one, to the global provider of OpenTelemetry, which may be set later
    :raise UnsupportedError: opentelemetry-api is not installed
    """
    with lazy_imports.NoFork():
        try:
            from persipubsub.tracing import messaging  # here, since few programs need it
        except ModuleNotFoundError as error:
            raise errors.UnsupportedError("Traces need opentelemetry-api, which is not installed. Run "
                                          "pip install 'persipubsub[otel]'") from error
    spans.tracer = messaging.MessagingTracer(tracer_provider)


def disable() -> None:
    """Trace no longer. Messages that are being processed are traced to their end."""
    spans.tracer = None


def current_trace_id() -> Optional[str]:
    """Return the id of the current trace, in 32 hexadecimal digits; None if there is none, or traces are disabled."""
    return None if spans.tracer is None else spans.tracer.trace_id()


class Instrumentor:
    """What the command ``opentelemetry-instrument`` calls to switch traces on."""

    def instrument(self, tracer_provider: "Optional[TracerProvider]" = None, **_kwargs: Any) -> None:
        """Call :func:`enable`.

        :param tracer_provider: as that of :func:`enable`
        """
        enable(tracer_provider)

    def uninstrument(self, **_kwargs: Any) -> None:
        """Call :func:`disable`."""
        disable()
