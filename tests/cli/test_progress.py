"""While a stage waits, the reason is shown in place of the estimated time left."""

from __future__ import annotations

import pytest

from gtvray.cli.common import Progress

REASON = "waiting for 1 x (4 CPUs); free on all nodes together: 1 of 8 CPUs"


def test_each_reason_is_printed_once_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress({"sweep": 3600}, quiet=False)
    progress.begin("sweep", "four trials")
    for reason in (REASON, REASON, None, REASON):
        progress.waiting(reason)
    assert capsys.readouterr().err.splitlines()[1:] == [f"sweep: {REASON}"] * 2


def test_the_reason_replaces_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown: list[str] = []

    class Status:
        def update(self, text: str) -> None:
            shown.append(text)

    progress = Progress({"sweep": 3600}, quiet=False)
    progress._status = Status()
    progress.begin("sweep", "four trials")
    progress.waiting(REASON)
    progress.advance(1, 4)
    progress.waiting(None)
    assert ["left" in text for text in shown] == [True, False, False, True]
    assert all(REASON in text for text in shown[1:3])
