"""Uncertainty: values worked out by hand, and correlation with Dice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Volume
from gtvray.inference import SegmentationRequest, estimate_uncertainty, mean_of_views, run_patches
from gtvray.preprocessing import prepare

PATCH = (16, 16, 16)
PREPROCESSING = PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0), windows_hu=((-1000.0, 1000.0),), body_margin_mm=100)


class _Views:
    """Views with one intensity threshold each, smooth or sharp."""

    def __init__(self, levels: Sequence[float], sharpness: float = 200.0) -> None:
        self.bundle: Any = SimpleNamespace(
            preprocessing=PREPROCESSING, inference=InferenceConfig(mode="localised"), patch_ijk=PATCH
        )
        self.batch_size, self.view_count = 2, len(levels)
        self._levels, self._sharpness = levels, sharpness

    def views(self, channels: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for level in self._levels:
            margin = (np.stack([c[0] for c in channels]) - level) * self._sharpness
            yield margin.astype(np.float32)

    def mask(self, scan: Volume) -> Volume:
        inference = self.bundle.inference.model_copy(update={"mode": "body"})
        request = SegmentationRequest(prepare(scan, PREPROCESSING), PREPROCESSING, inference, PATCH)
        run_patches(request, lambda channels: mean_of_views(self.views(channels)), 2)
        return request.mask()


def _scan(edge_hu: float = 600.0) -> Volume:
    """A bright cube in tissue, its outer layer darker."""
    hu = np.full((32, 32, 32), 0, np.int16)
    hu[:2] = -1000
    hu[10:22, 10:22, 10:22] = edge_hu
    hu[12:20, 12:20, 12:20] = 600
    return Volume(hu, np.diag([-4.0, -4, 4, 1]))


def _estimate(views: Any, scan: Volume) -> Any:
    return estimate_uncertainty(views, prepare(scan, PREPROCESSING), views.mask(scan))


def test_agreeing_confident_views_have_no_uncertainty() -> None:
    found, entropy = _estimate(_Views([0.65, 0.65]), _scan())
    assert found.views == 2
    assert found.pairwise_dice == 1.0
    assert found.volume_sd_ml == 0.0
    assert found.expected_dice_loss < 1e-3
    assert float(entropy.array.max()) < 1e-3


def test_disagreeing_views_have_entropy_at_the_edge() -> None:
    """One view marks 12^3 voxels, the other 8^3 of them."""
    scan = _scan(edge_hu=200.0)
    found, entropy = _estimate(_Views([0.55, 0.7]), scan)
    assert found.pairwise_dice == pytest.approx(2 * 512 / (1728 + 512), abs=1e-6)
    assert found.volume_sd_ml == pytest.approx((1728 - 512) / 2 * 0.064, rel=1e-6)
    doubtful = entropy.array > 0.9
    assert np.count_nonzero(doubtful) == 1728 - 512
    # Exactly where the scan is 200 HU, compared by position in the patient.
    at = np.argwhere(doubtful)
    voxels_ijk = (np.linalg.inv(scan.affine) @ entropy.affine @ np.c_[at, np.ones(len(at))].T)[:3].round().astype(int)
    assert (scan.array[tuple(voxels_ijk)] == 200).all()


def test_single_view_has_entropy_but_no_agreement() -> None:
    found, _ = _estimate(_Views([0.75], sharpness=20.0), _scan())
    assert (found.views, found.pairwise_dice, found.volume_sd_ml) == (1, None, None)
    assert 0.1 < found.expected_dice_loss < 0.5
    assert found.mean_entropy_bits > 0.5
    empty, _ = _estimate(_Views([0.9], sharpness=20.0), _scan())
    assert empty.mean_entropy_bits == 0.0
    assert empty.expected_dice_loss == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-3), "the largest probability"


def _request(views: Any, scan: Volume, *, mask_only: bool = True, **inference: Any) -> SegmentationRequest:
    settings = views.bundle.inference.model_copy(update={"mode": "body", **inference})
    request = SegmentationRequest(prepare(scan, PREPROCESSING), PREPROCESSING, settings, PATCH, mask_only=mask_only)
    run_patches(request, lambda channels: mean_of_views(views.views(channels)), 2)
    return request


@pytest.mark.parametrize("mask_only", [True, False])
def test_uncertainty_by_the_probabilities_of_the_mask_is_that_of_one_view_run_again(mask_only: bool) -> None:
    views = _Views([0.75], sharpness=20.0)
    request = _request(views, _scan(), mask_only=mask_only)
    found, again = request.uncertainty(request.mask()), _estimate(views, _scan())[0]
    # Patches about the mask are placed otherwise when they run again, which changes probabilities a little.
    assert found.expected_dice_loss == pytest.approx(again.expected_dice_loss, abs=0.02)
    assert found.mean_entropy_bits == pytest.approx(again.mean_entropy_bits, abs=0.02)


def test_uncertainty_of_an_empty_mask_is_the_largest_probability() -> None:
    """The blocks are freed, as no mask depends on them, and padding with air does not count."""
    request = _request(_Views([0.9], sharpness=20.0), _scan())
    found = request.uncertainty(request.mask())
    assert found.mean_entropy_bits == 0.0
    assert found.expected_dice_loss == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-3)


def test_component_that_was_dropped_is_not_part_of_the_mask() -> None:
    """The larger of two cubes is certain, and the smaller one is not."""
    hu = np.full((40, 40, 40), 0, np.int16)
    hu[:2] = -1000
    hu[6:14, 6:14, 6:14], hu[28:33, 28:33, 28:33] = 600, 420
    scan, views = Volume(hu, np.diag([-4.0, -4, 4, 1])), _Views([0.7], sharpness=100.0)
    p = {hu: 1 / (1 + np.exp(-100 * ((hu + 1000) / 2000 - 0.7))) for hu in (600, 420)}
    certain, doubtful = 8**3, 5**3
    for only_largest, marked, count in (
        (False, certain * p[600] + doubtful * p[420], certain + doubtful),
        (True, certain * p[600], certain),
    ):
        request = _request(views, scan, keep_largest=only_largest)
        mask = request.mask()
        assert np.count_nonzero(mask.array) == count
        total = certain * p[600] + doubtful * p[420]
        expected = 1 - 2 * marked / (total + count)
        assert request.uncertainty(mask).expected_dice_loss == pytest.approx(expected, abs=2e-3)


def test_expected_loss_rises_where_dice_falls() -> None:
    """With less contrast to the noise, Dice of the cube falls and the expected loss rises."""
    truth = np.zeros((32, 32, 32), bool)
    truth[10:22, 10:22, 10:22] = True
    views = _Views([0.62, 0.65, 0.68], sharpness=40.0)
    losses, dices = [], []
    for seed, contrast_hu in enumerate(np.linspace(600, 250, 8)):
        noise = np.random.default_rng(seed).normal(0, 80, truth.shape)
        noise[:2] = -1000
        scan = Volume((noise + contrast_hu * truth).astype(np.int16), np.diag([-4.0, -4, 4, 1]))
        mask = views.mask(scan).array > 0
        dices.append(2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth)))
        losses.append(_estimate(views, scan)[0].expected_dice_loss)
    assert dices[0] > 0.95
    assert dices[-1] < 0.5
    assert spearmanr(losses, dices).statistic < -0.9, (losses, dices)
