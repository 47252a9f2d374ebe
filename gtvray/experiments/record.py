"""The MLflow record of a sweep or training: its store, its recorder, and the status it ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.config import TrackingConfig
from gtvray.errors import GtvrayError
from gtvray.io import Workspace
from gtvray.tracking import (
    QUEUE_FILE,
    Refused,
    RunRecorder,
    connect_mlflow,
    mlflow_errors,
    require_recordable,
    summarise_rejections,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class OpenRecord:
    """A record while its experiment runs.

    Attributes:
        recorder: writes the runs.
        status: MLflow status that the parent run ends with.
        delivered: after the end, whether MLflow has everything that it accepts; the rest stays queued in the
            experiment's folder.
        refused: after the end, what MLflow refused permanently.
    """

    recorder: RunRecorder
    status: Status = "KILLED"
    delivered: bool = False
    refused: list[Refused] = field(default_factory=list)


class ExperimentRecord:
    """The MLflow record of an experiment.

    Args:
        tracking: settings of the tracking store.
        workspace: workspace whose SQLite store is used unless `tracking.uri` is set.
        name: name of the experiment and of its parent run.
        folder: folder of the experiment, for queued metrics.
    """

    def __init__(self, tracking: TrackingConfig, workspace: Workspace, name: str, folder: Path) -> None:
        self._tracking, self._workspace = tracking, workspace
        self._name, self._folder = name, folder

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._workspace.tracking_store(self._tracking.uri)[0]

    @cached_property
    def client(self) -> MlflowClient:
        """Client of the tracking store, connected at first use.

        Raises:
            ResourceError: MLflow does not answer.
        """
        return connect_mlflow(self.uri, self._workspace.artifacts)

    def require_recordable(self) -> None:
        """Refuse an experiment whose runs were deleted in MLflow.

        Raises:
            InputError: a deleted experiment or run, with the command that restores it.
            ResourceError: MLflow does not answer.
        """
        with mlflow_errors(self.uri):
            require_recordable(self.client, self._tracking.experiment, self._name)

    @contextmanager
    def open(self) -> Iterator[OpenRecord]:
        """Open the parent run for a `with` block, and end it with the status that the block sets.

        A `GtvrayError` sets FAILED. Any other exception leaves KILLED. Once the record is open, an unreachable MLflow
        raises no error.

        Raises:
            InputError: the experiment or a run was deleted in MLflow.
            ResourceError: MLflow does not answer when the record is opened.
        """
        _, artifacts = self._workspace.tracking_store(self._tracking.uri)
        queue = self._folder / QUEUE_FILE
        with mlflow_errors(self.uri):
            record = OpenRecord(RunRecorder(self.client, self._tracking.experiment, self._name, queue, artifacts))
        try:
            yield record
        except GtvrayError:
            record.status = "FAILED"
            raise
        finally:
            record.recorder.finish_run(record.status)
            record.delivered = record.recorder.close()
            record.refused = summarise_rejections(record.recorder.rejections)
