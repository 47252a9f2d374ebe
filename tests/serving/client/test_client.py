"""The HTTP client: proxies of the environment, errors of other servers, and files rejected before sending."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gtvray.cli.submit import submit
from gtvray.config import ServingConfig
from gtvray.errors import (
    AuthError,
    ContentTypeError,
    InputError,
    NotReadyError,
    ResourceError,
    VolumeError,
)
from gtvray.io import encode_nifti
from gtvray.serving import Server, endpoint_url
from gtvray.serving.client.transport import response_error
from gtvray.tracking import connect_mlflow

from ...ports import free_port
from ...proxies import Recorder, clear_proxies, refusing_proxy, serving, set_proxy
from ..conftest import TOKEN, make_scan, predict_remote


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A refusing proxy that every proxy variable of the environment points to."""
    with serving(refusing_proxy()) as recorder:
        set_proxy(monkeypatch, recorder.port)
        yield recorder


@pytest.fixture
def local() -> Iterator[Recorder]:
    """A server on this machine that responds like an endpoint with another token."""
    problem = AuthError("a valid bearer token is required").problem("0" * 32)
    with serving(Recorder("", 401, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode())) as one:
        yield one


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9", "127.1"])
def test_scan_for_this_machine_bypasses_the_proxy(host: str, proxy: Recorder, local: Recorder) -> None:
    with pytest.raises(AuthError):
        predict_remote(f"http://{host}:{local.port}", TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []
    assert local.seen == ["POST /v1/segment HTTP/1.1"]


def test_readiness_poll_bypasses_the_proxy(proxy: Recorder, local: Recorder, tmp_path: Path) -> None:
    server = Server(f"http://127.0.0.1:{local.port}", "gtvray", tmp_path)
    assert server._ready() is False
    assert proxy.seen == []
    assert local.seen == ["GET /readyz HTTP/1.1"]


def test_mlflow_and_ray_dashboard_on_this_machine_bypass_the_proxy(
    proxy: Recorder, local: Recorder, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{local.port}"
    with pytest.raises(ResourceError, match="cannot reach MLflow") as mlflow:
        connect_mlflow(url, tmp_path)
    with pytest.raises(AuthError, match="requires a token") as ray:
        submit(["data"], address=url, wait=False, installed=True)
    assert proxy.seen == []
    assert any("mlflow" in line for line in local.seen)
    assert any("/api/version" in line for line in local.seen)
    assert mlflow.value.fields["where"] == ray.value.fields["where"] == url, "the error does not name the proxy"


def test_error_of_a_refusing_proxy_names_the_proxy(proxy: Recorder, tmp_path: Path) -> None:
    url = "http://endpoint.invalid:8000"
    with pytest.raises(ResourceError, match="the response came from the proxy, not from the endpoint") as refused:
        predict_remote(url, TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == [f"POST {url}/v1/segment HTTP/1.1"]
    assert refused.value.fields["where"] == f"http://127.0.0.1:{proxy.port}"
    assert refused.value.fields["found"] == "HTTP 407 Proxy Authentication Required"
    assert "NO_PROXY" in refused.value.fields["do"]
    with pytest.raises(ResourceError, match="the proxy refused the request") as tunnel:
        predict_remote("https://endpoint.invalid", TOKEN, make_scan((8, 8, 8)))
    assert f"127.0.0.1:{proxy.port}" in str(tunnel.value)
    with pytest.raises(ResourceError, match="cannot reach MLflow") as mlflow:
        connect_mlflow("http://mlflow.invalid:5000", tmp_path)
    with pytest.raises(ResourceError, match="cannot reach the job API of the Ray cluster") as ray:
        submit(["data"], address="http://head.invalid:8265", wait=False, installed=True)
    for error in (refused.value, tunnel.value, mlflow.value, ray.value):
        assert f"127.0.0.1:{proxy.port}" in error.fields["where"]
        assert "secret" not in str(error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "ftp://127.0.0.1", "127.0.0.1:1", ""])
def test_invalid_address_is_rejected(url: str, proxy: Recorder) -> None:
    with pytest.raises(ResourceError, match="no server responds at this address"):
        predict_remote(url, TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []


def test_no_proxy_variable_bypasses_the_proxy(proxy: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", ".invalid")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ResourceError, match="no server responds at this address"):
        predict_remote("http://endpoint.invalid:8000", TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []


def test_unreachable_or_unsupported_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    set_proxy(monkeypatch, port, "http_proxy")
    with pytest.raises(ResourceError, match="the proxy to the endpoint does not respond") as down:
        predict_remote("http://endpoint.invalid", TOKEN, make_scan((8, 8, 8)))
    assert down.value.fields["where"] == f"http://127.0.0.1:{port}"
    for proxy in ("socks5://127.0.0.1:1080", "ftp://127.0.0.1:21"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(InputError, match="proxy set in the environment cannot be used") as kind:
            predict_remote("http://endpoint.invalid", TOKEN, make_scan((8, 8, 8)))
        assert kind.value.fields["where"] == proxy


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (407, {}),
        (502, {"Via": "1.1 gateway"}),
        (503, {"Content-Type": "text/html", "Server": "nginx"}),
        (200, {"Content-Type": "text/html; charset=utf-8"}),
        (502, {"Proxy-Connection": "close"}),
    ],
)
def test_response_of_an_intermediate_proxy_is_recognised(
    status: int, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_proxies(monkeypatch)
    error = response_error(httpx.Response(status, headers=headers, content=b"<html>"), "http://endpoint")
    assert "the response came from an intermediate proxy" in error.what
    assert f"HTTP {status}" in error.fields["found"]


def test_only_valid_problem_documents_become_errors_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    invalid = httpx.Response(503, headers={"Content-Type": "application/problem+json"}, content=b"{")
    for response in (invalid, httpx.Response(404, text="no"), httpx.Response(599, json={})):
        assert response_error(response, "http://endpoint").what == "the response is not from a gtvray server"
    problem = NotReadyError("no model has been promoted yet")
    response = httpx.Response(503, headers={"Content-Type": "application/problem+json"}, json=problem.problem("id"))
    assert type(response_error(response, "http://endpoint")) is NotReadyError


@pytest.mark.parametrize(
    ("name", "content", "kind", "found"),
    [
        ("scan.zip", None, ContentTypeError, "a zip archive"),
        ("scan.dcm", bytes(128) + b"DICM" + bytes(64), ContentTypeError, "DICOM"),
        ("page.nii.gz", b"<html><body>log in</body></html>", ContentTypeError, "HTML"),
        ("text.nii", b"not a scan, but a sentence", VolumeError, "text"),
        ("empty.nii", b"", VolumeError, "empty"),
        ("notes.nii.gz", gzip.compress(b"a sentence" * 9, mtime=0), VolumeError, "gzip stream of"),
    ],
)
def test_file_that_is_not_a_volume_is_not_sent(
    name: str, content: bytes | None, kind: type[InputError], found: str, local: Recorder, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("scan.nii", encode_nifti(make_scan((8, 8, 8)), compress=False))
    else:
        path.write_bytes(content)
    with pytest.raises(kind) as refused:
        predict_remote(f"http://127.0.0.1:{local.port}", TOKEN, path)
    assert found in refused.value.fields["found"]
    assert refused.value.fields["do"]
    assert local.seen == []


@pytest.mark.parametrize("request_id", ["Doe, John", "12345678", "visit-1", "0" * 32, ""])
def test_request_id_that_could_identify_a_patient_is_not_sent(request_id: str, local: Recorder) -> None:
    with pytest.raises(InputError, match="invalid request id"):
        predict_remote(f"http://127.0.0.1:{local.port}", TOKEN, make_scan((8, 8, 8)), request_id=request_id)
    assert local.seen == []


def test_server_url_is_reachable_for_wildcard_hosts() -> None:
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "host.example.org": "host.example.org"}
    for host, shown in reached.items():
        assert endpoint_url(ServingConfig(host=host, port=80)) == f"http://{shown}:80"
