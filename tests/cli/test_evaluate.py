"""`gtvray evaluate` with MLflow away, and the report sent when it is back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..bundles import random_bundle
from ..pages import assert_self_contained
from .command import Finished, free_port, partial_files, run


@pytest.fixture
def away(phantoms: Path, tmp_path: Path) -> Finished:
    """An evaluation of a random model on three phantoms while nothing listens where MLflow should be."""
    bundle = random_bundle(tmp_path / "model", 1)
    few = tmp_path / "few"
    few.mkdir()
    for name in ("1", "2", "3"):
        (few / name).symlink_to(phantoms / name)
    nowhere = f"tracking.uri=http://127.0.0.1:{free_port()}"
    places = ("-o", tmp_path / "out", "--workspace", tmp_path / "runs")
    return run("evaluate", "--data", few, "-m", bundle.folder, "-s", nowhere, *places, "--json")


def test_mlflow_being_away_costs_nothing(away: Finished, tmp_path: Path) -> None:
    assert away.code == 0, away
    found: dict[str, Any] = away.json()
    assert found["mlflow"] is None
    report = Path(found["report"])
    assert report == tmp_path / "out" / "report"
    assert_self_contained((report / "report.html").read_text())
    # By its name and not its path, which is nobody's business.
    assert [model["name"] for model in found["models"]] == ["model"]
    assert partial_files(tmp_path) == []


@pytest.mark.slow
def test_a_report_is_sent_later_to_one_run(away: Finished, tmp_path: Path) -> None:
    send = ("evaluate", "--send", away.json()["report"], "--workspace", tmp_path / "runs", "--json")
    runs = run(*send).json()["mlflow"]
    assert list(runs) == ["model"]
    assert run(*send).json()["mlflow"] == runs


@pytest.mark.parametrize("words", [[], ["--data", "here", "--send", "there"]])
def test_either_data_or_a_report(words: list[str], tmp_path: Path) -> None:
    assert "--data or --send" in run("evaluate", *words, "--workspace", tmp_path).error(code=2)
