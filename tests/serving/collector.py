"""A collector of OpenTelemetry traces: OTLP over HTTP on the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span, as it was received.

    Attributes:
        service, name: of the span.
        trace, id, parent: hexadecimal ids.
        attributes: as text.
        began_ns, ended_ns: Unix times.
        raw: everything else that was sent, as text.
    """

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str]
    began_ns: int
    ended_ns: int
    raw: str


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Received] = []

    @property
    def url(self) -> str:
        """Where spans are accepted."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def wait(self, enough: Callable[[list[Received]], object]) -> list[Received]:
        """Wait until there are enough spans, limited by the test's timeout; return all spans."""
        while not enough(self.spans):
            time.sleep(0.05)
        return list(self.spans)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            of_resource = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.server.spans += [
                Received(
                    of_resource["service.name"],
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    {each.key: each.value.string_value or str(each.value.int_value) for each in span.attributes},
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    f"{resource.resource} {span}",
                )
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:  # type: ignore[override]
        """Suppress log messages."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector for the duration of a `with` block."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
