"""Changes of intensity match their definitions and stay finite and within 0..1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from gtvray.data.patches.augmentation import change_intensities, mirror
from gtvray.data.patches.draws import Draw

CHANGES: dict[str, Any] = {
    "noise_sigma": 0.05,
    "blur_sigma_voxels": (0.5, 0.8, 1.0),
    "brightness": 1.2,
    "contrast": 0.8,
    "kept_ijk": (0.6, 0.6, 1.0),
    "gamma_inverted": 1.4,
    "gamma": 0.7,
}
ALL = Draw(**CHANGES)


def _patch(low: float = 0.2, high: float = 0.8) -> torch.Tensor:
    """Two smooth channels well inside 0..1, so that the cut at its ends does not show."""
    rough = np.random.default_rng(0).random((2, 18, 20, 16))
    smooth = ndimage.gaussian_filter(rough, (0, 1.5, 1.5, 1.5))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return torch.from_numpy((low + (high - low) * smooth).astype(np.float32))


def _changed(image: torch.Tensor, **draw: Any) -> torch.Tensor:
    return change_intensities(image.clone(), Draw(**draw))


def test_nothing_drawn_is_nothing_changed() -> None:
    image = _patch(0.0, 1.0)
    assert torch.equal(_changed(image), image)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("patch", ["usual", "constant", "black and white"])
def test_intensities_are_finite_and_within_0_to_1(change: str, patch: str) -> None:
    image = _patch(0.0, 1.0)
    if patch == "constant":
        image.fill_(0.4)
    elif patch == "black and white":
        image = (image > 0.5).float()
    for draw in (Draw(**{change: CHANGES[change]}), ALL, replace(ALL, gamma=1.5, contrast=1.25)):
        result = change_intensities(image.clone(), draw)
        assert result.shape == image.shape
        assert result.dtype == torch.float32
        assert result.isfinite().all()
        assert result.min() >= 0
        assert result.max() <= 1
        if patch == "constant" and draw.noise_sigma is None and draw.brightness is None:
            torch.testing.assert_close(result, image, atol=1e-5, rtol=0)


def test_noise_is_white_with_the_stated_deviation() -> None:
    flat = torch.full((2, 40, 40, 40), 0.5)
    noise = _changed(flat, noise_sigma=0.05, seed=1) - flat
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=5e-4)
    shifted = float((noise[:, 1:] * noise[:, :-1]).mean()) / 0.05**2
    assert abs(shifted) < 0.02
    assert abs(float((noise[0] * noise[1]).mean())) / 0.05**2 < 0.02
    assert torch.equal(noise, _changed(flat, noise_sigma=0.05, seed=1) - flat)
    assert not torch.equal(noise, _changed(flat, noise_sigma=0.05, seed=2) - flat)


def test_blur_is_a_gaussian_in_voxels() -> None:
    image = _patch()
    blurred = _changed(image, blur_sigma_voxels=(0.5, 0.8, 1.0))
    expected = [ndimage.gaussian_filter(one, (0.5, 0.8, 1.0), mode="mirror", radius=(2, 2, 3)) for one in image.numpy()]
    np.testing.assert_allclose(blurred, np.stack(expected), atol=2e-6)


def test_brightness_multiplies() -> None:
    image = _patch()
    torch.testing.assert_close(_changed(image, brightness=1.2), image * 1.2)
    torch.testing.assert_close(_changed(image, brightness=0.75), image * 0.75)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_is_about_the_mean_and_keeps_the_range(factor: float) -> None:
    image = _patch()
    image[1] *= 0.5
    expected = torch.stack([((one - one.mean()) * factor + one.mean()).clamp(one.min(), one.max()) for one in image])
    torch.testing.assert_close(_changed(image, contrast=factor), expected)


@pytest.mark.parametrize("kept", [(0.5, 0.5, 0.5), (0.77, 0.77, 1.0), (0.99, 0.99, 0.99)])
def test_low_resolution_is_nearest_down_and_linear_up(kept: tuple[float, float, float]) -> None:
    image = _patch()
    size = [round(n * k) for n, k in zip(image.shape[1:], kept, strict=True)]
    fewer = functional.interpolate(image[None], size, mode="nearest-exact")
    expected = functional.interpolate(fewer, image.shape[1:], mode="trilinear")[0]
    torch.testing.assert_close(_changed(image, kept_ijk=kept), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_keeps_mean_and_standard_deviation(exponent: float) -> None:
    image = _patch(0.3, 0.6)
    image[1] = image[1] * 0.5 + 0.2
    changed = _changed(image, gamma=exponent)
    for one, other in zip(image.double(), changed.double(), strict=True):
        bent = ((one - one.min()) / (one.max() - one.min())) ** exponent
        expected = (bent - bent.mean()) / bent.std() * one.std() + one.mean()
        torch.testing.assert_close(other, expected, atol=1e-5, rtol=0)
    assert float((changed - image).abs().max()) > 0.01


def test_inverted_gamma_is_gamma_of_the_negative() -> None:
    image = _patch(0.3, 0.7)
    negative = 1 - _changed(1 - image, gamma=1.4)
    torch.testing.assert_close(_changed(image, gamma_inverted=1.4), negative, atol=1e-5, rtol=0)
    assert float((negative - _changed(image, gamma=1.4)).abs().max()) > 0.01


def test_channels_are_changed_independently() -> None:
    image = _patch(0.0, 1.0)
    quiet = replace(ALL, noise_sigma=None)
    both = change_intensities(image.clone(), quiet)
    alone = torch.cat([change_intensities(image[c : c + 1].clone(), quiet) for c in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mask_is_mirrored_with_the_image(axis: int) -> None:
    image = _patch()
    mask = (image[0] > 0.5).to(torch.uint8)
    flips = (axis == 0, axis == 1, axis == 2)
    mirrored, mirrored_mask = mirror(image, mask, Draw(flip_ijk=flips))
    np.testing.assert_array_equal(mirrored, np.flip(image.numpy(), axis + 1))
    assert torch.equal((mirrored[0] > 0.5).to(torch.uint8), mirrored_mask)
    assert not torch.equal(mask, mirrored_mask)
    assert mirror(image, mask, Draw())[0] is image
