"""Trained folds judged by their own cases: out of fold, on the original grid, beside the baseline of each fold."""

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
from gtvray.experiments.folds import Fold
from gtvray.experiments.tasks import keep, on_cluster
from gtvray.inference import Predictor
from gtvray.io import atomic_path, read_volume, write_json
from gtvray.models import write_bundle
from gtvray.reports import render_overlay, scores_table
from gtvray.training import TrainedNetwork, best_setting, training_device

_SEED = 0

Report = Callable[[float, float], None]


@dataclass(frozen=True)
class JudgedFold:
    """A fold with its scores.

    Attributes:
        fold: its name.
        seed: of its training.
        checkpoint: the one that was kept.
        epoch: of that checkpoint.
        inference: the settings it was scored with.
        cases: scores of the network and of the fold's own baseline.
        pictures: overlays of its best, its median and its worst case.
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
        """Of the network."""
        return [entry.score for entry in self.cases]

    @property
    def floor(self) -> list[CaseScore]:
        """Of the baseline, in the same order."""
        return [entry.baseline for entry in self.cases if entry.baseline is not None]

    def rows(self) -> list[dict[str, Any]]:
        """A row a case, for tables."""
        return [
            {
                "fold": self.fold,
                "case": score.case_id,
                "dsc": score.dsc,
                "hd95_mm": score.hd95_mm,
                "baseline_dsc": floor.dsc,
                "baseline_hd95_mm": floor.hd95_mm,
            }
            for score, floor in zip(self.scores, self.floor, strict=True)
        ]


@dataclass(frozen=True)
class CrossValidation:
    """All folds with their scores.

    Attributes:
        folds: those that were trained to their end.
        inference: what all their cases together decided; for the ensemble.
    """

    folds: tuple[JudgedFold, ...]
    inference: InferenceConfig

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "folds": [
                {
                    "fold": each.fold,
                    "seed": each.seed,
                    "epoch": each.epoch,
                    "threshold": each.inference.threshold,
                    "keep_largest": each.inference.keep_largest,
                    **_compared(each.scores, each.floor),
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
        """A row a case, fold by fold."""
        return [row for each in self.folds for row in each.rows()]

    def metrics(self) -> dict[str, float]:
        """The figures over all cases, for tracking."""
        scores, floor = self._pooled()
        named = {"cv": summarise(scores), "baseline": summarise(floor)}
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
        return [s for each in self.folds for s in each.scores], [s for each in self.folds for s in each.floor]


def judge_folds(trained: Sequence[tuple[Fold, Path]], report: Report) -> CrossValidation:
    """Score every fold's own cases on the connected cluster.

    How probabilities become a mask is calibrated on the cases of the other folds, so that no case has a say in its own
    score; with one fold alone there is only its own. The checkpoint that is kept is chosen on the fold's own cases.

    Args:
        trained: each fold with its best checkpoint.
        report: told (done, all) after each part of the work.

    Raises:
        GtvrayError: a case is not usable, or a checkpoint damaged.
    """
    count, config = len(trained), trained[0][0].config
    trainings = [(best, fold.config, fold.validation) for fold, best in trained]
    kept = on_cluster(keep, trainings, config, lambda done: report(done, 2 * count))
    settings, together = settings_by_fold(config, [scores for _, scores in kept])
    both = zip(trained, kept, settings, strict=True)
    work = [(fold, checkpoint, inference) for (fold, _), (checkpoint, _), inference in both]
    judged = on_cluster(_judge, work, config, lambda done: report(count + done, 2 * count))
    return CrossValidation(tuple(judged), together)


def settings_by_fold(
    config: Config, scores: Sequence[NDArray[np.float64]]
) -> tuple[list[InferenceConfig], InferenceConfig]:
    """How each fold's probabilities become masks, as the other folds' cases decide it, and what all decide together.

    Args:
        config: the settings as they are.
        scores: of each fold, as `calibration_scores` gives them; one fold alone decides for itself.
    """
    settings = []
    for number, own in enumerate(scores):
        others = [of_fold for other, of_fold in enumerate(scores) if other != number]
        settings.append(best_setting(config, np.concatenate(others or [own]))[0])
    return settings, best_setting(config, np.concatenate(scores))[0]


def _judge(fold: Fold, checkpoint: Path, inference: InferenceConfig) -> JudgedFold:
    """As a promoted model is judged: a bundle, its predictor, files on their own grids."""
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
    threads = config.training.cpus_per_worker
    predictor = Predictor(bundle, threads=threads, device=training_device(config).type)
    baseline = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in fold.known)
    scored = score_cases(predictor, fold.judged, fold.folder / "masks", baseline)
    pictures = _draw(scored, fold.folder / "pictures")
    return JudgedFold(fold.name, config.training.seed, checkpoint, trained.epoch, inference, tuple(scored), pictures)


def _draw(scored: Sequence[ScoredCase], folder: Path) -> tuple[Path, ...]:
    by_dsc = sorted(scored, key=lambda entry: entry.score.dsc)
    drawn = []
    for name, entry in {"worst": by_dsc[0], "median": by_dsc[len(by_dsc) // 2], "best": by_dsc[-1]}.items():
        scan = read_volume(entry.case.image)
        title = f"{entry.case.case_id}: DSC {entry.score.dsc:.3f}, HD95 {entry.score.hd95_mm:.1f} mm"
        path = folder / f"{name}.png"
        render_overlay(path, scan, read_label(entry.case, scan), read_binary(entry.mask), title)
        drawn.append(path)
    return tuple(drawn)


def _compared(scores: Sequence[CaseScore], floor: Sequence[CaseScore]) -> dict[str, Any]:
    enough = len(scores) >= FEWEST_CASES
    difference = paired_difference([s.dsc for s in scores], [s.dsc for s in floor], seed=_SEED) if enough else None
    return {
        "summary": summarise(scores),
        "baseline": summarise(floor),
        "dsc_over_baseline": asdict(difference) if difference else None,
    }
