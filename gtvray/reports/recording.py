"""Recording of evaluation reports in MLflow: one run per model, below the run that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.errors import InputError
from gtvray.evaluation.metrics import METRICS
from gtvray.io import read_json
from gtvray.reports.study import SCORES
from gtvray.tracking import experiment_id, find_or_create_run, mlflow_errors

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

_COUNTS = ("cases", "missed", "tumours", "tumours_missed", "tumours_false", "aggregated_dsc")
_ARTIFACTS = "evaluation"


def record_report(client: MlflowClient, experiment: str, report: Path, artifacts: Path | None) -> dict[str, str]:
    """Record a report in MLflow; recording it again reuses the same runs.

    Args:
        client: client of the tracking store.
        experiment: name of the experiment.
        report: the report's folder, as `Study.write` creates it.
        artifacts: artifact location of a new experiment; None leaves it to the server.

    Returns:
        model -> id of its run.

    Raises:
        InputError: the folder holds no report.
        ResourceError: MLflow did not accept the report.
    """
    content = read_json(report / SCORES)
    try:
        at_ms = int(datetime.fromisoformat(content["at"]).timestamp() * 1000)
        models = {model["name"]: (_tags(content, model), _metrics(model, at_ms)) for model in content["models"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "no report of an evaluation",
            where=report / SCORES,
            found=repr(error),
            do="name the folder `report` that `gtvray evaluate` wrote",
        ) from error
    with mlflow_errors(client.tracking_uri, do="send the report later with `gtvray evaluate --send`"):
        experiment_of_runs = experiment_id(client, experiment, artifacts)
        return {name: _send(client, experiment_of_runs, report, *of_model) for name, of_model in models.items()}


def _send(client: MlflowClient, experiment: str, report: Path, tags: Mapping[str, str], metrics: list[Metric]) -> str:
    key = f"{tags['gtvray.evaluation']}/{tags['gtvray.digest']}"
    run_id = find_or_create_run(client, experiment, key, {**tags, **_parent(client, tags)})
    client.log_batch(run_id, metrics=metrics)
    client.log_artifacts(run_id, str(report), _ARTIFACTS)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _parent(client: MlflowClient, tags: Mapping[str, str]) -> dict[str, str]:
    """Tag that nests the run below the run that trained its model, if this store has that run."""
    from mlflow.exceptions import MlflowException

    trained_in = tags.get("gtvray.training_run")
    if trained_in is None:
        return {}
    try:
        return {"mlflow.parentRunId": str(client.get_run(trained_in).info.run_id)}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _tags(content: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "mlflow.runName": f"evaluation of {model['name']}",
        "mlflow.note.content": str(content["notice"]),
        "gtvray.evaluation": str(content["name"]),
        "gtvray.digest": str(model["digest"]),
        "gtvray.data": str(content["data"]["digest"]),
        "gtvray.looks": str(model["looks"]),
        "version.gtvray": str(content["gtvray"]),
    }
    trained_in = model["training_run"]
    return tags if trained_in is None else tags | {"gtvray.training_run": str(trained_in)}


def _metrics(model: Mapping[str, Any], at_ms: int) -> list[Metric]:
    from mlflow.entities import Metric

    summary = model["summary"]
    metrics = {name: float(summary[name]) for name in _COUNTS}
    for name in METRICS:
        spread = summary[name]
        metrics |= {f"{name}_mean": float(spread["mean"]), f"{name}_median": float(spread["median"])}
        if spread["interval"] is not None:
            low, high = spread["interval"]
            metrics |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    # MLflow keeps one of several equal metrics with the same time, so that recording again changes nothing.
    return [Metric(name, value, at_ms, 0) for name, value in metrics.items()]
