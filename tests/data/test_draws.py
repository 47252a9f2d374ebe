"""Random draws for a patch: frequencies, ranges and independence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gtvray.config import AugmentationConfig
from gtvray.data.patches.draws import CHANGES, Draw, draw_changes

FULL = AugmentationConfig(strength=1.0, flip_front_back=0.5, flip_up_down=0.5, elastic=0.2)
ALWAYS = FULL.model_copy(update=dict.fromkeys(CHANGES, 1.0))
CUBES_MM = (3.0, 3.0, 3.0)
# What the draw holds for each change.
FIELDS = {
    "rotate": "angles_degrees",
    "zoom": "span_ijk",
    "elastic": "elastic_mm",
    "noise": "noise_sigma",
    "blur": "blur_sigma_voxels",
    "brightness": "brightness",
    "contrast": "contrast",
    "low_resolution": "kept_ijk",
    "gamma_inverted": "gamma_inverted",
    "gamma": "gamma",
}


def _draws(config: AugmentationConfig, count: int, spacing_mm: tuple[float, float, float] = CUBES_MM) -> list[Draw]:
    return [draw_changes(config, spacing_mm, np.random.default_rng((7, number))) for number in range(count)]


def _happened(draw: Draw, change: str) -> bool:
    if change.startswith("flip"):
        return draw.flip_ijk[CHANGES.index(change)]
    return getattr(draw, FIELDS[change]) is not None


def test_each_change_is_as_frequent_as_stated() -> None:
    draws = _draws(FULL, 3000)
    for change in CHANGES:
        stated = getattr(FULL, change)
        share = np.mean([_happened(draw, change) for draw in draws])
        assert abs(share - stated) < 4.5 * np.sqrt(stated * (1 - stated) / 3000), change


def test_changes_are_drawn_independently() -> None:
    half = FULL.model_copy(update=dict.fromkeys(CHANGES, 0.5))
    happened = np.array([[_happened(draw, change) for change in CHANGES] for draw in _draws(half, 3000)])
    correlation = np.corrcoef(happened.T) - np.eye(len(CHANGES))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(3000)


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        ("rotate", -30, 30),
        ("zoom", 0.7, 1.4),
        ("elastic", 0, 8),
        ("noise", 0, 0.1),
        ("blur", 0.5, 1),
        ("low_resolution", 0.5, 1),
    ],
)
def test_values_fill_the_stated_range_evenly(change: str, low: float, high: float) -> None:
    values = np.array([getattr(draw, FIELDS[change]) for draw in _draws(ALWAYS, 1500)])
    for axis in values.reshape(1500, -1).T:
        quantiles = np.quantile((axis - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.05)
        assert low <= axis.min()
        assert axis.max() <= high


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5), ("gamma_inverted", 0.7, 1.5)],
)
def test_half_of_all_factors_are_below_one(change: str, low: float, high: float) -> None:
    values = np.array([getattr(draw, change) for draw in _draws(ALWAYS, 1500)])
    below, above = values[values < 1], values[values >= 1]
    assert len(below) / 1500 == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(np.quantile(below, [0, 0.5, 1]), [low, (1 + low) / 2, 1], atol=0.03)
    np.testing.assert_allclose(np.quantile(above, [0, 0.5, 1]), [1, (1 + high) / 2, high], atol=0.03)


def test_probability_does_not_change_strength() -> None:
    """Occurrence and strength of a change are drawn separately."""
    rare = FULL.model_copy(update=dict.fromkeys(CHANGES, 0.1))
    draws = _draws(rare, 3000)
    for change, limit in (("noise", 0.1), ("elastic", 8.0), ("gamma", 1.5), ("zoom", 1.4)):
        values = [getattr(draw, FIELDS[change]) for draw in draws if _happened(draw, change)]
        assert np.max(values) > 0.95 * limit, change


@pytest.mark.parametrize("name", [*FIELDS.values()])
def test_strength_narrows_every_range(name: str) -> None:
    """Half as far from no change, draw by draw."""
    none = 1.0 if name in {"span_ijk", "brightness", "contrast", "kept_ijk", "gamma_inverted", "gamma"} else 0.0
    half = ALWAYS.model_copy(update={"strength": 0.5})
    for full, weak in zip(_draws(ALWAYS, 20), _draws(half, 20), strict=True):
        whole, part = np.asarray(getattr(full, name)), np.asarray(getattr(weak, name))
        np.testing.assert_allclose(part - none, (whole - none) / 2, atol=1e-12)


@pytest.mark.parametrize("off", CHANGES)
def test_switching_off_one_change_leaves_the_others_unchanged(off: str) -> None:
    config = FULL.model_copy(update=dict.fromkeys(CHANGES, 0.5))
    without = config.model_copy(update={off: 0.0})
    lost = 0
    for draw, rest in zip(_draws(config, 40), _draws(without, 40), strict=True):
        for change in CHANGES:
            if change == off:
                lost += _happened(draw, change)
                assert not _happened(rest, change)
            elif change.startswith("flip"):
                assert _happened(draw, change) == _happened(rest, change)
            else:
                assert getattr(draw, FIELDS[change]) == getattr(rest, FIELDS[change])
        assert draw.seed == rest.seed
    assert lost > 5


def test_flat_voxels_are_rotated_and_zoomed_in_plane_only() -> None:
    for draw in _draws(ALWAYS, 20, (1.0, 1.0, 4.0)):
        assert draw.angles_degrees is not None
        assert draw.span_ijk is not None
        assert draw.kept_ijk is not None
        assert draw.angles_degrees[:2] == (0, 0)
        assert draw.angles_degrees[2] != 0
        assert draw.span_ijk[0] == draw.span_ijk[1] != 1
        assert draw.kept_ijk[0] == draw.kept_ijk[1] < 1
        assert draw.span_ijk[2] == draw.kept_ijk[2] == 1
    assert all(all(draw.angles_degrees or ()) for draw in _draws(ALWAYS, 20, (1.0, 1.0, 2.9)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("zoom_range", (1.1, 1.4)),
        ("gamma_range", (0.0, 1.5)),
        ("contrast_range", (0.8, 0.9)),
        ("blur_sigma_voxels", (1.0, 0.5)),
        ("blur_sigma_voxels", (0.0, 0.5)),
        ("strength", 1.5),
        ("noise", -0.1),
        ("low_resolution_scale", 0.0),
    ],
)
def test_invalid_ranges_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        AugmentationConfig(**{field: value})
