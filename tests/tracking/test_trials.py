"""The record of trials in a sweep's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gtvray.tracking import Trial, TrialRecord, read_trials
from gtvray.tracking.trials import COMPLETED, FAILED, PLANNED, RUNNING, STOPPED


def test_events_are_read_back_per_trial(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {"optimizer.lr": 0.01, "training.patch_ijk": [16, 16, 16]}, "default")
    record.start("t0")
    record.epoch("t0", 1, {"selection_dsc": 0.25})
    record.plan("t1", {"optimizer.lr": 0.1}, "informed")
    record.start("t1")
    record.note("t1", "epoch 1: restarted")
    record.end("t1", FAILED, "the loss is not finite")
    record.end("t0", STOPPED, rung=2)
    record.plan("t2", {"optimizer.lr": 0.2}, "start")
    expected = [
        Trial(
            "t0",
            {"optimizer.lr": 0.01, "training.patch_ijk": [16, 16, 16]},
            epochs={1: {"selection_dsc": 0.25}},
            state=STOPPED,
            rung=2,
            origin="default",
        ),
        Trial("t1", {"optimizer.lr": 0.1}, {}, ["epoch 1: restarted"], FAILED, "the loss is not finite",
              origin="informed", failures=1),
        Trial("t2", {"optimizer.lr": 0.2}, state=PLANNED, origin="start"),
    ]  # fmt: skip
    assert read_trials(tmp_path) == list(record.trials.values()) == expected
    assert list(TrialRecord(tmp_path).trials.values()) == expected
    assert [trial.ending for trial in expected] == [
        "stopped at rung 2 (epoch 1)",
        "failed: the loss is not finite",
        "planned",
    ]
    assert [trial.ended for trial in expected] == [True, True, False]


def test_repeated_epoch_replaces_the_earlier_one_and_restarted_trial_is_running(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {}, "random")
    record.start("t0")
    for epoch, dsc in ((1, 0.1), (2, 0.2)):
        record.epoch("t0", epoch, {"selection_dsc": dsc})
    record.end("t0", FAILED, "killed")
    again = TrialRecord(tmp_path)
    again.start("t0")
    again.epoch("t0", 2, {"selection_dsc": 0.3})
    (trial,) = read_trials(tmp_path)
    assert trial.curve("selection_dsc") == [(1, 0.1), (2, 0.3)]
    assert trial.curve("train_loss") == []
    assert (trial.state, trial.reason, trial.failures) == (RUNNING, None, 1)


def test_changed_settings_are_those_of_the_trial_from_then_on(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {"optimizer.lr": 0.1}, "random")
    record.change("t0", 4, {"optimizer.lr": 0.2}, "from t1", ("t1", 4))
    record.end("t0", COMPLETED)
    (trial,) = read_trials(tmp_path)
    assert trial.settings == {"optimizer.lr": 0.2}
    assert trial.exploits == [(4, {"optimizer.lr": 0.2}, "from t1")]
    assert trial.to_take_over == ("t1", 4)


def test_weights_are_to_be_taken_over_until_an_epoch_was_trained_from_them(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.plan("t0", {"optimizer.lr": 0.1}, "random")
    record.change("t0", 4, {"optimizer.lr": 0.2}, "from t1", ("t1", 4))
    # The epoch after which it was changed may be recorded after the change.
    record.epoch("t0", 4, {"selection_dsc": 0.1})
    assert read_trials(tmp_path)[0].to_take_over == ("t1", 4)
    record.epoch("t0", 5, {"selection_dsc": 0.2})
    assert read_trials(tmp_path)[0].to_take_over is None


def test_unknown_events_and_keys_and_a_truncated_line_are_ignored(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == []
    lines = [
        {"event": "plan", "trial": "t0", "settings": {"seed": 1}, "origin": "given", "more": 2},
        {"event": "promoted", "trial": "t0", "rung": 3},
        {"event": "paused"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "trials.jsonl").write_text(text + '{"event": "end", "tri')
    assert read_trials(tmp_path) == [Trial("t0", {"seed": 1}, state=PLANNED)]


def test_time_is_summed_over_sessions_without_the_pauses_between(tmp_path: Path) -> None:
    times = {"session": ["10:00:00", "12:00:00"], "start": ["10:00:05", "12:00:01"], "note": ["10:01:40", "12:00:20"]}
    trial = {"trial": "t0", "text": ""}
    lines = [
        {"event": event, "at": f"2026-01-01T{times[event][session]}+00:00", **({} if event == "session" else trial)}
        for session in (0, 1)
        for event in times
    ]  # fmt: skip
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = TrialRecord(tmp_path)
    assert record.elapsed_s == 100 + 20
    record.begin_session()
    assert record.elapsed_s == pytest.approx(120, abs=30)
