"""A sweep from start to its best checkpoint."""

from __future__ import annotations

import contextlib
import io
import logging
import re
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
from gtvray.runtime import Cluster, plan_trials
from gtvray.tracking import RunRecorder, TrialRecord
from gtvray.training import check_plan
from gtvray.tuning.resume import TUNE_FOLDER, restored_tuner
from gtvray.tuning.space import METRIC, MODE, build_scheduler, build_searcher, decode, tune_space
from gtvray.tuning.trainable import SegmentationTrial, TrialContext
from gtvray.tuning.watch import SweepStatus, Watcher

_TRIAL_FAILURES = 1
# Enough to be a resource, nothing that a trial of several workers would take from them.
_DRIVER_BYTES = 1 << 20
# Of a stack, the line that names the error: "package.module.SomeError: what".
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Attributes:
        trial_id: Ray Tune's id, also a tag of its MLflow run.
        point: its dotted keys.
        epochs: how many it ran.
        best_dsc: its best selection DSC.
        best_checkpoint: the checkpoint of that epoch.
    """

    trial_id: str
    point: dict[str, Any]
    epochs: int
    best_dsc: float
    best_checkpoint: Path


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep; `trials` are best first, `failed` counts those that gave no epoch."""

    config: Config
    trials: tuple[TrialResult, ...]
    failed: int

    @property
    def best(self) -> TrialResult:
        """The trial with the highest selection DSC."""
        return self.trials[0]

    def config_of(self, trial: TrialResult) -> Config:
        """The whole config of a trial."""
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
) -> SweepResult:
    """Run a sweep on the connected cluster; one that was begun in the same folder goes on.

    Args:
        sweep: space, searcher, scheduler, budget.
        config: what holds where neither the sweep's base nor a trial's point says otherwise.
        train: prepared training cases.
        selection: prepared cases that compare trials.
        cluster: the connected one.
        recorder: of this sweep.
        folder: for checkpoints and Tune's own files.
        tags: of every trial's run.
        report: told after every epoch.

    Raises:
        ConfigError, DataError: the plan cannot work.
        ResourceError: a trial does not fit on the cluster.
        TrainingError: no trial gave an epoch.
    """
    base = with_dotted(config, sweep.base, "base")
    check_plan(base, train, selection)
    plan = plan_trials(base.training, cluster.cpus, cluster.gpus, sweep.max_concurrent)
    recorder.describe(flatten(base), {**tags, "gtvray.space": ", ".join(sweep.space)})
    context = TrialContext(base, dict(sweep.space), train, selection, folder / "trials")
    alone = base.training.num_workers == 1
    bundle = {"CPU": plan.cpus_per_trial, "GPU": plan.gpus_per_trial} if alone else {"memory": _DRIVER_BYTES}
    trainable = tune.with_resources(
        tune.with_parameters(SegmentationTrial, context=context),
        PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}]),
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
    # A failed trial's reason is in the result; Tune would also log its whole stack.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune prints its own tables whatever it is told; a sweep shows one screen, and it is ours.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def _reason(error: Exception) -> str:
    """What a trial's error comes to: Ray has the worker's stack before it, and our errors have lines of their own."""
    lines = str(error).strip().splitlines()
    begin = max((number for number, line in enumerate(lines) if _ERROR_LINE.match(line)), default=len(lines) - 1)
    return "; ".join(line.strip() for line in lines[begin:])


def _result(grid: ResultGrid, sweep: SweepConfig, base: Config, trials_folder: Path) -> SweepResult:
    trials = [
        TrialResult(
            trial_id=result.metrics["trial_id"],
            point=decode(result.config, sweep.space),
            epochs=result.metrics["epoch"],
            best_dsc=result.metrics["best_dsc"],
            # By its name: a trial that ended before the workspace was moved reported the former path.
            best_checkpoint=trials_folder / result.metrics["trial_id"] / Path(result.metrics["best_checkpoint"]).name,
        )
        for result in grid
        if result.metrics and "best_checkpoint" in result.metrics
    ]
    if not trials:
        first = next((_reason(result.error) for result in grid if result.error), "no result")
        raise TrainingError(
            "no trial gave an epoch", found=first, do="look into the trials' error.txt in the sweep's folder"
        )
    ranked = sorted(trials, key=lambda trial: -trial.best_dsc)
    return SweepResult(base, tuple(ranked), len(list(grid)) - len(trials))
