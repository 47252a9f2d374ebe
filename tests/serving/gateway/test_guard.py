"""The API in this process: methods, paths, request ids, CORS, uploads, errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import ASGIApp, Message

from gtvray.config import ServingConfig
from gtvray.io import encode_nifti, encode_nrrd
from gtvray.serving.transfer.uploads import CURL

from ..conftest import TOKEN, make_scan
from ..local_api import make_api, problem_of

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGE = "https://viewer.example.org"
Send = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    """The application with a placeholder for the model handle, which no test here calls."""
    serving = ServingConfig(cors_origins=(PAGE,), max_upload_mb=1)
    return make_api(tmp_path_factory.mktemp("guard"), serving)


@pytest.fixture
def send(api: ASGIApp) -> Send:
    return _sender(api)


def _sender(app: ASGIApp) -> Send:
    def send(method: str, path: str, headers: Any = BEARER, **rest: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers=headers, **rest)

        return asyncio.run(call())

    return send


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json"])
def test_head_equals_get_without_a_body(path: str, send: Send) -> None:
    get, head = send("GET", path), send("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]
    assert int(head.headers["content-length"]) == len(get.content) > 0


def test_head_of_an_error_has_the_errors_status_and_headers(send: Send) -> None:
    for path, headers, status in (("/v1/predict", BEARER, 405), ("/nowhere", BEARER, 404), ("/v1/model", {}, 401)):
        head = send("HEAD", path, headers)
        assert (head.status_code, head.content) == (status, b"")
        assert head.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/healthz/", "/healthz"])
def test_probes_need_no_token_with_or_without_trailing_slash(path: str, send: Send) -> None:
    assert send("GET", path, {}).json() == {"status": "ok"}


def test_trailing_slash_is_ignored_without_a_redirect(send: Send) -> None:
    slash, plain = (send("POST", path, content=b"not a scan") for path in ("/v1/predict/", "/v1/predict"))
    assert problem_of(slash, 422, "urn:gtvray:VolumeError")["title"] == plain.json()["title"]
    problem_of(send("POST", "/v1/predict//"), 404, "about:blank")
    problem_of(send("GET", "//v1/model"), 404, "about:blank")
    problem_of(send("POST", "/v1/predict/", {}), 401, "urn:gtvray:AuthError")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "GET"])
def test_unsupported_method_is_a_problem_with_the_allowed_methods(method: str, send: Send) -> None:
    response = send(method, "/v1/predict")
    problem_of(response, 405, "about:blank")
    assert response.headers["Allow"] == "POST, OPTIONS"
    assert send("POST", "/readyz").headers["Allow"] == "GET, HEAD, OPTIONS"


def test_options_needs_no_token_and_returns_the_allowed_methods(send: Send) -> None:
    response = send("OPTIONS", "/v1/predict", {})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["Allow"] == "POST, OPTIONS"
    assert len(response.headers.get_list("X-Request-ID")) == 1
    assert "content-type" not in response.headers
    assert not any(name.startswith("access-control") for name in response.headers)
    problem_of(send("OPTIONS", "/nowhere", {}), 404, "about:blank")


def _preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }


def test_listed_origin_may_call(send: Send) -> None:
    allowed = send("OPTIONS", "/v1/predict", _preflight(PAGE))
    assert allowed.status_code == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
    assert allowed.headers["Vary"] == "Origin"
    for response in (send("GET", "/healthz", {"Origin": PAGE}), send("POST", "/v1/predict", {"Origin": PAGE})):
        assert response.headers["Access-Control-Allow-Origin"] == PAGE, "on errors too, so that a page can show them"
        assert "X-Gtvray-Notice" in response.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in allowed.headers


@pytest.mark.parametrize("origin", ["https://other.example.org", "null", PAGE + ".evil.org", PAGE.upper(), "*"])
def test_unlisted_origin_may_not_call(origin: str, send: Send) -> None:
    for response in (send("OPTIONS", "/v1/predict", _preflight(origin)), send("GET", "/healthz", {"Origin": origin})):
        assert not any(name.startswith("access-control") for name in response.headers)
        assert response.headers["Vary"] == "Origin"


def test_no_origin_may_call_by_default(tmp_path: Path) -> None:
    app = make_api(tmp_path, ServingConfig())
    response = _sender(app)("OPTIONS", "/v1/predict", _preflight(PAGE))
    assert response.status_code == 204
    assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    "origin", ["*", "null", PAGE + "/", "viewer.example.org", "https://*.org", "HTTPS://A.org", ""]
)
def test_invalid_origin_is_rejected_in_the_settings(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        ServingConfig(cors_origins=(origin,))
    assert ServingConfig(cors_origins=("http://localhost:3000", "https://[::1]:8443")).cors_origins


REQUEST_UUID = "539b6490-bbed-4bdc-966b-87e988722520"


@pytest.mark.parametrize(
    "given",
    [
        [b"Doe, John"],
        [b"12345678"],
        [b"visit-1"],
        [b"MRN-0123456789abcdef0123456789abcdef"],
        [b"01234567890123456789012345678901"],
        [b"12345678-1234-1234-1234-123456789012"],
        [b"Doe\xe9"],
        [b""],
        [REQUEST_UUID.replace("-", "").encode(), b"Doe, John"],
    ],
)
def test_invalid_request_id_is_replaced(given: list[bytes], send: Send) -> None:
    response = send("GET", "/healthz", [(b"X-Request-ID", value) for value in given])
    (assigned,) = response.headers.get_list("X-Request-ID")
    assert re.fullmatch(r"[0-9a-f]{32}", assigned)
    assert assigned.encode() not in given


@pytest.mark.parametrize("given", [REQUEST_UUID, REQUEST_UUID.replace("-", ""), REQUEST_UUID.replace("-", "").upper()])
def test_valid_request_id_is_kept_and_returned_once(given: str, send: Send) -> None:
    assert send("GET", "/healthz", {"X-Request-ID": given}).headers.get_list("X-Request-ID") == [given]


def test_kuberay_finds_what_it_looks_for(send: Send) -> None:
    """Its probe runs `wget -O- http://localhost:8000/-/healthz | grep success`."""
    response = send("GET", "/-/healthz", {})
    assert (response.status_code, response.text) == (200, "success")


def test_websocket_is_rejected_with_a_problem(api: ASGIApp) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/model", "headers": [(b"x-request-id", b"Doe, John")], "extensions": {}}
    asyncio.run(api(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 404
    assert b"Doe" not in str(sent).encode()


SCAN = encode_nifti(make_scan((20, 20, 20)), compress=True)
PLAIN = encode_nifti(make_scan((20, 20, 20)), compress=False)
NRRD = encode_nrrd(make_scan((20, 20, 20)))


def without_line_breaks(content: bytes) -> bytes:
    """The bytes that `curl -d @FILE` sends."""
    return re.sub(rb"[\0\r\n]", b"", content)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan.nii.gz", SCAN)
    return buffer.getvalue()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PART = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n'
TEXT = base64.b64encode(SCAN).decode()
STRIPPED = "NUL bytes and line breaks"
# Upload: expected status, text in the `found` field, body, further headers.
WRONG: dict[str, tuple[int, str | None, bytes, dict[str, str]]] = {
    "multipart without its header": (415, "multipart form", PART + SCAN, {}),
    "curl -d gzip": (422, STRIPPED, without_line_breaks(SCAN), FORM),
    "curl -d NIfTI": (422, STRIPPED, without_line_breaks(PLAIN), FORM),
    "curl -d NRRD": (422, STRIPPED, without_line_breaks(NRRD), FORM),
    "form with base64": (415, "form", urlencode({"file": TEXT}).encode(), FORM),
    "base64 in JSON": (415, "JSON", json.dumps({"file": TEXT}).encode(), {}),
    "base64": (415, "base64 text of a NIfTI-1 file", TEXT.encode(), {}),
    "zip": (415, "a zip archive", zipped(), {}),
    "DICOM": (415, "DICOM", bytes(128) + b"DICM" + bytes(8000), {}),
    "PNG image": (415, "PNG", b"\x89PNG\r\n\x1a\n" + bytes(5000), {}),
    "HTML page": (415, "HTML", b"<!DOCTYPE html><html>", {}),
    "text": (422, "text", b"not a scan", {}),
    "brotli": (415, None, SCAN, {"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_upload_is_identified_and_the_command_to_send_a_volume_is_given(case: str, send: Send) -> None:
    status, found, body, headers = WRONG[case]
    kind = "urn:gtvray:ContentTypeError" if status == 415 else "urn:gtvray:VolumeError"
    problem = problem_of(send("POST", "/v1/predict", {**BEARER, **headers}, content=body), status, kind)
    assert found is None or found in problem["found"]
    assert CURL in problem["do"]
    assert "export the volume again" not in problem["do"]


def test_missing_body_is_rejected_with_the_command_to_send_one(send: Send) -> None:
    assert problem_of(send("POST", "/v1/predict"), 422, "urn:gtvray:InputError")["do"] == CURL


def test_form_is_rejected_before_its_body_is_read(api: ASGIApp) -> None:
    async def body() -> Any:
        raise AssertionError("read")
        yield b""

    headers = {**BEARER, "Content-Type": "multipart/form-data; boundary=b"}
    response = _sender(api)("POST", "/v1/predict", headers, content=body())
    problem = problem_of(response, 415, "urn:gtvray:ContentTypeError")
    assert (problem["found"], problem["do"]) == ("a multipart form (curl -F)", CURL)


@pytest.mark.parametrize("path", ["/v1/jobs/%00", "/v1/jobs/1/events", "/v1/jobs?limit=0", "/v1/jobs?before=x"])
def test_invalid_parameter_is_a_problem(send: Send, path: str) -> None:
    problem = problem_of(send("GET", path), 422, "urn:gtvray:InputError")
    assert problem["title"] == "a parameter is invalid"


@pytest.mark.parametrize(
    ("path", "methods"), [("/v1/jobs", {"GET", "POST"}), (f"/v1/jobs/{'0' * 32}", {"GET", "DELETE"})]
)
def test_every_method_of_a_path_is_listed(send: Send, path: str, methods: set[str]) -> None:
    options = send("OPTIONS", path, {})
    assert options.status_code == 204
    refused = send("PUT", path)
    problem_of(refused, 405, "about:blank")
    for response in (options, refused):
        assert set(response.headers["Allow"].split(", ")) == methods | {"HEAD", "OPTIONS"}
