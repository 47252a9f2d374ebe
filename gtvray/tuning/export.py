"""The best of a sweep as a bundle, with where it comes from, also in its MLflow run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.config import flatten
from gtvray.data import Project
from gtvray.experiments.tasks import keep, on_cluster
from gtvray.models import Bundle
from gtvray.tracking import RunRecorder
from gtvray.training import export_bundle, usual_figures
from gtvray.tuning.sweep import SweepResult

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def export_best(
    result: SweepResult, project: Project, folder: Path, recorder: RunRecorder, client: MlflowClient
) -> tuple[Bundle, str]:
    """Write the best trial's bundle and log it to the trial's run; its network is chosen on the connected cluster.

    Args:
        result: of the sweep.
        project: the data it was run on.
        folder: the bundle's.
        recorder: of the sweep, its queue delivered.
        client: of the tracking store.

    Returns:
        the bundle and the trial's MLflow run.

    Raises:
        TrainingError: the trial's best checkpoint is damaged.
    """
    best = result.best
    config = result.config_of(best)
    run_id = recorder.trial_run_id(best.trial_id)
    info = {
        "training_data": {**project.fingerprint.as_dict(), "licence": "as the owner of the data has it"},
        "domain": usual_figures(project.train),
        "mlflow_run": run_id,
        "config": flatten(config),
    }
    # Two networks on all selection cases: that is for the machines that trained them, and not for this process.
    [(kept, scores)] = on_cluster(keep, [(best.best_checkpoint, config, project.selection)], config, lambda _: None)
    bundle = export_bundle(kept, scores, config, folder, info)
    client.log_artifacts(run_id, str(bundle.folder), "bundle")
    client.set_tag(run_id, "gtvray.digest", bundle.digest)
    return bundle, run_id
