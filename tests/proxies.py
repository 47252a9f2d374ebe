"""Local HTTP servers that act as proxies and record the requests they receive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Recorder(ThreadingHTTPServer):
    """Server with a fixed response; `seen` holds the request lines."""

    def __init__(self, host: str, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__((host, 0), _Handler)
        self.seen: list[str] = []
        self.status, self.headers, self.body = status, headers, body

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def _answer(self) -> None:
        self.server.seen.append(self.requestline)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        for name, value in {**self.server.headers, "Content-Length": str(len(self.server.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_CONNECT = _answer  # noqa: N815  # names of the base class

    def log_message(self, *args: object) -> None:  # type: ignore[override]
        """Suppress log messages."""


@contextmanager
def serving(server: Recorder) -> Iterator[Recorder]:
    """Run a server in a thread for the duration of a `with` block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def refusing_proxy() -> Recorder:
    """A proxy that requires authentication and rejects every request."""
    headers = {"Proxy-Authenticate": "Basic", "Via": "1.1 proxy", "Content-Type": "text/html"}
    return Recorder("127.0.0.1", 407, headers, b"<html>proxy: log in</html>")


def set_proxy(monkeypatch: pytest.MonkeyPatch, port: int, *variables: str) -> None:
    """Configure a local proxy in the given environment variables, and in no others."""
    clear_proxies(monkeypatch)
    for variable in variables or VARIABLES:
        monkeypatch.setenv(variable, f"http://someone:secret@127.0.0.1:{port}")


def clear_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all proxies from the environment; monkeypatch also restores later changes by the test."""
    for variable in (*VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
