"""Final steps of a sweep without a cluster: what is compared, exported, drawn and recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gtvray.config import Config, SweepConfig
from gtvray.data import CachedCase
from gtvray.io import Workspace, read_json
from gtvray.models import Bundle
from gtvray.runtime import SILENT
from gtvray.tracking import RunRecorder
from gtvray.tracking.trials import COMPLETED, FAILED, STOPPED, Trial
from gtvray.training.checkpoints import checkpoint_path
from gtvray.tuning import FoldCases, SweepResult, TrialResult, export, finish, overlays
from gtvray.tuning.confirm import Confirmation
from gtvray.tuning.export import Exporter
from gtvray.tuning.finish import IMPORTANCES, SweepEnd
from gtvray.tuning.folds import fold_cases, fold_number, folds_of_point
from gtvray.tuning.pareto import Front
from gtvray.tuning.resume import StoredResult, write_result

from ..bundles import random_bundle

SEED = "training.seed"
SWEEP = SweepConfig.model_validate({"space": {"optimizer.lr": {"low": 0.001, "high": 0.01, "log": True}}})
MANY = tuple(f"h{number}" for number in range(10))


def trial(number: int, dsc: float, origin: str = "random", state: str = COMPLETED, **point: Any) -> Trial:
    """A trial whose best epoch is the first of two."""
    epochs = {1: {"selection_dsc": dsc, "peak_mb": 10.0 + number}, 2: {"selection_dsc": dsc / 2}}
    point = {
        "optimizer.lr": (1 + number) / 1000,
        **{SEED if key == "seed" else key: value for key, value in point.items()},
    }
    return Trial(f"t{number}", point, epochs, state=state, origin=origin)


def result(folder: Path, *trials: Trial) -> SweepResult:
    """The result of a sweep with these trials, best first."""
    ranked = [
        TrialResult(each.trial_id, each.settings, each.origin, each.ending, 2, each.epochs[1]["selection_dsc"], 1, path)
        for each in trials
        if (path := checkpoint_path(folder / each.trial_id, 1)) and each.state != FAILED
    ]
    for each in ranked:
        each.best_checkpoint.mkdir(parents=True, exist_ok=True)
    return SweepResult(Config(), tuple(sorted(ranked, key=lambda each: -each.best_dsc)), trials)


class End:
    """The end of a sweep in a workspace, with the trials that it exported."""

    def __init__(self, folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace, self.client, self.exported = Workspace(folder / "runs"), client, list[tuple[str, str]]()
        self.recorder = RunRecorder(client, folder.name, "one", folder / "spool.jsonl", folder / "artifacts")
        self.trials = folder / "trials"
        monkeypatch.setattr(Exporter, "export", self._export)
        (self.workspace.sweeps / "one").mkdir(parents=True)

    def _export(self, trial: TrialResult, folder: Path) -> tuple[Bundle, str]:
        self.exported.append((trial.trial_id, folder.name))
        return random_bundle(folder), f"run of {trial.trial_id}"

    def of(self, *trials: Trial, held_out: tuple[str, ...] = MANY, folds: int = 1) -> SweepEnd:
        project: Any = SimpleNamespace(split=SimpleNamespace(held_out=held_out))
        found = result(self.trials, *trials)
        return SweepEnd(self.workspace, "one", project, [FoldCases([], [])] * folds, found, self.recorder, SILENT)


@pytest.fixture
def end(tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> End:
    return End(tmp_path, client, monkeypatch)


BEST_IS_DEFAULT = (trial(0, 0.6, "default"), trial(1, 0.5))
BEST_IS_OTHER = (trial(0, 0.5, "default"), trial(1, 0.6))


@pytest.mark.parametrize(
    ("trials", "held_out", "verdict", "words"),
    [
        (BEST_IS_DEFAULT, MANY, "default", "the default settings are the best"),
        # There is nothing to compare, however few cases there are.
        (BEST_IS_DEFAULT, (), "default", "the default settings are the best"),
        (BEST_IS_OTHER, MANY[:9], "undecided", "9 held-out cases, at least 10 are needed"),
        ((trial(0, 0.5, "default", STOPPED), trial(1, 0.6)), MANY, "undecided", "not trained to the end"),
        ((trial(0, 0.5, "default", FAILED), trial(1, 0.6)), MANY, "undecided", "not trained to the end"),
    ],
)
def test_what_cannot_be_compared_with_the_default_settings_says_why(
    trials: tuple[Trial, ...], held_out: tuple[str, ...], verdict: str, words: str, end: End, tmp_path: Path
) -> None:
    last = end.of(*trials, held_out=held_out)
    last.confirm(random_bundle(tmp_path / "bundle"), tmp_path / "default")
    stored = Confirmation.load(last.folder)
    assert stored == last.confirmation
    assert stored is not None
    assert (stored.verdict, stored.best_dsc) == (verdict, ())
    assert words in stored.text
    assert end.exported == [], "nothing is offered instead of the best"


def test_default_settings_whose_checkpoint_is_gone_are_not_compared(end: End, tmp_path: Path) -> None:
    last = end.of(*BEST_IS_OTHER)
    (checkpoint_path(end.trials / "t0", 1)).rmdir()
    last.confirm(random_bundle(tmp_path / "bundle"), tmp_path / "default")
    assert last.confirmation is not None
    assert last.confirmation.verdict == "undecided"


@pytest.mark.parametrize(("gain", "verdict", "offered"), [(0.2, "better", False), (-0.2, "worse", True)])
def test_both_are_scored_on_the_held_out_cases_and_counted_in_the_ledger(
    gain: float, verdict: str, offered: bool, end: End, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if the best is no better, the bundle of the default settings is written."""
    last, scored, looks = end.of(*BEST_IS_OTHER), list[Any](), list[Any]()
    last.project = SimpleNamespace(  # type: ignore[assignment]
        split=SimpleNamespace(held_out=MANY), held_out=(), fingerprint=SimpleNamespace(digest="d1")
    )

    def scores(trials: Any, selection: Any, held_out: Any) -> list[list[float]]:
        scored.extend((checkpoint.parent.name, config.optimizer.lr) for checkpoint, config in trials)
        default = [0.4 + number / 100 for number in range(10)]
        return [[dsc + gain for dsc in default], default]

    monkeypatch.setattr(finish, "held_out_dsc", scores)
    monkeypatch.setattr(finish.Ledger, "record", lambda self, *look: looks.append(look))
    bundle = random_bundle(tmp_path / "bundle")
    last.confirm(bundle, tmp_path / "one-default")
    assert scored == [("t1", 0.002), ("t0", 0.001)]
    assert [(purpose, subject, cases) for purpose, subject, cases, *_ in looks] == [
        ("sweep", bundle.digest, MANY),
        ("sweep", "one-t0", MANY),
    ]
    assert last.confirmation is not None
    assert (last.confirmation.verdict, last.confirmation.mean) == (verdict, pytest.approx(gain))
    assert end.exported == ([("t0", "one-default")] if offered else [])


