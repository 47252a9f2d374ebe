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
from ray.tune import CheckpointConfig, PlacementGroupFactory, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from gtvray.config import Config, SweepConfig, flatten, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ResourceError
from gtvray.experiments.tasks import worker_memory_bytes
from gtvray.failpoints import failpoint
from gtvray.runtime import Cluster, plan_trials
from gtvray.tracking import RunRecorder, Trial, TrialRecord
from gtvray.tracking.trials import OUT_OF_BUDGET, STOPPED
from gtvray.training import check_memory, check_plan
from gtvray.tuning.result import SweepResult, rank
from gtvray.tuning.resume import read_result, unfinished_trials
from gtvray.tuning.schedulers.registry import Setting, build_scheduler
from gtvray.tuning.search import SweepSearch
from gtvray.tuning.searchers.registry import build_searcher
from gtvray.tuning.space import Space, check_corners
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
    train: list[CachedCase],
    selection: list[CachedCase],
    *,
    cluster: Cluster,
    recorder: RunRecorder,
    folder: Path,
    tags: dict[str, str],
    report: Callable[[SweepStatus], None] | None = None,
    finish_default: bool = False,
    earlier: Sequence[Trial] = (),
) -> SweepResult:
    """Run a sweep on the connected cluster, or resume the one in the folder.

    Args:
        sweep: space, searcher, scheduler, budget.
        config: settings where neither the base of the sweep nor the point of a trial sets them.
        train: prepared training cases.
        selection: prepared cases that trials are compared on.
        cluster: the connected cluster.
        recorder: records the sweep in MLflow.
        folder: contains the record, the checkpoints, and Tune's own files while it runs.
        tags: tags of the run of every trial.
        report: called after every epoch and at the end of every trial.
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
    default = check_corners(space, base, lambda settings: check_plan(settings, train, selection))
    plan = plan_trials(base.training, cluster.cpus, cluster.gpus, sweep.max_concurrent)
    _require_population(sweep, base, plan.concurrent)
    memory = worker_memory_bytes(base, cluster)
    check_corners(space, base, lambda settings: check_memory(settings, memory))
    recorder.describe(flatten(base), {**tags, "gtvray.space": ", ".join(sweep.space)})
    record = TrialRecord(folder)
    unfinished = unfinished_trials(record.trials, sweep, record.elapsed_s)
    record.begin_session()
    epochs, stopper = base.training.epochs, SweepStopper(sweep, record)
    population = sweep.scheduler.kind == "pbt"
    context = TrialContext(base, train, selection, folder / TRIALS_FOLDER, population, tuple(sweep.objectives))
    alone = base.training.num_workers == 1
    bundle = {"CPU": plan.cpus_per_trial, "GPU": plan.gpus_per_trial} if alone else {"memory": _DRIVER_BYTES}
    watcher = Watcher(
        record,
        recorder,
        tags=tags,
        epochs=epochs,
        rungs=sweep.scheduler.rungs(epochs),
        stopper=stopper,
        report=report,
    )

    def exhausted() -> bool:
        return search.is_finished()

    setting = Setting(sweep, space, epochs, record, exhausted)
    scheduler = build_scheduler(setting, unfinished)
    searcher = build_searcher(sweep, space, default, earlier)
    # Trials of a population take turns, so all of them exist at once.
    concurrent = sweep.trials if population else plan.concurrent
    search = SweepSearch(
        searcher,
        record,
        unfinished=unfinished,
        trials=sweep.trials,
        concurrent=concurrent,
        failures=_TRIAL_FAILURES,
        stopping=stopper.stop_all,
        reserved=lambda: scheduler.reserved,
    )

    def run(search: SweepSearch, scheduler: TrialScheduler, stop: Stopper) -> None:
        with _quiet(), _pending_trials(concurrent), _own_folder(folder / _TUNE_FOLDER):
            tune.run(
                tune.with_resources(
                    tune.with_parameters(SegmentationTrial, context=context),
                    PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}]),
                ),
                name=_TUNE_FOLDER,
                storage_path=str(folder.resolve()),
                search_alg=search,
                scheduler=scheduler,
                stop=stop,
                callbacks=[watcher],
                checkpoint_config=CheckpointConfig(),
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
            )

    if not search.is_finished():
        run(search, scheduler, stopper)
    first = next(iter(record.trials.values()), None)
    if finish_default and first is not None and first.state == STOPPED and stopper.state != OUT_OF_BUDGET:
        only = SweepSearch(
            searcher, record, unfinished=[first.trial_id], trials=0, concurrent=1, failures=_TRIAL_FAILURES
        )
        run(only, FIFOScheduler(), BudgetStopper(sweep, record))
    failpoint("tuning.before_result")
    stored = read_result(folder)
    return rank(record.trials.values(), context.folder, base, stored.ranking if stored else None)


def _require_population(sweep: SweepConfig, base: Config, concurrent: int) -> None:
    """Refuse a population that Tune could not let take turns: it does not count the workers that a trial starts."""
    if sweep.scheduler.kind == "pbt" and base.training.num_workers > 1 and sweep.trials > concurrent:
        raise ResourceError(
            "the population does not fit on this cluster at once",
            where="trials",
            expected=f"at most {concurrent} with {base.training.num_workers} workers each",
            found=sweep.trials,
            do="lower trials, or set training.num_workers=1: then trials take turns",
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
    """Let Tune start so many trials at once; by default it starts them one after the other."""
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
    """Give Tune an empty folder for its own state, which nothing is read from later."""
    shutil.rmtree(folder, ignore_errors=True)
    yield
    if not any(folder.rglob("error.txt")):
        shutil.rmtree(folder, ignore_errors=True)
