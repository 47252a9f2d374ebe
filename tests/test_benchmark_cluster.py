"""The summary of the cluster benchmark, and how it counts repeated steps and seconds of recovery."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """The benchmark's modules, under the names by which they import each other."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in ("_cluster_faults", "cluster")}
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_recovery_is_the_first_step_of_a_new_process(modules: dict[str, Any], tmp_path: Path) -> None:
    """A process that outlives the fault for a moment is no recovery; its steps count."""
    watched = modules["_cluster_faults"].Watched(tmp_path / "steps", tmp_path / "once")
    watched.steps.mkdir()
    watched.once.mkdir()
    (watched.steps / "1").write_text("".join(f"{at}\n" for at in range(1, 31)))
    fault = watched.once / "kill"
    fault.touch()
    os.utime(fault, (29.5, 29.5))
    assert watched.outcome(30) == {"recovery_s": None, "lost_steps": 0, "lost_steps_ratio": 0.0}
    (watched.steps / "2").write_text("".join(f"{at}\n" for at in range(34, 44)))
    assert watched.outcome(30) == {"recovery_s": 4.5, "lost_steps": 10, "lost_steps_ratio": 0.5}


def test_summary_of_sections_and_of_none(modules: dict[str, Any]) -> None:
    summary = modules["cluster"].summary
    assert set(summary({}).values()) == {None}
    faults = {
        "worker": {"recovery_s": 9.0, "lost_steps_ratio": 0.5},
        "driver": {"recovery_s": 20.0, "lost_steps_ratio": 0.9, "lost_trials": 0, "lost_jobs": 1},
    }
    trials = {"1": {"trials": 40, "completed": 39, "overhead_s": 0.2}}
    found = summary({"faults": faults, "trials": trials, "submit": {"first_step_s": None}})
    assert found["recovery_s"] == {"worker": 9.0, "driver": 20.0}
    assert (found["lost_steps_ratio"], found["lost_trials"], found["lost_jobs"]) == (0.9, 1, 2)


def test_stored_results_follow_from_their_sections(modules: dict[str, Any]) -> None:
    found = json.loads((BENCHMARKS / "results" / "cluster.json").read_text())
    for name, value in modules["cluster"].summary({name: each["found"] for name, each in found["raw"].items()}).items():
        assert found[name] == value
    assert found["lost_steps_ratio"] <= 1
    assert "one machine" in found["label"]
