"""The page of a sweep's trials, from the record in the sweep's folder."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gtvray.config import Config, flatten
from gtvray.io import Picture, write_json
from gtvray.reports import write_trials_page
from gtvray.reports.trial_charts import front_chart, objective_chart, parallel_chart
from gtvray.reports.trials import best_dsc, searched_keys
from gtvray.tracking import TrialRecord, read_trials

from ..pages import assert_self_contained

NAME = "a <b>sweep</b>"
DSC = {"a1": [0.1, 0.4, 0.3], "b2": [0.2, 0.6, 0.7], "c3": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of three trials: two whose first epoch was repeated after a restart, one that failed before it."""
    record = TrialRecord(tmp_path / "sweep")
    for index, (trial, values) in enumerate(DSC.items()):
        settings = {"optimizer.lr": 10.0**-index, "loss.name": "dice_$ce$" if index else "dice", "seed": 0}
        record.plan(trial, settings, "informed" if index else "default")
        record.start(trial)
        for epoch, dsc in enumerate(values, 1):
            record.epoch(trial, epoch, {"selection_dsc": dsc, "best_dsc": dsc, "train_loss": 1 - dsc, "seconds": 5.0})
        if values:
            record.note(trial, "epoch 1: restarted <after> a crash")
            again = {"selection_dsc": values[0], "best_dsc": values[0], "train_loss": 1 - values[0], "seconds": 7.0}
            record.epoch(trial, 1, again)
            record.end(trial, "completed")
        else:
            record.end(trial, "failed", "the loss is not <finite>")
    return tmp_path / "sweep"


def test_each_epoch_counts_once(folder: Path) -> None:
    first, second, failed = read_trials(folder)
    assert (first.trial_id, best_dsc(first), second.trial_id, best_dsc(second)) == ("a1", 0.4, "b2", 0.7)
    assert second.curve("selection_dsc") == [(1, 0.2), (2, 0.6), (3, 0.7)]
    assert sum(value for _, value in second.curve("seconds")) == 17.0
    assert failed.curve("selection_dsc") == []
    assert sorted(searched_keys([first, second])) == ["loss.name", "optimizer.lr"]
    assert searched_keys([first]) == []


def test_page_has_every_trial_with_the_best_first(folder: Path) -> None:
    text = _page(folder)
    page = assert_self_contained(text)
    assert "<b>" not in text
    heads = page.rows[0]
    assert heads[:6] == ["trial", "best DSC", "epochs", "seconds", "origin", "ending"]
    assert set(heads[6:]) == {"loss.name", "optimizer.lr"}
    assert [row[:6] for row in page.rows[1:4]] == [
        ["b2", "0.7000", "3", "17", "informed", "completed"],
        ["a1", "0.4000", "3", "17", "default", "completed"],
        ["c3", "-", "0", "0", "informed", "failed: the loss is not <finite>"],
    ]
    assert page.rows[4:] == [
        ["trial", "outcome", "reason"],
        ["a1", "recovered", "epoch 1: restarted <after> a crash"],
        ["b2", "recovered", "epoch 1: restarted <after> a crash"],
        ["c3", "failed", "the loss is not <finite>"],
    ]
    titles = [str(alt).partition(":")[0] for alt in page.attributes("img", "alt")]
    assert titles == [
        *["selection DSC by epoch", "training loss by epoch", "Settings of all trials"],
        "Score against training time",
    ]


def test_page_of_a_finished_sweep_has_verdict_importances_and_the_command_of_the_winner(folder: Path) -> None:
    request = {"config": flatten(Config()), "sweep": {"base": {"training.patch_ijk": [32, 32, 32]}}}
    write_json(folder / "sweep.json", request)
    write_json(folder / "confirmation.json", {"verdict": "worse", "text": "b2 is worse than the default"})
    write_json(folder / "importances.json", {"trials": 12, "importances": {"optimizer.lr": 0.9, "seed": 0.1}})
    text = _page(folder)
    page = assert_self_contained(text)
    assert "b2 is worse than the default." in text
    assert ["optimizer.lr", "0.90"] in page.rows
    assert "over 12 completed trials" in text
    (command,) = re.findall(r"<pre>(.*)</pre>", text)
    assert html.unescape(command) == (
        "gtvray train optimizer.lr=0.1 'training.patch_ijk=[32, 32, 32]' 'loss.name=dice_$ce$' seed=0 --data DATA"
    )


