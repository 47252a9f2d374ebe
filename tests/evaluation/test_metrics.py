"""Scores against MONAI, an independent implementation, and against values computed by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial import cKDTree

from gtvray.errors import GeometryError, InputError
from gtvray.evaluation import (
    NSD_TOLERANCES_MM,
    added_path_length_mm,
    assd_mm,
    count_tumours,
    dice,
    hd95_mm,
    nsd,
    nsd_tolerance_mm,
    score_case,
)
from gtvray.evaluation.distances import SurfelDistances
from gtvray.evaluation.surface import surfel_areas_mm2
from gtvray.geometry import Volume
from gtvray.io import read_volume

Mask = npt.NDArray[np.bool_]
# MONAI 1.6 passes a deprecated argument to its own function.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

STRUCTSEG_MM = (1.14, 1.14, 3.0)


def blob(seed: int, shape: tuple[int, int, int] = (40, 36, 24)) -> Mask:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return np.asarray(noise > np.quantile(noise, 0.93))


def ellipsoid(semi_axes_mm: tuple[float, float, float], centre_mm: tuple[float, float, float] = (0, 0, 0)) -> Mask:
    steps = [(np.arange(n) - n / 2) * step for n, step in zip((64, 64, 32), STRUCTSEG_MM, strict=True)]
    grid = np.meshgrid(*steps, indexing="ij")
    terms = [((x - c) / a) ** 2 for x, c, a in zip(grid, centre_mm, semi_axes_mm, strict=True)]
    return np.asarray(sum(terms) <= 1)


def volume_of(mask: Mask, spacing_mm: tuple[float, float, float]) -> Volume:
    return Volume(mask.astype(np.uint8), np.diag([*spacing_mm, 1.0]))


def monai_scores(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> list[float]:
    y, y_pred = (torch.from_numpy(np.stack([~mask, mask])[None]).float() for mask in (reference, prediction))
    spacing = list(spacing_mm)
    surface = SurfaceDiceMetric([tolerance_mm], use_subvoxels=True)
    return [
        float(DiceMetric(include_background=False)(y_pred, y)),
        float(HausdorffDistanceMetric(percentile=95)(y_pred, y, spacing=spacing)),
        float(surface(y_pred, y, spacing=spacing)),
        float(SurfaceDistanceMetric(symmetric=True)(y_pred, y, spacing=spacing)),
    ]


def our_scores(
    reference: Mask, prediction: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> list[float]:
    return [
        dice(reference, prediction),
        hd95_mm(reference, prediction, spacing_mm),
        nsd(reference, prediction, spacing_mm, tolerance_mm),
        assd_mm(reference, prediction, spacing_mm),
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), STRUCTSEG_MM, (4.3, 0.7, 2.1)])
def test_random_blobs_score_as_in_monai(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    masks = blob(seed), blob(seed + 100)
    # No distance on these grids equals this tolerance, so that rounding cannot decide.
    tolerance_mm = 1.7391
    assert our_scores(*masks, spacing_mm, tolerance_mm) == pytest.approx(
        monai_scores(*masks, spacing_mm, tolerance_mm), abs=1e-4
    )


def test_real_case_scores_as_in_monai(shared_data: Path) -> None:
    label = read_volume(shared_data / "openkbp_ptv70" / "train" / "pt_1" / "label.nii.gz")
    reference = label.array != 0
    prediction = np.roll(reference, (2, -1, 3), axis=(0, 1, 2))
    prediction[:, :, ::7] = False
    assert our_scores(reference, prediction, label.spacing_mm, 5.1) == pytest.approx(
        monai_scores(reference, prediction, label.spacing_mm, 5.1), abs=1e-4
    )


@pytest.mark.parametrize("prediction", [ellipsoid((20, 20, 20), (2, 0, 0)), ellipsoid((20, 20, 17), (0, 0, 3))])
def test_displaced_ellipsoids_score_as_in_monai(prediction: Mask) -> None:
    reference = ellipsoid((20, 20, 20))
    assert our_scores(reference, prediction, STRUCTSEG_MM, 1.0) == pytest.approx(
        monai_scores(reference, prediction, STRUCTSEG_MM, 1.0), abs=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing_mm", [STRUCTSEG_MM, (4.3, 0.7, 2.1)])
def test_surface_distances_equal_a_search_over_all_surface_voxels(
    seed: int, spacing_mm: tuple[float, float, float]
) -> None:
    """Without a distance transform or a crop: SciPy's erosion and a nearest-neighbour search."""
    masks = blob(seed + 20), blob(seed + 40)
    points = [np.argwhere(mask ^ binary_erosion(mask)) * spacing_mm for mask in masks]
    there, back = (cKDTree(points[1 - n]).query(points[n])[0] for n in range(2))
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hd95_mm(*masks, spacing_mm) == pytest.approx(hd95, abs=1e-4)
    assert assd_mm(*masks, spacing_mm) == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-4)


