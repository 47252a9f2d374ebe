"""Run a sweep with Ray Tune and rank its trials."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ray import tune
from ray.tune import CheckpointConfig, PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from gtvray.config import Config, SweepConfig, flatten, with_dotted
from gtvray.errors import ResourceError
from gtvray.experiments.tasks import plan_on, worker_memory_bytes
from gtvray.failpoints import failpoint
from gtvray.runtime import SILENT, Cluster, ProgressReporter, ResourcePlan, shown_waiting
from gtvray.tracking import RunRecorder, Trial, TrialRecord
from gtvray.tracking.trials import OUT_OF_BUDGET, STOPPED
from gtvray.tuning.folds import FoldCases, check_folds
from gtvray.tuning.memory import largest_host_bytes
from gtvray.tuning.pins import take_over
from gtvray.tuning.result import SweepResult, rank
from gtvray.tuning.resume import read_result, unfinished_trials
from gtvray.tuning.schedulers.registry import Setting, build_scheduler
from gtvray.tuning.search import SweepSearch
from gtvray.tuning.searchers.base import NoSearcher, Searcher
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.searchers.repeated import members_per_point
from gtvray.tuning.space import Point, Space
from gtvray.tuning.stopping import BudgetStopper, SweepStopper
from gtvray.tuning.trainable import SegmentationTrial, TrialContext
from gtvray.tuning.watch import SweepStatus, Watcher

TRIALS_FOLDER = "trials"
_TUNE_FOLDER = "tune"
_TRIAL_FAILURES = 1
# A trial with several workers needs some resource of its own; this takes none from its workers.
_DRIVER_BYTES = 1 << 20


def run_sweep(
    sweep: SweepConfig,
    config: Config,
    folds: Sequence[FoldCases],
    *,
    cluster: Cluster,
    recorder: RunRecorder,
    folder: Path,
    tags: dict[str, str],
    report: Callable[[SweepStatus], None] | None = None,
    show: ProgressReporter = SILENT,
    finish_default: bool = False,
    earlier: Sequence[Trial] = (),
) -> SweepResult:
    """Run a sweep on the connected cluster, or resume the one in the folder.

    Args:
        sweep: space, searcher, scheduler, budget.
        config: settings where neither the base of the sweep nor the point of a trial sets them.
        folds: prepared cases by fold; with one, all trials train and are compared on the same cases.
        cluster: the connected cluster.
        recorder: records the sweep in MLflow.
        folder: contains the record, the checkpoints, and Tune's own files while it runs.
        tags: tags of the run of every trial.
        report: called after every epoch and at the end of every trial.
        show: receives what the sweep waits for.
        finish_default: train the default settings to the end after the search if the scheduler had stopped them, so
            that the best can be compared with them.
        earlier: trials of earlier sweeps that the searcher learns from.

    Raises:
        ConfigError, DataError: the settings are inconsistent with each other or with the data.
        ResourceError: a trial does not fit on the cluster.
        TrainingError: no trial completed an epoch.
    """
    base = with_dotted(config, sweep.base, "base")
    space = Space(sweep.space, base)
    default, plan = _plan(sweep, space, folds, cluster, show)
    show.note(f"plan: {plan.as_text(sweep.trials)}")
    _require_population(sweep, base, plan.concurrent)
    recorder.describe(flatten(base), {**tags, "gtvray.space": ", ".join(sweep.space)})
    context = TrialContext(base, folds, folder / TRIALS_FOLDER, sweep.scheduler.kind == "pbt", tuple(sweep.objectives))
    runner = _Runner(sweep, space, context, plan, folder=folder, recorder=recorder, tags=tags, report=report, show=show)
    runner.search(build_searcher(sweep, space, default, earlier))
    if finish_default:
        runner.finish_default()
    failpoint("tuning.before_result")
    stored = read_result(folder)
    earlier_ranking = stored.ranking if stored else None
    return rank(runner.record.trials.values(), context.folder, base, earlier_ranking, members_per_point(sweep))


def _plan(
    sweep: SweepConfig, space: Space, folds: Sequence[FoldCases], cluster: Cluster, show: ProgressReporter
) -> tuple[Point, ResourcePlan]:
    """Check plan and memory of the trainings; return the point of the first trial and the resources of the trials."""
    base = space.config
    default = check_folds(space, base, folds, lambda settings: worker_memory_bytes(settings, cluster, show))
    largest = largest_host_bytes(with_dotted(base, default, "space"), sweep.space)
    return default, plan_on(cluster, base, sweep.max_concurrent, largest)


class _Runner:
    """Runs the remaining trials of a sweep.

    Args:
        sweep, space, folder, recorder, tags, report, show: see `run_sweep`.
        context: data shared by all trials.
        plan: resources of the trials.

    Attributes:
        record: record of the sweep.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        space: Space,
        context: TrialContext,
        plan: ResourcePlan,
        *,
        folder: Path,
        recorder: RunRecorder,
        tags: dict[str, str],
        report: Callable[[SweepStatus], None] | None,
        show: ProgressReporter,
    ) -> None:
        self._recorder, self._tags, self._report, self._show = recorder, tags, report, show
        self._sweep, self._space, self._context, self._plan, self._folder = sweep, space, context, plan, folder
        self.record = TrialRecord(folder)
        self._unfinished = unfinished_trials(self.record.trials, sweep, self.record.elapsed_s)
        self.record.begin_session()
        self._epochs = context.config.training.epochs
        self._stopper = SweepStopper(sweep, self.record)

    def search(self, searcher: Searcher) -> None:
        """Run the unfinished trials and new ones from a searcher until the sweep ends."""
        sweep = self._sweep

        def exhausted() -> bool:
            return search.is_finished()

        setting = Setting(sweep, self._space, self._epochs, self.record, exhausted)
        self._take_over_weights()
        scheduler = build_scheduler(setting, self._unfinished)
        search = SweepSearch(
            searcher,
            self.record,
            unfinished=self._unfinished,
            trials=sweep.trials,
            # Trials of a population take turns, so all of them exist at once.
            concurrent=sweep.trials if sweep.scheduler.kind == "pbt" else self._plan.concurrent,
            failures=_TRIAL_FAILURES,
            stopping=self._stopper.stop_all,
            reserved=lambda: scheduler.reserved,
        )
        if not search.is_finished():
            self._tune(search, scheduler, self._stopper)

    def _take_over_weights(self) -> None:
        """Complete the exploits that were pending when the sweep was killed, by copying the pinned checkpoints."""
        trials = {name: self.record.trials[name] for name in self._unfinished}
        for name, trial in trials.items():
            if trial.to_take_over is not None:
                source, epoch = trial.to_take_over
                take_over(self._context.folder / source, self._context.folder / name, epoch)

    def finish_default(self) -> None:
        """Train the first trial to the last epoch if the scheduler stopped it and time budget is left."""
        first = next(iter(self.record.trials.values()), None)
        if first is None or first.state != STOPPED or self._stopper.state == OUT_OF_BUDGET:
            return
        search = SweepSearch(
            NoSearcher(),
            self.record,
            unfinished=[first.trial_id],
            trials=0,
            concurrent=1,
            failures=_TRIAL_FAILURES,
        )
        self._tune(search, FIFOScheduler(), BudgetStopper(self._sweep, self.record))

    def _tune(self, search: SweepSearch, scheduler: TrialScheduler, stopper: BudgetStopper) -> None:
        quiet, own = _quiet(), _own_folder(self._folder / _TUNE_FOLDER)
        with quiet, _pending_trials(search.concurrent), own, shown_waiting(self._show):
            tune.run(
                tune.with_resources(tune.with_parameters(SegmentationTrial, context=self._context), self._resources()),
                name=_TUNE_FOLDER,
                storage_path=str(self._folder.resolve()),
                search_alg=search,
                scheduler=scheduler,
                stop=stopper,
                callbacks=[self._watcher(stopper)],
                checkpoint_config=CheckpointConfig(),
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
            )

    def _watcher(self, stopper: BudgetStopper) -> Watcher:
        return Watcher(
            self.record,
            self._recorder,
            tags=self._tags,
            epochs=self._epochs,
            rungs=self._sweep.scheduler.rungs(self._epochs),
            stopper=stopper,
            report=self._report,
        )

    def _resources(self) -> PlacementGroupFactory:
        alone = self._context.config.training.num_workers == 1
        bundle = self._plan.needs.as_bundle() if alone else {"memory": _DRIVER_BYTES}
        return PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])


def _require_population(sweep: SweepConfig, base: Config, concurrent: int) -> None:
    """Reject a population that cannot run in turns, since Tune does not count the workers that a trial starts."""
    if sweep.scheduler.kind == "pbt" and base.training.num_workers > 1 and sweep.trials > concurrent:
        raise ResourceError(
            "the population does not fit on this cluster at once",
            where="trials",
            expected=f"at most {concurrent} with {base.training.num_workers} workers each",
            found=sweep.trials,
            do="lower trials, or set training.num_workers=1, so that trials take turns",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's tables and warnings from the terminal; the reason of a failed trial is in the record."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _pending_trials(number: int) -> Iterator[None]:
    """Let Tune start this many trials at once; by default it starts them one at a time."""
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ[name] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[None]:
    """Provide an empty folder for Tune's own state, which is never read back."""
    shutil.rmtree(folder, ignore_errors=True)
    yield
    if not any(folder.rglob("error.txt")):
        shutil.rmtree(folder, ignore_errors=True)
