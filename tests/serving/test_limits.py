"""Endpoints at capacity, over the time limit, and without a model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gtvray.errors import BusyError, DeadlineError, NotReadyError
from gtvray.io import encode_nifti
from gtvray.models import Bundle
from gtvray.serving import Server

from .conftest import TOKEN, make_scan, predict_remote

pytestmark = pytest.mark.ray
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def post_until_admitted(url: str, content: bytes) -> httpx.Response:
    while (answer := httpx.post(url, content=content, headers=BEARER, timeout=60)).status_code == 503:
        pass
    return answer


@pytest.mark.slow
def test_requests_over_capacity_and_time_limit_are_rejected(
    start: Callable[..., Server], bundle: Bundle, large_scan: bytes
) -> None:
    server = start(bundle, max_pending=1, timeout_s=4)
    small = encode_nifti(make_scan((20, 20, 20)), compress=True)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post_until_admitted, f"{server.url}/v1/predict", large_scan)
        # A scan counts from the end of its body.
        while "gtvray_scans_in_progress 1.0" not in httpx.get(f"{server.url}/metrics", headers=BEARER).text:
            assert not slow.done()
        full = httpx.post(f"{server.url}/v1/predict", content=small, headers=BEARER)
        assert full.status_code == 503
        assert full.json()["type"] == "urn:gtvray:BusyError"
        assert int(full.headers["Retry-After"]) > 0
        with pytest.raises(BusyError):
            predict_remote(server.url, TOKEN, make_scan((20, 20, 20)))
        assert httpx.get(f"{server.url}/readyz").status_code == 200, "an endpoint at capacity is still ready"
        assert slow.result().status_code == 504
        assert slow.result().json()["type"] == "urn:gtvray:DeadlineError"
    assert predict_remote(server.url, TOKEN, make_scan((20, 20, 20))).patches > 0, "its slot is free again"
    with pytest.raises(DeadlineError):
        predict_remote(server.url, TOKEN, make_scan((160, 160, 120)))
    server.stop()


def test_endpoint_without_a_bundle_is_alive_but_not_ready(start: Callable[..., Server]) -> None:
    server = start(None)
    with pytest.raises(NotReadyError):
        server.wait_ready(1)
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    answer = httpx.get(f"{server.url}/readyz")
    assert answer.status_code == 503
    assert answer.json()["title"] == "no model has been promoted yet"
    assert "Retry-After" in answer.headers
    with pytest.raises(NotReadyError, match="no model has been promoted yet"):
        predict_remote(server.url, TOKEN, make_scan((20, 20, 20)))