def test_with_folds_networks_of_the_first_fold_are_compared(end: End, tmp_path: Path) -> None:
    """The best trial is a later fold of the default settings, so nothing is left to compare."""
    trials = (trial(0, 0.5, "default", seed=0), trial(1, 0.4, seed=0))
    later = Trial("t2", {**trials[0].settings, SEED: 1}, trials[0].epochs, state=COMPLETED, origin="default")
    later.epochs = {1: {"selection_dsc": 0.9}}
    last = end.of(*trials, later, folds=2)
    assert last.result.best.trial_id == "t2"
    assert [each.trial_id for each in folds_of_point(last.result.best, last.result.trials)] == ["t0", "t2"]
    last.confirm(random_bundle(tmp_path / "bundle"), tmp_path / "default")
    assert last.confirmation is not None
    assert last.confirmation.verdict == "default"


@pytest.mark.parametrize(
    ("stored", "again"), [(("one-t1", 0.6), False), (("one-t1", 0.55), True), (("one-t0", 0.6), True)]
)
def test_an_extended_sweep_keeps_its_bundle_unless_its_best_has_changed(
    stored: tuple[str, float], again: bool, end: End
) -> None:
    name, dsc = stored
    last = end.of(*BEST_IS_OTHER)
    kept = random_bundle(end.workspace.bundles / name)
    write_result(last.folder, StoredResult("t1", name, "run before", "parent", {"t1": (dsc, 1)}, complete=False))
    if again and name == "one-t1":
        # Written again under the same name: the old one is not what is returned.
        (end.workspace.bundles / name).rename(end.workspace.bundles / "old")
    bundle, run_id = last.export()
    assert end.exported == ([("t1", "one-t1")] if again else [])
    assert run_id == ("run of t1" if again else "run before")
    assert bundle.folder == end.workspace.bundles / "one-t1"
    assert again or bundle.digest == kept.digest


def test_each_trial_of_the_front_has_a_bundle_and_a_single_objective_has_no_front(end: End) -> None:
    """The third trial is worse and larger; the bundle of the first exists from an earlier session."""
    last = end.of(trial(0, 0.5, "default"), trial(1, 0.6), trial(2, 0.4))
    last.export_front(SWEEP)
    assert (Front.load(last.folder), end.exported) == (None, [])
    (end.workspace.bundles / "one-t0").mkdir(parents=True)
    last.export_front(SWEEP.model_copy(update={"objectives": {"dsc": "max", "peak_mb": "min"}}))
    front = Front.load(last.folder)
    assert front is not None
    assert (list(front.trials), list(front.others)) == (["t1", "t0"], ["t2"])
    assert end.exported == [("t1", "one-t1")]


