"""`gtvray evaluate` without a reachable MLflow, and sending the report later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gtvray.datasets import index_dataset
from gtvray.reports import Study

from ..bundles import random_bundle
from ..pages import assert_self_contained
from ..ports import free_port
from .command import partial_files, run


@pytest.fixture
def few(phantoms: Path, tmp_path: Path) -> Path:
    """Three phantoms."""
    for name in ("1", "2", "3"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for file in (phantoms / name).iterdir():
            (tmp_path / "few" / name / file.name).symlink_to(file)
    return tmp_path / "few"


@pytest.mark.slow
def test_evaluation_survives_an_unreachable_mlflow(few: Path, tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "model", 1)
    nowhere = f"tracking.uri=http://127.0.0.1:{free_port()}"
    places = ("-o", tmp_path / "out", "--workspace", tmp_path / "runs")
    result = run("evaluate", "--data", few, "-m", bundle.folder, "-s", nowhere, *places, "--json")
    assert result.code == 0, result
    found: dict[str, Any] = result.json()
    assert found["mlflow"] is None
    report = Path(found["report"])
    assert report == tmp_path / "out" / "report"
    assert_self_contained((report / "report.html").read_text())
    # By name, because the path must not be disclosed.
    assert [model["name"] for model in found["models"]] == ["model"]
    assert partial_files(tmp_path) == []


@pytest.mark.slow
def test_report_can_be_sent_later(few: Path, tmp_path: Path) -> None:
    study = Study(index_dataset(few), "data-1", {"model": random_bundle(tmp_path / "model", 1)}, tmp_path / "out")
    study.score("model", 1, threads=1)
    _, report = study.write()
    result = run("evaluate", "--send", report, "--workspace", tmp_path / "runs", "--json")
    assert result.code == 0, result
    assert list(result.json()["mlflow"]) == ["model"]


@pytest.mark.parametrize("words", [[], ["--data", "here", "--send", "there"]])
def test_data_and_report_exclude_each_other(words: list[str], tmp_path: Path) -> None:
    assert "--data or --send" in run("evaluate", *words, "--workspace", tmp_path).error(code=2)
