"""What a sweep that goes on is held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.errors import InputError, TrainingError
from gtvray.tuning.resume import remember_sweep, restored_tuner

SWEEP = SweepConfig.model_validate({"trials": 2, "space": {"optimizer.lr": {"low": 0.001, "high": 0.01}}})


def test_only_the_same_sweep_can_be_resumed(tmp_path: Path) -> None:
    config = Config()
    remember_sweep(tmp_path, SWEEP, config, "d1")
    remember_sweep(tmp_path, SWEEP, config, "d1")
    # Another tracking server, port or size of the cluster does not change the result.
    elsewhere = {"tracking.uri": "http://mlflow:5000", "serving.port": 9000, "training.cpus_per_worker": 4}
    wider = SWEEP.model_copy(update={"max_concurrent": 7})
    remember_sweep(tmp_path, wider, with_dotted(config, elsewhere), "d1")
    others = {
        "config.training.seed": (SWEEP, with_dotted(config, {"training.seed": 7}), "d1"),
        "sweep.trials": (SWEEP.model_copy(update={"trials": 3}), config, "d1"),
        "data": (SWEEP, config, "d2"),
    }
    for key, other in others.items():
        with pytest.raises(InputError, match="has other settings or data") as caught:
            remember_sweep(tmp_path, *other)
        assert caught.value.fields["where"].endswith(f", {key}")


def test_damaged_tune_state_does_not_start_a_new_sweep(tmp_path: Path) -> None:
    assert restored_tuner(tmp_path, None, SWEEP, None) is None  # type: ignore[arg-type]
    (tmp_path / "tuner.pkl").write_bytes(b"")
    (tmp_path / "experiment_state-2026-01-01_00-00-00.json").write_text('{"trial_data": [')
    with pytest.raises(TrainingError, match="state of this sweep is damaged"):
        restored_tuner(tmp_path, None, SWEEP, None)  # type: ignore[arg-type]
