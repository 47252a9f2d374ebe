"""Training of one network or of the folds of a cross-validation: data, folds, scores, run record and bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gtvray.config import Config, build, first_difference, flatten, shaping, with_dotted
from gtvray.data import Project
from gtvray.datasets import Finding, Folds
from gtvray.errors import InputError, NotFoundError, TrainingError
from gtvray.experiments import ExperimentRecord, open_data, require_storage, versions
from gtvray.io import Workspace, read_json, write_json
from gtvray.runtime import RUN_ID_VARIABLE, Cluster, ProgressReporter
from gtvray.tracking import Refused, RunRecorder

if TYPE_CHECKING:
    from gtvray.crossval.progress import FoldProgress, FoldStatus
    from gtvray.crossval.scores import CrossValidation
    from gtvray.experiments.fold_plan import Fold
    from gtvray.models import Bundle
    from gtvray.training import Plan

SCHEMA_VERSION = 1
_RUN = "run.json"


@dataclass(frozen=True)
class TrainRequest:
    """Arguments of a training, stored in its folder so that it can be resumed.

    Attributes:
        config: all settings.
        data: folder of the dataset.
        fold: number of a fold, `all`, or None for a training without cross-validation.
        folds: number of folds.

    Raises:
        InputError: no such fold.
    """

    config: Config
    data: Path
    fold: int | Literal["all"] | None = None
    folds: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.fold, int) and not 0 <= self.fold < self.folds:
            expected = f"0 to {self.folds - 1}, or all"
            raise InputError("no such fold", where="--fold", expected=expected, found=self.fold)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the request and the fingerprint of the data to the folder of the training."""
        stored = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "data": str(self.data.resolve())}
        config = self.config.model_dump(mode="json")
        write_json(folder / _RUN, {**stored, "fold": self.fold, "folds": self.folds, "config": config})

    @classmethod
    def load(cls, folder: Path) -> tuple[TrainRequest, str]:
        """Return the stored request and the fingerprint of the data.

        Raises:
            NotFoundError: the folder contains no training.
            InputError: it was written by another version of gtvray.
        """
        try:
            stored = read_json(folder / _RUN)
        except NotFoundError as error:
            raise NotFoundError(
                "no such training", where=folder, do="pass the name of a training to --resume"
            ) from error
        if stored["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                "the training was written by another version of gtvray",
                where=folder,
                expected=f"schema version {SCHEMA_VERSION}",
                found=stored["schema_version"],
                do="resume it with that version",
            )
        config = build(Config, stored["config"], folder / _RUN)
        return cls(config, Path(stored["data"]), stored["fold"], stored["folds"]), stored["fingerprint"]


@dataclass(frozen=True)
class TrainOutcome:
    """Result of a training.

    Attributes:
        name: name of the training.
        data: folder of the dataset.
        folder: contains checkpoints, scores, masks and pictures.
        validation: scores of every trained fold.
        bundle: bundle with the network of every trained fold.
        failures: fold -> reason of its failure.
        run_id: parent run in MLflow.
        delivered: whether MLflow has everything that it accepts; the rest stays queued in the folder of the training.
        refused: what MLflow refused permanently, such as entries of a fold whose run was deleted.
    """

    name: str
    data: Path
    folder: Path
    validation: CrossValidation
    bundle: Bundle
    failures: dict[str, str]
    run_id: str
    delivered: bool
    refused: list[Refused]