def test_two_voxels_apart_score_as_published_with_surface_distance() -> None:
    """A published test of DeepMind's surface-distance: voxels 2 mm apart at 3 x 2 x 1 mm."""
    reference, prediction = np.zeros((2, 128, 128, 128), dtype=bool)
    reference[50, 60, 70] = prediction[50, 60, 72] = True
    measured = SurfelDistances.between(reference, prediction, (3.0, 2.0, 1.0))
    assert np.average(measured.distances_mm, weights=measured.areas_mm2) == pytest.approx(1.5, abs=1e-4)
    assert nsd(reference, prediction, (3.0, 2.0, 1.0), 1.0) == pytest.approx(0.5, abs=1e-4)
    assert hd95_mm(reference, prediction, (3.0, 2.0, 1.0)) == pytest.approx(2.0, abs=1e-4)
    assert dice(reference, prediction) == 0


def test_cubes_shifted_by_a_voxel_score_as_published_with_surface_distance() -> None:
    """A published test of surface-distance with three digits; the cubes extend to the border of their grid."""
    reference, prediction = np.zeros((2, 100, 100, 100), dtype=bool)
    reference[:50] = prediction[:51] = True
    measured = SurfelDistances.between(reference, prediction, (2.0, 1.0, 1.0))
    reference_surfels = np.count_nonzero(surfel_areas_mm2(np.pad(reference[:51], 1), (2.0, 1.0, 1.0)))
    parts = slice(None, reference_surfels), slice(reference_surfels, None)
    mean_mm = [np.average(measured.distances_mm[part], weights=measured.areas_mm2[part]) for part in parts]
    assert mean_mm == pytest.approx([0.322, 0.339], abs=5e-4)
    assert nsd(reference, prediction, (2.0, 1.0, 1.0), 1.0) == pytest.approx(0.836, abs=5e-4)
    assert hd95_mm(reference, prediction, (2.0, 1.0, 1.0)) == pytest.approx(2.0, abs=1e-4)
    assert dice(reference, prediction) == pytest.approx(100 / 101)


def test_two_millimetre_shift_is_measured_in_millimetres() -> None:
    reference, prediction = ellipsoid((20, 20, 20)), ellipsoid((20, 20, 20), (2, 0, 0))
    assert dice(reference, prediction) == pytest.approx(0.924, abs=5e-4)
    # The area-weighted definition gives 1.61, ignoring the spacing 1.41.
    assert hd95_mm(reference, prediction, STRUCTSEG_MM) == pytest.approx(2.28, abs=5e-3)


def test_hd95_includes_a_distant_false_positive_that_a_pooled_percentile_ignores() -> None:
    # Both masks share 95 voxels, all of them surface; the prediction has six more far away.
    reference = np.zeros((200, 3, 3), dtype=bool)
    reference[:95, 1, 1] = True
    prediction = reference.copy()
    prediction[190:196, 1, 1] = True
    pooled = np.percentile([0.0] * 190 + [float(i - 94) for i in range(190, 196)], 95)
    assert pooled == 0.0
    directed = np.percentile([0.0] * 95 + [float(i - 94) for i in range(190, 196)], 95)
    assert hd95_mm(reference, prediction, (2.0, 1.0, 1.0)) == pytest.approx(2 * directed)
    assert directed > 90


