"""The script of the accuracy benchmark, from scans to tables, with trainings that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gtvray.datasets import write_phantoms
from gtvray.io import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accuracy.py"
SETTINGS = """
preprocessing: {spacing_mm: [8.0, 8.0, 8.0]}
network: {features: [4, 8, 8]}
training: {patch_ijk: [16, 16, 16], steps_per_epoch: 2, selection_cases: 2}
inference: {overlap: 0}
"""


def script(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run the script; return its result and its log of stages."""
    command = [sys.executable, str(SCRIPT), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)), done.stderr


class Bench:
    """The script with its own folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.results, self.ledger = folder / "results", folder / "LEDGER.md"
        self.results.mkdir()
        self.said = ""
        (folder / "small.yaml").write_text(SETTINGS)
        places = {"data": data, "config": folder / "small.yaml", "work": folder / "work", "results": self.results}
        self._base = [f"--{name}={path}" for name, path in places.items()]
        self._base += [f"--ledger={self.ledger}", "--threads=2"]

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run the script and return its result; `said` is its log of stages."""
        found, self.said = script(*self._base, *arguments)
        return found


@pytest.fixture
def bench(tmp_path: Path, phantoms: Path) -> Bench:
    return Bench(tmp_path, phantoms)


def test_finished_ablations_are_not_repeated(bench: Bench) -> None:
    asked = ("--ablation-epochs=1", "--ablate=plain=augmentation.strength=0,optimizer.lr=0.01")
    base, plain = bench.run(*asked)["ablations"]
    assert (base["name"], base["over_base"], base["overrides"]) == ("base", None, {})
    assert plain["overrides"] == {"augmentation.strength": 0, "optimizer.lr": 0.01}
    assert plain["over_base"]["low"] <= plain["over_base"]["mean"] <= plain["over_base"]["high"]
    assert (plain["steps"], plain["epochs"], plain["shaped"]["optimizer.lr"]) == (2, 1, 0.01)
    assert base["settings"] != plain["settings"]
    assert read_json(bench.results / "accuracy_ablations.json") == [base, plain]
    assert "train:" in bench.said
    assert bench.run(*asked)["ablations"] == [base, plain]
    assert bench.said == ""
    assert not bench.ledger.exists()


def test_accuracy_tables_name_their_ledger_entries(bench: Bench, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "val", count=4, seed=5)
    asked = (f"--val={tmp_path / 'val'}", "--epochs=4", "--seeds=0", "--folds=2")
    found = bench.run(*asked)
    assert found["ours"]["budget"] == "4 epochs"
    assert [each["epochs"] for each in found["ours"]["seeds"][0]["trainings"]] == [2, 2]
    assert [each["epochs"] for each in found["quarter"]["seeds"][0]["trainings"]] == [1]
    # Without nnU-Net the mean mask is the only peer, and the quarter budget has no result.
    assert (found["peer"], found["peers"]["nnunet"], found["goals_met"]["quarter"]) == ("mean", None, None)
    assert found["diff_low"] <= found["dsc"] - found["peer_dsc"] <= found["diff_high"]
    assert bench.ledger.read_text().count("accuracy figure") == 3
    again, _ = script(f"--results={bench.results}")
    figures = ("dsc", "peer_dsc", "diff_low", "minutes")
    assert [again[key] for key in figures] == [found[key] for key in figures]
