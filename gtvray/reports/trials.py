"""The trials of a sweep as one page: learning curves, what was searched against what came of it, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray import NOTICE
from gtvray.errors import ResourceError
from gtvray.io import atomic_path, html_document, html_picture, html_table
from gtvray.reports.drawing import Chart
from gtvray.reports.trial_charts import Curve, curve_chart, front_chart, parallel_chart

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_PAGE = "trials.html"
# Of more, the best by their last figure are read; each takes three requests.
_MOST_TRIALS = 200


@dataclass(frozen=True)
class TrialCurves:
    """A trial as MLflow has it.

    Attributes:
        name: its id in the sweep.
        status: of its run.
        params: dotted key -> value.
        dsc, loss: selection DSC, on the prepared grid, and training loss, as (epoch, value).
        seconds: wall-clock of its epochs together.
    """

    name: str
    status: str
    params: dict[str, str]
    dsc: Curve
    loss: Curve
    seconds: float

    @property
    def best_dsc(self) -> float:
        """The best of its epochs."""
        return max(value for _, value in self.dsc)


def record_trials_page(client: MlflowClient, run_id: str, folder: Path) -> Path | None:
    """Write the page of a sweep and send it to its run.

    Args:
        client: of the tracking store.
        run_id: the sweep's run; its trials are the runs below it.
        folder: where the page goes, `trials.html`.

    Returns:
        the page; None if no trial has an epoch.

    Raises:
        ResourceError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        trials = read_trials(client, run_id)
        if not trials:
            return None
        path = folder / _PAGE
        with atomic_path(path) as temporary:
            temporary.write_text(trials_page(client.get_run(run_id).info.run_name, trials), encoding="utf-8")
        client.log_artifact(run_id, str(path), "report")
    except (MlflowException, OSError) as error:
        raise ResourceError("MLflow did not take the page of the trials", where=run_id, found=error) from error
    return path


def read_trials(client: MlflowClient, run_id: str) -> list[TrialCurves]:
    """The trials of a sweep's run that have an epoch, the best first."""
    place = client.get_run(run_id).info.experiment_id
    where = f"tags.`mlflow.parentRunId` = '{run_id}'"
    runs = client.search_runs([place], where, max_results=_MOST_TRIALS, order_by=["metrics.best_dsc DESC"])
    trials = [_trial(client, run) for run in runs if "ray.trial_id" in run.data.tags]
    return sorted((trial for trial in trials if trial.dsc), key=lambda trial: -trial.best_dsc)


def trials_page(name: str, trials: Sequence[TrialCurves]) -> str:
    """The page of a sweep's trials, the best first; at least one."""
    keys = searched(trials)
    heads = ("trial", "best DSC", "epochs", "seconds", "status", *keys)
    rows = [
        (
            each.name,
            f"{each.best_dsc:.4f}",
            len(each.dsc),
            f"{each.seconds:.0f}",
            each.status,
            *map(each.params.get, keys),
        )
        for each in trials
    ]
    charts = (html_picture(chart.content, chart.kind, chart.alt, chart.title) for chart in _charts(trials, keys))
    told = (
        "DSC on the selection cases, on the prepared grid: it compares trials, and is too good for the best one, which "
        "was chosen by it. Held-out cases tell: gtvray promote, gtvray evaluate."
    )
    return html_document(
        f"Trials of {name}",
        [
            f'<h1>Trials of {escape(name)}</h1><p class="notice">{escape(NOTICE)}</p><p>{escape(told)}</p>',
            f'<h2>Charts</h2><div class="charts">{"".join(charts)}</div>',
            f"<h2>Trials</h2>{html_table(heads, rows, caption='A press on a heading sorts.', sortable=True)}",
        ],
    )


def searched(trials: Sequence[TrialCurves]) -> list[str]:
    """The keys that differ between trials."""
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    return [key for key in keys if len({trial.params.get(key) for trial in trials}) > 1]


def _charts(trials: Sequence[TrialCurves], keys: Sequence[str]) -> Iterator[Chart]:
    best = [trial.best_dsc for trial in trials]
    yield curve_chart("selection DSC", {trial.name: trial.dsc for trial in trials}, best)
    yield curve_chart("training loss", {trial.name: trial.loss for trial in trials}, best)
    if keys:
        yield parallel_chart({key: [trial.params.get(key, "-") for trial in trials] for key in keys}, best)
    yield front_chart([trial.seconds for trial in trials], best)


def _trial(client: MlflowClient, run: Run) -> TrialCurves:
    curves = {name: _curve(client, run.info.run_id, name) for name in ("selection_dsc", "train_loss", "seconds")}
    return TrialCurves(
        name=run.data.tags["ray.trial_id"],
        status=run.info.status,
        params=dict(run.data.params),
        dsc=curves["selection_dsc"],
        loss=curves["train_loss"],
        seconds=sum(value for _, value in curves["seconds"]),
    )


def _curve(client: MlflowClient, run_id: str, name: str) -> Curve:
    # An epoch told twice, after a restart, counts once.
    told = {entry.step: float(entry.value) for entry in client.get_metric_history(run_id, name)}
    return sorted(told.items())
