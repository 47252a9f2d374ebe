"""The MLflow record of a sweep or training: its store, its recorder, and the status it ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gtvray.config import TrackingConfig
from gtvray.errors import GtvrayError
from gtvray.io import Workspace
from gtvray.tracking import RunRecorder, connect_mlflow, require_recordable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
# The name that earlier versions gave the file of the metric queue.
_QUEUE = "spool.jsonl"


@dataclass
class OpenRecord:
    """A record while its experiment runs.

    Attributes:
        recorder: writes the runs.
        status: MLflow status that the parent run ends with.
        delivered: after the end, whether MLflow has everything; the rest stays queued in the experiment's folder.
    """

    recorder: RunRecorder
    status: Status = "KILLED"
    delivered: bool = False


class ExperimentRecord:
    """Where an experiment is recorded.

    Args:
        tracking: settings of the tracking store.
        workspace: whose SQLite store is used unless `tracking.uri` names another.
        name: name of the experiment and of its parent run.
        folder: folder of the experiment, for queued metrics.
    """

    def __init__(self, tracking: TrackingConfig, workspace: Workspace, name: str, folder: Path) -> None:
        self._tracking, self._workspace = tracking, workspace
        self._name, self._folder = name, folder

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._tracking.uri or self._workspace.mlflow_uri

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
        require_recordable(self.client, self._tracking.experiment, self._name)

    @contextmanager
    def open(self) -> Iterator[OpenRecord]:
        """Open the parent run for a `with` block, and end it with the status that the block sets.

        A `GtvrayError` sets FAILED. Any other exception leaves KILLED.
        """
        artifacts = self._workspace.artifacts if self.uri.startswith("sqlite") else None
        queue = self._folder / _QUEUE
        record = OpenRecord(RunRecorder(self.client, self._tracking.experiment, self._name, queue, artifacts))
        try:
            yield record
        except GtvrayError:
            record.status = "FAILED"
            raise
        finally:
            record.recorder.finish_run(record.status)
            record.delivered = record.recorder.close()
