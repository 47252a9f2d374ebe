"""The record of trials in a sweep's folder."""

from __future__ import annotations

import json
from pathlib import Path

from gtvray.tracking import Trial, TrialRecord, read_trials


def test_events_are_read_back_per_trial(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.start("a1", {"optimizer.lr": 0.01, "training.patch_ijk": [16, 16, 16]})
    record.epoch("a1", 1, {"selection_dsc": 0.25})
    record.start("b2", {"optimizer.lr": 0.1})
    record.note("b2", "epoch 1: restarted")
    record.end("b2", "failed", "the loss is not finite")
    record.end("a1", "finished")
    assert read_trials(tmp_path) == [
        Trial(
            "a1",
            {"optimizer.lr": 0.01, "training.patch_ijk": [16, 16, 16]},
            epochs={1: {"selection_dsc": 0.25}},
            state="finished",
        ),
        Trial("b2", {"optimizer.lr": 0.1}, {}, ["epoch 1: restarted"], "failed", "the loss is not finite"),
    ]


def test_repeated_epoch_replaces_the_earlier_one_and_restarted_trial_is_running(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path)
    record.start("a1", {})
    for epoch, dsc in ((1, 0.1), (2, 0.2)):
        record.epoch("a1", epoch, {"selection_dsc": dsc})
    record.end("a1", "failed", "killed")
    TrialRecord(tmp_path).start("a1", {})
    record.epoch("a1", 2, {"selection_dsc": 0.3})
    (trial,) = read_trials(tmp_path)
    assert trial.curve("selection_dsc") == [(1, 0.1), (2, 0.3)]
    assert trial.curve("train_loss") == []
    assert (trial.state, trial.reason) == ("running", None)


def test_unknown_events_and_keys_and_a_truncated_line_are_ignored(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == []
    lines = [
        {"event": "start", "trial": "a1", "settings": {"seed": 1}, "rung": 2},
        {"event": "promoted", "trial": "a1", "rung": 3},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "trials.jsonl").write_text(text + '{"event": "end", "tri')
    assert read_trials(tmp_path) == [Trial("a1", {"seed": 1})]
