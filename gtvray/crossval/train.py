"""A training with all that belongs to it: data, run record, folds, cross-validation, and the bundle of them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.config import Config, build, flatten
from gtvray.data import Project
from gtvray.datasets import Finding, Folds
from gtvray.errors import GtvrayError, InputError, NotFoundError, TrainingError
from gtvray.experiments import open_data, versions
from gtvray.io import Workspace, read_json, write_json
from gtvray.runtime import Cluster, Show, plan_trials
from gtvray.tracking import RunRecorder, connect_mlflow, require_recordable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from gtvray.crossval.progress import Board, FoldStatus
    from gtvray.crossval.scores import CrossValidation
    from gtvray.experiments.folds import Fold
    from gtvray.models import Bundle

SCHEMA_VERSION = 1
_RUN = "run.json"


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained; kept with the training, so that it can go on.

    Attributes:
        config: everything.
        data: the dataset's folder.
        fold: one fold's number, all of them, or None for a training outside of a cross-validation.
        folds: how many there are.

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
        """Write it into the training's folder, with the fingerprint of the data."""
        stored = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "data": str(self.data.resolve())}
        config = self.config.model_dump(mode="json")
        write_json(folder / _RUN, {**stored, "fold": self.fold, "folds": self.folds, "config": config})

    @classmethod
    def load(cls, folder: Path) -> tuple[TrainRequest, str]:
        """Read it and the fingerprint.

        Raises:
            NotFoundError: no training was begun here.
            InputError: a later gtvray wrote it.
        """
        try:
            stored = read_json(folder / _RUN)
        except NotFoundError as error:
            raise NotFoundError("no such training", where=folder, do="`--resume` takes the name of one") from error
        if stored["schema_version"] != SCHEMA_VERSION:
            raise InputError("another gtvray wrote this training", where=folder, do="use that gtvray")
        config = build(Config, stored["config"], folder / _RUN)
        return cls(config, Path(stored["data"]), stored["fold"], stored["folds"]), stored["fingerprint"]


@dataclass(frozen=True)
class TrainOutcome:
    """What a training leaves.

    Attributes:
        name: of the training.
        folder: where its checkpoints, scores, masks and pictures are.
        validation: scores of every fold that was trained.
        bundle: of all of them.
        failures: fold -> why it gave nothing.
        run_id: the training's MLflow run.
        delivered: whether MLflow has everything; otherwise the rest waits in the training's folder.
    """

    name: str
    folder: Path
    validation: CrossValidation
    bundle: Bundle
    failures: dict[str, str]
    run_id: str
    delivered: bool


