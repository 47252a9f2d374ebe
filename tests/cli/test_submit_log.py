"""The log of a submitted job is complete if the dashboard's log stream is unavailable or interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from gtvray.cli import submit as submit_module
from gtvray.errors import FailureError

# One per poll: status and complete log so far.
STATES = [("RUNNING", "one\n"), ("RUNNING", "one\ntwo\n"), ("FAILED", "one\ntwo\nthree\n")]


class _Dashboard(BaseHTTPRequestHandler):
    """The part of Ray's dashboard that `gtvray submit` uses, without the log stream."""

    polls: list[str]

    def do_POST(self) -> None:
        self._send({"job_id": "j", "submission_id": "j"})

    def do_GET(self) -> None:
        status, log = STATES[min(len(self.polls), len(STATES) - 1)]
        if self.path.endswith("/tail"):
            self.send_error(503)
        elif self.path.endswith("/logs"):
            self.polls.append(status)
            self._send({"logs": log})
        elif self.path.endswith("/version"):
            self._send({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        else:
            self._send({"type": "SUBMISSION", "submission_id": "j", "status": status, "entrypoint": "x"})

    def _send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:  # type: ignore[override]
        """Suppress log messages."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(submit_module, "_POLL_S", 0.01)
    _Dashboard.polls = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# Ray's client passes the ssl=None that aiohttp deprecates.
@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_log_is_polled_without_the_stream(dashboard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FailureError, match="job did not succeed") as caught:
        submit_module.submit(["data"], address=dashboard)
    assert caught.value.fields["found"] == "FAILED"
    assert capsys.readouterr().err.endswith("one\ntwo\nthree\n")
    assert _Dashboard.polls == ["RUNNING", "RUNNING", "FAILED"]


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_given_address_is_used_despite_rays_variables(
    dashboard: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(FailureError, match="job did not succeed"):
        submit_module.submit(["data"], address=dashboard)
    assert os.environ[name] == "http://127.0.0.1:9"
