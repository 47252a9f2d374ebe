"""Export trials of a sweep as bundles, the best also to its MLflow run when MLflow answers."""

from __future__ import annotations

from pathlib import Path

from gtvray.config import flatten
from gtvray.data import Project
from gtvray.experiments.tasks import keep, on_cluster
from gtvray.models import Bundle
from gtvray.tracking import RunRecorder
from gtvray.training import domain_ranges, export_bundle
from gtvray.tuning.result import SweepResult, TrialResult


def export_best(result: SweepResult, project: Project, folder: Path, recorder: RunRecorder) -> tuple[Bundle, str]:
    """Write the bundle of the best trial and queue it for the run of the trial.

    The checkpoint is selected by a task on the connected cluster. MLflow need not answer.

    Args:
        result: result of the sweep.
        project: data of the sweep.
        folder: folder of the bundle.
        recorder: recorder of the sweep, with its queue delivered if MLflow answers.

    Returns:
        the bundle, and the MLflow run of the trial.

    Raises:
        TrainingError: the best checkpoint of the trial is damaged.
    """
    bundle, run_id = export_trial(result.best, result, project, folder, recorder)
    recorder.attach(result.best.trial_id, bundle.folder, "bundle")
    recorder.describe({}, {"gtvray.digest": bundle.digest}, result.best.trial_id)
    return bundle, run_id


def export_trial(
    trial: TrialResult, result: SweepResult, project: Project, folder: Path, recorder: RunRecorder
) -> tuple[Bundle, str]:
    """Write the bundle of a trial.

    The checkpoint is selected by a task on the connected cluster.

    Args, Returns, Raises:
        as `export_best`, of this trial.
    """
    config, run_id = result.config_of(trial), recorder.trial_run_id(trial.trial_id)
    info = {
        "training_data": project.provenance(),
        "domain": domain_ranges(project.train),
        "mlflow_run": run_id,
        "config": flatten(config),
    }
    # Scoring two checkpoints on all selection cases needs the resources of a worker, not of the driver.
    [(kept, scores)] = on_cluster(keep, [(trial.best_checkpoint, config, project.selection)], config, lambda _: None)
    return export_bundle(kept, scores, config, folder, info), run_id
