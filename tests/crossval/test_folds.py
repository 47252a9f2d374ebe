"""Folds on a real cluster: trained in parallel, scored on their own cases, and independent of each other's failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gtvray.config import Config, with_dotted
from gtvray.crossval import FoldStatus
from gtvray.crossval.progress import FoldProgress
from gtvray.crossval.scores import score_folds, settings_by_fold
from gtvray.data import Project, open_project
from gtvray.datasets import index_dataset
from gtvray.errors import TrainingError
from gtvray.experiments import Fold, plan_folds, train_folds
from gtvray.models import Checkpoint
from gtvray.runtime import Cluster, Needs, ResourcePlan
from gtvray.tracking import RunRecorder
from gtvray.training import fit

pytestmark = [pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated")]
COUNT = 3


@pytest.fixture(scope="module")
def project(phantoms: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("folds")
    return open_project(index_dataset(phantoms), config, cache=folder / "cache", splits=folder / "splits")


class Record:
    """The recorder of a test, and what it has recorded in MLflow."""

    def __init__(self, client: MlflowClient, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.recorder = RunRecorder(client, folder.name, "train", folder / "spool.jsonl", folder / "artifacts")
        self.statuses: list[list[FoldStatus]] = []

    def progress(self, folds: list[Fold]) -> FoldProgress:
        return FoldProgress(folds, self.recorder, {"gtvray.data": "d1"}, self.statuses.append)

    def runs(self) -> dict[str, Run]:
        assert self.recorder.flush(60)
        experiment = self.client.get_run(self.recorder.run_id).info.experiment_id
        runs = self.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.recorder.run_id}'")
        return {run.data.tags["gtvray.fold"]: run for run in runs}

    def epochs(self, fold: str, name: str = "train_loss") -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.runs()[fold].info.run_id, name)
        return [(metric.step, metric.value) for metric in history]


@pytest.fixture
def record(client: MlflowClient, tmp_path: Path) -> Iterator[Record]:
    record = Record(client, tmp_path)
    yield record
    assert record.recorder.close(60)


def test_every_case_is_scored_once_out_of_fold(project: Project, tmp_path: Path) -> None:
    config = with_dotted(Config(), {"training.seed": 7})
    folds = plan_folds(project, config, project.folds(COUNT, 0), None, tmp_path)
    assert [fold.name for fold in folds] == ["fold-0", "fold-1", "fold-2"]
    assert [fold.config.training.seed for fold in folds] == [7, 8, 9]
    judged = [case.case_id for fold in folds for case in fold.validation_cases]
    assert sorted(judged) == sorted([*project.split.train, *project.split.selection])
    for fold in folds:
        assert {case.case_id for case in fold.train_cases} | {case.case_id for case in fold.validation_cases} == set(
            judged
        )
        assert not {case.case_id for case in fold.train_cases} & {case.case_id for case in fold.validation_cases}
        assert [case.case_id for case in fold.train] == [case.case_id for case in fold.train_cases]
        assert [case.case_id for case in fold.validation] == [case.case_id for case in fold.validation_cases]
    (one,) = plan_folds(project, config, project.folds(COUNT, 0), 1, tmp_path)
    assert one == folds[1]
    (alone,) = plan_folds(project, config, None, None, tmp_path)
    assert tuple(case.case_id for case in alone.train) == project.split.train
    assert tuple(case.case_id for case in alone.validation) == project.split.selection


@pytest.mark.slow
@pytest.mark.ray
def test_one_fold_fails_and_another_is_trained_and_recorded(
    local_ray: Cluster, project: Project, config: Config, record: Record, tmp_path: Path
) -> None:
    broken, sound, _ = plan_folds(project, config, project.folds(COUNT, 0), None, tmp_path / "run")
    broken = replace(broken, train=[replace(case, folder=tmp_path / "gone") for case in broken.train])
    board = record.progress([broken, sound])
    train_folds([broken, sound], ResourcePlan(2, 1, Needs(1)), board)

    assert [fold.name for fold in board.trained()] == ["fold-1"]
    assert "missing from the cache" in board.failures["fold-0"]
    last = record.statuses[-1]
    assert [(status.state, status.epoch, status.epochs) for status in last] == [("failed", 0, 2), ("trained", 2, 2)]
    assert last[1].left_s == 0
    assert record.runs()["fold-0"].info.status == "FAILED"
    expected = [report.train_loss for report in fit(sound.config, sound.train, sound.validation, tmp_path / "alone")]
    assert record.epochs("fold-1") == [(1, expected[0]), (2, expected[1])]
    assert board.best(sound)[0].is_dir()

    # In another process nothing is reported twice, and no epoch is left to train.
    again = record.progress([sound])
    assert again.last(sound) == 2
    assert list(fit(sound.config, sound.train, sound.validation, sound.folder, known_epoch=2)) == []
    assert record.epochs("fold-1") == [(1, expected[0]), (2, expected[1])]


def test_no_case_calibrates_its_own_mask(config: Config) -> None:
    """The best threshold is low for two folds and high for the third, which is scored with that of the other two."""
    scores = [np.zeros((2, 20)) for _ in range(3)]
    for of_fold, setting in zip(scores, (2, 2, 18), strict=True):
        of_fold[:, setting] = 0.8
    settings, together = settings_by_fold(config, scores)
    assert [round(each.threshold, 2) for each in settings[2:]] == [0.35]
    assert round(together.threshold, 2) == 0.35
    (own,), _ = settings_by_fold(config, scores[2:])
    assert round(own.threshold, 2) == 0.75


@pytest.mark.slow
@pytest.mark.ray
def test_damaged_checkpoint_is_reported(local_ray: Cluster, project: Project, config: Config, tmp_path: Path) -> None:
    (fold,) = plan_folds(project, config, None, None, tmp_path)
    Checkpoint({}, {"epoch": 1}).save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "state.safetensors").unlink()
    with pytest.raises(TrainingError, match="checkpoint is incomplete"):
        score_folds([(fold, tmp_path / "checkpoint")], lambda *_: None)
