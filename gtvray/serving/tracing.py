"""Traces of requests, off by default: from HTTP to the batches of patches that requests share. No torch.

A client's `traceparent` header is continued (W3C Trace Context, https://www.w3.org/TR/trace-context/). Spans are sent
to a collector as OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/). They contain request ids, counts and class
names, but no scan data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gtvray import __version__
from gtvray.errors import ConfigError
from gtvray.runtime import bypass_proxies

# Interval between exports of spans; a killed process loses the spans since its last export.
_SEND_EVERY_MS = 1000
_HEADERS = TraceContextTextMapPropagator()
Attributes = Mapping[str, str | int]


class Tracing:
    """Tracer of this process.

    Args:
        url: address at which a collector accepts OTLP over HTTP; None disables tracing.
        service: name of the service that the spans belong to.

    Raises:
        ConfigError: the package that exports spans is not installed.
    """

    def __init__(self, url: str | None, service: str) -> None:
        self._tracer: Tracer = NoOpTracer() if url is None else _sending_tracer(url, service)

    @contextmanager
    def span(
        self,
        name: str,
        parent: Mapping[str, str] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """Record a `with` block as a span, the parent of the spans started within it.

        An exception is recorded by its class only, as its text may contain names and paths.

        Args:
            name: name of the span.
            parent: headers that carry the parent span; None uses the span of the enclosing block.
            kind: role of the span in the trace.
            attributes: attributes of the span.
        """
        context = None if parent is None else _HEADERS.extract(parent, Context())
        with self._tracer.start_as_current_span(
            name, context, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def add(self, name: str, within: Span, began_ns: int, attributes: Attributes) -> None:
        """Record a span that has just ended.

        Args:
            name: name of the span.
            within: parent span.
            began_ns: start time in ns since the Unix epoch.
            attributes: attributes of the span.
        """
        if within.is_recording():
            context = trace.set_span_in_context(within, Context())
            self._tracer.start_span(name, context, attributes=attributes, start_time=began_ns).end()


NO_TRACES = Tracing(None, "")


def current_headers() -> dict[str, str]:
    """Headers with the current span, for a process that continues its trace; empty if there is none."""
    headers: dict[str, str] = {}
    _HEADERS.inject(headers)
    return headers


def require_sender(url: str | None) -> None:
    """Check that spans can be exported if a collector is configured.

    Raises:
        ConfigError: the package that exports them is not installed.
    """
    if url is not None and find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise ConfigError(
            "traces need a package that is not installed", where="serving.traces_url", do="pip install 'gtvray[traces]'"
        )


def _sending_tracer(url: str, service: str) -> Tracer:
    require_sender(url)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    bypass_proxies(url)
    resource = Resource.create({"service.name": service, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    sender = OTLPSpanExporter(endpoint=url)
    provider.add_span_processor(BatchSpanProcessor(sender, schedule_delay_millis=_SEND_EVERY_MS))
    return provider.get_tracer("gtvray", __version__)