def test_page_has_what_mlflow_refused(folder: Path) -> None:
    lines = [{"reason": "the run was <deleted>", "entry": {"trial": "a1", "step": n}} for n in range(3)]
    (folder / "spool.rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = assert_self_contained(_page(folder))
    assert page.rows[-2:] == [["trial", "entries", "reason"], ["a1", "3", "the run was <deleted>"]]


def test_page_of_trials_without_an_epoch_has_their_reasons_and_no_charts(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("a1", {"seed": 0}, "default")
    record.end("a1", "failed", "no memory")
    page = assert_self_contained(_page(tmp_path))
    assert page.rows[-1] == ["a1", "failed", "no memory"]
    assert page.attributes("img", "alt") == []


def test_what_trials_took_over_is_counted_and_listed(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {"optimizer.lr": 0.1}, "random")
    for epoch in (2, 4):
        record.change("t0", epoch, {"optimizer.lr": 0.1 * epoch}, f"epoch {epoch} of t1", ("t1", epoch))
    record.end("t0", "completed")
    page = assert_self_contained(_page(tmp_path))
    assert ["t0", "took over", "epoch 4 of t1"] in page.rows
    assert "exploits (weights from other trials)" in _page(tmp_path)


def test_sweep_without_a_trial_has_no_page(tmp_path: Path) -> None:
    assert write_trials_page(tmp_path, NAME) is None
    assert not (tmp_path / "trials.html").exists()


def test_page_has_a_chart_of_each_objective_with_the_front_marked(folder: Path) -> None:
    front = {
        "objectives": {"dsc": "max", "latency_ms": "min", "peak_mb": "min"},
        "trials": {"b2": [0.7, 80.0, 300.0], "a1": [0.4, 20.0, 310.0]},
        "others": {"d4": [0.3, 90.0, 320.0]},
        "hypervolume": 0.5,
    }
    write_json(folder / "front.json", front)
    page = assert_self_contained(_page(folder))
    assert [alt for alt in page.attributes("img", "alt") if "Pareto" in str(alt)] == [
        "DSC against latency_ms, with the Pareto front: b2: DSC 0.700 at 80; a1: DSC 0.400 at 20.",
        "DSC against peak_mb, with the Pareto front: b2: DSC 0.700 at 300; a1: DSC 0.400 at 310.",
    ]
    assert ["b2", "0.7", "80", "300"] in page.rows
    assert ["d4", "0.3", "90", "320"] not in page.rows
    del front["others"]
    write_json(folder / "front.json", front)
    assert len(assert_self_contained(_page(folder)).attributes("img", "alt")) == 6, "a front of an earlier version"


def test_marks_of_the_front_are_those_of_the_trials_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[tuple[float, float]]] = {}

    def keep(figure: Figure, *_: object) -> Picture:
        for line in figure.axes[0].lines:
            drawn[str(line.get_label())] = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        return Picture(b"", "png", "", "")

    monkeypatch.setattr("gtvray.reports.trial_charts.encode_chart", keep)
    objective_chart("latency_ms", {"t1": (20.0, 0.4), "t0": (80.0, 0.7)}, {"t2": (90.0, 0.3)})
    assert drawn == {"dominated": [(90.0, 0.3)], "Pareto front": [(20.0, 0.4), (80.0, 0.7)]}


@pytest.mark.parametrize(("cases", "decided"), [(5, True), (4, False)])
def test_page_of_folds_states_how_few_cases_they_have(cases: int, decided: bool, tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    for fold in range(2):
        record.plan(f"t{fold}", {"training.seed": fold}, "default")
        record.epoch(f"t{fold}", 1, {"selection_dsc": 0.5, "train_loss": 0.5, "seconds": 1.0}, [0.5] * (cases + fold))
        record.end(f"t{fold}", "completed")
    write_json(tmp_path / "sweep.json", {"config": flatten(Config()), "sweep": {"base": {}, "folds": 2}})
    text = _page(tmp_path)
    assert f"which its network was not trained on: {cases} to {cases + 1} cases." in text
    assert ("With fewer than 5 cases in a fold" in text) is not decided
    write_json(tmp_path / "sweep.json", {"config": flatten(Config()), "sweep": {"base": {}, "folds": 1}})
    assert "its fold" not in _page(tmp_path)


def test_importances_of_a_sweep_with_stopped_trials_state_what_they_leave_out(folder: Path) -> None:
    write_json(folder / "importances.json", {"trials": 12, "importances": {"optimizer.lr": 0.9}})
    assert "left out" not in _page(folder)
    record = TrialRecord(folder)
    record.plan("d4", {"optimizer.lr": 0.1}, "informed")
    record.end("d4", "stopped", "rung 1")
    assert "over 12 completed trials; interpret with caution if fewer than 30. 1 trials that ended early" in _page(
        folder
    )


def test_front_holds_the_trials_that_no_other_beats_in_both() -> None:
    chart = front_chart([10, 20, 30, 40, 10], [0.3, 0.5, 0.4, 0.6, 0.2])
    assert chart.alt.endswith("0.300 in 10 s; 0.500 in 20 s; 0.600 in 40 s.")


def test_settings_that_are_not_numbers_or_all_equal_can_be_drawn() -> None:
    chart = parallel_chart({"a": ["x", "y", "x"], "b": ["1", "1", "1"], "c": ["1e-3", "-", "2"]}, [0.5, 0.4, 0.3])
    assert chart.alt == "Settings of all trials: the best trial has a x, b 1, c 1e-3."


def _page(folder: Path) -> str:
    path = write_trials_page(folder, NAME)
    assert path is not None
    return path.read_text()


def test_winner_of_the_ranking_is_first_and_its_worst_cases_are_shown(folder: Path) -> None:
    """With folds or repeats the winner need not have the highest single value."""
    write_json(folder / "result.json", {"best": "a1"})
    (folder / "worst-1.png").write_bytes(b"picture")
    write_json(folder / "worst.json", {"trial": "a1", "cases": [{"case": "7", "dsc": 0.1, "picture": "worst-1.png"}]})
    text = _page(folder)
    page = assert_self_contained(text)
    assert [row[0] for row in page.rows[1:3]] == ["a1", "b2"]
    assert "case 7: DSC 0.100" in text
    assert "data:image/png;base64,cGljdHVyZQ==" in text
