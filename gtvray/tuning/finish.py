"""Final steps of a sweep: export, comparison with the default settings, importances, clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gtvray.config import SweepConfig
from gtvray.data import CaseCache, Project
from gtvray.datasets import Ledger
from gtvray.io import Workspace, write_json
from gtvray.models import Bundle
from gtvray.runtime import ProgressReporter
from gtvray.tracking import RunRecorder
from gtvray.tuning.confirm import FEWEST_CASES, Confirmation, compare_dsc, held_out_dsc, undecided
from gtvray.tuning.export import Exporter
from gtvray.tuning.folds import FoldCases, folds_of_point
from gtvray.tuning.overlays import draw_worst
from gtvray.tuning.pareto import pareto_front
from gtvray.tuning.result import SweepResult, remove_losers
from gtvray.tuning.resume import read_result
from gtvray.tuning.searchers.optuna import importances
from gtvray.tuning.searchers.repeated import as_points
from gtvray.tuning.space import Space

IMPORTANCES = "importances.json"


@dataclass
class SweepEnd:
    """Final steps of a sweep, run once all trials have ended; each may be repeated after an interruption.

    Attributes:
        workspace: contains the bundles and the ledger.
        name: name of the sweep.
        project: its data.
        folds: cases of its trials, by fold.
        result: its result.
        recorder: its record in MLflow.
        show: receives progress.
    """

    workspace: Workspace
    name: str
    project: Project
    folds: Sequence[FoldCases]
    result: SweepResult
    recorder: RunRecorder
    show: ProgressReporter
    confirmation: Confirmation | None = None

    @property
    def folder(self) -> Path:
        """Folder of the sweep."""
        return self.workspace.sweeps / self.name

    @property
    def _exporter(self) -> Exporter:
        return Exporter(self.result, self.project, self.folds, self.recorder)

    def export(self) -> tuple[Bundle, str]:
        """Write the bundle of the best trial; return it and the MLflow run of the trial."""
        best, stored = self.result.best, read_result(self.folder)
        target = self.workspace.bundles / f"{self.name}-{best.trial_id}"
        if stored is not None and stored.bundle == target.name and best.best_dsc == stored.ranking[best.trial_id][0]:
            # The sweep was extended, and no additional trial is better.
            return Bundle.load(target), stored.run_id
        return self._exporter.export_best(target)

    def confirm(self, bundle: Bundle, default_bundle: Path) -> None:
        """Compare the best trial with the default settings; for "not better" and "worse" also write a bundle of those.

        Args:
            bundle: bundle of the best trial.
            default_bundle: folder for the bundle of the default settings.
        """
        self.confirmation = self._compare(bundle)
        self.confirmation.save(self.folder)
        if self.confirmation.offers_default:
            default = next(trial for trial in self.result.trials if trial.origin == "default")
            self._exporter.export(default, default_bundle)

    def draw_worst(self, bundle: Bundle) -> None:
        """Draw the worst selection cases of the best trial; does nothing with folds.

        With folds, every selection case is a training case of other networks of the ensemble.
        """
        if len(self.folds) == 1:
            draw_worst(self.result, bundle, self.project.dataset, self.folds[0], self.folder)

    def export_front(self, sweep: SweepConfig) -> None:
        """Store the Pareto front and write a bundle of each of its trials; does nothing with a single objective."""
        if len(sweep.objectives) == 1:
            return
        front = pareto_front(sweep.objectives, self.result.ended)
        front.save(self.folder)
        for trial in self.result.trials:
            folder = self.workspace.bundles / f"{self.name}-{trial.trial_id}"
            # If the checkpoint of a trial was removed after an earlier session, its bundle exists already.
            if trial.trial_id in front.trials and not folder.is_dir():
                self._exporter.export(trial, folder)
        self.recorder.log(None, {"hypervolume": front.hypervolume}, len(self.result.ended))
        self.recorder.describe({}, {"gtvray.front": ", ".join(front.trials)})

    def measure_importances(self, sweep: SweepConfig) -> None:
        """Store the importance of each setting for the DSC of the completed trials."""
        found, trials = importances(sweep, Space(sweep.space, self.result.config), as_points(self.result.ended, sweep))
        write_json(self.folder / IMPORTANCES, {"trials": trials, "importances": found})

    def describe(self, run_id: str) -> None:
        """Record the best trial in the run of the sweep."""
        best, text = self.result.best, self.confirmation.text if self.confirmation is not None else ""
        exploits = sum(len(trial.exploits) for trial in self.result.ended)
        metrics = {
            "best_dsc": best.best_dsc,
            "failed_trials": float(self.result.failed),
            "exploits": float(exploits),
        }
        self.recorder.log(None, metrics, len(self.result.ended))
        pointers = {"gtvray.best_trial": best.trial_id, "gtvray.best_run": run_id}
        self.recorder.describe({}, {**pointers, "gtvray.against_default": text})

    def remove_losers(self, trials_folder: Path, unfinished: Sequence[str]) -> None:
        """Remove the checkpoints that neither a continued sweep nor the comparison with the default settings needs."""
        remove_losers(self.result, trials_folder, unfinished)

    def _compare(self, bundle: Bundle) -> Confirmation:
        """Compare the best trial with the default settings on held-out cases; the ledger counts both."""
        best, cases = self.result.best, self.project.split.held_out
        default = next((trial for trial in self.result.trials if trial.origin == "default"), None)
        if len(self.folds) > 1:
            # Every point has the first fold, so two networks that were trained on the same cases are compared.
            best = folds_of_point(best, self.result.trials)[0]
            default = default and folds_of_point(default, self.result.trials)[0]
        if best.origin == "default":
            return Confirmation("default", "the default settings are the best")
        if len(cases) < FEWEST_CASES:
            return undecided(f"{len(cases)} held-out cases, at least {FEWEST_CASES} are needed")
        if default is None or default.ending != "completed" or not default.best_checkpoint.is_dir():
            return undecided("the default settings were not trained to the end")
        self.show.begin("confirm", f"{best.trial_id} and the default settings on {len(cases)} held-out cases")
        config = self.result.config
        held_out = CaseCache(self.workspace.cache, config.preprocessing, config.cache).prepare_all(
            self.project.held_out
        )
        pairs = [(trial.best_checkpoint, self.result.config_of(trial)) for trial in (best, default)]
        best_dsc, default_dsc = held_out_dsc(pairs, self.folds[0].selection, held_out)
        ledger, scans = Ledger(self.workspace.ledger), [case.image for case in self.project.held_out]
        for subject in (bundle.digest, f"{self.name}-{default.trial_id}"):
            ledger.record("sweep", subject, cases, self.project.fingerprint.digest, scans)
        return compare_dsc(best.trial_id, best_dsc, default_dsc)
