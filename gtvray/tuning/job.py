"""A sweep with all that belongs to it: data, run record, trials, and the best one's bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import Project
from gtvray.datasets import Finding
from gtvray.errors import ConfigError, GtvrayError, NotFoundError
from gtvray.experiments import open_data, versions
from gtvray.io import Workspace
from gtvray.runtime import Cluster, Show
from gtvray.tracking import RunRecorder, connect_mlflow, require_recordable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from gtvray.models import Bundle
    from gtvray.tuning.sweep import SweepResult
    from gtvray.tuning.watch import SweepStatus


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep leaves.

    Attributes:
        result: its trials.
        bundle: of the best.
        run_id: MLflow run of the best.
        sweep_run_id: MLflow run of the sweep.
        delivered: whether MLflow has everything; otherwise the rest waits in the sweep's folder.
    """

    result: SweepResult
    bundle: Bundle
    run_id: str
    sweep_run_id: str
    delivered: bool


@dataclass
class SweepJob:
    """One sweep.

    Attributes:
        sweep: the search space.
        config: what holds outside of it.
        workspace: held by the caller.
        name: names its folder and its run.
        show: told of progress.
        warnings: what the data check had to say.
    """

    sweep: SweepConfig
    config: Config
    workspace: Workspace
    name: str
    show: Show
    warnings: list[Finding] = field(default_factory=list)

    @cached_property
    def client(self) -> MlflowClient:
        """Client of the tracking store, reached at first use.

        Raises:
            ResourceError: it does not answer.
        """
        return connect_mlflow(self.uri, self.workspace.artifacts)

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self.config.tracking.uri or self.workspace.mlflow_uri

    def open(self, data: Path, make: Callable[[Path], None] | None = None) -> Project:
        """Index, check, split and prepare the data.

        Args:
            data: a folder in StructSeg's layout.
            make: fills that folder first.

        Raises:
            InputError: the data are not usable, the settings do not go together, or what is recorded of this sweep was
                deleted in MLflow.
            ResourceError: MLflow does not answer.
        """
        config = with_dotted(self.config, self.sweep.base, "base")
        if config.training.time_budget_s:
            raise ConfigError(
                "a trial has no time budget of its own: trials are compared epoch by epoch",
                where="training.time_budget_s",
                do="give the sweep time_budget_s, or train with `gtvray train`",
            )
        project, self.warnings = open_data(
            data, config, self.workspace, self.show, make=make, before_preparing=self._require_recordable
        )
        # Loads torch, so it comes after the data have been looked at, and before a cluster is touched.
        from gtvray.training import check_plan

        check_plan(config, project.train, project.selection)
        return project

    def require_begun(self) -> None:
        """Refuse a name under which nothing was begun.

        Raises:
            NotFoundError: there is no such sweep.
        """
        if Path(self.name).name != self.name or not (self.workspace.sweeps / self.name).is_dir():
            raise NotFoundError(
                "no such sweep", where=self.workspace.sweeps, found=self.name, do="`--resume` takes the name of one"
            )

    def run(self, project: Project, cluster: Cluster) -> SweepOutcome:
        """Run the trials and write the best one's bundle; a sweep of this name that was cut off goes on.

        Raises:
            as `run_sweep`; InputError when another sweep was begun under this name.
        """
        # Ray and torch take seconds to load: data that are not usable are told of before.
        from gtvray.tuning.export import export_best
        from gtvray.tuning.resume import remember_sweep
        from gtvray.tuning.sweep import run_sweep

        kinds = f"{self.sweep.searcher} and {self.sweep.scheduler.kind}"
        self.show.begin("sweep", f"{self.name}: {self.sweep.trials} trials, {kinds}")
        folder = self.workspace.sweeps / self.name
        remember_sweep(folder, self.sweep, self.config, project.fingerprint.digest)
        artifacts = self.workspace.artifacts if self.uri.startswith("sqlite") else None
        experiment = self.config.tracking.experiment
        recorder = RunRecorder(self.client, experiment, self.name, folder / "spool.jsonl", artifacts)
        status = "KILLED"
        try:
            result = run_sweep(
                self.sweep,
                self.config,
                project.train,
                project.selection,
                cluster=cluster,
                recorder=recorder,
                folder=folder,
                tags={"gtvray.data": project.fingerprint.digest, **versions()},
                report=self._report,
            )
            recorder.flush()
            target = self.workspace.bundles / f"{self.name}-{result.best.trial_id}"
            bundle, run_id = export_best(result, project, target, recorder, self.client)
            status = "FINISHED"
        except GtvrayError:
            status = "FAILED"
            raise
        finally:
            recorder.finish_run(status)
            delivered = recorder.close()
        return SweepOutcome(result, bundle, run_id, recorder.run_id, delivered)

    def _require_recordable(self) -> None:
        require_recordable(self.client, self.config.tracking.experiment, self.name)

    def _report(self, status: SweepStatus) -> None:
        trials = self.sweep.trials
        told = f"trial {status.started}/{trials}, epoch {status.epoch}/{status.epochs}"
        done = max(status.ended / trials, status.elapsed_s / (self.sweep.time_budget_s or float("inf")))
        self.show.advance(min(done, 1.0), 1, f"{told}, DSC {status.dsc:.3f}, best {status.best_dsc:.3f}")
