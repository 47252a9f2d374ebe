"""`gtvray token`: a token is printed once, listed without itself, and revoked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gtvray.cli.main import app
from gtvray.errors import InputError
from gtvray.serving.gateway.access import Access
from gtvray.serving.gateway.tokens import Role


def token(workspace: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["token", *words, "--workspace", str(workspace)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_token_is_added_listed_and_revoked(tmp_path: Path) -> None:
    added = json.loads(token(tmp_path, "add", "station", "--role", "jobs", "--json"))
    access = Access("own", tmp_path / "serving" / "tokens.json", 600)
    assert access.identify(f"Bearer {added['token']}").role == Role.JOBS
    listed = token(tmp_path, "list")
    assert "station" in listed
    assert added["token"] not in listed
    assert "revoked" in token(tmp_path, "revoke", "station")
    assert "no client has a token" in token(tmp_path, "list")
    with pytest.raises(InputError, match="this client has no token"):
        token(tmp_path, "revoke", "station")
