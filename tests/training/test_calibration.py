"""Calibration of threshold and component rule on the selection cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.models import Bundle
from gtvray.training import best_setting, calibration_scores, export_bundle, fit, kept_checkpoint
from gtvray.training import export as export_module
from gtvray.training import selection as module

Answer = tuple[np.ndarray, np.ndarray]


def answer(*, second_is_tumour: bool, certainty: float = 0.9) -> Answer:
    """A tumour, marked one ring too large, and a separate, smaller region marked as well."""
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
    scores = calibration_scores(config, torch.nn.Identity(), [case] * len(answers), torch.device("cpu"))
    inference, dsc = best_setting(config, scores)
    return inference.threshold, inference.keep_largest, float(dsc.mean())


@pytest.mark.parametrize(("second_is_tumour", "largest"), [(False, True), (True, False)])
def test_the_setting_with_the_best_mean_dsc_is_chosen(
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


def test_ties_keep_the_configured_settings(
    monkeypatch: pytest.MonkeyPatch, config: Config, selection: list[CachedCase]
) -> None:
    asked = with_dotted(config, {"inference.threshold": 0.45, "inference.keep_largest": True})
    nothing = np.zeros((4, 4, 4), dtype=np.float32), np.ones((4, 4, 4), dtype=bool)
    assert decide(monkeypatch, asked, selection[0], [nothing]) == (pytest.approx(0.45), True, 0.0)


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_bundle_has_the_calibrated_settings(
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
    chosen = kept_checkpoint(Path(report.checkpoint), settings, selection, torch.device("cpu"))
    bundle = export_bundle([chosen], settings, tmp_path / "bundle", {})
    decided = (0.6, True) if calibrate else (0.5, False)
    for read in (bundle, Bundle.load(tmp_path / "bundle")):
        assert (read.inference.threshold, read.inference.keep_largest) == (pytest.approx(decided[0]), decided[1])
    # 216 voxels of tumour; of what is marked at one half, 512 of the ring and 64 elsewhere.
    dsc = 1.0 if calibrate else 2 * 216 / (216 + 512 + 64)
    assert bundle.info["metrics"]["selection_dsc"] == pytest.approx(dsc)


def test_the_last_epoch_is_kept_unless_the_best_is_better_by_more_than_chance(
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
) -> None:
    reports = list(fit(config, train, selection, tmp_path / "run"))
    best, last = Path(reports[-2].checkpoint), Path(reports[-1].checkpoint)
    lucky, better, alone = [0.9, 0.5, 0.55, 0.6, 0.5], [0.6, 0.62, 0.66, 0.7, 0.58], [0.9]
    level = [0.5, 0.52, 0.55, 0.6, 0.5]

    def kept(first: Path, scores: list[float], other: list[float]) -> tuple[Path, list[float]]:
        # In the order of the calls; the scores are the same for all 20 settings.
        left = iter([scores, other])
        monkeypatch.setattr(export_module, "calibration_scores", lambda *_: np.repeat([next(left)], 20, axis=0).T)
        path, found = kept_checkpoint(first, config, selection[:1] * len(scores), torch.device("cpu"))
        return path, found[:, 0].tolist()

    assert kept(best, lucky, level) == (last, level)
    assert kept(best, better, level) == (best, better)
    # One case is not enough to prefer the best epoch.
    assert kept(best, alone, [0.1]) == (last, [0.1])
    assert kept(last, level, []) == (last, level)
    monkeypatch.undo()
    (last / "state.safetensors").unlink()
    assert kept_checkpoint(best, config, selection, torch.device("cpu"))[0] == best