def test_mask_at_the_edge_of_the_grid_has_a_surface_there() -> None:
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[:6] = True
    prediction = reference.copy()
    prediction[:3] = False
    assert our_scores(reference, prediction, (1.0, 2.0, 3.0), 1.3) == pytest.approx(
        monai_scores(reference, prediction, (1.0, 2.0, 3.0), 1.3), abs=1e-4
    )


@pytest.mark.parametrize("spacing_mm", [(1.1, 1.1, 1.1), (0.3, 0.5, 0.7)])
def test_surface_at_exactly_the_tolerance_is_within_it(spacing_mm: tuple[float, float, float]) -> None:
    reference = np.zeros((20, 8, 8), dtype=bool)
    reference[5:12, 2:6, 2:6] = True
    prediction = np.roll(reference, 3, axis=0)
    assert nsd(reference, prediction, spacing_mm, 3 * spacing_mm[0]) == pytest.approx(1.0)
    assert nsd(reference, prediction, spacing_mm, 2.99 * spacing_mm[0]) < 0.95


def test_scores_of_empty_masks() -> None:
    spacing_mm = (3.0, 1.0, 2.0)
    nothing = np.zeros((4, 12, 42), dtype=bool)
    something = nothing.copy()
    something[1, 2, 3] = True
    assert our_scores(nothing, nothing, spacing_mm, 1.0) == [1.0, 0.0, 1.0, 0.0]
    diagonal_mm = (12.0**2 + 12.0**2 + 84.0**2) ** 0.5
    for pair in ((nothing, something), (something, nothing)):
        assert our_scores(*pair, spacing_mm, 1.0) == [
            0.0,
            pytest.approx(diagonal_mm),
            0.0,
            pytest.approx(diagonal_mm),
        ]


@pytest.mark.parametrize(("predicted", "missed"), [(0, True), (1, False)])
def test_score_case_has_volumes_and_flags_a_missed_case(predicted: int, missed: bool) -> None:
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[2:6, 2:7, 2:4] = True
    reference = volume_of(mask, (2.0, 2.0, 2.5))
    score = score_case("a", reference, reference.with_array(mask * np.uint8(predicted)))
    perfect = float(predicted)
    assert (score.case_id, score.dsc, score.nsd, score.nsd_tolerance_mm) == ("a", perfect, perfect, 2.0)
    assert score.hd95_mm == pytest.approx(0.0 if predicted else (20**2 + 20**2 + 25**2) ** 0.5)
    assert [score.volume_reference_ml, score.volume_prediction_ml] == pytest.approx([0.4, 0.4 * predicted])
    assert score.missed is missed
    # Plain Python numbers and no NumPy scalars, since scores are written as JSON.
    assert {type(value) for value in asdict(score).values()} == {str, tuple, float, int, bool}


@pytest.mark.parametrize("spacing_mm", [STRUCTSEG_MM, (4.3, 0.7, 2.1)])
def test_score_case_equals_the_functions_of_single_scores(spacing_mm: tuple[float, float, float]) -> None:
    reference, prediction = blob(5), blob(6)
    score = score_case("a", volume_of(reference, spacing_mm), volume_of(prediction, spacing_mm))
    assert (score.dsc, score.hd95_mm, score.assd_mm) == (
        dice(reference, prediction),
        hd95_mm(reference, prediction, spacing_mm),
        assd_mm(reference, prediction, spacing_mm),
    )
    nsds = [nsd(reference, prediction, spacing_mm, tolerance) for tolerance in NSD_TOLERANCES_MM]
    assert [score.nsd_1mm, score.nsd_2mm, score.nsd_5mm] == nsds
    assert score.nsd == nsds[1 if spacing_mm == STRUCTSEG_MM else 2]
    assert (score.tumours, score.tumours_missed, score.tumours_false) == count_tumours(reference, prediction)


