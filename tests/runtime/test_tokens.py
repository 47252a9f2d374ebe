"""Ray's token file is readable only by its owner."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gtvray.runtime import tokens
from gtvray.runtime.tokens import ensure_token, use_token


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
