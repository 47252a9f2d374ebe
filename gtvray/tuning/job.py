"""A sweep from data to the bundle of its best trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import Project
from gtvray.datasets import Finding
from gtvray.errors import ConfigError, NotFoundError
from gtvray.experiments import ExperimentRecord, open_data, require_storage, versions
from gtvray.io import Workspace
from gtvray.runtime import Cluster, ProgressReporter

if TYPE_CHECKING:
    from gtvray.models import Bundle
    from gtvray.tracking import Refused
    from gtvray.tuning.sweep import SweepResult
    from gtvray.tuning.watch import SweepStatus


@dataclass(frozen=True)
class SweepOutcome:
    """Result of a sweep.

    Attributes:
        result: trials.
        bundle: bundle of the best trial.
        run_id: MLflow run of the best trial; that of the sweep if MLflow was away or has no such run.
        sweep_run_id: MLflow run of the sweep.
        delivered: whether MLflow has everything that it accepts; the rest stays queued in the folder of the sweep.
        refused: what MLflow refused permanently, such as entries of a trial whose run was deleted.
        page: HTML page of the trials; None if no trial was recorded.
    """

    result: SweepResult
    bundle: Bundle
    run_id: str
    sweep_run_id: str
    delivered: bool
    refused: list[Refused]
    page: Path | None


@dataclass
class SweepJob:
    """A sweep.

    Attributes:
        sweep: search space, searcher, scheduler and budget.
        config: all other settings.
        workspace: locked by the caller.
        name: name of folder and run.
        show: receives progress.
        warnings: findings of the data check.
    """

    sweep: SweepConfig
    config: Config
    workspace: Workspace
    name: str
    show: ProgressReporter
    warnings: list[Finding] = field(default_factory=list)

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
            make: creates the content of that folder first.

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
        # This loads torch: after the check of the data, and before a cluster is touched.
        from gtvray.training import check_plan

        check_plan(config, project.train, project.selection)
        return project

    def require_started(self) -> None:
        """Refuse to resume a sweep that was never started.

        Raises:
            NotFoundError: there is no such sweep.
        """
        if Path(self.name).name != self.name or not self.folder.is_dir():
            raise NotFoundError(
                "no such sweep", where=self.workspace.sweeps, found=self.name, do="pass the name of a sweep to --resume"
            )

    def run(self, project: Project, cluster: Cluster) -> SweepOutcome:
        """Run the trials, or resume them, and write the bundle of the best trial.

        Raises:
            InputError: the folder contains another sweep.
            and those of `run_sweep`.
        """
        # Ray and torch take seconds to load; invalid data are reported before.
        from gtvray.reports import write_trials_page
        from gtvray.tuning.export import export_best
        from gtvray.tuning.resume import remember_sweep
        from gtvray.tuning.sweep import run_sweep

        require_storage(cluster, self.workspace.root, project.dataset.root)
        kinds = f"{self.sweep.searcher} and {self.sweep.scheduler.kind}"
        self.show.begin("sweep", f"{self.name}: {self.sweep.trials} trials, {kinds}")
        remember_sweep(self.folder, self.sweep, self.config, project.fingerprint.digest)
        with self.record.open() as record:
            try:
                result = run_sweep(
                    self.sweep,
                    self.config,
                    project.train,
                    project.selection,
                    cluster=cluster,
                    recorder=record.recorder,
                    folder=self.folder,
                    tags={"gtvray.data": project.fingerprint.digest, **versions()},
                    report=self._report,
                    show=self.show,
                )
                # The run of the best trial is known then, unless MLflow is away.
                record.recorder.flush()
                target = self.workspace.bundles / f"{self.name}-{result.best.trial_id}"
                bundle, run_id = export_best(result, project, target, record.recorder)
                record.status = "FINISHED"
            finally:
                # An unfinished sweep has a page too, with the reasons of failed trials.
                page = write_trials_page(self.folder, self.name)
                if page is not None:
                    record.recorder.attach(None, page, "report")
        if record.refused:
            write_trials_page(self.folder, self.name)
        parent = record.recorder.run_id
        return SweepOutcome(result, bundle, run_id, parent, record.delivered, record.refused, page)

    def _report(self, status: SweepStatus) -> None:
        trials = self.sweep.trials
        progress = f"trial {status.started}/{trials}, epoch {status.epoch}/{status.epochs}"
        done = max(status.ended / trials, status.elapsed_s / (self.sweep.time_budget_s or float("inf")))
        self.show.advance(min(done, 1.0), 1, f"{progress}, DSC {status.dsc:.3f}, best {status.best_dsc:.3f}")
