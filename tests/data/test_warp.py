"""Rotation, zoom and elastic deformation: correct in millimetres, and equal to interpolating the complete scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gtvray.data.patches.draws import Draw
from gtvray.data.patches.warp import Warp

ANGLES = (20.0, -35.0, 50.0)
SPACING_MM = (2.0, 3.0, 5.0)
ALL = Draw(angles_degrees=ANGLES, span_ijk=(1.2, 1.2, 1.2), elastic_mm=6.0, seed=3)
CASES = {
    "rotation": Draw(angles_degrees=ANGLES),
    "zoom": Draw(span_ijk=(0.8, 1.3, 1.0)),
    "elastic": Draw(elastic_mm=6.0, seed=5),
    "all": ALL,
}


def _warp(draw: Draw, patch_ijk: tuple[int, int, int], spacing_mm: tuple[float, float, float] = SPACING_MM) -> Warp:
    return Warp.build(draw, patch_ijk, spacing_mm, grid_mm=20.0)


def _plain(scan: NDArray[np.float32], warp: Warp, centre_ijk: NDArray[np.float64], fill: float) -> NDArray[np.float32]:
    """The same by scipy, from the whole scan with a wide margin of `fill`."""
    half = (np.asarray(warp.patch_ijk) - 1) / 2
    offsets = np.indices(warp.patch_ijk).reshape(3, -1) - half[:, None]
    if warp.displacement is not None:
        offsets = offsets + warp.displacement.numpy().reshape(3, -1)
    places = warp.matrix @ offsets + centre_ijk[:, None] + 40
    wide = np.pad(scan.astype(np.float64), 40, constant_values=fill)
    return np.asarray(ndimage.map_coordinates(wide, places, order=1).reshape(warp.patch_ijk), dtype=np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("centre", [(15.0, 17.5, 12.0), (2.0, 30.0, 22.5)])
def test_a_warped_patch_is_the_interpolated_scan(name: str, centre: tuple[float, float, float]) -> None:
    """The region read is sufficient, and voxels outside the scan are those of its surroundings."""
    scan = np.random.default_rng(0).random((31, 35, 25), dtype=np.float32)
    warp, centre_ijk = _warp(CASES[name], (14, 11, 12)), np.array(centre)
    start, size = warp.region(centre_ijk, scan.shape)
    assert (start >= -1).all()
    assert (start + size <= np.array(scan.shape) + 1).all()
    box = tuple(slice(a + 1, a + 1 + n) for a, n in zip(start, size, strict=True))
    region = np.pad(scan, 1, constant_values=-1.0)[box]
    found = warp.sample(torch.from_numpy(region), centre_ijk - start)
    # Coordinates are float32 in an image of some hundred rows.
    np.testing.assert_allclose(found, _plain(scan, warp, centre_ijk, -1.0), atol=2e-4)


def test_the_region_read_is_minimal() -> None:
    """Without a change the region is the patch; turned by 90 degrees in the plane it is the patch on its side."""
    for draw, expected in ((Draw(), (14, 10, 12)), (Draw(angles_degrees=(0, 0, 90)), (10, 14, 12))):
        size = _warp(draw, (14, 10, 12), (2.0, 2.0, 2.0)).region(np.array([30.5, 30.5, 30.5]), (60, 60, 60))[1]
        assert (size - np.array(expected) <= 2).all()
        assert (size >= np.array(expected)).all()


def test_a_landmark_moves_correctly_in_millimetres() -> None:
    """On a grid of 2 x 3 x 5 mm: a rotation of indices would put it nearly a centimetre off."""
    offset_mm = np.array([14.0, -18.0, 15.0])
    shape, centre_ijk = (61, 61, 41), np.array([30.0, 30.0, 20.0])
    spots_mm = (np.indices(shape).reshape(3, -1).T - centre_ijk) * SPACING_MM
    blob = np.exp(-0.5 * ((spots_mm - offset_mm) ** 2).sum(axis=1) / 6.0**2).reshape(shape).astype(np.float32)
    turn = Rotation.from_euler("xyz", ANGLES, degrees=True).as_matrix()
    for span in (1.0, 1.25):
        warp = _warp(Draw(angles_degrees=ANGLES, span_ijk=(span, span, span)), (45, 45, 25))
        patch = warp.sample(torch.from_numpy(blob), centre_ijk).numpy()
        found_mm = (np.array(ndimage.center_of_mass(patch)) - (np.array(patch.shape) - 1) / 2) * SPACING_MM
        np.testing.assert_allclose(found_mm, turn.T @ offset_mm / span, atol=0.3)
        wrong_mm = turn.T @ (offset_mm / SPACING_MM) * SPACING_MM / span
        assert np.linalg.norm(wrong_mm - found_mm) > 8 / span


def test_nothing_drawn_is_nothing_changed() -> None:
    scan = torch.from_numpy(np.random.default_rng(1).random((20, 22, 24), dtype=np.float32))
    centre = np.array([9.5, 10.5, 11.5])
    expected = scan[2:18, 3:19, 4:20]
    still = Draw(angles_degrees=(0, 0, 0), span_ijk=(1, 1, 1))
    torch.testing.assert_close(_warp(still, (16, 16, 16)).sample(scan, centre), expected, atol=1e-6, rtol=0)
    # An elastic deformation of zero takes the same code path as a rotation.
    unmoved = _warp(Draw(elastic_mm=0.0), (16, 16, 16))
    torch.testing.assert_close(unmoved.sample(scan, centre), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("span", [0.8, 1.0, 1.3])
def test_a_mask_keeps_its_volume(span: float) -> None:
    """The volume of a rotated ball changes only by the zoom."""
    shape, radius = (60, 60, 60), 12.0
    centre = np.array([29.5, 29.5, 29.5])
    ball = ((np.indices(shape).reshape(3, -1).T - centre - 3.0) ** 2).sum(axis=1).reshape(shape) <= radius**2
    for angles in (ANGLES, (-10.0, 5.0, 0.0)):
        warp = _warp(Draw(angles_degrees=angles, span_ijk=(span, span, span)), (52, 52, 52), (2.0, 2.0, 2.0))
        patch = warp.sample(torch.from_numpy(ball.astype(np.float32)), centre) >= 0.5
        assert float(patch.sum()) == pytest.approx(ball.sum() / span**3, rel=0.02)


def test_elastic_displacements_are_smooth_and_within_their_limit() -> None:
    field = _warp(ALL, (40, 30, 20)).displacement
    assert field is not None
    moved_mm = field * torch.tensor(SPACING_MM).reshape(3, 1, 1, 1)
    assert moved_mm.abs().max() <= 6.0
    assert moved_mm.abs().max() > 3.0
    for axis, spacing in enumerate(SPACING_MM, start=1):
        # Between points 20 mm apart that differ by 12 mm at most.
        assert moved_mm.diff(dim=axis).abs().max() <= 12.0 / 20.0 * spacing + 1e-5
    again = _warp(ALL, (40, 30, 20)).displacement
    assert again is not None
    assert torch.equal(field, again)
