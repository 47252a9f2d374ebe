"""Affines: spacing, orientation and validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gtvray.errors import GeometryError
from gtvray.geometry import check_affine, is_sheared, orientation_codes, orthogonal_grid, spacing_from_affine

ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)
SPACINGS = st.tuples(*[st.floats(0.5, 5)] * 3)
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def _affine(angles: tuple[float, ...], spacing_mm: tuple[float, ...], tilt: float = 0.0, mirror: int = 1) -> np.ndarray:
    affine = np.eye(4)
    shear = np.array([[1, 0, 0], [0, 1, tilt], [0, 0, 1]])
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ shear @ np.diag(spacing_mm)
    affine[:3, 0] *= mirror
    affine[:3, 3] = -120, 45.5, 300
    return affine


@given(ANGLES, SPACINGS, st.sampled_from([1, -1]))
def test_rotation_and_mirroring_preserve_spacing_and_right_angles(angles, spacing_mm, mirror) -> None:
    affine = _affine(angles, spacing_mm, mirror=mirror)
    assert spacing_from_affine(affine) == pytest.approx(spacing_mm)
    assert not is_sheared(affine)
    assert not is_sheared(affine.astype(np.float32).astype(np.float64))
    assert is_sheared(_affine(angles, spacing_mm, tilt=0.01, mirror=mirror))


@pytest.mark.parametrize(
    ("axes", "codes"),
    [([1, 1, 1], "RAS"), ([-1, -1, 1], "LPS"), ([-1, -1, -1], "LPI"), ([1, -1, 1], "RPS")],
)
def test_orientation_codes_are_the_nearest_directions(axes: list[int], codes: str) -> None:
    assert orientation_codes(np.diag([*axes, 1.0])) == codes
    # A head tilted by 30 degrees keeps its codes.
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("x", 30, degrees=True).as_matrix()
    assert orientation_codes(tilt @ np.diag([*axes, 1.0])) == codes


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.full((4, 4), np.nan),
        np.diag([1, 1, np.inf, 1]),
        np.diag([1.0, 1, 1, 2]),
        np.diag([0.0, 1, 1, 1]),
        np.diag([0.049, 1, 1, 1]),
        np.diag([1, 1, 20.1, 1]),
        np.array([[1, 1, 0, 0], [1, 1.05, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_invalid_affine_is_rejected(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError) as caught:
        check_affine(affine, "scan.nii")
    assert caught.value.fields["where"] == "scan.nii"


@given(ANGLES)
def test_rotated_affine_with_spacing_at_the_limit_is_accepted(angles) -> None:
    check_affine(_affine(angles, (0.05, 20.0, 20.0)))


def test_implausible_origin_is_rejected() -> None:
    affine = np.eye(4)
    affine[1, 3] = -99_000
    check_affine(affine)
    affine[1, 3] = -1e30
    with pytest.raises(GeometryError, match="origin") as caught:
        check_affine(affine)
    assert caught.value.fields["found"] == "0 x -1e+30 x 0 mm"


@given(ANGLES, SPACINGS, st.floats(-0.6, 0.6), st.sampled_from([1, -1]), SHAPES)
def test_orthogonal_grid_covers_the_sheared_grid(angles, spacing_mm, tilt, mirror, shape) -> None:
    affine = _affine(angles, spacing_mm, tilt, mirror)
    upright, size = orthogonal_grid(affine, shape)
    assert not is_sheared(upright)
    assert spacing_from_affine(upright) == pytest.approx(spacing_from_affine(affine))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    inside = np.linalg.solve(upright, affine @ np.vstack([corners, np.ones(8)]))[:3]
    assert inside.min() > -1e-6
    assert (inside.max(axis=1) <= np.array(size) - 1 + 1e-5).all()
    assert ((upright[:3, :3] * affine[:3, :3]).sum(axis=0) > 0).all(), "no axis is reversed"
    # Not larger than needed, and the slices stay in their plane.
    assert (np.array(size) - 2 < inside.max(axis=1)).all()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    assert abs(normal @ upright[:3, 0]) + abs(normal @ upright[:3, 1]) < 1e-6
