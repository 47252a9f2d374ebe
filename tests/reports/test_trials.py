"""The page of a sweep's trials, from its runs in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.reports import record_trials_page
from gtvray.reports.trial_charts import front_chart, parallel_chart
from gtvray.reports.trials import read_trials, searched

from ..pages import assert_self_contained

DSC = {"a1": [0.1, 0.4, 0.3], "b2": [0.2, 0.6, 0.7], "c3": []}


@pytest.fixture
def sweep(client: MlflowClient, tmp_path: Path) -> str:
    """A sweep of three trials; one has no epoch, one told an epoch twice, and an evaluation lies beside them."""
    place = client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    parent = str(client.create_run(place, run_name="a <b>sweep</b>").info.run_id)
    for number, (name, values) in enumerate(DSC.items()):
        tags = {"mlflow.parentRunId": parent, "ray.trial_id": name}
        run = client.create_run(place, tags=tags).info.run_id
        client.log_param(run, "optimizer.lr", 10.0**-number)
        client.log_param(run, "loss.name", "dice_$ce$" if number else "dice")
        client.log_param(run, "seed", 0)
        for epoch, dsc in enumerate(values, 1):
            for metric, value in {"selection_dsc": dsc, "best_dsc": dsc, "train_loss": 1 - dsc, "seconds": 5.0}.items():
                client.log_metric(run, metric, value, step=epoch)
        if values:
            client.log_metric(run, "seconds", 7.0, timestamp=2**42, step=1)
    client.create_run(place, tags={"mlflow.parentRunId": parent})
    return parent


def test_trials_are_read_best_first_each_epoch_once(client: MlflowClient, sweep: str) -> None:
    first, second = read_trials(client, sweep)
    assert (first.name, first.best_dsc, second.name, second.best_dsc) == ("b2", 0.7, "a1", 0.4)
    assert first.dsc == [(1, 0.2), (2, 0.6), (3, 0.7)]
    assert first.seconds == 17.0
    assert sorted(searched([first, second])) == ["loss.name", "optimizer.lr"]
    assert searched([first]) == []


def test_the_page_has_every_trial_and_is_in_the_run(client: MlflowClient, sweep: str, tmp_path: Path) -> None:
    path = record_trials_page(client, sweep, tmp_path)
    assert path is not None
    text = path.read_text()
    page = assert_self_contained(text)
    assert "<b>" not in text
    (heads, *rows) = page.rows
    assert heads[:5] == ["trial", "best DSC", "epochs", "seconds", "status"]
    assert [row[:4] for row in rows] == [["b2", "0.7000", "3", "17"], ["a1", "0.4000", "3", "17"]]
    assert set(heads[5:]) == {"loss.name", "optimizer.lr"}
    titles = [str(alt).partition(":")[0] for alt in page.attributes("img", "alt")]
    assert titles == [
        *["selection DSC by epoch", "training loss by epoch", "Settings of all trials"],
        "Score against cost, with the Pareto front",
    ]
    assert [entry.path for entry in client.list_artifacts(sweep, "report")] == ["report/trials.html"]


def test_a_sweep_without_an_epoch_has_no_page(client: MlflowClient, tmp_path: Path) -> None:
    place = client.create_experiment(tmp_path.name)
    assert record_trials_page(client, client.create_run(place).info.run_id, tmp_path) is None
    assert not (tmp_path / "trials.html").exists()


def test_the_front_holds_what_none_beats_in_both() -> None:
    chart = front_chart([10, 20, 30, 40, 10], [0.3, 0.5, 0.4, 0.6, 0.2])
    assert chart.alt.endswith("0.300 in 10 s; 0.500 in 20 s; 0.600 in 40 s.")


def test_settings_that_are_no_numbers_or_all_alike_have_a_place() -> None:
    chart = parallel_chart({"a": ["x", "y", "x"], "b": ["1", "1", "1"], "c": ["1e-3", "-", "2"]}, [0.5, 0.4, 0.3])
    assert chart.alt == "Settings of all trials: the best trial has a x, b 1, c 1e-3."