def test_run_of_the_sweep_names_the_best_and_counts_failures_and_exploits(end: End) -> None:
    changed = trial(1, 0.6)
    changed.exploits = [(1, {}, "epoch 1 of t0"), (2, {}, "epoch 2 of t0")]
    last = end.of(trial(0, 0.5, "default"), changed, trial(2, 0.7, state=FAILED))
    last.confirmation = Confirmation("undecided", "a sentence")
    last.describe("the run")
    last.measure_importances(SWEEP)
    assert end.recorder.close(60)
    run = end.client.get_run(end.recorder.run_id)
    assert run.data.metrics == {"best_dsc": 0.6, "failed_trials": 1.0, "exploits": 2.0}
    tags = {name: run.data.tags[f"gtvray.{name}"] for name in ("best_trial", "best_run", "against_default")}
    assert tags == {"best_trial": "t1", "best_run": "the run", "against_default": "a sentence"}
    # Two completed trials are too few for importances.
    assert read_json(last.folder / IMPORTANCES) == {"trials": 2, "importances": {}}


def test_the_worst_cases_of_the_best_epoch_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four cases the three with the lowest DSC in the best epoch, which is not the last one."""
    best = trial(1, 0.6)
    best.cases = {1: (0.8, 0.2, 0.9, 0.5), 2: (0.1, 0.9, 0.1, 0.9)}
    drawn: list[Any] = []
    monkeypatch.setattr(overlays, "on_cluster", lambda function, work, *_: drawn.extend(work))
    dataset: Any = SimpleNamespace(subset=lambda names: names)
    bundle: Any = SimpleNamespace(folder=tmp_path / "bundle")
    cases = [CachedCase(name, tmp_path, {}) for name in "abcd"]  # type: ignore[arg-type]
    overlays.draw_worst(result(tmp_path, trial(0, 0.5), best), bundle, dataset, FoldCases([], cases), tmp_path)
    assert read_json(tmp_path / "worst.json") == {
        "trial": "t1",
        "cases": [
            {"case": "b", "dsc": 0.2, "picture": "worst-1.png"},
            {"case": "d", "dsc": 0.5, "picture": "worst-2.png"},
            {"case": "a", "dsc": 0.8, "picture": "worst-3.png"},
        ],
    }
    ((folder, work, config),) = drawn
    assert folder == tmp_path / "bundle"
    assert work == [(name, tmp_path / f"worst-{number}.png") for number, name in enumerate("bda", 1)]
    assert config.optimizer.lr == 0.002, "the settings of the trial"


def test_ensemble_has_the_networks_of_every_fold_in_order_each_with_its_own_cases(
    tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three folds the point has two; the other point is no member."""
    first, other, second = trial(0, 0.5, seed=0), trial(1, 0.4, seed=0), trial(2, 0.9)
    second.settings = {**first.settings, SEED: 2}
    found = result(tmp_path, first, other, second)
    folds: Any = [FoldCases([], [f"selection {number}"]) for number in range(3)]  # type: ignore[list-item]
    project: Any = SimpleNamespace(provenance=lambda: {"scans": []}, train=[])
    worked: list[Any] = []
    monkeypatch.setattr(export, "domain_ranges", lambda train: {})
    monkeypatch.setattr(export, "on_cluster", lambda function, work, *_: worked.extend(work) or ["kept"])
    monkeypatch.setattr(export, "export_bundle", lambda kept, config, folder, info: (kept, info))
    recorder = RunRecorder(client, tmp_path.name, "one", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    (kept, info), _ = Exporter(found, project, folds, recorder).export(found.best, tmp_path / "bundle")  # type: ignore[misc]
    assert [(path.parent.name, config.training.seed, cases) for path, config, cases in worked] == [
        ("t0", 0, ["selection 0"]),
        ("t2", 2, ["selection 2"]),
    ]
    assert kept == ["kept"]
    assert info["folds"] == [{"fold": 0, "trial": "t0"}, {"fold": 2, "trial": "t2"}]


def test_every_case_is_scored_in_one_fold_and_trained_on_in_the_others() -> None:
    names = ("a", "b", "c", "d")
    cases = {name: CachedCase(name, Path(), {}) for name in names}  # type: ignore[arg-type]
    folds = SimpleNamespace(validation=(("a", "c"), ("b", "d")), train=lambda number: (("b", "d"), ("a", "c"))[number])
    project: Any = SimpleNamespace(
        train=[cases["a"], cases["b"], cases["c"]], selection=[cases["d"]], folds=lambda count, seed: folds
    )
    single = fold_cases(project, SWEEP, Config())
    assert [(each.train, each.selection) for each in single] == [(project.train, project.selection)]
    found = fold_cases(project, SWEEP.model_copy(update={"folds": 2}), Config())
    assert [[case.case_id for case in each.train] for each in found] == [["b", "d"], ["a", "c"]]
    assert [[case.case_id for case in each.selection] for each in found] == [["a", "c"], ["b", "d"]]
    seeded = Config().model_copy(update={"training": Config().training.model_copy(update={"seed": 1})})
    assert (fold_number(Config(), seeded, found), fold_number(Config(), seeded, single)) == (1, 0)