def test_added_path_is_the_length_to_redraw_in_every_slice() -> None:
    mask = np.zeros((12, 12, 6), dtype=bool)
    mask[2:7, 3:8, 1:5] = True
    reference = volume_of(mask, (2.0, 1.0, 5.0))
    nothing = reference.with_array(np.zeros_like(mask))
    # A square of 5 x 5 has 16 contour voxels in each of four slices; each counts with the mean of 1 and 2 mm.
    assert added_path_length_mm(reference, nothing) == pytest.approx(4 * 16 * 1.5)
    assert added_path_length_mm(reference, reference) == 0
    assert added_path_length_mm(nothing, reference) == 0, "false positives need no contour"
    lower = mask.copy()
    lower[:, :, 1] = False
    assert added_path_length_mm(reference, reference.with_array(lower)) == pytest.approx(16 * 1.5)
    turned = [volume.reoriented("SPR") for volume in (reference, reference.with_array(lower))]
    assert added_path_length_mm(turned[0], turned[1]) == pytest.approx(16 * 1.5)


def test_missed_and_false_tumours_are_counted() -> None:
    reference, prediction = np.zeros((30, 10, 10), dtype=bool), np.zeros((30, 10, 10), dtype=bool)
    reference[1:4, 1:4, 1:4] = reference[10:13, 1:4, 1:4] = reference[13, 4, 4] = True
    prediction[3:6, 3:6, 3:6] = prediction[20:22, 1:3, 1:3] = prediction[26:28, 1:3, 1:3] = True
    # The voxel at its corner belongs to the second tumour.
    assert count_tumours(reference, prediction) == (2, 1, 2)
    assert count_tumours(prediction, reference) == (3, 2, 1)
    assert count_tumours(reference, np.zeros_like(reference)) == (2, 2, 0)
    assert count_tumours(np.zeros_like(reference), np.zeros_like(reference)) == (0, 0, 0)


def test_mask_at_the_border_of_its_grid_scores_as_inside_a_larger_grid() -> None:
    reference, prediction = blob(3), blob(4)
    wider = [np.pad(mask, 4) for mask in (reference, prediction)]
    tight, padded = (
        score_case("a", *(volume_of(mask, STRUCTSEG_MM) for mask in pair)) for pair in ((reference, prediction), wider)
    )
    assert tight == padded


def test_two_empty_masks_are_not_a_missed_case() -> None:
    empty = volume_of(np.zeros((5, 5, 5), dtype=bool), (1.0, 1.0, 1.0))
    assert not score_case("a", empty, empty).missed


def test_score_is_the_same_in_every_orientation() -> None:
    reference, prediction = (volume_of(blob(seed), STRUCTSEG_MM) for seed in (1, 2))
    turned = score_case("a", reference.reoriented("PIR"), prediction.reoriented("PIR"))
    straight = score_case("a", reference, prediction)
    assert [turned.dsc, turned.hd95_mm] == pytest.approx([straight.dsc, straight.hd95_mm], rel=1e-6)


def test_masks_on_different_grids_are_refused() -> None:
    reference = volume_of(blob(1), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="do not share a grid"):
        score_case("a", reference, volume_of(blob(1), (1.0, 1.0, 1.1)))


def test_sheared_grid_is_refused() -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.3
    tilted = Volume(blob(1).astype(np.uint8), affine)
    with pytest.raises(GeometryError, match="sheared"):
        score_case("a", tilted, tilted)


def test_incompatible_masks_are_refused() -> None:
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(InputError, match="bool"):
        dice(mask.astype(np.uint8), mask)
    with pytest.raises(GeometryError, match="shape"):
        dice(mask, mask[:2])
    with pytest.raises(GeometryError, match="spacing"):
        hd95_mm(mask, mask, (1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="tolerance"):
        nsd(mask, mask, (1.0, 1.0, 1.0), float("nan"))


@pytest.mark.parametrize(
    ("spacing_mm", "tolerance_mm"),
    [((0.9, 0.9, 1.5), 1.0), (STRUCTSEG_MM, 2.0), ((4.0, 4.0, 2.5), 5.0), ((1.0, 1.0, 12.0), 5.0)],
)
def test_tolerance_is_the_finest_above_half_a_voxel(
    spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    assert nsd_tolerance_mm(spacing_mm) == tolerance_mm
