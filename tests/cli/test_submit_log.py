"""The log of a submitted job is complete if the dashboard's log stream is unavailable or interrupted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from gtvray.cli.submit import submit
from gtvray.errors import FailureError, InputError
from gtvray.runtime import Jobs, jobs
from gtvray.runtime.reach import Looked

from .command import call

# One per poll: status and complete log so far.
STATES = [("RUNNING", "one\n"), ("RUNNING", "one\ntwo\n"), ("FAILED", "one\ntwo\nthree\n")]


class _Dashboard(BaseHTTPRequestHandler):
    """The part of Ray's dashboard that `gtvray submit` uses, without the log stream."""

    polls: list[str]
    ray_version = "2.60.0"
    stopped = False
    states = STATES
    submitted: list[str]
    deleted: list[str]

    def do_DELETE(self) -> None:
        self.deleted.append(self.path.rpartition("/")[2])
        self._send({"deleted": True})

    def do_POST(self) -> None:
        if self.path.endswith("/stop"):
            type(self).stopped = True
            self._send({"stopped": True})
        else:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.submitted.append(body["entrypoint"])
            self._send({"job_id": "j", "submission_id": "j"})

    def do_GET(self) -> None:
        status, log = self.states[min(len(self.polls), len(self.states) - 1)]
        if self.path.endswith("/tail"):
            self.send_error(503)
        elif self.path.endswith("/logs"):
            self.polls.append(status)
            self._send({"logs": log})
        elif self.path.endswith("/jobs/"):
            known = {"type": "SUBMISSION", "submission_id": "j", "status": "RUNNING", "entrypoint": "x"}
            own = {"start_time": 1, "metadata": {"gtvray.command": "data check here"}}
            check = {"status": "SUCCEEDED", "metadata": {"gtvray.command": "check of paths"}}
            ended = {"old": 1000, "new": int(time.time() * 1000)}
            checks = [{**known, **check, "submission_id": name, "end_time": end} for name, end in ended.items()]
            stopping = {**known, **check, "submission_id": "stopping", "status": "RUNNING"}
            self._send([{**known, **own}, *checks, stopping])
        elif self.path.endswith("/gone"):
            self.send_error(404)
        elif self.path.endswith("/version"):
            self._send({"version": "4", "ray_version": self.ray_version, "ray_commit": "", "session_name": ""})
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
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    _Dashboard.polls, _Dashboard.stopped = [], False
    _Dashboard.submitted, _Dashboard.deleted = [], []
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
        submit(["data"], address=dashboard, installed=True)
    assert caught.value.fields["found"] == "FAILED"
    assert capsys.readouterr().err.endswith("one\ntwo\nthree\n")
    assert _Dashboard.polls == ["RUNNING", "RUNNING", "FAILED"]


