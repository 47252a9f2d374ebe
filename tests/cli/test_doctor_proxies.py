"""`gtvray doctor` and the proxies of the environment."""

from __future__ import annotations

import pytest

from gtvray.cli.doctor import _proxies

from ..proxies import clear_proxies, set_proxy


def test_a_proxy_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxy(monkeypatch, 3128, "https_proxy")
    monkeypatch.setenv("NO_PROXY", "example.org")
    (row,) = _proxies()
    assert row["ok"]
    assert row["found"].startswith("NO_PROXY=example.org, https_proxy=http://127.0.0.1:3128;")
    assert "secret" not in str(row)


def test_without_a_proxy_there_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert _proxies() == []
