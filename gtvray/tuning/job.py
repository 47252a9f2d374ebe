"""Run a sweep, from opening the data to writing the bundle of the best trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import Project
from gtvray.datasets import Finding
from gtvray.errors import ConfigError, NotFoundError
from gtvray.experiments import ExperimentRecord, open_data, require_storage, versions
from gtvray.failpoints import failpoint
from gtvray.io import Workspace
from gtvray.runtime import Cluster, ProgressReporter

if TYPE_CHECKING:
    from gtvray.models import Bundle
    from gtvray.tracking import Refused, RunRecorder, Trial
    from gtvray.tuning.confirm import Confirmation
    from gtvray.tuning.describe import SweepDescription
    from gtvray.tuning.folds import FoldCases
    from gtvray.tuning.pareto import Front
    from gtvray.tuning.result import SweepResult
    from gtvray.tuning.space import Space
    from gtvray.tuning.watch import SweepStatus


@dataclass(frozen=True)
class SweepOutcome:
    """Result of a sweep.

    Attributes:
        result: trials.
        bundle: bundle of the best trial.
        run_id: MLflow run of the best trial; that of the sweep if MLflow was unreachable or has no such run.
        sweep_run_id: MLflow run of the sweep.
        delivered: whether MLflow has everything that it accepts; the rest stays queued in the folder of the sweep.
        refused: what MLflow refused permanently, such as entries of a trial whose run was deleted.
        page: HTML page of the trials; None if no trial was recorded.
        confirmation: the best trial against the default settings.
        default_bundle: folder of the bundle of the default settings, if the best is not better.
        front: Pareto front, if there are several objectives; each of its trials has a bundle.
        stopped_early: why the sweep was stopped before all of its trials were trained; None if it was not.
    """

    result: SweepResult
    bundle: Bundle
    run_id: str
    sweep_run_id: str
    delivered: bool
    refused: list[Refused]
    page: Path | None
    confirmation: Confirmation | None = None
    default_bundle: Path | None = None
    front: Front | None = None
    stopped_early: str | None = None


@dataclass
class SweepJob:
    """A sweep, from opening the data to writing the bundle of the best trial.

    Attributes:
        sweep: search space, searcher, scheduler and budget.
        config: all other settings.
        workspace: locked by the caller.
        name: name of folder and run.
        show: receives progress.
        extend: number of trials beyond those of the stored sweep.
        warnings: findings of the data check.
        earlier: trials of earlier sweeps that the searcher learns from; known once the data are open.
    """

    sweep: SweepConfig
    config: Config
    workspace: Workspace
    name: str
    show: ProgressReporter
    extend: int = 0
    warnings: list[Finding] = field(default_factory=list)
    earlier: list[Trial] = field(default_factory=list, init=False)
    _remembered: bool = field(default=False, init=False)
    _share_before: float = field(default=0.0, init=False)

    @property
    def folder(self) -> Path:
        """Folder of checkpoints, records and pages."""
        return self.workspace.sweeps / self.name

    @cached_property
    def record(self) -> ExperimentRecord:
        """Record of the sweep in MLflow."""
        return ExperimentRecord(self.config.tracking, self.workspace, self.name, self.folder)

    def open(self, data: Path, make: Callable[[Path], None] | None = None) -> Project:
        """Index, check, split and prepare the data.

        Args:
            data: folder of the dataset.
            make: called first to create the content of that folder.

        Raises:
            InputError: the data cannot be used, settings are inconsistent, or runs of this sweep were deleted in
                MLflow.
            ResourceError: MLflow does not answer.
        """
        config = with_dotted(self.config, self.sweep.base, "base")
        if config.training.time_budget_s:
            raise ConfigError(
                "trials are compared by epoch and have no time budget of their own",
                where="training.time_budget_s",
                do="set time_budget_s of the sweep, or use `gtvray train`",
            )
        project, self.warnings = open_data(
            data, config, self.workspace, self.show, make=make, before_preparing=self.record.require_recordable
        )
        # Imports torch, so it runs after the data check, and before a cluster is connected.
        self._check(project)
        return project

    def describe(self, project: Project, cluster: Cluster | None = None) -> SweepDescription:
        """Describe the sweep as it would run on the data.

        Args:
            project: the data.
            cluster: the connected cluster; None for this machine.
        """
        from gtvray.tuning.describe import describe_sweep

        return describe_sweep(self.sweep, self.config, self._check(project), cluster)

    def _check(self, project: Project) -> dict[str, Any]:
        """Check the training of every corner of the space; return the point of the first trial."""
        from gtvray.tuning.folds import check_folds, fold_cases
        from gtvray.tuning.warm_start import earlier_trials

        space = self._space
        self.earlier = earlier_trials(
            self.workspace.sweeps, self.sweep.warm_start, space, project.fingerprint.digest, self.sweep.folds
        )
        return check_folds(space, space.config, fold_cases(project, self.sweep, space.config))

    @property
    def _space(self) -> Space:
        from gtvray.tuning.space import Space

        return Space(self.sweep.space, with_dotted(self.config, self.sweep.base, "base"))

    def require_started(self) -> None:
        """Refuse to resume a sweep that was never started.

        Raises:
            NotFoundError: there is no such sweep.
        """
        if Path(self.name).name != self.name or not self.folder.is_dir():
            raise NotFoundError(
                "no such sweep", where=self.workspace.sweeps, found=self.name, do="pass the name of a sweep to --resume"
            )

    def finished(self, project: Project) -> SweepOutcome | None:
        """Return the stored outcome if running the sweep again would not change it; None otherwise.

        The request of the sweep is stored in its folder first, or compared with the stored one. MLflow gets what it
        does not have yet of a sweep that has ended.

        Raises:
            InputError: the folder contains another sweep.
            ResourceError: the sweep has ended, and MLflow does not answer.
        """
        from gtvray.models import Bundle
        from gtvray.tracking import TrialRecord
        from gtvray.tuning.result import rank, remove_losers
        from gtvray.tuning.resume import read_result, remember_sweep
        from gtvray.tuning.searchers.repeated import members_per_point

        if not self._remembered:
            self.sweep = remember_sweep(self.folder, self.sweep, self.config, project.fingerprint.digest, self.extend)
            self._remembered = True
        stored, record = read_result(self.folder), TrialRecord(self.folder)
        if stored is None or not stored.finished(self.sweep, record.elapsed_s):
            return None
        self._say_if_nothing_runs(complete=stored.complete)
        base = with_dotted(self.config, self.sweep.base, "base")
        result = rank(record.trials.values(), self.trials_folder, base, stored.ranking, members_per_point(self.sweep))
        # Repeated here, since an interruption may have come before it.
        remove_losers(result, self.trials_folder, self._continued(result))
        bundle = Bundle.load(self.workspace.bundles / stored.bundle)
        with self.record.open() as opened:
            # Sends what an interruption or an outage of MLflow left in the queue.
            if not opened.recorder.has_ended:
                self._attach_page(opened.recorder)
            opened.status = "FINISHED"
        runs = (stored.run_id, stored.sweep_run_id)
        return self._outcome(result, bundle, runs, delivered=opened.delivered, refused=opened.refused)

    def run(self, project: Project, cluster: Cluster) -> SweepOutcome:
        """Run the trials, or resume them, and write the bundle of the best trial.

        Raises:
            InputError: the folder contains another sweep.
            GtvrayError: an error of `run_sweep`.
        """
        # Ray and torch take seconds to import; invalid data are reported before that.
        from gtvray.tuning.confirm import FEWEST_CASES
        from gtvray.tuning.folds import fold_cases
        from gtvray.tuning.sweep import run_sweep

        finished = self.finished(project)
        if finished is not None:
            return finished
        self._say_if_nothing_runs()
        self._share_before = self._share_of_earlier_sessions()
        kinds = f"{self.sweep.searcher} and {self.sweep.scheduler.kind}"
        self.show.begin("sweep", f"{self.name}: {self.sweep.trials} trials, {kinds}")
        require_storage(cluster, self.workspace.root, project.dataset.root)
        folds = fold_cases(project, self.sweep, self._space.config)
        with self.record.open() as record:
            try:
                result = run_sweep(
                    self.sweep,
                    self.config,
                    folds,
                    cluster=cluster,
                    recorder=record.recorder,
                    folder=self.folder,
                    tags={"gtvray.data": project.fingerprint.digest, **versions()},
                    report=self._report,
                    show=self.show,
                    finish_default=len(project.split.held_out) >= FEWEST_CASES,
                    earlier=self.earlier,
                )
                # The bundle names the run of the best trial, known after delivery unless MLflow is unreachable.
                record.recorder.flush()
                bundle, run_id = self._export(result, project, folds, record.recorder)
                record.status = "FINISHED"
            finally:
                # An unfinished sweep has a page too, with the reasons of failed trials.
                self._attach_page(record.recorder)
        runs = (run_id, record.recorder.run_id)
        return self._outcome(result, bundle, runs, delivered=record.delivered, refused=record.refused)

    def _attach_page(self, recorder: RunRecorder) -> None:
        from gtvray.reports import write_trials_page

        page = write_trials_page(self.folder, self.name)
        if page is not None:
            recorder.attach(None, page, "report")

    def _outcome(
        self,
        result: SweepResult,
        bundle: Bundle,
        runs: tuple[str, str],
        *,
        delivered: bool,
        refused: Sequence[Refused],
    ) -> SweepOutcome:
        from gtvray.reports import write_trials_page
        from gtvray.tracking import TrialRecord
        from gtvray.tuning.confirm import Confirmation
        from gtvray.tuning.endings import stopped_early
        from gtvray.tuning.pareto import Front

        confirmation, default = Confirmation.load(self.folder), self._default_bundle
        # After an earlier verdict the folder may exist although the best trial is better now.
        offered = confirmation is not None and confirmation.offers_default and default.is_dir()
        record = TrialRecord(self.folder)
        return SweepOutcome(
            result,
            bundle,
            *runs,
            delivered,
            list(refused),
            write_trials_page(self.folder, self.name),
            confirmation,
            default if offered else None,
            Front.load(self.folder),
            stopped_early(self.sweep, record.trials, record.elapsed_s),
        )

    @property
    def _default_bundle(self) -> Path:
        return self.workspace.bundles / f"{self.name}-default"

    @property
    def trials_folder(self) -> Path:
        """Folder with a folder of checkpoints per trial."""
        return self.folder / "trials"

    def _export(
        self, result: SweepResult, project: Project, folds: Sequence[FoldCases], recorder: RunRecorder
    ) -> tuple[Bundle, str]:
        """Write the bundle of the best trial, store the result, and remove the checkpoints of the others."""
        from gtvray.tuning.finish import SweepEnd
        from gtvray.tuning.resume import StoredResult, write_result

        end = SweepEnd(self.workspace, self.name, project, folds, result, recorder, self.show)
        unfinished = self._continued(result)
        bundle, run_id = end.export()
        failpoint("tuning.after_export")
        end.confirm(bundle, self._default_bundle)
        end.draw_worst(bundle)
        end.export_front(self.sweep)
        end.measure_importances(self.sweep)
        end.describe(run_id)
        write_result(
            self.folder,
            StoredResult(
                best=result.best.trial_id,
                bundle=bundle.folder.name,
                run_id=run_id,
                sweep_run_id=recorder.run_id,
                ranking={trial.trial_id: (trial.best_dsc, trial.best_epoch) for trial in result.trials},
                complete=not unfinished and not self._spent,
            ),
        )
        failpoint("tuning.after_result")
        end.remove_losers(self.trials_folder, unfinished)
        return bundle, run_id

    def _continued(self, result: SweepResult) -> list[str]:
        """Return the trials that a resume with a larger time budget would continue."""
        from gtvray.tuning.resume import unfinished_trials

        unlimited = self.sweep.model_copy(update={"time_budget_s": None})
        return unfinished_trials({trial.trial_id: trial for trial in result.ended}, unlimited, 0)

    @property
    def _spent(self) -> bool:
        """Whether the time budget is spent before all trials have started."""
        from gtvray.tracking import TrialRecord

        record, budget_s = TrialRecord(self.folder), self.sweep.time_budget_s
        return budget_s is not None and record.elapsed_s >= budget_s and len(record.trials) < self.sweep.trials

    def _report(self, status: SweepStatus) -> None:
        from gtvray.tracking.trials import OUT_OF_BUDGET

        if status.event != "epoch":
            # The line of progress is replaced by the next one, and rarely printed without a terminal.
            self.show.note(status.ending_text(self.sweep.trials))
        # Trials that an earlier budget stopped are continued.
        ended = status.ended - status.states.get(OUT_OF_BUDGET, 0)
        done, before = self._share(ended, status.elapsed_s), self._share_before
        # The time left is estimated from the work of this session, so the work of earlier ones must not count.
        self.show.advance(max(done - before, 0.0), 1 - before, status.text(self.sweep.trials))

    def _share(self, ended: int, elapsed_s: float) -> float:
        """Return the share of the sweep that is done, by trials or by time."""
        budget_s = self.sweep.time_budget_s
        return min(max(ended / self.sweep.trials, elapsed_s / budget_s if budget_s else 0.0), 1.0)

    def _say_if_nothing_runs(self, *, complete: bool = False) -> None:
        """Report why resuming the sweep starts no trial."""
        from gtvray.tracking import TrialRecord
        from gtvray.tuning.endings import nothing_to_run

        record = TrialRecord(self.folder)
        reason = nothing_to_run(self.sweep, record.trials, record.elapsed_s, complete=complete)
        if reason is not None:
            self.show.note(f"no trial is started: {reason}")

    def _share_of_earlier_sessions(self) -> float:
        from gtvray.tracking import TrialRecord
        from gtvray.tracking.trials import OUT_OF_BUDGET

        record = TrialRecord(self.folder)
        ended = sum(trial.ended and trial.state != OUT_OF_BUDGET for trial in record.trials.values())
        return self._share(ended, record.elapsed_s)
