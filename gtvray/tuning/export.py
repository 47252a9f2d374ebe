"""Export trials of a sweep as bundles, and queue that of the best trial for its MLflow run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray.config import flatten
from gtvray.data import Project
from gtvray.experiments.tasks import keep, on_cluster
from gtvray.models import Bundle
from gtvray.tracking import RunRecorder
from gtvray.training import domain_ranges, export_bundle
from gtvray.tuning.folds import FoldCases, fold_number, folds_of_point
from gtvray.tuning.result import SweepResult, TrialResult


@dataclass(frozen=True)
class Exporter:
    """Writes trials of a sweep as bundles; checkpoints are selected by tasks on the connected cluster.

    Attributes:
        result: result of the sweep.
        project: its data.
        folds: cases of its trials, by fold.
        recorder: recorder of the sweep, flushed by the caller. MLflow may be unreachable.
    """

    result: SweepResult
    project: Project
    folds: Sequence[FoldCases]
    recorder: RunRecorder

    def export_best(self, folder: Path) -> tuple[Bundle, str]:
        """Write the bundle of the best trial and queue it for the run of the trial; see `export`."""
        best = self.result.best
        bundle, run_id = self.export(best, folder)
        self.recorder.attach(best.trial_id, bundle.folder, "bundle")
        self.recorder.describe({}, {"gtvray.digest": bundle.digest}, best.trial_id)
        return bundle, run_id

    def export(self, trial: TrialResult, folder: Path) -> tuple[Bundle, str]:
        """Write the bundle of a trial; with folds, an ensemble of the networks of all folds of its point.

        Args:
            trial: a trial whose checkpoint exists.
            folder: folder of the bundle.

        Returns:
            the bundle, and the MLflow run of the trial.

        Raises:
            TrainingError: the best checkpoint of the trial is damaged.
        """
        run_id = self.recorder.trial_run_id(trial.trial_id)
        members = folds_of_point(trial, self.result.trials) if len(self.folds) > 1 else [trial]
        configs = [self.result.config_of(member) for member in members]
        numbers = [fold_number(self.result.config, config, self.folds) for config in configs]
        info: dict[str, Any] = {
            "training_data": self.project.provenance(),
            "domain": domain_ranges(self.project.train),
            "mlflow_run": run_id,
            "sweep_run": self.recorder.run_id,
            "config": flatten(configs[0]),
        }
        # Scoring two checkpoints on all selection cases needs the resources of a worker, not of the driver.
        work = [
            (member.best_checkpoint, config, self.folds[number].selection)
            for member, config, number in zip(members, configs, numbers, strict=True)
        ]
        kept = on_cluster(keep, work, configs[0], lambda _: None)
        if len(self.folds) > 1:
            info["folds"] = [
                {"fold": number, "trial": member.trial_id} for number, member in zip(numbers, members, strict=True)
            ]
        return export_bundle(kept, configs[0], folder, info), run_id
