"""The ranking of trials, the stored result of a sweep, and what a resume continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import InputError, TrainingError
from gtvray.io import read_json, write_json
from gtvray.tracking.trials import COMPLETED, FAILED, OUT_OF_BUDGET, PLANNED, RUNNING, STOPPED, Trial
from gtvray.training import fit
from gtvray.tuning.result import rank, remove_losers
from gtvray.tuning.resume import StoredResult, read_result, remember_sweep, unfinished_trials, write_result

SWEEP = SweepConfig.model_validate({"trials": 2, "space": {"optimizer.lr": {"low": 0.001, "high": 0.01}}})


def trial(number: int, *dsc: float, state: str = COMPLETED, reason: str | None = None, failures: int = 0) -> Trial:
    epochs = {epoch: {"selection_dsc": value} for epoch, value in enumerate(dsc, 1)}
    return Trial(f"t{number}", {"optimizer.lr": number / 10}, epochs, [], state, reason, failures=failures)


@pytest.fixture(scope="module")
def checkpoint(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    list(fit(config, train, selection, folder))
    return folder / "epoch-00001"


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """Checkpoints of three trials: of one its second epoch is missing, as after a full disk."""
    for name in ("t0/epoch-00001", "t0/epoch-00002", "t1/epoch-00001", "t2/epoch-00002", "t4/epoch-00001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(checkpoint)
    return tmp_path


def test_only_trials_with_a_whole_checkpoint_can_win(folder: Path) -> None:
    trials = [trial(0, 0.1, 0.5), trial(1, 0.3, 0.9), trial(2, 0.2, 0.6), trial(3, 0.99, state=FAILED, reason="full")]
    result = rank(trials, folder, Config())
    assert [(each.trial_id, each.best_dsc, each.best_epoch) for each in result.trials] == [
        ("t2", 0.6, 2),
        ("t0", 0.5, 2),
        ("t1", 0.3, 1),
    ]
    assert (len(result.ended), result.failed, result.best.best_checkpoint) == (4, 1, folder / "t2" / "epoch-00002")


def test_of_equal_trials_the_earlier_wins_and_a_failed_one_is_last(folder: Path) -> None:
    trials = [trial(0, 0.5, 0.4), trial(1, 0.5), trial(4, 0.9, state=FAILED, reason="later")]
    assert [each.trial_id for each in rank(trials, folder, Config()).trials] == ["t0", "t1", "t4"]
    assert [each.trial_id for each in rank(trials[::-1][:1], folder, Config()).trials] == ["t4"]


def test_repeated_points_are_ranked_by_their_mean(folder: Path) -> None:
    """The luckiest trial is of the point that is worse on average."""
    trials = [trial(0, 0.9), trial(1, 0.1), trial(2, 0.0, 0.6), trial(4, 0.55)]
    for each, (rate, seed) in zip(trials, [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)], strict=True):
        each.settings = {"optimizer.lr": rate, "training.seed": seed}
    assert [each.trial_id for each in rank(trials, folder, Config()).trials] == ["t2", "t4", "t0", "t1"]


def test_a_point_with_more_folds_ranks_before_one_with_a_lucky_one(folder: Path) -> None:
    trials = [trial(0, 0.5), trial(1, 0.3), trial(4, 0.9)]
    for each, (rate, seed) in zip(trials, [(0.1, 0), (0.1, 1), (0.2, 0)], strict=True):
        each.settings = {"optimizer.lr": rate, "training.seed": seed}
    assert [each.trial_id for each in rank(trials, folder, Config(), members=2).trials] == ["t0", "t1", "t4"]
    assert rank(trials, folder, Config()).best.trial_id == "t4"


def test_a_point_whose_second_seed_was_stopped_ranks_after_one_with_both(folder: Path) -> None:
    trials = [trial(0, 0.9), trial(1, 0.5, state=STOPPED), trial(2, 0.0, 0.6), trial(4, 0.55)]
    for each, (rate, seed) in zip(trials, [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)], strict=True):
        each.settings = {"optimizer.lr": rate, "training.seed": seed}
    assert rank(trials, folder, Config()).best.trial_id == "t0"
    assert rank(trials, folder, Config(), members=2).best.trial_id == "t2"


def test_a_damaged_checkpoint_cannot_win(folder: Path) -> None:
    (folder / "t5" / "epoch-00001").mkdir(parents=True)
    assert rank([trial(5, 0.9), trial(1, 0.3)], folder, Config()).best.trial_id == "t1"
    with pytest.raises(TrainingError, match="no trial completed an epoch"):
        rank([trial(5, 0.9)], folder, Config())


def test_without_any_checkpoint_the_first_reason_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        rank([trial(0, state=FAILED, reason="the disk is full")], tmp_path, Config())
    assert caught.value.fields["found"] == "the disk is full"


def test_other_trials_lose_their_checkpoints_but_keep_their_rank(folder: Path) -> None:
    trials = [trial(0, 0.1, 0.5), trial(1, 0.3, state=STOPPED), trial(2, 0.1, 0.2, state=OUT_OF_BUDGET)]
    result = rank(trials, folder, Config())
    for name in ("t0", "t1", "t2"):
        for link in (folder / name).iterdir():
            link.unlink()
            link.mkdir()
    remove_losers(result, folder, result.unfinished)
    assert sorted(path.name for path in folder.iterdir()) == ["t0", "t2", "t4"]
    ranking = {each.trial_id: (each.best_dsc, each.best_epoch) for each in result.trials}
    (folder / "t0" / "epoch-00002").rmdir()
    (folder / "t0" / "epoch-00002").symlink_to((folder / "t4" / "epoch-00001").resolve())
    again = rank(trials, folder, Config(), ranking)
    assert [(each.trial_id, each.best_dsc) for each in again.trials] == [("t0", 0.5), ("t1", 0.3), ("t2", 0.2)]


def test_default_settings_keep_their_checkpoints_for_later_comparisons(folder: Path) -> None:
    """A continued sweep compares its best trial, which may be another one, with the default settings again."""
    trials = [trial(0, 0.1, 0.5), trial(1, 0.3), trial(4, 0.4)]
    trials[1].origin = "default"
    copy = folder / "copy"
    for name in ("t0", "t1", "t4"):
        (copy / name).mkdir(parents=True)
    remove_losers(rank(trials, folder, Config()), copy, [])
    assert sorted(path.name for path in copy.iterdir()) == ["t0", "t1"]


def test_resume_continues_unfinished_trials() -> None:
    trials = {
        each.trial_id: each
        for each in (
            trial(0, state=RUNNING),
            trial(1, state=PLANNED),
            trial(2, 0.1, state=COMPLETED),
            trial(3, 0.1, state=STOPPED),
            trial(4, 0.1, state=OUT_OF_BUDGET),
            trial(5, state=FAILED, failures=2),
            trial(6, state=FAILED, failures=3),
        )
    }
    assert unfinished_trials(trials, SWEEP, 100) == ["t0", "t1", "t4", "t5"]
    budget = SWEEP.model_copy(update={"time_budget_s": 100})
    assert unfinished_trials(trials, budget, 100) == ["t0", "t1", "t5"], "no time is left"


def test_only_the_same_sweep_can_be_resumed(tmp_path: Path) -> None:
    config = Config()
    assert remember_sweep(tmp_path, SWEEP, config, "d1") == SWEEP
    longer = SWEEP.model_copy(update={"time_budget_s": 60})
    assert remember_sweep(tmp_path, longer, config, "d1") == longer
    # Another tracking server, port or size of the cluster does not change the result.
    elsewhere = {"tracking.uri": "http://mlflow:5000", "serving.port": 9000, "training.cpus_per_worker": 4}
    wider = SWEEP.model_copy(update={"max_concurrent": 7})
    assert remember_sweep(tmp_path, wider, with_dotted(config, elsewhere), "d1") == wider
    others = {
        "config.training.seed": (SWEEP, with_dotted(config, {"training.seed": 7}), "d1"),
        "sweep.trials": (SWEEP.model_copy(update={"trials": 3}), config, "d1"),
        "data": (SWEEP, config, "d2"),
    }
    for key, other in others.items():
        with pytest.raises(InputError, match="has other settings or data") as caught:
            remember_sweep(tmp_path, *other)
        assert caught.value.fields["where"].endswith(f", {key}")


def test_a_setting_that_is_newer_than_the_sweep_has_its_default(tmp_path: Path) -> None:
    remember_sweep(tmp_path, SWEEP, Config(), "d1")
    stored = read_json(tmp_path / "sweep.json")
    del stored["sweep"]["repeats"], stored["config"]["network.attention"]
    write_json(tmp_path / "sweep.json", stored)
    assert remember_sweep(tmp_path, SWEEP, Config(), "d1") == SWEEP


def test_extensions_add_up_and_open_a_finished_sweep_again(tmp_path: Path) -> None:
    remember_sweep(tmp_path, SWEEP, Config(), "d1")
    stored = StoredResult("t0", "bundle", "run", "parent", {"t0": (0.5, 2)}, complete=True)
    write_result(tmp_path, stored)
    assert read_result(tmp_path) == stored
    assert remember_sweep(tmp_path, SWEEP, Config(), "d1").trials == 2
    assert stored.finished(SWEEP, 0)
    assert remember_sweep(tmp_path, SWEEP, Config(), "d1", extend=3).trials == 5
    assert remember_sweep(tmp_path, SWEEP, Config(), "d1", extend=1).trials == 6
    assert remember_sweep(tmp_path, SWEEP, Config(), "d1").trials == 6
    opened = read_result(tmp_path)
    assert opened is not None
    assert (opened.ranking, opened.finished(SWEEP, 0)) == ({"t0": (0.5, 2)}, False)
    budget = SWEEP.model_copy(update={"time_budget_s": 100})
    assert [opened.finished(budget, elapsed_s) for elapsed_s in (99, 100)] == [False, True]


def test_a_sweep_without_a_result_has_not_ended(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
