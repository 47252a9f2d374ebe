"""Ray Tune's stored state of a sweep whose folder was moved: new trials go where the folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator, SearchGenerator

from gtvray.config import SweepConfig
from gtvray.errors import TrainingError
from gtvray.tuning.relocation import relocate_search_state
from gtvray.tuning.space import build_searcher, tune_space
from gtvray.tuning.trainable import SegmentationTrial, TrialContext

SPACE = {"optimizer.lr": {"low": 0.001, "high": 0.01}}


def trainable(config: dict[str, Any]) -> None:
    """Stands for the sweep's own, which is not run here."""


def search(kind: str) -> Any:
    sweep = SweepConfig.model_validate({"trials": 3, "searcher": kind, "space": SPACE})
    searcher = build_searcher(sweep, 2)
    if isinstance(searcher, BasicVariantGenerator):
        return searcher
    searcher.set_search_properties("selection_dsc", "max", tune_space(sweep.space))
    return SearchGenerator(searcher)


def begun(folder: Path, kind: str) -> str:
    """Save the search state of a sweep in a folder, after its first trial."""
    sweep = SweepConfig.model_validate({"trials": 3, "space": SPACE})
    config = tune_space(sweep.space) if kind == "random" else None
    experiment = Experiment("tune", trainable, config=config, num_samples=3, storage_path=str(folder))
    storage = experiment.spec["storage"]
    # As at every report: the syncer keeps the command it ran last.
    storage.syncer.sync_up(str(folder), storage.experiment_fs_path)
    storage.syncer.wait()
    algorithm = search(kind)
    algorithm.add_configurations([experiment])
    first = algorithm.next_trial()
    algorithm.save_to_dir(str(folder / "tune"), "2026-01-01_00-00-00")
    return str(first.storage.storage_fs_path)


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_new_trials_use_the_moved_folder(kind: str, tmp_path: Path) -> None:
    former, moved = tmp_path / "sweep", tmp_path / "sweep moved"
    former.mkdir()
    assert begun(former, kind) == str(former)
    former.rename(moved)
    assert relocate_search_state(moved / "tune") == 1
    assert relocate_search_state(moved / "tune") == 0, "once is enough"
    again = search(kind)
    again.restore_from_dir(str(moved / "tune"))
    trial = again.next_trial()
    assert trial.storage.experiment_fs_path == f"{moved}/tune"
    (state,) = [*moved.glob("tune/basic-variant-state-*"), *moved.glob("tune/search_gen_state-*")]
    assert f"{former}/".encode() not in state.read_bytes()
    assert not former.exists()


def test_state_that_cannot_be_relocated_is_refused_with_both_paths(tmp_path: Path) -> None:
    former, moved = tmp_path / "sweep", tmp_path / "moved"
    former.mkdir()
    begun(former, "random")
    former.rename(moved)
    (state,) = (moved / "tune").glob("basic-variant-state-*.json")
    stored = cloudpickle.loads(state.read_bytes())
    state.write_bytes(cloudpickle.dumps({**stored, "more": str(former / "tune")}))
    before = state.read_bytes()
    with pytest.raises(TrainingError, match="was moved") as caught:
        relocate_search_state(moved / "tune")
    assert caught.value.fields["where"] == str(moved)
    assert caught.value.fields["expected"] == str(former)
    assert state.read_bytes() == before


def test_unreadable_state_is_reported(tmp_path: Path) -> None:
    (tmp_path / "search_gen_state-1.json").write_bytes(b"\x80\x04cno.such.module\nThing\n.")
    with pytest.raises(TrainingError, match="cannot be read"):
        relocate_search_state(tmp_path)


def test_checkpoint_pointer_is_valid_after_a_move(tmp_path: Path, monkeypatch: Any) -> None:
    trial = SegmentationTrial.__new__(SegmentationTrial)
    monkeypatch.setattr(SegmentationTrial, "trial_id", "t1")
    trial.setup({}, TrialContext(None, {}, [], [], tmp_path))  # type: ignore[arg-type]
    trial.load_checkpoint({"trial": "t1", "known_epoch": 2})
    assert (trial._resume, trial._known_epoch) == (None, 2)
    (tmp_path / "t0" / "epoch-00003").mkdir(parents=True)
    trial.load_checkpoint({"trial": "t0", "known_epoch": 3})
    assert trial._resume == tmp_path / "t0" / "epoch-00003"
