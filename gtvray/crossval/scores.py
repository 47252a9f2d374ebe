"""Out-of-fold scores: every fold on its own validation cases, on the original grid, with its own baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gtvray import NOTICE
from gtvray.config import Config, InferenceConfig
from gtvray.datasets import read_binary, read_label
from gtvray.evaluation import (
    FEWEST_CASES,
    CaseScore,
    MeanPositionBaseline,
    ScoredCase,
    paired_difference,
    score_cases,
    summarise,
)
from gtvray.experiments.fold_plan import Fold
from gtvray.experiments.tasks import keep, on_cluster, predictor_on_worker
from gtvray.io import atomic_path, read_volume, write_json
from gtvray.models import write_bundle
from gtvray.reports import render_overlay, scores_table
from gtvray.training import TrainedNetwork, best_setting

_SEED = 0

Report = Callable[[float, float], None]


@dataclass(frozen=True)
class ScoredFold:
    """A fold with its scores.

    Attributes:
        fold: name of the fold.
        seed: seed of its training.
        checkpoint: selected checkpoint.
        epoch: epoch of that checkpoint.
        inference: settings it was scored with.
        cases: scores of the network and of the baseline of the fold.
        pictures: overlays of the best, the median and the worst case.
    """

    fold: str
    seed: int
    checkpoint: Path
    epoch: int
    inference: InferenceConfig
    cases: tuple[ScoredCase, ...]
    pictures: tuple[Path, ...]

    @property
    def scores(self) -> list[CaseScore]:
        """Scores of the network."""
        return [entry.score for entry in self.cases]

    @property
    def baseline(self) -> list[CaseScore]:
        """Scores of the baseline, in the same order."""
        return [entry.baseline for entry in self.cases if entry.baseline is not None]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per case, for tables."""
        return [
            {
                "fold": self.fold,
                "case": score.case_id,
                "dsc": score.dsc,
                "hd95_mm": score.hd95_mm,
                "baseline_dsc": baseline.dsc,
                "baseline_hd95_mm": baseline.hd95_mm,
            }
            for score, baseline in zip(self.scores, self.baseline, strict=True)
        ]


