"""A trial as Tune drives it, without Tune: epochs, pointers to checkpoints, and actors that become other trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.models import Checkpoint
from gtvray.training import EpochReport, fit
from gtvray.tuning.folds import FoldCases
from gtvray.tuning.trainable import SegmentationTrial, TrialContext

POINT = {"optimizer.lr": 0.01}


class Driven(SegmentationTrial):
    """A trial whose id a test sets; Tune's own set-up needs Ray."""

    def __init__(self, context: TrialContext, name: str, point: dict[str, Any]) -> None:
        self.name = name
        self.setup(point, context)

    @property
    def trial_id(self) -> str:
        return self.name


@pytest.fixture
def context(config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path) -> TrialContext:
    longer = with_dotted(config, {"training.epochs": 3})
    return TrialContext(longer, [FoldCases(train, selection)], tmp_path, pin=True)


@pytest.fixture
def trials() -> Iterator[list[Driven]]:
    made: list[Driven] = []
    yield made
    for trial in made:
        trial.cleanup()


def cases_of(context: TrialContext) -> tuple[list[CachedCase], list[CachedCase]]:
    (fold,) = context.folds
    return fold.train, fold.selection


def begin(context: TrialContext, trials: list[Driven], name: str = "t0", point: dict[str, Any] | None = None) -> Driven:
    trials.append(Driven(context, name, point or POINT))
    return trials[-1]


def test_epochs_until_done_are_those_of_fit(context: TrialContext, trials: list[Driven], tmp_path: Path) -> None:
    trial = begin(context, trials)
    results = [trial.step() for _ in range(3)]
    assert [(result["epoch"], result["done"]) for result in results] == [(1, False), (2, False), (3, True)]
    alone = fit(with_dotted(context.config, POINT), *cases_of(context), tmp_path / "alone")
    assert [result["train_loss"] for result in results] == [report.train_loss for report in alone]


def test_a_new_actor_reports_earlier_epochs_again(context: TrialContext, trials: list[Driven]) -> None:
    first = begin(context, trials)
    before = [first.step() for _ in range(2)]
    first.cleanup()
    again = begin(context, trials)
    after = [again.step() for _ in range(3)]
    assert [each["train_loss"] for each in after[:2]] == [each["train_loss"] for each in before]
    assert after[-1]["done"]


def test_paused_trial_continues_after_the_epoch_of_its_pointer(context: TrialContext, trials: list[Driven]) -> None:
    trial = begin(context, trials)
    trial.step()
    pointer = trial.save_checkpoint("")
    assert pointer == {"trial": "t0", "known_epoch": 1}
    trial.name = "t1"
    assert trial.reset_config({"optimizer.lr": 0.02})
    assert trial.step()["epoch"] == 1
    trial.name = "t0"
    trial.reset_config(POINT)
    trial.load_checkpoint(pointer)
    assert trial.step()["epoch"] == 2


def test_a_pointer_of_another_trial_takes_its_weights_over(context: TrialContext, trials: list[Driven]) -> None:
    better, worse = begin(context, trials), begin(context, trials, "t1", {"optimizer.lr": 0.001})
    for _ in range(2):
        better.step()
    pointer = better.save_checkpoint("")
    worse.step()
    worse.load_checkpoint(pointer)
    assert [path.name for path in (context.folder / "t1").glob("epoch-*")] == ["epoch-00002"]
    result = worse.step()
    assert (result["epoch"], result["done"]) == (3, True)
    # The rate is the trial's own, the state the other's.
    source = Checkpoint.load(context.folder / "t0" / "pinned" / "epoch-00002")
    history = Checkpoint.load(Path(result["checkpoint"])).meta["history"]
    assert history[:2] == source.meta["history"]
    assert result["lr"] < 0.001


def test_objectives_are_measured_once_and_reported_with_every_epoch(
    context: TrialContext, trials: list[Driven]
) -> None:
    judged = replace(context, pin=False, objectives=("dsc", "latency_ms", "peak_mb"))
    trial = begin(judged, trials)
    first, second = trial.step(), trial.step()
    assert first["latency_ms"] == second["latency_ms"] > 0
    assert first["peak_mb"] == second["peak_mb"] > 0
    assert "latency_ms" not in begin(context, trials, "t1").step()


def test_report_of_fit_has_the_names_that_tune_gets(context: TrialContext, trials: list[Driven]) -> None:
    assert set(begin(context, trials).step()) == {*EpochReport.__dataclass_fields__, "done"}