@dataclass
class TrainJob:
    """A training, from opening the data to writing the bundle.

    Attributes:
        request: arguments of the training.
        workspace: locked by the caller.
        name: name of folder, run and bundle; an existing training of that name is resumed.
        show: receives progress.
        report: called with the status of all folds after every change.
        expected: fingerprint that the data of a resumed training must have.
        warnings: findings of the data check.
    """

    request: TrainRequest
    workspace: Workspace
    name: str
    show: ProgressReporter
    report: Callable[[list[FoldStatus]], None]
    expected: str | None = None
    warnings: list[Finding] = field(default_factory=list)

    @classmethod
    def resumed(
        cls,
        name: str,
        workspace: Workspace,
        show: ProgressReporter,
        report: Callable[[list[FoldStatus]], None],
        changes: Mapping[str, Any] | None = None,
    ) -> TrainJob:
        """Return an interrupted training.

        Args:
            name: name of the training.
            workspace: locked by the caller.
            show: receives progress.
            report: called with the status of all folds after every change.
            changes: settings by dotted key that replace those of the training; only ones that do not affect its result.

        Raises:
            NotFoundError: there is no training of that name.
            InputError: a changed setting affects the result.
        """
        if Path(name).name != name or not name:
            raise NotFoundError(
                "no such training",
                where=workspace.trainings,
                found=name,
                do="pass the name of a training to --resume",
            )
        request, fingerprint = TrainRequest.load(workspace.trainings / name)
        # Data inside the workspace, such as phantoms, move with it.
        request = replace(request, data=workspace.follow(request.data))
        changed = with_dotted(request.config, changes or {}, "--resume")
        different = first_difference(shaping(flatten(request.config)), shaping(flatten(changed)))
        if different is not None:
            key, before, now = different
            raise InputError(
                "this setting of a training cannot be changed when it is resumed",
                where=f"{name}, {key}",
                expected=before,
                found=now,
                do="omit it, or start a new training; only settings such as tracking.uri may change",
            )
        request = replace(request, config=changed)
        return cls(request, workspace, name, show, report, fingerprint)

    @classmethod
    def started(
        cls,
        request: TrainRequest,
        workspace: Workspace,
        name: str,
        show: ProgressReporter,
        report: Callable[[list[FoldStatus]], None],
    ) -> TrainJob:
        """Return a new training, or the one of this name if it was started before with the same request.

        Settings that do not affect the result, such as those of tracking, may differ; the new ones are used.

        Raises:
            InputError: it was started with other data, folds or settings.
        """
        if not (workspace.trainings / name / _RUN).is_file():
            return cls(request, workspace, name, show, report)
        job = cls.resumed(name, workspace, show, report)
        asked = replace(request, data=request.data.resolve())
        if _shaping(job.request) != _shaping(asked):
            raise InputError(
                "a training of this name was started with other data or settings",
                where=job.folder,
                do=f"start this one with another {RUN_ID_VARIABLE}",
            )
        job.request = replace(job.request, config=request.config)
        return job

    @property
    def folder(self) -> Path:
        """Folder of checkpoints, scores, masks and pictures."""
        return self.workspace.trainings / self.name

    @cached_property
    def record(self) -> ExperimentRecord:
        """Record of the training in MLflow."""
        return ExperimentRecord(self.request.config.tracking, self.workspace, self.name, self.folder)

    def open(self) -> tuple[Project, list[Fold]]:
        """Index, check, split and prepare the data, and plan the folds.

        Raises:
            InputError: the data cannot be used or have changed, settings are inconsistent, there is no such fold, or
                runs of this training were deleted in MLflow.
            ResourceError: MLflow does not answer.
        """
        request = self.request
        project, self.warnings = open_data(
            request.data,
            request.config,
            self.workspace,
            self.show,
            before_preparing=self.record.require_recordable,
        )
        if self.expected not in (None, project.fingerprint.digest):
            raise InputError(
                "the data differ from those that the training was started with",
                where=request.data,
                expected=self.expected,
                found=project.fingerprint.digest,
                do="restore them, or start a new training",
            )
        # These import torch, so they run after the data check, and before a cluster is connected.
        from gtvray.experiments.fold_plan import plan_folds
        from gtvray.training import check_plan

        chosen = request.fold if isinstance(request.fold, int) else None
        folds = plan_folds(project, request.config, self._folds(project), chosen, self.folder)
        for fold in folds:
            check_plan(fold.config, fold.train, fold.validation)
        return project, folds

    def plan(self, project: Project) -> Plan:
        """Return the main settings of the training and the estimated memory of a worker.

        The memory of a worker is not known here: this machine may be the head of a cluster.
        """
        from gtvray.config import known_keys
        from gtvray.training import plan_training

        return plan_training(project.fingerprint, None, self.request.config, given=known_keys())

    def run(self, project: Project, folds: list[Fold], cluster: Cluster) -> TrainOutcome:
        """Train the folds, score them on their own cases, and write the bundle of their networks.

        Raises:
            ResourceError: a training does not fit on the cluster, or MLflow does not answer at the start.
            TrainingError: every fold failed.
        """
        from gtvray.crossval.progress import FoldProgress
        from gtvray.experiments.folds import train_folds
        from gtvray.experiments.tasks import plan_on, worker_memory_bytes
        from gtvray.runtime import shown_waiting
        from gtvray.training import check_memory

        require_storage(cluster, self.workspace.root, self.request.data)
        plan = plan_on(cluster, self.request.config)
        check_memory(self.request.config, worker_memory_bytes(self.request.config, cluster, self.show))
        self.request.save(self.folder, project.fingerprint.digest)
        tags = {"gtvray.data": project.fingerprint.digest, **versions()}
        with self.record.open() as record:
            recorder = record.recorder
            recorder.describe(flatten(self.request.config), {**tags, "gtvray.training": self.name})
            progress = FoldProgress(folds, recorder, tags, self.report)
            at_once = min(len(folds), plan.concurrent)
            self.show.begin("train", f"{self.name}: {len(folds)} trainings, {at_once} at once")
            with shown_waiting(self.show):
                train_folds(folds, plan, progress)
            outcome = self._conclude(project, progress, recorder)
            record.status = "FAILED" if progress.failures else "FINISHED"
        return TrainOutcome(
            self.name,
            self.request.data,
            self.folder,
            *outcome,
            progress.failures,
            recorder.run_id,
            record.delivered,
            record.refused,
        )

    def _folds(self, project: Project) -> Folds | None:
        if self.request.fold is None:
            return None
        return project.folds(self.request.folds, self.request.config.split.seed)

    def _conclude(
        self, project: Project, progress: FoldProgress, recorder: RunRecorder
    ) -> tuple[CrossValidation, Bundle]:
        from gtvray.crossval.scores import score_folds

        trained = progress.trained()
        if not trained:
            first, reason = next(iter(progress.failures.items()))
            raise TrainingError(
                "every fold failed", where=first, found=reason, do=f"correct the cause, then pass --resume {self.name}"
            )
        self.show.begin("score", f"{sum(len(fold.validation_cases) for fold in trained)} cases on their original grids")
        validation = score_folds([(fold, progress.best(fold)[0]) for fold in trained], self.show.advance)
        validation.write(self.folder)
        self.show.begin("bundle", f"{len(trained)} networks")
        bundle = self._bundle(project, progress, validation, recorder.run_id)
        self._record(progress, validation, bundle, recorder)
        return validation, bundle

    def _bundle(self, project: Project, progress: FoldProgress, validation: CrossValidation, run_id: str) -> Bundle:
        from gtvray.models import write_bundle
        from gtvray.training import TrainedNetwork, domain_ranges

        config = self.request.config
        networks = [TrainedNetwork.load(each.checkpoint) for each in validation.folds]
        return write_bundle(
            self.workspace.bundles / self.name,
            weights=[network.weights for network in networks],
            preprocessing=config.preprocessing,
            network=networks[0].settings,
            inference=validation.inference,
            patch_ijk=config.training.patch_ijk,
            info={
                "training_data": project.provenance(),
                "folds": [
                    {"fold": each.fold, "seed": each.seed, "epoch": each.epoch, "cases": len(each.cases)}
                    for each in validation.folds
                ],
                "domain": domain_ranges(project.train),
                "failed_folds": sorted(progress.failures),
                "metrics": validation.metrics(),
                "mlflow_run": run_id,
                "config": flatten(config),
            },
        )

    def _record(
        self, progress: FoldProgress, validation: CrossValidation, bundle: Bundle, recorder: RunRecorder
    ) -> None:
        # The number of folds is the step: with one more fold, the threshold of every fold changes.
        count = len(validation.folds)
        for fold, scores in zip(progress.trained(), validation.folds, strict=True):
            one = type(validation)((scores,), scores.inference)
            recorder.log(fold.name, one.metrics(), count)
            recorder.attach(fold.name, fold.folder / "pictures", "overlays")
            recorder.finish(fold.name, "FINISHED")
        recorder.log(None, validation.metrics(), count)
        recorder.describe({}, {"gtvray.digest": bundle.digest, "gtvray.folds": str(count)})
        for name in ("scores.md", "scores.json"):
            recorder.attach(None, self.folder / name, "scores")
        recorder.attach(None, bundle.folder, "bundle")


def _shaping(request: TrainRequest) -> tuple[object, ...]:
    """Return the part of a request that affects the result."""
    return shaping(flatten(request.config)), request.data, request.fold, request.folds
