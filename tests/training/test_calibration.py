"""Threshold and component rule, as the selection cases decide them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.models import Bundle
from gtvray.training import export_bundle, fit
from gtvray.training import selection as module
from gtvray.training.selection import calibrated

Answer = tuple[np.ndarray, np.ndarray]


def answer(*, second_is_tumour: bool, certainty: float = 0.9) -> Answer:
    """A tumour, marked with a ring too many around it; and, apart from it, a smaller place marked as well."""
    probability, mask = np.zeros((20, 20, 20), dtype=np.float32), np.zeros((20, 20, 20), dtype=bool)
    probability[2:10, 2:10, 2:10] = 0.58
    probability[3:9, 3:9, 3:9] = certainty
    mask[3:9, 3:9, 3:9] = True
    probability[14:18, 14:18, 14:18] = certainty
    mask[14:18, 14:18, 14:18] = second_is_tumour
    return probability, mask


def decide(
    monkeypatch: pytest.MonkeyPatch, config: Config, case: CachedCase, answers: list[Answer]
) -> tuple[float, bool, float]:
    left = iter(answers)
    monkeypatch.setattr(module, "_case_probability", lambda *_: next(left))
    inference, dsc = calibrated(config, torch.nn.Identity(), [case] * len(answers), torch.device("cpu"))
    return inference.threshold, inference.keep_largest, dsc


@pytest.mark.parametrize(("second_is_tumour", "largest"), [(False, True), (True, False)])
def test_what_gives_the_best_mean_dsc_is_taken(
    second_is_tumour: bool,
    largest: bool,
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    selection: list[CachedCase],
) -> None:
    answers = [answer(second_is_tumour=second_is_tumour)] * 2
    threshold, keeps, dsc = decide(monkeypatch, config, selection[0], answers)
    # Every threshold above the ring is as good; 0.60 is the nearest to one half.
    assert (threshold, keeps, dsc) == (pytest.approx(0.6), largest, 1.0)


def test_cases_that_decide_nothing_leave_the_settings(
    monkeypatch: pytest.MonkeyPatch, config: Config, selection: list[CachedCase]
) -> None:
    asked = with_dotted(config, {"inference.threshold": 0.45, "inference.keep_largest": True})
    nothing = np.zeros((4, 4, 4), dtype=np.float32), np.ones((4, 4, 4), dtype=bool)
    assert decide(monkeypatch, asked, selection[0], [nothing]) == (pytest.approx(0.45), True, 0.0)


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_bundle_has_what_was_decided(
    calibrate: bool,
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    settings = with_dotted(config, {"training.calibrate": calibrate, "training.epochs": 1})
    (report,) = fit(settings, train, selection, tmp_path / "run")
    monkeypatch.setattr(module, "_case_probability", lambda *_: answer(second_is_tumour=False))
    bundle = export_bundle(Path(report.checkpoint), settings, selection, tmp_path / "bundle", {})
    decided = (0.6, True) if calibrate else (0.5, False)
    for read in (bundle, Bundle.load(tmp_path / "bundle")):
        assert (read.inference.threshold, read.inference.keep_largest) == (pytest.approx(decided[0]), decided[1])
    assert ("calibrated_dsc" in bundle.info) is calibrate
