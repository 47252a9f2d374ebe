"""Ray's token file is readable only by its owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gtvray.errors import AuthError
from gtvray.runtime import tokens
from gtvray.runtime.tokens import ensure_token, match_cluster, use_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that monkeypatch also restores changes by the tested code.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # As in a process that has not imported Ray yet.
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_new_token_is_readable_only_by_its_owner(home: Path) -> None:
    ensure_token()
    token = home / ".ray" / "auth_token"
    assert (mode(token), mode(token.parent), os.environ["RAY_AUTH_MODE"]) == (0o600, 0o700, "token")
    first = token.read_text()
    assert len(first) == 64
    ensure_token()
    assert token.read_text() == first
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_mode_is_not_changed_after_ray_was_imported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    ensure_token()
    assert mode(home / ".ray" / "auth_token") == 0o600
    assert "RAY_AUTH_MODE" not in os.environ


def test_token_permissions_are_corrected(home: Path) -> None:
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    use_token()
    assert (mode(token), token.read_text(), os.environ["RAY_AUTH_MODE"]) == (0o600, "secret", "token")


def test_nothing_changes_without_a_token(home: Path) -> None:
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    assert not list(home.iterdir())


def test_token_is_stored_elsewhere_if_home_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tokens, "private_folder", lambda: tmp_path)
    ensure_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "auth_token")
    assert mode(tmp_path / "auth_token") == 0o600
    # A second process uses the same token.
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    use_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "auth_token")


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "given")])
def test_settings_of_the_user_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    ensure_token()
    assert os.environ[name] == value
    assert not list(home.iterdir())


class Gcs(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC ships no types
    """The call by which a cluster is asked whether it requires a token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def service(self, call: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if call.method.endswith("/CheckAlive") else None

    def _answer(self, request: bytes, context: Any) -> bytes:
        if self._token is not None and ("authorization", self._token) not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is required")
        return b""


@contextmanager
def gcs(token: str | None = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Gcs(token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_token_is_used_only_on_a_cluster_that_requires_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, the process would refuse the calls of the cluster, which would end its actors before they run."""
    ensure_token()
    with gcs("Bearer secret") as address:
        match_cluster(address)
        assert os.environ["RAY_AUTH_MODE"] == "token"
    match_cluster(address)
    assert os.environ["RAY_AUTH_MODE"] == "token", "of a cluster that does not answer nothing is known"
    with gcs() as address:
        monkeypatch.setitem(sys.modules, "ray", sys)
        with pytest.raises(AuthError, match="uses no token") as caught:
            match_cluster(address)
        assert caught.value.fields["where"] == address
        monkeypatch.delitem(sys.modules, "ray")
        match_cluster(address)
        assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_newest_cluster_of_this_machine_is_asked_for_its_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    ensure_token()
    match_cluster("auto")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    (home / "ray").mkdir()
    with gcs() as address:
        (home / "ray" / "ray_current_cluster").write_text(f"{address}\n")
        match_cluster("auto")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_no_command_imports_ray_before_it_has_asked_the_cluster_for_its_token(tmp_path: Path) -> None:
    """Ray reads the mode when it is imported. These modules are used before `connect`."""
    modules = [
        "gtvray.api.experiments",
        "gtvray.api.batch",
        "gtvray.api.serving",
        "gtvray.crossval",
        "gtvray.batch.job",
        "gtvray.experiments.fold_plan",
        "gtvray.experiments.storage",
        "gtvray.tuning.folds",
        "gtvray.tuning.job",
        "gtvray.tuning.result",
        "gtvray.tuning.resume",
        "gtvray.tuning.warm_start",
    ]
    code = f"import sys, {', '.join(modules)}\nassert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
