"""Run a sweep with Ray Tune and rank its trials."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, PlacementGroupFactory, ResultGrid, RunConfig, TuneConfig, Tuner

from gtvray.config import Config, SweepConfig, flatten, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import TrainingError
from gtvray.experiments.tasks import plan_on, worker_memory_bytes
from gtvray.runtime import SILENT, Cluster, ProgressReporter, shown_waiting
from gtvray.tracking import RunRecorder, TrialRecord
from gtvray.training import check_memory, check_plan
from gtvray.tuning.memory import largest_host_bytes
from gtvray.tuning.resume import TUNE_FOLDER, restored_tuner
from gtvray.tuning.space import METRIC, MODE, build_scheduler, build_searcher, decode, tune_space
from gtvray.tuning.trainable import SegmentationTrial, TrialContext
from gtvray.tuning.watch import SweepStatus, Watcher, error_reason

_TRIAL_FAILURES = 1
# A trial with several workers needs some resource of its own; this takes none from its workers.
_DRIVER_BYTES = 1 << 20


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        trial_id: id in Ray Tune, also a tag of its MLflow run.
        point: dotted key -> searched value.
        epochs: number of completed epochs.
        best_dsc: best selection DSC.
        best_checkpoint: checkpoint of that epoch.
    """

    trial_id: str
    point: dict[str, Any]
    epochs: int
    best_dsc: float
    best_checkpoint: Path


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        config: settings of all trials.
        trials: trials with at least one epoch, best first.
        failed: number of trials without an epoch.
    """

    config: Config
    trials: tuple[TrialResult, ...]
    failed: int

    @property
    def best(self) -> TrialResult:
        """The trial with the highest selection DSC."""
        return self.trials[0]

    def config_of(self, trial: TrialResult) -> Config:
        """Return the settings of a trial."""
        return with_dotted(self.config, trial.point, trial.trial_id)


def run_sweep(
    sweep: SweepConfig,
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    *,
    cluster: Cluster,
    recorder: RunRecorder,
    folder: Path,
    tags: dict[str, str],
    report: Callable[[SweepStatus], None] | None = None,
    show: ProgressReporter = SILENT,
) -> SweepResult:
    """Run a sweep on the connected cluster, or resume the one in the folder.

    Args:
        sweep: space, searcher, scheduler, budget.
        config: settings where neither the base of the sweep nor the point of a trial sets them.
        train: prepared training cases.
        selection: prepared cases that trials are compared on.
        cluster: the connected cluster.
        recorder: records the sweep in MLflow.
        folder: contains checkpoints and Tune's own files.
        tags: tags of the run of every trial.
        report: called after every epoch.
        show: receives what the sweep waits for.

    Raises:
        ConfigError, DataError: the settings are inconsistent with each other or with the data.
        ResourceError: a trial does not fit on the cluster.
        TrainingError: no trial completed an epoch.
    """
    base = with_dotted(config, sweep.base, "base")
    check_plan(base, train, selection)
    plan = plan_on(cluster, base, sweep.max_concurrent, largest_host_bytes(base, sweep.space))
    check_memory(base, worker_memory_bytes(base, cluster, show))
    recorder.describe(flatten(base), {**tags, "gtvray.space": ", ".join(sweep.space)})
    context = TrialContext(base, dict(sweep.space), train, selection, folder / "trials")
    alone = base.training.num_workers == 1
    bundle = plan.needs.as_bundle() if alone else {"memory": _DRIVER_BYTES}
    trainable = tune.with_resources(
        tune.with_parameters(SegmentationTrial, context=context),
        PlacementGroupFactory([bundle]),
    )
    watcher = Watcher(
        TrialRecord(folder),
        recorder,
        space=dict(sweep.space),
        tags=tags,
        epochs=base.training.epochs,
        report=report,
    )
    tuner = restored_tuner(folder / TUNE_FOLDER, trainable, sweep, watcher)
    if tuner is None:
        settings = TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=sweep.trials,
            search_alg=build_searcher(sweep, plan.concurrent),
            scheduler=build_scheduler(sweep, base),
            max_concurrent_trials=plan.concurrent,
            time_budget_s=sweep.time_budget_s,
            reuse_actors=True,
        )
        tuner = _new_tuner(folder, trainable, sweep, settings, watcher)
    # The reason of a failed trial is in the result; Tune would also log its stack trace.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune prints its own tables despite verbose=0.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with shown_waiting(show):
            grid = tuner.fit()
    return _result(grid, sweep, base, context.folder)


def _new_tuner(folder: Path, trainable: Any, sweep: SweepConfig, settings: TuneConfig, watcher: Watcher) -> Tuner:
    return Tuner(
        trainable,
        param_space=tune_space(sweep.space),
        tune_config=settings,
        run_config=RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder.resolve()),
            callbacks=[watcher],
            failure_config=FailureConfig(max_failures=_TRIAL_FAILURES),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
            verbose=0,
        ),
    )


def _result(grid: ResultGrid, sweep: SweepConfig, base: Config, trials_folder: Path) -> SweepResult:
    trials = [
        TrialResult(
            trial_id=result.metrics["trial_id"],
            point=decode(result.config, sweep.space),
            epochs=result.metrics["epoch"],
            best_dsc=result.metrics["best_dsc"],
            # By name, because a trial that ended before the workspace was moved reported the former path.
            best_checkpoint=trials_folder / result.metrics["trial_id"] / Path(result.metrics["best_checkpoint"]).name,
        )
        for result in grid
        if result.metrics and "best_checkpoint" in result.metrics
    ]
    if not trials:
        first = next((error_reason(result.error) for result in grid if result.error), "no result")
        raise TrainingError(
            "no trial completed an epoch", found=first, do="see error.txt of the trials in the folder of the sweep"
        )
    ranked = sorted(trials, key=lambda trial: -trial.best_dsc)
    return SweepResult(base, tuple(ranked), len(list(grid)) - len(trials))