@dataclass
class TrainJob:
    """One training.

    Attributes:
        request: what is asked for.
        workspace: held by the caller.
        name: names its folder, its run and its bundle; one that is there goes on.
        show: told of progress.
        report: given the status of all folds after every change.
        expected: fingerprint that the data must have, if the training goes on.
        warnings: what the data check had to say.
    """

    request: TrainRequest
    workspace: Workspace
    name: str
    show: Show
    report: Callable[[list[FoldStatus]], None]
    expected: str | None = None
    warnings: list[Finding] = field(default_factory=list)

    @classmethod
    def resumed(
        cls, name: str, workspace: Workspace, show: Show, report: Callable[[list[FoldStatus]], None]
    ) -> TrainJob:
        """A training that was begun before.

        Raises:
            NotFoundError: there is none of that name.
        """
        if Path(name).name != name or not name:
            raise NotFoundError("no such training", where=workspace.trainings, found=name)
        request, fingerprint = TrainRequest.load(workspace.trainings / name)
        # Data within the workspace, such as its phantoms, move with it.
        request = replace(request, data=workspace.follow(request.data))
        return cls(request, workspace, name, show, report, fingerprint)

    @property
    def folder(self) -> Path:
        """Where its checkpoints, masks and pictures are."""
        return self.workspace.trainings / self.name

    @cached_property
    def client(self) -> MlflowClient:
        """Client of the tracking store, reached at first use.

        Raises:
            ResourceError: it does not answer.
        """
        return connect_mlflow(self._uri, self.workspace.artifacts)

    @property
    def _uri(self) -> str:
        return self.request.config.tracking.uri or self.workspace.mlflow_uri

    def open(self) -> tuple[Project, list[Fold]]:
        """Index, check, split and prepare the data, and plan the folds.

        Raises:
            InputError: the data are not usable or have changed, the settings do not go together, no such fold, or what
                is recorded of this training was deleted in MLflow.
            ResourceError: MLflow does not answer.
        """
        request = self.request
        project, self.warnings = open_data(
            request.data,
            request.config,
            self.workspace,
            self.show,
            before_preparing=lambda: require_recordable(self.client, request.config.tracking.experiment, self.name),
        )
        if self.expected not in (None, project.fingerprint.digest):
            raise InputError(
                "the data are not those the training was begun with",
                where=request.data,
                expected=self.expected,
                found=project.fingerprint.digest,
                do="put them back, or begin a new training",
            )
        # Load torch, so they come after the data have been looked at, and before a cluster is touched.
        from gtvray.experiments.folds import plan_folds
        from gtvray.training import check_plan

        chosen = request.fold if isinstance(request.fold, int) else None
        folds = plan_folds(project, request.config, self._folds(project), chosen, self.folder)
        for fold in folds:
            check_plan(fold.config, fold.train, fold.validation)
        return project, folds

    def run(self, project: Project, folds: list[Fold], cluster: Cluster) -> TrainOutcome:
        """Train the folds, judge them by their own cases, and bundle their networks.

        Raises:
            ResourceError: a training does not fit on the cluster, or MLflow does not answer at the start.
            TrainingError: every fold failed.
        """
        from gtvray.crossval.progress import Board
        from gtvray.experiments.folds import train_folds

        plan = plan_trials(self.request.config.training, cluster.cpus, cluster.gpus, None)
        artifacts = self.workspace.artifacts if self._uri.startswith("sqlite") else None
        experiment = self.request.config.tracking.experiment
        self.request.save(self.folder, project.fingerprint.digest)
        recorder = RunRecorder(self.client, experiment, self.name, self.folder / "spool.jsonl", artifacts)
        status = "KILLED"
        try:
            tags = {"gtvray.data": project.fingerprint.digest, **versions()}
            recorder.describe(flatten(self.request.config), {**tags, "gtvray.training": self.name})
            board = Board(folds, recorder, tags, self.report)
            self.show.begin("train", f"{self.name}: {len(folds)} trainings, {min(len(folds), plan.concurrent)} at once")
            train_folds(folds, plan, board)
            outcome = self._conclude(project, board, recorder)
            status = "FAILED" if board.failures else "FINISHED"
        except GtvrayError:
            status = "FAILED"
            raise
        finally:
            recorder.finish_run(status)
            delivered = recorder.close()
        return TrainOutcome(self.name, self.folder, *outcome, board.failures, recorder.run_id, delivered)

    def _folds(self, project: Project) -> Folds | None:
        if self.request.fold is None:
            return None
        return project.folds(self.request.folds, self.request.config.split.seed)

    def _conclude(self, project: Project, board: Board, recorder: RunRecorder) -> tuple[CrossValidation, Bundle]:
        from gtvray.crossval.scores import judge_folds

        trained = board.trained()
        if not trained:
            first, reason = next(iter(board.failures.items()))
            raise TrainingError("no fold was trained", where=first, found=reason, do=f"--resume {self.name}")
        self.show.begin("judge", f"{sum(len(fold.judged) for fold in trained)} cases on their own grids")
        validation = judge_folds([(fold, board.best(fold)[0]) for fold in trained], self.show.advance)
        validation.write(self.folder)
        self.show.begin("bundle", f"{len(trained)} networks")
        bundle = self._bundle(project, board, validation, recorder.run_id)
        self._record(board, validation, bundle, recorder)
        return validation, bundle

    def _bundle(self, project: Project, board: Board, validation: CrossValidation, run_id: str) -> Bundle:
        from gtvray.models import write_bundle
        from gtvray.training import TrainedNetwork, usual_figures

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
                "training_data": {**project.fingerprint.as_dict(), "licence": "as the owner of the data has it"},
                "folds": [
                    {"fold": each.fold, "seed": each.seed, "epoch": each.epoch, "cases": len(each.cases)}
                    for each in validation.folds
                ],
                "domain": usual_figures(project.train),
                "failed_folds": sorted(board.failures),
                "metrics": validation.metrics(),
                "mlflow_run": run_id,
                "config": flatten(config),
            },
        )

    def _record(self, board: Board, validation: CrossValidation, bundle: Bundle, recorder: RunRecorder) -> None:
        # The step of these figures: with a fold more, each fold's threshold is another.
        count = len(validation.folds)
        for fold, judged in zip(board.trained(), validation.folds, strict=True):
            one = type(validation)((judged,), judged.inference)
            recorder.log(fold.name, one.metrics(), count)
            recorder.attach(fold.name, fold.folder / "pictures", "overlays")
            recorder.finish(fold.name, "FINISHED")
        recorder.log(None, validation.metrics(), count)
        recorder.describe({}, {"gtvray.digest": bundle.digest, "gtvray.folds": str(count)})
        for name in ("scores.md", "scores.json"):
            recorder.attach(None, self.folder / name, "scores")
        recorder.attach(None, bundle.folder, "bundle")
