"""Traces from a request's header to the batches of patches; no spans without a collector, and no scan data in spans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.config import ServingConfig
from gtvray.errors import ConfigError
from gtvray.io import encode_nifti
from gtvray.models import Bundle
from gtvray.serving import PatchScheduler, Server, build_app, tracing
from gtvray.serving.replica.scheduler import Network
from gtvray.serving.tracing import Tracing, current_headers
from gtvray.serving.transfer.work import Work

from .collector import Collector, Received, collecting
from .conftest import TOKEN, make_scan
from .local_api import Replica, make_api
from .replica.test_scheduler import Numbers

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def send(folder: Path, serving: ServingConfig, seen: list[Work], path: str, headers: dict[str, str]) -> httpx.Response:
    """Send a scan to an API in this process."""

    async def behaviour(work: Work, content: bytes) -> None:
        seen.append(work)

    async def call() -> httpx.Response:
        app = make_api(folder, serving, Replica(behaviour))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = encode_nifti(make_scan((8, 8, 8)), compress=True)
            return await client.post(path, content=body, headers=BEARER | headers)

    return asyncio.run(call())


def named(spans: Sequence[Received], name: str) -> Received:
    """Return the only span with a name."""
    (found,) = (span for span in spans if span.name == name)
    return found


def test_request_continues_the_trace_of_its_client_and_hands_it_to_the_replica(
    tmp_path: Path, collector: Collector
) -> None:
    works: list[Work] = []
    response = send(tmp_path, ServingConfig(traces_url=collector.url), works, "/v1/segment", SAMPLED)
    assert response.status_code == 200
    spans = collector.wait(lambda spans: len(spans) >= 3)
    request, body, replica = (named(spans, name) for name in ("POST /v1/segment", "receive", "replica"))
    assert len(spans) == 3
    assert {span.trace for span in spans} == {TRACE}
    assert (request.parent, body.parent, replica.parent) == (CALLER, request.id, request.id)
    assert works[0].trace["traceparent"] == f"00-{TRACE}-{replica.id}-01"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/segment",
        "http.response.status_code": "200",
        "gtvray.request_id": response.headers["X-Request-ID"],
    }


def test_error_is_recorded_by_its_class_alone(tmp_path: Path, collector: Collector) -> None:
    response = send(tmp_path, ServingConfig(traces_url=collector.url, max_upload_mb=1), [], "/v1/segment?model=Doe", {})
    assert response.status_code == 404
    (request,) = collector.wait(lambda spans: spans)
    assert request.attributes["http.response.status_code"] == "404"
    assert request.parent == ""
    assert "Doe" not in request.raw

    with pytest.raises(FileNotFoundError), Tracing(collector.url, "test").span("read"):
        raise FileNotFoundError("/scans/Doe_John/ct.nii.gz")
    failed = named(collector.wait(lambda spans: len(spans) == 2), "read")
    assert failed.attributes == {"error.type": "FileNotFoundError"}
    assert "Doe" not in failed.raw


def test_no_spans_of_probes_and_of_requests_that_the_client_does_not_sample(
    tmp_path: Path, collector: Collector
) -> None:
    serving, works = ServingConfig(traces_url=collector.url), list[Work]()
    for path, headers in (
        ("/healthz", SAMPLED),
        ("/v1/segment", {"traceparent": f"00-{TRACE}-{CALLER}-00"}),
        ("/v1/segment", SAMPLED),
    ):
        send(tmp_path, serving, works, path, headers)
    spans = collector.wait(lambda spans: len(spans) >= 3)
    assert sorted(span.name for span in spans) == ["POST /v1/segment", "receive", "replica"]


@pytest.mark.parametrize("header", ["00-zz-yy-01", "", "x" * 5000, f"00-{'0' * 32}-{CALLER}-01"])
def test_invalid_trace_header_begins_a_new_trace(tmp_path: Path, collector: Collector, header: str) -> None:
    response = send(tmp_path, ServingConfig(traces_url=collector.url), [], "/v1/segment", {"traceparent": header})
    assert response.status_code == 200
    request = named(collector.wait(lambda spans: len(spans) >= 3), "POST /v1/segment")
    assert request.parent == ""


def test_without_a_collector_there_are_no_spans(tmp_path: Path) -> None:
    works: list[Work] = []
    assert send(tmp_path, ServingConfig(), works, "/v1/segment", SAMPLED).status_code == 200
    assert works[0].trace == SAMPLED, "a client's trace passes unchanged"
    with Tracing(None, "test").span("quiet"):
        assert current_headers() == {}


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (token := tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gtvray\[traces\]"):
        build_app({"token_file": str(token), "serving.traces_url": "http://127.0.0.1:4318/v1/traces"})


def test_batch_is_a_span_of_each_request_that_shared_it(collector: Collector) -> None:
    def forward(channels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.stack([patch[0] for patch in channels])

    async def run() -> None:
        spans = Tracing(collector.url, "test")
        scheduler, network = PatchScheduler(tracing=spans), Network(forward, 4)

        async def scan(name: str, first: int, count: int) -> None:
            with spans.span(name, {}):
                await scheduler.run(Numbers(first, count), network)

        await asyncio.gather(scan("one", 0, 3), scan("other", 1000, 3))

    asyncio.run(run())
    spans = collector.wait(lambda spans: len(spans) == 5)
    one, other = named(spans, "one"), named(spans, "other")
    batches = sorted((span for span in spans if span.name == "batch"), key=lambda span: span.began_ns)
    found = [
        (span.parent, *(span.attributes[f"gtvray.{name}"] for name in ("patches", "rows", "batch_size")))
        for span in batches
    ]
    assert sorted(found[:2]) == sorted([(one.id, "3", "4", "4"), (other.id, "1", "4", "4")])
    assert found[2] == (other.id, "2", "2", "4")
    assert batches[0].began_ns == batches[1].began_ns < batches[2].began_ns
    assert all(span.trace == (one if span.parent == one.id else other).trace for span in batches)


@pytest.mark.slow
@pytest.mark.ray
def test_trace_of_an_endpoint_ends_in_the_batches(
    start: Callable[..., Server], bundle: Bundle, collector: Collector
) -> None:
    server = start(bundle, traces_url=collector.url)
    body = encode_nifti(make_scan((40, 40, 40)), compress=True)

    def segment(number: int) -> str:
        headers = BEARER | {"traceparent": f"00-{number:032x}-{CALLER}-01"}
        return httpx.post(f"{server.url}/v1/segment", content=body, headers=headers, trust_env=False).headers[
            "X-Request-ID"
        ]

    with ThreadPoolExecutor(2) as pool:
        ids = dict(zip(("1", "2"), pool.map(segment, (1, 2)), strict=True))
    ends = ("POST /v1/segment", "scan")  # each process sends its own
    spans = collector.wait(lambda spans: sum(span.name in ends for span in spans) == 4)
    for number, request_id in ids.items():
        mine = [span for span in spans if span.trace == number.zfill(32)]
        request, replica, scan, patches = (
            named(mine, name) for name in ("POST /v1/segment", "replica", "scan", "patches")
        )
        assert (replica.parent, scan.parent, patches.parent) == (request.id, replica.id, scan.id)
        assert (request.service, scan.service) == ("gtvray-gateway", "gtvray-model")
        assert scan.attributes["gtvray.request_id"] == request_id
        assert {"wait", "prepare", "locate", "mask"} < {span.name for span in mine if span.parent == scan.id}
        batches = [span for span in mine if span.name == "batch"]
        assert {span.parent for span in batches} == {patches.id}
        assert len(batches) > 1
        assert request.began_ns <= scan.began_ns <= batches[0].began_ns <= batches[0].ended_ns <= request.ended_ns
