"""Bodies that are refused before they have arrived: the client gets the reason, whenever it reads the response."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests

from gtvray.config import InferenceConfig, PreprocessingConfig, ServingConfig
from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io import encode_nifti, encode_nrrd
from gtvray.serving import Client, Retry
from gtvray.serving.transfer import uploads

from ...io.headers import DIM, SLOPE, patched
from ...polling import wait_until
from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api
from .live import at_once, serving, start_upload

BEARER = {"Authorization": f"Bearer {TOKEN}"}
DESCRIBED = {
    "version": "1",
    "digest": "digest",
    "golden": "none",
    "preprocessing": PreprocessingConfig().model_dump(mode="json"),
    "inference": InferenceConfig().model_dump(mode="json"),
    "patch_ijk": [16, 16, 16],
}
SETTINGS = ServingConfig(max_upload_mb=64, scan_memory_gb=0.5)
NOISE = np.random.default_rng(0).integers(-1000, 1000, (64, 64, 64)).astype(np.int16)
SCAN = encode_nifti(Volume(NOISE, np.diag([3.0, 3.0, 3.0, 1.0])), compress=False)
COARSE = Volume(NOISE, np.diag([20.0, 20.0, 20.0, 1.0]))


def claimed(*sides: int) -> bytes:
    return patched(SCAN, dim=(DIM, struct.pack("<4h", 3, *sides)))


REFUSED = {
    "10^12 voxels": (claimed(10_000, 10_000, 10_000), 413, "volume is too large"),
    "10^12 voxels, gzipped": (gzip.compress(claimed(10_000, 10_000, 10_000), 1), 413, "volume is too large"),
    "more voxels than bytes": (claimed(400, 400, 400), 422, "file is truncated"),
    "slope 1e30": (patched(SCAN, s=(SLOPE, struct.pack("<2f", 1e30, 0))), 422, "values are far beyond those of a CT"),
    "20 mm": (encode_nifti(COARSE, compress=True), 413, "the scan needs more memory than one scan may use"),
    "20 mm, NRRD": (encode_nrrd(COARSE), 413, "the scan needs more memory than one scan may use"),
}


@pytest.fixture
def replica() -> Replica:
    """A replica that describes its model completely."""
    replica = Replica(at_once)
    replica.describe.answer = DESCRIBED
    return replica


def answer_of(client: socket.socket) -> tuple[str, dict[str, Any]]:
    """Head and problem document of a response that has a length."""
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        chunk = client.recv(65_536)
        assert chunk, received
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode().lower(), json.loads(body)


@pytest.mark.parametrize("case", REFUSED)
def test_large_body_is_refused_by_its_header_before_it_has_arrived(case: str, replica: Replica, tmp_path: Path) -> None:
    body, status, title = REFUSED[case]
    with serving(make_api(tmp_path, SETTINGS, replica)) as port:
        # The model is known from here on.
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        client = start_upload(port, len(body))
        client.sendall(body[: 100 << 10])
        head, problem = answer_of(client)
        assert (problem["status"], problem["title"]) == (status, title)
        assert problem["where"] == "upload"
        assert head.startswith(f"http/1.1 {status}")
        assert "connection: close" in head
        folder = next(tmp_path.glob("gtvray-spool-*"))
        wait_until(lambda: [path.name for path in folder.iterdir()] == ["lock"])
        # The rest is read, and only then is the connection closed, in order.
        client.sendall(body[100 << 10 :])
        assert client.recv(10) == b""
        client.close()
        assert replica.calls == 0
        assert httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=SCAN, headers=BEARER).status_code == 200


def test_cost_of_a_model_that_is_not_described_is_left_to_the_replica(tmp_path: Path) -> None:
    replica = Replica(at_once)
    with serving(make_api(tmp_path, SETTINGS, replica)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=REFUSED["20 mm"][0], headers=BEARER)
        assert (answer.status_code, replica.calls) == (200, 1)


def by_httpx(url: str, body: bytes, _: Path) -> tuple[int, str]:
    answer = httpx.post(url, content=body, headers=BEARER)
    return answer.status_code, answer.json()["title"]


def by_httpx_in_chunks(url: str, body: bytes, _: Path) -> tuple[int, str]:
    pieces = (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    answer = httpx.post(url, content=pieces, headers=BEARER)
    return answer.status_code, answer.json()["title"]


def by_requests(url: str, body: bytes, _: Path) -> tuple[int, str]:
    answer = requests.post(url, data=body, headers=BEARER, timeout=60)
    return answer.status_code, answer.json()["title"]


def by_client(url: str, body: bytes, folder: Path) -> tuple[int, str]:
    (folder / "scan.nii").write_bytes(body)
    client = Client(url.removesuffix("/v1/segment"), TOKEN, retry=Retry(attempts=1))
    with client, pytest.raises(InputError) as refused:
        client.segment(folder / "scan.nii")
    return refused.value.http_status, refused.value.what


def by_curl(url: str, body: bytes, folder: Path, *options: str) -> tuple[int, str]:
    (folder / "scan.nii").write_bytes(body)
    command = ["curl", "-sS", "--noproxy", "*", "-H", f"Authorization: Bearer {TOKEN}", *options]
    command += ["--data-binary", f"@{folder / 'scan.nii'}", url]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    problem = json.loads(done.stdout)
    return problem["status"], problem["title"]


def by_curl_at_once(url: str, body: bytes, folder: Path) -> tuple[int, str]:
    return by_curl(url, body, folder, "-H", "Expect:")


@pytest.mark.parametrize("send", [by_httpx, by_httpx_in_chunks, by_requests, by_client, by_curl, by_curl_at_once])
def test_usual_clients_get_the_reason(
    send: Callable[[str, bytes, Path], tuple[int, str]], replica: Replica, tmp_path: Path
) -> None:
    beginning, status, title = REFUSED["10^12 voxels"]
    body = beginning + bytes(SETTINGS.max_upload_mb * (1 << 20) - len(beginning))
    with serving(make_api(tmp_path, SETTINGS, replica)) as port:
        for _ in range(3):
            assert send(f"http://127.0.0.1:{port}/v1/segment", body, tmp_path) == (status, title)


def test_body_over_the_limit_is_not_read_to_its_end(tmp_path: Path) -> None:
    with serving(make_api(tmp_path, ServingConfig(max_upload_mb=1), Replica(at_once))) as port:
        client = start_upload(port, 1 << 40)
        assert answer_of(client)[1]["title"] == "the upload is too large"
        with pytest.raises(OSError, match=r"reset|pipe"):
            client.sendall(bytes(256 << 20))
        client.close()


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_refused_client_that_does_not_send_on_is_disconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.5)
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once))) as port:
        client = start_upload(port, size, path="/v1/nowhere")
        client.sendall(bytes(10))
        assert answer_of(client)[1]["status"] == 404
        assert client.recv(10) == b""
        client.close()


def test_connection_of_a_small_refused_body_stays_open(tmp_path: Path) -> None:
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once))) as port:
        client = start_upload(port, 1000, path="/v1/nowhere")
        client.sendall(bytes(500))
        assert "connection: close" not in answer_of(client)[0]
        client.sendall(bytes(500) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_of(client)[1] == {"status": "ok"}
        client.close()


def test_many_refused_clients_that_send_on_hold_no_slot(replica: Replica, tmp_path: Path) -> None:
    scan = encode_nifti(make_scan((20, 20, 20)), compress=True)
    body = REFUSED["10^12 voxels"][0]
    with serving(make_api(tmp_path, SETTINGS.model_copy(update={"max_pending": 1}), replica)) as port:
        clients = [start_upload(port, 60 << 20) for _ in range(20)]
        for client in clients:
            client.sendall(body[: 100 << 10])
        titles = {answer_of(client)[1]["title"] for client in clients}
        assert titles == {"volume is too large"}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/segment", content=scan, headers=BEARER).status_code == 200
        for client in clients:
            client.close()
