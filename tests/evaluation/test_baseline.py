"""The mean-position baseline on masks with a known mean position."""

from __future__ import annotations

import numpy as np
import pytest

from gtvray.errors import InputError
from gtvray.evaluation import MeanPositionBaseline, dice
from gtvray.geometry import Volume

SPACING_MM = (2.0, 2.0, 3.0)


def ball(centre_mm: tuple[float, float, float], affine: np.ndarray | None = None) -> Volume:
    """A ball of 14 mm radius at `centre_mm` from the centre of its grid of 60 x 56 x 40 voxels."""
    shape = (60, 56, 40)
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    middle = (np.array(shape) - 1) / 2
    offset_mm = (indices - middle) @ affine[:3, :3].T - centre_mm
    return Volume((np.linalg.norm(offset_mm, axis=-1) <= 14).astype(np.uint8), affine)


def overlap(first: Volume, second: Volume) -> float:
    return dice(first.array != 0, second.array != 0)


def test_prediction_is_at_the_mean_position_of_shifted_masks() -> None:
    labels = [ball((10 + dx, 20, -15)) for dx in (-6, -3, 0, 3, 6)]
    prediction = MeanPositionBaseline.fit(labels).predict(labels[0])
    assert prediction.same_grid(labels[0])
    assert prediction.array.dtype == np.uint8
    assert overlap(prediction, ball((10, 20, -15))) > 0.85
    assert overlap(prediction, ball((-10, 20, -15))) < 0.3


def test_prediction_depends_on_the_grid_and_not_on_the_image() -> None:
    baseline = MeanPositionBaseline.fit([ball((5, 0, 0))])
    blank = ball((5, 0, 0)).with_array(np.zeros((60, 56, 40), dtype=np.int16))
    assert np.array_equal(baseline.predict(blank).array, baseline.predict(ball((0, 30, 0))).array)


@pytest.mark.parametrize("codes", ["LPI", "SRA", "ASL"])
def test_prediction_is_the_same_in_every_orientation(codes: str) -> None:
    # At 1 mm every common voxel is inside one voxel of the label, so that no lookup is a tie and both agree exactly.
    label, fine_mm = ball((12, -18, 9)), (1.0, 1.0, 1.0)
    straight = MeanPositionBaseline.fit([label], fine_mm).predict(label)
    turned = MeanPositionBaseline.fit([label.reoriented(codes)], fine_mm).predict(label.reoriented(codes))
    assert turned.orientation == codes
    assert np.array_equal(turned.reoriented("RAS").array, straight.array)


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (1.0, 1.0, 1.0)])
def test_single_mask_is_reproduced(spacing_mm: tuple[float, float, float]) -> None:
    label = ball((7, 3, -12))
    assert np.array_equal(MeanPositionBaseline.fit([label], spacing_mm).predict(label).array, label.array)


def test_origin_of_the_grid_has_no_effect() -> None:
    label = ball((12, -18, 9))
    moved = Volume(label.array, label.affine + np.array([[0, 0, 0, 500.0], [0, 0, 0, -90], [0, 0, 0, 7], [0] * 4]))
    baseline = MeanPositionBaseline.fit([label])
    assert np.array_equal(baseline.predict(moved).array, baseline.predict(label).array)


def test_oblique_grids_are_positioned_by_their_affine() -> None:
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING_MM)
    oblique = ball((25, 10, -10), affine)
    assert overlap(MeanPositionBaseline.fit([ball((25, 10, -10))]).predict(oblique), oblique) > 0.85
    assert overlap(MeanPositionBaseline.fit([oblique]).predict(ball((25, 10, -10))), ball((25, 10, -10))) > 0.85


def test_threshold_excludes_rare_positions() -> None:
    same = MeanPositionBaseline.fit([ball((0, 0, 0))] * 3)
    # One mask in six is elsewhere; predicting its position too would lower the Dice of the other five.
    mixed = MeanPositionBaseline.fit([ball((0, 0, 0))] * 5 + [ball((30, 0, 0))])
    assert overlap(same.predict(ball((0, 0, 0))), ball((0, 0, 0))) > 0.85
    assert mixed.threshold > 1 / 6
    assert overlap(mixed.predict(ball((0, 0, 0))), ball((30, 0, 0))) == 0


def test_empty_labels_lower_the_occupancy_and_only_empty_labels_are_refused() -> None:
    empty = ball((0, 0, 0)).with_array(np.zeros((60, 56, 40), dtype=np.uint8))
    assert MeanPositionBaseline.fit([ball((0, 0, 0)), empty]).occupancy.array.max() == 0.5
    with pytest.raises(InputError, match="no training mask"):
        MeanPositionBaseline.fit([empty])
