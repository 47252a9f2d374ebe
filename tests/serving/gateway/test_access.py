"""Tokens of clients: roles, revocation while the endpoint runs, limits per client, and the audit log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gtvray.config import ServingConfig
from gtvray.errors import AuthError, ClientLimitError, ConfigError, ForbiddenError, InputError
from gtvray.io import encode_nifti
from gtvray.serving.gateway.access import Access, Client
from gtvray.serving.gateway.api import _requester
from gtvray.serving.gateway.audit import AuditLog
from gtvray.serving.gateway.tokens import Role, TokenFile
from gtvray.serving.transfer.work import Work

from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api, problem_of

SCAN = encode_nifti(make_scan((20, 20, 20)), compress=True)


def header(token: str) -> str:
    return f"Bearer {token}"


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def access(tmp_path: Path, per_minute: int = 600) -> Access:
    return Access("own", tmp_path / "tokens.json", per_minute)


def test_own_token_may_do_everything_and_others_nothing(tmp_path: Path) -> None:
    checked = access(tmp_path)
    assert checked.identify("bearer own") == Client("operator", Role.ADMIN)
    for wrong in (None, "", "Bearer", "Bearer ow", "Bearer owné", "own", "Basic own", "Bearer own own"):
        with pytest.raises(AuthError):
            checked.identify(wrong)


def test_client_has_the_role_of_its_token(tmp_path: Path, file: TokenFile) -> None:
    token = file.add("station", Role.SEGMENT)
    client = access(tmp_path).identify(header(token))
    assert client == Client("station", Role.SEGMENT)
    client.require(Role.SEGMENT)
    with pytest.raises(ForbiddenError, match="does not permit") as refused:
        client.require(Role.JOBS)
    assert refused.value.http_status == 403


def test_file_holds_no_token_and_is_the_owner_s(tmp_path: Path, file: TokenFile) -> None:
    token = file.add("station", Role.JOBS)
    stored = (tmp_path / "tokens.json").read_text()
    assert token not in stored
    assert len(token) >= 43, "256 bits"
    assert os.stat(tmp_path / "tokens.json").st_mode & 0o777 == 0o600
    (entry,) = json.loads(stored)["tokens"]
    assert (entry["name"], entry["role"], len(entry["sha256"])) == ("station", "jobs", 64)


def test_revoked_and_added_tokens_count_without_a_restart(
    tmp_path: Path, file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gtvray.serving.gateway.access._LOOK_S", 0.0)
    checked = access(tmp_path)
    first = file.add("first", Role.SEGMENT)
    assert checked.identify(header(first)).name == "first"
    second = file.add("second", Role.ADMIN)
    assert checked.identify(header(second)).role == Role.ADMIN
    file.revoke("first")
    with pytest.raises(AuthError):
        checked.identify(header(first))
    assert checked.identify(header(second)).name == "second"
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(AuthError):
        checked.identify(header(second))
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(AuthError):
        checked.identify(header(second))
    assert checked.identify(header("own"))


@pytest.mark.parametrize("name", ["", "operator", "a\nb", "x" * 65])
def test_invalid_names_are_refused(name: str, file: TokenFile) -> None:
    with pytest.raises(InputError, match="not a valid name"):
        file.add(name, Role.SEGMENT)


def test_tokens_are_added_and_revoked_once(tmp_path: Path, file: TokenFile) -> None:
    file.add("station", Role.SEGMENT)
    with pytest.raises(InputError, match="already has a token"):
        file.add("station", Role.ADMIN)
    file.revoke("station")
    with pytest.raises(InputError, match="has no token"):
        file.revoke("station")
    (tmp_path / "tokens.json").write_text('{"tokens": [{"name": "x"}]}')
    with pytest.raises(ConfigError, match="not a token file"):
        file.read()


def test_requests_of_one_client_are_limited_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, one, other = access(tmp_path, per_minute=3), Client("one", Role.SEGMENT), Client("other", Role.SEGMENT)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(3):
        checked.count(one)
    with pytest.raises(ClientLimitError, match="too many requests"):
        checked.count(one)
    checked.count(other)
    now += 20
    checked.count(one)
    with pytest.raises(ClientLimitError):
        checked.count(one)


def test_audit_log_has_a_line_for_each_entry(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "serving")

    async def run() -> None:
        await asyncio.gather(
            *(log.write(f"r{n}", client="station", input="0" * 64, outcome="segmented") for n in range(5))
        )

    asyncio.run(run())
    (path,) = (tmp_path / "serving").iterdir()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(entry["request"] for entry in entries) == [f"r{n}" for n in range(5)]
    assert all(set(entry) == {"at", "request", "client", "input", "outcome"} for entry in entries)
    asyncio.run(AuditLog(None).write("r", client="x"))


async def at_once(work: Work, content: bytes) -> None: ...


def post(
    folder: Path, token: str, path: str, per_minute: int = 600, count: int = 1, method: str = "POST"
) -> list[httpx.Response]:
    """Send a scan several times."""
    app = make_api(folder, ServingConfig(client_requests_per_minute=per_minute), Replica(at_once))

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"Authorization": header(token)}
            return [await client.request(method, path, content=SCAN, headers=headers) for _ in range(count)]

    return asyncio.run(call())


def test_scan_of_a_client_is_in_the_audit_log(tmp_path: Path, file: TokenFile) -> None:
    (answer,) = post(tmp_path, file.add("station", Role.SEGMENT), "/v1/predict")
    assert answer.status_code == 200
    (path,) = (tmp_path / "audit").iterdir()
    entry = json.loads(path.read_text())
    assert datetime.fromisoformat(entry.pop("at")).tzinfo is not None
    assert entry == {
        "request": answer.headers["X-Request-ID"],
        "client": "station",
        "model_name": "gtvray-gtv",
        "input": hashlib.sha256(SCAN).hexdigest(),
        "outcome": "segmented",
        "model": "digest",
        "version": "1",
    }


def test_role_is_checked_before_the_route(tmp_path: Path, file: TokenFile) -> None:
    (answer,) = post(tmp_path, file.add("station", Role.SEGMENT), "/v1/jobs/1")
    problem_of(answer, 403, "urn:gtvray:ForbiddenError")
    (answer,) = post(tmp_path, file.add("other", Role.JOBS), "/v1/nowhere")
    problem_of(answer, 404, "about:blank")


def test_answer_to_a_client_over_its_limit_has_retry_after(tmp_path: Path, file: TokenFile) -> None:
    *_, last = post(tmp_path, file.add("station", Role.SEGMENT), "/v1/predict", per_minute=2, count=3)
    problem_of(last, 429, "urn:gtvray:ClientLimitError")
    assert int(last.headers["Retry-After"]) > 0


def test_metrics_are_for_the_operator(tmp_path: Path, file: TokenFile) -> None:
    token = file.add("station", Role.JOBS)
    (refused,) = post(tmp_path, token, "/metrics", method="GET")
    problem_of(refused, 403, "urn:gtvray:ForbiddenError")
    before = metric(tmp_path, 'gtvray_scans_total{model="gtvray-gtv",outcome="segmented"}')
    post(tmp_path, token, "/v1/predict")
    assert metric(tmp_path, 'gtvray_scans_total{model="gtvray-gtv",outcome="segmented"}') == before + 1
    assert metric(tmp_path, 'gtvray_requests_total{method="POST",route="/v1/predict",status="200"}') > 0
    assert metric(tmp_path, 'gtvray_model_info{digest="digest",golden="none",model="gtvray-gtv",version="1"}') == 1
    assert metric(tmp_path, "gtvray_scans_in_progress") == 0


def metric(folder: Path, name: str) -> float:
    (answer,) = post(folder, TOKEN, "/metrics", method="GET")
    assert answer.status_code == 200
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    return float(lines.get(name, 0))


def test_only_an_admin_sees_the_jobs_of_others() -> None:
    for role in Role:
        request: Any = SimpleNamespace(state=SimpleNamespace(client=Client("station", role)))
        assert _requester(request).owner == (None if role is Role.ADMIN else "station")
