"""The part of a scan that golden cases store: a ball without skin, tested on real heads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from gtvray.config import PreprocessingConfig
from gtvray.errors import DataError
from gtvray.evaluation.interior import LARGEST_RADIUS_MM, SKIN_MM, find_interior, keep_interior
from gtvray.geometry import Box, Volume
from gtvray.io import read_volume
from gtvray.preprocessing import AIR_HU, prepare

TISSUE_HU = -300
# Fixation masks and table tops are thinner than this; what lies behind them is the patient.
SHELL_MM = 5.0


def seen_from_outside(scan: Volume) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Yield the first tissue voxels on straight lines from outside, for directions around the head in degrees.

    An independent definition of the surface that a rendering shows: nothing is smoothed, and no component is chosen.
    """
    upright = scan.reoriented("RAS")
    step = max(1, round(SHELL_MM / upright.spacing_mm[0]))
    tissue = upright.array > TISSUE_HU
    for degrees in range(0, 360, 45):
        turned = turn(tissue, degrees)
        # Lines run along the second axis, away from its end: at 0 degrees from the front.
        solid = turned & np.roll(turned, step, axis=1) if step > 1 else turned
        line = solid[:, ::-1]
        first = np.zeros_like(line)
        hits = line.argmax(axis=1)
        np.put_along_axis(first, hits[:, None], line.any(axis=1)[:, None], axis=1)
        yield first[:, ::-1], degrees


def turn(array: NDArray[np.bool_], degrees: int) -> NDArray[np.bool_]:
    """Rotate a volume about the axis from head to feet."""
    if degrees % 90 == 0:
        return np.rot90(array, degrees // 90)
    return np.asarray(ndimage.rotate(array, degrees, axes=(0, 1), reshape=True, order=0))


def kept_in(scan: Volume, part: Volume) -> NDArray[np.bool_]:
    """Return the tissue voxels of a scan that are kept in a part of it, in RAS."""
    placed = part.placed_on(scan, AIR_HU).reoriented("RAS").array
    return np.asarray((placed == scan.reoriented("RAS").array) & (placed > TISSUE_HU))


def shows_face(scan: Volume, kept: NDArray[np.bool_], directions: int = 8) -> int:
    """Return the number of kept voxels that are visible from outside, for directions starting at the front."""
    surfaces = islice(seen_from_outside(scan), directions)
    return sum(int(np.count_nonzero(turn(kept, degrees) & first)) for first, degrees in surfaces)


def require_ball(scan: Volume, mask: NDArray[np.uint8], part: Volume) -> None:
    """Require that the part is a ball of original voxels surrounded by air."""
    centre, radius = find_interior(scan, mask)
    assert radius <= LARGEST_RADIUS_MM
    offsets = (np.moveaxis(np.indices(scan.shape), 0, -1) - centre) @ scan.affine[:3, :3].T
    inside = np.linalg.norm(offsets, axis=-1) <= radius
    assert np.array_equal(part.placed_on(scan, AIR_HU).array, np.where(inside, scan.array, AIR_HU))


def nasopharynx_of(cranium: Volume) -> NDArray[np.uint8]:
    """A mask of 20 mm in the airway behind the nose of `head_ct/cranium.nii.gz`."""
    upright = cranium.with_array(np.zeros(cranium.shape, np.uint8)).reoriented("RAS")
    mask = np.zeros(upright.shape, np.uint8)
    i, j, k = (round(share * n) for share, n in zip((0.5, 0.6, 0.15), upright.shape, strict=True))
    mask[i - 10 : i + 10, j - 10 : j + 10, k - 7 : k + 7] = 1
    return upright.with_array(mask).placed_on(cranium, 0).array


def test_no_surface_of_a_real_head_is_kept(shared_data: Path) -> None:
    scan = read_volume(shared_data / "head_ct" / "cranium.nii.gz")
    mask = nasopharynx_of(scan)
    part = keep_interior(scan, mask)
    require_ball(scan, mask, part)
    kept = kept_in(scan, part)
    assert np.count_nonzero(kept) * scan.voxel_volume_ml > 100
    # A line through a nostril meets the wall of the nasal cavity, 40 mm behind the skin.
    assert shows_face(scan, kept) < 10
    # The scan within 50 mm of the mask, as earlier versions stored it, does show the face.
    box = Box.around(mask)
    assert box is not None
    margin = [round(50 / spacing) for spacing in scan.spacing_mm]
    crop = scan.cropped(box.grown((margin[0], margin[1], margin[2]), scan.shape))
    assert shows_face(scan, kept_in(scan, crop), directions=1) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pt_1", "pt_100"])
def test_no_surface_of_a_planning_scan_is_kept(real_cases: Path, case: str) -> None:
    scan, label = (read_volume(real_cases / case / f"{name}.nii.gz") for name in ("data", "label"))
    part = keep_interior(scan, label.array)
    require_ball(scan, label.array, part)
    kept = kept_in(scan, part)
    first, _ = next(seen_from_outside(scan))
    apart_mm = ndimage.distance_transform_edt(~first, sampling=scan.reoriented("RAS").spacing_mm)[kept]
    assert apart_mm.min() >= SKIN_MM, "from the front"
    assert shows_face(scan, kept) == 0
    within = label.placed_on(part, 0).array > 0
    assert np.count_nonzero(within & (part.array > AIR_HU)) * scan.voxel_volume_ml > 10, "the ball is at the tumour"
    prepare(part, PreprocessingConfig())


def test_mask_at_the_skin_moves_the_ball_inwards_and_none_keeps_the_centre() -> None:
    """A ball of tissue of 80 mm radius in air."""
    index = np.indices((90, 90, 90)) * 2.0 - 90
    apart = np.linalg.norm(index, axis=0)
    scan = Volume(np.where(apart < 80, 40, -1000).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    near = ((index[0] > 60) & (apart < 78)).astype(np.uint8)
    for mask, nearest_mm, furthest_mm in ((near, 20.0, 40.0), (np.zeros_like(near), 0.0, 4.0)):
        part = keep_interior(scan, mask)
        require_ball(scan, mask, part)
        kept = part.placed_on(scan, AIR_HU).array == 40
        assert apart[kept].max() <= 80 - SKIN_MM
        middle = index[:, kept].mean(axis=1)
        assert nearest_mm <= np.linalg.norm(middle) <= furthest_mm
    small = Volume(scan.array, np.diag([0.6, 0.6, 0.6, 1.0]))
    with pytest.raises(DataError, match="far enough from the skin"):
        keep_interior(small, near)


def test_air_behind_a_fixation_mask_and_in_a_nostril() -> None:
    """The shell around the air before the skin is not taken for skin, and an airway is not taken for outside."""
    index = np.indices((100, 100, 100)) * 2.0 - 100
    apart = np.linalg.norm(index, axis=0)
    tissue = (apart < 70) | ((apart > 84) & (apart < 87))
    airway = np.hypot(index[0], index[2]) < 4
    hu = np.where(tissue & ~(airway & (index[1] > -20)), 40, -1000).astype(np.int16)
    scan = Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    part = keep_interior(scan, np.zeros(hu.shape, np.uint8))
    kept = part.placed_on(scan, 0).array != AIR_HU
    kept &= part.placed_on(scan, AIR_HU).array == hu
    inside = kept & (hu == 40)
    assert apart[inside].max() <= 70 - SKIN_MM + 2
    assert np.linalg.norm(index[:, inside].mean(axis=1)) < 5, "the airway does not push the ball aside"
