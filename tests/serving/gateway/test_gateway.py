"""The gateway's server on a real socket: flow control, slow bodies, clients that disconnect, TLS, a shared port."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gtvray.config import ServingConfig
from gtvray.errors import ConfigError, ResourceError
from gtvray.io import encode_nifti
from gtvray.serving.gateway import connection
from gtvray.serving.gateway.deployment import _server, listen
from gtvray.serving.transfer import uploads
from gtvray.serving.transfer.sealed import SealedWriter
from gtvray.serving.transfer.work import Work

from ...polling import wait_until
from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api
from .live import at_once, serving, start_upload

BEARER = {"Authorization": f"Bearer {TOKEN}"}
SCAN = encode_nifti(make_scan((20, 20, 20)), compress=True)


def require_slow(client: socket.socket) -> None:
    """Require the answer to a body that arrives too slowly, and then a closed connection."""
    answer = b""
    while chunk := client.recv(4096):
        answer += chunk
    client.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"urn:gtvray:SlowBodyError" in answer


def test_body_is_read_only_as_fast_as_it_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write_frame = threading.Event(), SealedWriter._write_frame

    def slow_disk(self: SealedWriter, content: bytearray) -> None:
        assert go.wait(60)
        write_frame(self, content)

    monkeypatch.setattr(SealedWriter, "_write_frame", slow_disk)
    body = (encode_nifti(make_scan((20, 20, 20)), compress=False) + bytes(1 << 20)) * 60
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once))) as port:
        client = start_upload(port, len(body))
        client.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(body):
                sent += client.send(body[sent : sent + 65_536])
        assert sent < 16 << 20, "the client waits; what was sent is in the socket's buffers and one piece"
        # What the server does meanwhile does not wait for the disk.
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        go.set()
        client.settimeout(60)
        client.sendall(body[sent:])
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        client.close()


def test_slow_body_is_answered_and_takes_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 1.0)
    with serving(make_api(tmp_path, ServingConfig(max_pending=1), Replica(at_once))) as port:
        clients = [start_upload(port, 1 << 20) for _ in range(20)]
        assert httpx.post(f"http://127.0.0.1:{port}/v1/predict", content=SCAN, headers=BEARER).status_code == 200
        for client in clients:
            require_slow(client)


@pytest.mark.parametrize(
    "media_type", ["application/octet-stream", "multipart/form-data; boundary=x", "application/json"]
)
def test_slow_body_of_a_job_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, media_type: str) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.5)
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once), jobs=True)) as port:
        client = start_upload(port, 1 << 20, "/v1/jobs", media_type)
        client.sendall(b"--x\r\nContent-Disposition: form-data; name=scan; filename=a\r\n\r\n" + SCAN[:100])
        require_slow(client)
        assert [path for path in (tmp_path / "jobs" / "files").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTTP/1.1\r\nHost"])
def test_connection_whose_request_does_not_begin_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once))) as port:
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        client.sendall(head)
        assert client.recv(10) == b""
        client.close()
        # Requests that take longer than their head are not closed.
        slow = start_upload(port, len(SCAN))
        time.sleep(1)
        slow.sendall(SCAN)
        assert slow.recv(64).startswith(b"HTTP/1.1 200")
        slow.close()


def test_client_that_disconnects_cancels_its_scan(tmp_path: Path) -> None:
    cancelled = threading.Event()

    async def wait(work: Work, content: bytes) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    replica = Replica(wait)
    with serving(make_api(tmp_path, ServingConfig(), replica)) as port:
        client = start_upload(port, len(SCAN))
        client.sendall(SCAN)
        wait_until(lambda: replica.calls == 1)
        client.close()
        assert cancelled.wait(20)
        folder = next(tmp_path.glob("gtvray-spool-*"))
        wait_until(lambda: [path.name for path in folder.iterdir()] == ["lock"])


def certificate_of(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "chain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return folder / "chain.pem", folder / "key.pem"


def test_tls(tmp_path: Path) -> None:
    certificate, key = certificate_of(tmp_path)
    with serving(make_api(tmp_path, ServingConfig(), Replica(at_once)), certificate, key) as port:
        trusted = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusted)
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")
    key.unlink()
    with pytest.raises(ConfigError, match="TLS certificate"):
        _server(make_api(tmp_path, ServingConfig()), 1, certificate, key)


def test_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set together"):
        ServingConfig(tls_certificate=tmp_path / "chain.pem")


def test_port_is_shared_with_a_gateway_that_is_being_replaced() -> None:
    first = listen("127.0.0.1", 0)
    port = int(first.getsockname()[1])
    second = listen("127.0.0.1", port)
    first.close()
    second.close()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ResourceError, match="cannot listen at its address"):
        listen("127.0.0.1", port)
