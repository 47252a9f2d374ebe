"""Time budget of a training: the first epoch is timed and fixes the number of epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.training import fit
from gtvray.training.state import TrainingState


@pytest.fixture
def budgeted(config: Config) -> Config:
    return with_dotted(config, {"training.time_budget_s": 60.0})


@pytest.mark.parametrize(
    ("elapsed_s", "epoch_s", "epochs"),
    [(12.0, 10.0, 5), (10.0, 10.0, 6), (0.5, 0.5, 120), (59.0, 10.0, 1), (75.0, 70.0, 1)],
)
def test_epochs_fill_the_time_budget(budgeted: Config, elapsed_s: float, epoch_s: float, epochs: int) -> None:
    state = TrainingState.build(budgeted)
    state.finish_epoch(0.0)
    state.plan_epochs(elapsed_s, epoch_s)
    assert state.epochs == epochs
    assert elapsed_s + (epochs - 1) * epoch_s <= 60 or epochs == 1


def test_epochs_are_those_of_the_settings_without_a_budget(config: Config) -> None:
    state = TrainingState.build(config)
    state.plan_epochs(1.0, 100.0)
    assert state.epochs == config.training.epochs


def _measured(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Replace the measurement of the first epoch by a given number of epochs."""
    monkeypatch.setattr(TrainingState, "plan_epochs", lambda state, *_: setattr(state, "epochs", epochs))


def test_a_resumed_training_keeps_the_planned_epochs(
    monkeypatch: pytest.MonkeyPatch,
    budgeted: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    _measured(monkeypatch, 3)
    whole = list(fit(budgeted, train, selection, tmp_path / "whole"))
    assert [(report.epoch, report.epochs) for report in whole] == [(1, 3), (2, 3), (3, 3)]
    # The learning rate schedule ends with the planned epochs, not with the configured ones.
    assert whole[-1].lr < whole[1].lr / 3
    started = fit(budgeted, train, selection, tmp_path / "cut")
    next(started)
    next(started)
    started.close()
    _measured(monkeypatch, 9)
    rest = list(fit(budgeted, train, selection, tmp_path / "cut", known_epoch=2))
    assert [(report.epoch, report.epochs, report.train_loss) for report in rest] == [(3, 3, whole[-1].train_loss)]


def test_an_exhausted_budget_allows_one_epoch(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    hurried = with_dotted(config, {"training.time_budget_s": 1e-6})
    assert [report.epochs for report in fit(hurried, train, selection, tmp_path)] == [1]