@dataclass(frozen=True)
class CrossValidation:
    """All folds with their scores.

    Attributes:
        folds: folds that were trained completely.
        inference: settings of the ensemble, calibrated on the cases of all folds.
    """

    folds: tuple[ScoredFold, ...]
    inference: InferenceConfig

    def as_dict(self) -> dict[str, Any]:
        """Return all scores, ready for JSON."""
        return {
            "folds": [
                {
                    "fold": each.fold,
                    "seed": each.seed,
                    "epoch": each.epoch,
                    "threshold": each.inference.threshold,
                    "keep_largest": each.inference.keep_largest,
                    **_compared(each.scores, each.baseline),
                }
                for each in self.folds
            ],
            "all": _compared(*self._pooled()),
            "cases": [
                {**row, "scores": asdict(score)}
                for each in self.folds
                for row, score in zip(each.rows(), each.scores, strict=True)
            ],
            "pictures": [str(path) for each in self.folds for path in each.pictures],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per case, fold by fold."""
        return [row for each in self.folds for row in each.rows()]

    def metrics(self) -> dict[str, float]:
        """Return the metrics over all cases, for tracking."""
        scores, baseline = self._pooled()
        named = {"cv": summarise(scores), "baseline": summarise(baseline)}
        return {
            f"{prefix}_{name}_{kind}": float(summary[name][kind])
            for prefix, summary in named.items()
            for name in ("dsc", "hd95_mm")
            for kind in ("mean", "median")
        }

    def write(self, folder: Path) -> None:
        """Write `scores.json` and `scores.md`."""
        write_json(folder / "scores.json", {**self.as_dict(), "notice": NOTICE})
        parts = [f"## {each.fold}\n\n{scores_table(each.scores)}" for each in self.folds]
        with atomic_path(folder / "scores.md") as temporary:
            temporary.write_text("\n".join(["# Scores by fold, on the original grid\n", *parts, NOTICE, ""]))

    def _pooled(self) -> tuple[list[CaseScore], list[CaseScore]]:
        return [s for each in self.folds for s in each.scores], [s for each in self.folds for s in each.baseline]


def score_folds(trained: Sequence[tuple[Fold, Path]], report: Report) -> CrossValidation:
    """Score every fold's own cases on the connected cluster.

    Threshold and component filter of a fold are calibrated on the cases of the other folds, so that no case affects its
    own score; a single fold uses its own cases. The checkpoint is selected on the fold's own cases.

    Args:
        trained: folds with their best checkpoints.
        report: called with (done, all) after each part of the work.

    Raises:
        GtvrayError: a case cannot be used, or a checkpoint is damaged.
    """
    count, config = len(trained), trained[0][0].config
    trainings = [(best, fold.config, fold.validation) for fold, best in trained]
    kept = on_cluster(keep, trainings, config, lambda done: report(done, 2 * count))
    settings, together = settings_by_fold(config, [scores for _, scores in kept])
    both = zip(trained, kept, settings, strict=True)
    work = [(fold, checkpoint, inference) for (fold, _), (checkpoint, _), inference in both]
    scored = on_cluster(_score, work, config, lambda done: report(count + done, 2 * count))
    return CrossValidation(tuple(scored), together)


def settings_by_fold(
    config: Config, scores: Sequence[NDArray[np.float64]]
) -> tuple[list[InferenceConfig], InferenceConfig]:
    """Calibrate the inference settings of every fold on the other folds, and those of the ensemble on all of them.

    Args:
        config: settings before calibration.
        scores: results of `calibration_scores` by fold; a single fold is calibrated on its own.

    Returns:
        settings by fold, and those of the ensemble.
    """
    settings = []
    for number, own in enumerate(scores):
        others = [of_fold for other, of_fold in enumerate(scores) if other != number]
        settings.append(best_setting(config, np.concatenate(others or [own]))[0])
    return settings, best_setting(config, np.concatenate(scores))[0]


def _score(fold: Fold, checkpoint: Path, inference: InferenceConfig) -> ScoredFold:
    """Score a fold in the same way as a promoted model: predict with its bundle and score on the original grids."""
    config, trained = fold.config, TrainedNetwork.load(checkpoint)
    bundle = write_bundle(
        fold.folder / "bundle",
        weights=trained.weights,
        preprocessing=config.preprocessing,
        network=trained.settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={"fold": fold.name, "epoch": trained.epoch},
    )
    predictor = predictor_on_worker(bundle, config)
    baseline = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in fold.train_cases)
    scored = score_cases(predictor, fold.validation_cases, fold.folder / "masks", baseline)
    pictures = _draw_overlays(scored, fold.folder / "pictures")
    return ScoredFold(fold.name, config.training.seed, checkpoint, trained.epoch, inference, tuple(scored), pictures)


def _draw_overlays(scored: Sequence[ScoredCase], folder: Path) -> tuple[Path, ...]:
    by_dsc = sorted(scored, key=lambda entry: entry.score.dsc)
    drawn = []
    for name, entry in {"worst": by_dsc[0], "median": by_dsc[len(by_dsc) // 2], "best": by_dsc[-1]}.items():
        scan = read_volume(entry.case.image)
        title = f"{entry.case.case_id}: DSC {entry.score.dsc:.3f}, HD95 {entry.score.hd95_mm:.1f} mm"
        path = folder / f"{name}.png"
        render_overlay(path, scan, read_label(entry.case, scan), read_binary(entry.mask), title)
        drawn.append(path)
    return tuple(drawn)


def _compared(scores: Sequence[CaseScore], baseline: Sequence[CaseScore]) -> dict[str, Any]:
    enough = len(scores) >= FEWEST_CASES
    difference = paired_difference([s.dsc for s in scores], [s.dsc for s in baseline], seed=_SEED) if enough else None
    return {
        "summary": summarise(scores),
        "baseline": summarise(baseline),
        "dsc_over_baseline": asdict(difference) if difference else None,
    }
