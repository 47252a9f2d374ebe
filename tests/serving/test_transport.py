"""The client of an endpoint and the proxies of the environment: who is asked, and who is named when a proxy answers."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gtvray.cli.submit import submit
from gtvray.errors import (
    AuthError,
    ContentTypeError,
    InputError,
    NotReadyError,
    ResourceError,
    VolumeError,
)
from gtvray.io import encode_nifti
from gtvray.serving import Server, predict_remote
from gtvray.serving.server import _url
from gtvray.serving.transport import error_in
from gtvray.tracking import connect_mlflow

from ..proxies import Recorder, clear_proxies, refusing_proxy, serving, set_proxy
from .conftest import TOKEN, free_port, make_scan


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Named by every variable of the environment."""
    with serving(refusing_proxy()) as recorder:
        set_proxy(monkeypatch, recorder.port)
        yield recorder


@pytest.fixture
def local() -> Iterator[Recorder]:
    """Answers as an endpoint that knows another token."""
    problem = AuthError("a bearer token is needed").problem("0" * 32)
    with serving(Recorder("", 401, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode())) as one:
        yield one


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9", "127.1"])
def test_a_scan_for_this_machine_is_shown_to_no_proxy(host: str, proxy: Recorder, local: Recorder) -> None:
    with pytest.raises(AuthError):
        predict_remote(f"http://{host}:{local.port}", TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []
    assert local.seen == ["POST /v1/predict HTTP/1.1"]


def test_serve_polls_itself_past_the_proxy(proxy: Recorder, local: Recorder, tmp_path: Path) -> None:
    server = Server(f"http://127.0.0.1:{local.port}", "gtvray", tmp_path)
    assert server._ready() is False
    assert proxy.seen == []
    assert local.seen == ["GET /readyz HTTP/1.1"]


def test_mlflow_and_rays_dashboard_on_this_machine_are_asked_past_the_proxy(
    proxy: Recorder, local: Recorder, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{local.port}"
    with pytest.raises(ResourceError, match="cannot reach MLflow") as mlflow:
        connect_mlflow(url, tmp_path)
    with pytest.raises(AuthError, match="requires a token") as ray:
        submit(["data"], address=url, wait=False)
    assert proxy.seen == []
    assert any("mlflow" in line for line in local.seen)
    assert any("/api/version" in line for line in local.seen)
    assert mlflow.value.fields["where"] == ray.value.fields["where"] == url, "no proxy is named"


def test_a_refusing_proxy_is_named_and_not_the_endpoint(proxy: Recorder, tmp_path: Path) -> None:
    url = "http://endpoint.invalid:8000"
    with pytest.raises(ResourceError, match="the proxy answered, not the endpoint") as refused:
        predict_remote(url, TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == [f"POST {url}/v1/predict HTTP/1.1"]
    assert refused.value.fields["where"] == f"http://127.0.0.1:{proxy.port}"
    assert refused.value.fields["found"] == "HTTP 407 Proxy Authentication Required"
    assert "NO_PROXY" in refused.value.fields["do"]
    with pytest.raises(ResourceError, match="the proxy refused the request") as tunnel:
        predict_remote("https://endpoint.invalid", TOKEN, make_scan((8, 8, 8)))
    assert f"127.0.0.1:{proxy.port}" in str(tunnel.value)
    with pytest.raises(ResourceError, match="cannot reach MLflow") as mlflow:
        connect_mlflow("http://mlflow.invalid:5000", tmp_path)
    with pytest.raises(ResourceError, match="cannot submit a job to a Ray cluster") as ray:
        submit(["data"], address="http://head.invalid:8265", wait=False)
    for error in (refused.value, tunnel.value, mlflow.value, ray.value):
        assert f"127.0.0.1:{proxy.port}" in error.fields["where"]
        assert "secret" not in str(error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "ftp://127.0.0.1", "127.0.0.1:1", ""])
def test_what_is_no_address_is_refused(url: str, proxy: Recorder) -> None:
    with pytest.raises(ResourceError, match="no server answers here"):
        predict_remote(url, TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []


def test_no_proxy_keeps_the_proxy_out(proxy: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", ".invalid")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ResourceError, match="no server answers here"):
        predict_remote("http://endpoint.invalid:8000", TOKEN, make_scan((8, 8, 8)))
    assert proxy.seen == []


def test_a_proxy_that_is_down_or_of_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    set_proxy(monkeypatch, port, "http_proxy")
    with pytest.raises(ResourceError, match="the proxy on the way to the endpoint does not answer") as down:
        predict_remote("http://endpoint.invalid", TOKEN, make_scan((8, 8, 8)))
    assert down.value.fields["where"] == f"http://127.0.0.1:{port}"
    for proxy in ("socks5://127.0.0.1:1080", "ftp://127.0.0.1:21"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(InputError, match="proxy of the environment cannot be used") as kind:
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
def test_a_proxy_nobody_named_is_still_told_from_the_endpoint(
    status: int, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_proxies(monkeypatch)
    error = error_in(httpx.Response(status, headers=headers, content=b"<html>"), "http://endpoint")
    assert "a proxy before the endpoint answered" in error.what
    assert f"HTTP {status}" in error.fields["found"]


def test_answers_that_are_no_documents_of_ours_are_no_errors_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    broken = httpx.Response(503, headers={"Content-Type": "application/problem+json"}, content=b"{")
    for answer in (broken, httpx.Response(404, text="no"), httpx.Response(599, json={})):
        assert error_in(answer, "http://endpoint").what == "not an answer of a gtvray server"
    own = NotReadyError("nothing is promoted yet")
    answer = httpx.Response(503, headers={"Content-Type": "application/problem+json"}, json=own.problem("id"))
    assert type(error_in(answer, "http://endpoint")) is NotReadyError


@pytest.mark.parametrize(
    ("name", "content", "kind", "found"),
    [
        ("scan.zip", None, ContentTypeError, "a zip archive"),
        ("scan.dcm", bytes(128) + b"DICM" + bytes(64), ContentTypeError, "DICOM"),
        ("page.nii.gz", b"<html><body>log in</body></html>", ContentTypeError, "HTML"),
        ("text.nii", b"not a scan, but a sentence", VolumeError, "text"),
        ("empty.nii", b"", VolumeError, "empty"),
        ("notes.nii.gz", gzip.compress(b"a sentence" * 9), VolumeError, "gzip stream of"),
    ],
)
def test_a_file_that_is_no_volume_is_not_sent(
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
def test_a_request_id_that_could_name_a_patient_is_not_sent(request_id: str, local: Recorder) -> None:
    with pytest.raises(InputError, match="a request id names nobody"):
        predict_remote(f"http://127.0.0.1:{local.port}", TOKEN, make_scan((8, 8, 8)), request_id=request_id)
    assert local.seen == []


def test_a_server_is_polled_at_an_address_that_can_be_reached() -> None:
    assert _url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert _url("::", 80) == "http://[::1]:80"
    assert _url("host.example.org", 80) == "http://host.example.org:80"
