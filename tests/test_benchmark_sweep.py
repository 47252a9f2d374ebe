"""The efficiency of sweeps: tables of trainings, and replays on them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EPOCHS = 9


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark's modules, under the names by which they import each other."""
    modules = {}
    for name in ("_sweep_table", "_sweep_replay", "sweep_efficiency"):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    yield type("Bench", (), {name.lstrip("_"): module for name, module in modules.items()})
    for name in modules:
        del sys.modules[name]


def curves(rate: float, share: float) -> list[list[float]]:
    """DSC of twelve cases by epoch: best at a rate of 0.005, with cases that differ."""
    quality = 0.7 - 0.15 * (math.log10(rate) + 2.3) ** 2 - 0.1 * (share - 0.6) ** 2
    return [
        [round(max(0.0, quality * (1 - math.exp(-(epoch + 1) / 3)) + case / 100), 4) for case in range(12)]
        for epoch in range(EPOCHS)
    ]


@pytest.fixture(scope="module")
def tables(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    plan, table = bench.sweep_table.PLANS["main"], bench.sweep_table
    config = table.load_config(overrides=list(plan.settings))
    space = table.Space(table.SweepConfig.model_validate({"space": plan.space}).space, config)
    lines: list[dict[str, Any]] = [{"space": plan.space, "settings": list(plan.settings)}]
    for point in table._points(space, plan):
        scores = curves(point["optimizer.lr"], point["training.foreground_share"])
        lines.append({"point": point, "selection": scores, "held_out": scores, "seconds": [1.0] * EPOCHS})
    (folder / "sweep_table_main.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table_of(bench: Any, tables: Path) -> Any:
    return bench.sweep_table.read_table(tables / "sweep_table_main.jsonl")


def test_halves_share_the_default_settings_alone(bench: Any, tables: Path) -> None:
    table = table_of(bench, tables)
    points = [[str(row.point) for row in table.half(which).rows] for which in (0, 1)]
    assert set(points[0]) & set(points[1]) == {str(table.rows[0].point)}
    assert len(set(points[0]) | set(points[1])) == len(table.rows) == 96


def test_a_replay_trains_each_row_once_and_counts_its_epochs(bench: Any, tables: Path) -> None:
    table = table_of(bench, tables).half(0)
    full = bench.sweep_replay.gtvray_method(20, "random", kind="none")(table, 0)
    assert len(full.best) == 20 * EPOCHS
    assert full.best[-1] == max(max(row.curve) for row in table.rows if max(row.curve) <= full.best[-1])
    assert table.rows[full.row].curve[full.epoch] == full.best[-1]
    top = bench.sweep_replay.gtvray_method(20, "random", kind="top_k", grace_epochs=1, keep=2)(table, 0)
    assert len(top.best) == 20 + 2 * (EPOCHS - 1)
    asha = bench.sweep_replay.plain_asha(20)(table, 0)
    assert 20 < len(asha.best) < 20 * EPOCHS
    everything = bench.sweep_replay.random_full(48)(table, 0)
    assert everything.best[-1] == max(max(row.curve) for row in table.half(0).rows[:48])


@pytest.mark.slow
def test_report_has_the_agreed_keys_and_the_same_result_for_the_same_seeds(bench: Any, tables: Path) -> None:
    table = table_of(bench, tables)
    efficiency: ModuleType = bench.sweep_efficiency
    efficiency.SAMPLES = 1  # type: ignore[attr-defined]
    efficiency.CANDIDATES = dict(list(efficiency.CANDIDATES.items())[:1])  # type: ignore[attr-defined]
    found = efficiency.report({"main": table}, range(2))
    halves = {name: of_start["tables"]["half"] for name, of_start in found["first_trial"].items()}
    assert 0 < halves["default"]["compute_vs_random"] < 1
    # Where the target is not reached, a random search after the method is counted too.
    assert 0 < found["compute_vs_random"] == halves["random"]["compute_vs_random"] < 2
    assert all(found[f"compute_vs_{name}"] > 0 for name in ("stock_asha", "one_epoch_topk", "pasha"))
    assert found["worse_than_default"] == 0
    assert found == efficiency.report({"main": table}, range(2))
    empty = efficiency.report({}, range(2))
    assert empty["compute_vs_random"] is None
    assert "--record" in empty["missing"]


def test_a_search_without_the_default_settings_starts_with_a_random_row(bench: Any, tables: Path) -> None:
    table = table_of(bench, tables)
    shuffled = [table.without_default(seed) for seed in range(3)]
    points = {str(row.point) for row in table.rows[1:]}
    assert all({str(row.point) for row in each.rows} == points for each in shuffled)
    assert len({str(each.rows[0].point) for each in shuffled}) > 1
    found = bench.sweep_replay.gtvray_method(3, "random", kind="none")(shuffled[0], 0)
    assert found.best[:EPOCHS] == [max(shuffled[0].rows[0].curve[: n + 1]) for n in range(EPOCHS)]


def test_a_winner_that_is_worse_on_untouched_cases_is_counted(bench: Any, tables: Path) -> None:
    default, other = table_of(bench, tables).rows[:2]
    assert bench.sweep_efficiency._worse_than_default(default, other, 0, 0)
    best = int(np.argmax(default.curve))
    assert not bench.sweep_efficiency._worse_than_default(default, default, best, 0)


@pytest.mark.slow
def test_interrupted_recording_resumes(bench: Any, phantoms: Path, tmp_path: Path) -> None:
    small = ("network.features=[4, 8, 8]", "training.patch_ijk=[16, 16, 16]", "training.epochs=2")
    settings = (*bench.sweep_table.PLANS["main"].settings, *small, "training.steps_per_epoch=1")
    plan = bench.sweep_table.Plan(settings, bench.sweep_table.SPACE, 3, 0)
    path = tmp_path / "table.jsonl"
    bench.sweep_table.record(plan, phantoms, path)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:100])
    bench.sweep_table.record(plan, phantoms, path)
    table = bench.sweep_table.read_table(path)
    assert len(table.rows) == 3
    assert table.epochs == 2
    assert table.rows[2].selection.tolist() == json.loads(lines[3])["selection"]