def test_a_path_that_a_node_lacks_is_named_and_the_command_is_not_submitted(
    dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Looked(("/gone on 10.0.0.2 (worker)", "/gone on 10.0.0.3"), ("10.0.0.4: no answer within 120 s",)).as_line()
    monkeypatch.setattr(_Dashboard, "states", [("SUCCEEDED", f"a warning\n{line}")])
    with pytest.raises(InputError, match="lacks a path") as caught:
        Jobs(dashboard).submit(["sweep", "/gone/space.yaml", "--data", "/gone"], installed=True, notify=pytest.fail)
    assert caught.value.fields["found"] == "/gone on 10.0.0.2 (worker); /gone on 10.0.0.3"
    (check,) = _Dashboard.submitted
    assert "gtvray.runtime.reach" in check
    assert _Dashboard.deleted == ["old"], "Ray's job manager may not have noticed the end of the others"


@pytest.mark.parametrize(
    ("status", "log", "notices"),
    [
        ("SUCCEEDED", Looked(()).as_line(), []),
        (
            "SUCCEEDED",
            Looked((), ("10.0.0.2: no answer within 120 s",)).as_line(),
            ["warning: the paths of the command were not checked on 10.0.0.2: no answer within 120 s"],
        ),
        (
            "FAILED",
            "Traceback (most recent call last):\nOSError: no\n",
            [
                "warning: the paths of the command were not checked on the cluster: the job that checks them ended as "
                "FAILED without a result: OSError: no"
            ],
        ),
        (
            "PENDING",
            "",
            [
                "waiting for the cluster to check the paths of the command, at most 0.1 s",
                "warning: the paths of the command were not checked on the cluster: the job that checks them is "
                "PENDING after 0.1 s",
            ],
        ),
    ],
)
def test_the_user_is_told_if_the_paths_could_not_be_checked(
    status: str, log: str, notices: list[str], dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has checks of its own, so a check that cannot be made does not hold it up."""
    monkeypatch.setattr(_Dashboard, "states", [(status, log)])
    monkeypatch.setattr(jobs, "_CHECK_S", 0.1)
    monkeypatch.setattr(jobs, "_CHECK_POLL_S", 0.01)
    monkeypatch.setattr(jobs, "_PATIENCE_S", 0.0)
    lines: list[str] = []
    assert Jobs(dashboard).submit(["data", "check", "/gone"], installed=True, notify=lines.append) == "j"
    assert lines == notices
    assert [" check /gone" in entrypoint for entrypoint in _Dashboard.submitted] == [False, True]
    assert _Dashboard.stopped == (status == "PENDING"), "the check does not keep running"


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_given_address_is_used_despite_rays_variables(
    dashboard: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(FailureError, match="job did not succeed"):
        submit(["data"], address=dashboard, installed=True)
    assert os.environ[name] == "http://127.0.0.1:9"


def test_another_version_of_ray_is_refused(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Dashboard, "ray_version", "2.40.0")
    with pytest.raises(InputError, match="another version of Ray") as caught:
        submit(["data"], address=dashboard, installed=True)
    assert caught.value.fields["found"] == "Ray 2.40.0"


def test_jobs_are_listed_shown_and_stopped(dashboard: str) -> None:
    listed = call("submit", "list", "--address", dashboard, "--json")
    assert [(row["job"], row["status"], row["command"]) for row in listed.json()] == [
        ("j", "RUNNING", "data check here")
    ]
    assert "status: RUNNING" in call("submit", "status", "j", "--address", dashboard).stdout
    assert call("submit", "stop", "j", "--address", dashboard).code == 0
    assert _Dashboard.stopped
    assert call("submit", "logs", "j", "--address", dashboard).stdout == "one\n"
    assert "no such job" in call("submit", "status", "gone", "--address", dashboard).error(code=2)


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("answer", "stopped"), [("d", False), ("s", True)])
def test_ctrl_c_asks_whether_to_stop_the_job(
    answer: str,
    stopped: bool,
    dashboard: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(monkeypatch)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *words, **options: answer)
    with nullcontext() if answer == "d" else pytest.raises(FailureError, match="job did not succeed"):
        submit(["data"], address=dashboard, installed=True)
    assert _Dashboard.stopped == stopped
    assert "job j continues to run without this command" in capsys.readouterr().err


def test_ctrl_c_without_a_terminal_leaves_the_job_running(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(FailureError, match="continues to run") as caught:
        submit(["data"], address=dashboard, installed=True)
    assert f"gtvray submit wait j --address {dashboard}" in caught.value.fields["do"]
    assert f"gtvray submit stop j --address {dashboard}" in caught.value.fields["do"]


def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt once, when the job's log is followed."""
    follow, left = jobs.Jobs.follow, [KeyboardInterrupt]

    def interrupted(self: jobs.Jobs, *arguments: Any) -> Any:
        if left:
            raise left.pop()
        return follow(self, *arguments)

    monkeypatch.setattr(jobs.Jobs, "follow", interrupted)
