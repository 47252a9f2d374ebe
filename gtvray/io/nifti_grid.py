"""Where a NIfTI header puts its voxels: the quaternion (qform), the matrix (sform) and the spacing must say the same.

Readers differ in which of them they believe, so a header in which they differ has its mask drawn in one place and shown
in another. Such a header is refused; see docs/decisions/0008-contradicting-headers.md.
"""

from __future__ import annotations

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from gtvray.errors import GeometryError
from gtvray.geometry import SPACING_RANGE_MM, by_text, furthest_corner_mm, is_sheared

# The spatial part of xyzt_units. Unknown (0) and undefined ones are millimetres, as ITK and nibabel read them.
_UNITS_MM = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
_MOST_CODE = 5
# A quaternion of float32 near half a turn is good to 2e-4 of the distance from the origin.
_LEAST_APART_MM = 0.2
_MOST_APART_VOXELS = 0.5
# Headers written with two or three digits are right to half a per cent.
_SPACING_TOLERANCE = 0.01
_DO_ALIKE = "find out which is right and write both alike"


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # what is not finite is refused, not warned about
def header_affine(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """Voxel indices to RAS millimetres: the sform if it has a code, else the qform.

    Raises:
        GeometryError: neither has a code, or what the header says of spacing and place is absurd or contradicts itself.
    """
    sform_code, qform_code = (_code(header, name, where) for name in ("sform_code", "qform_code"))
    if not sform_code and not qform_code:
        raise GeometryError(
            "the header does not say where the voxels are",
            where=where,
            expected="sform_code or qform_code > 0",
            found="both 0",
            do="export the volume again from where it came from",
        )
    unit, factor = _UNITS_MM.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))
    to_mm = np.diag([factor, factor, factor, 1.0])
    spacing_mm = _pixdim(header, where) * factor
    sform = to_mm @ header.get_sform() if sform_code else None
    qform = to_mm @ _qform(header, where) if qform_code else None
    if sform is not None:
        _check_spacing(sform, spacing_mm, where)
    if sform is not None and qform is not None:
        _check_alike(sform, qform, header, where)
    low, high = SPACING_RANGE_MM
    if not low <= spacing_mm.min() <= spacing_mm.max() <= high:
        raise GeometryError(
            "voxel spacing is not plausible",
            where=where,
            expected=f"{low} to {high} mm on each axis",
            found=f"{by_text(spacing_mm / factor)} in {unit} (pixdim, xyzt_units)",
            do="export the volume again with its spacing in millimetres",
        )
    affine: NDArray[np.float64] = qform if sform is None else sform  # type: ignore[assignment]
    return affine


def _code(header: Nifti1Header, name: str, where: object) -> int:
    code = int(header[name])
    if not 0 <= code <= _MOST_CODE:
        raise GeometryError(f"{name} is not one there is", where=where, expected=f"0 to {_MOST_CODE}", found=code)
    return code


def _pixdim(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """Spacing along i, j, k in the header's unit; a negative one, which the standard does not know, counts as positive.

    It is needed with an sform too: programs that take directions from there take the spacing from here.
    """
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        raise GeometryError(
            "voxel spacing is zero or not finite",
            where=where,
            expected="pixdim[1] to pixdim[3] > 0",
            found=by_text(pixdim),
            do="write the spacing into pixdim, or export the volume again",
        )
    return np.abs(pixdim)


def _qform(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """The quaternion's affine; as the standard has it, a handedness (qfac) of 0 is 1."""
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise GeometryError(
            "the header's quaternion is no rotation",
            where=where,
            found=[float(header[f"quatern_{axis}"]) for axis in "bcd"],
            do="export the volume again from where it came from",
        ) from error


def _check_spacing(sform: NDArray[np.float64], spacing_mm: NDArray[np.float64], where: object) -> None:
    """Hold pixdim against the sform; on a sheared grid it may be measured along an axis or between the planes."""
    along = np.linalg.norm(sform[:3, :3], axis=0)
    try:
        between = 1.0 / np.linalg.norm(np.linalg.inv(sform[:3, :3]), axis=1)
    except np.linalg.LinAlgError:
        between = along
    if not (
        (spacing_mm <= along * (1 + _SPACING_TOLERANCE)).all()
        and (spacing_mm >= between * (1 - _SPACING_TOLERANCE)).all()
    ):
        raise GeometryError(
            "pixdim and sform give different voxel spacings",
            where=where,
            expected="the same from both; some programs use the one, some the other",
            found=f"{by_text(spacing_mm)} mm in pixdim, {by_text(along)} mm in the sform",
            do=_DO_ALIKE,
        )


def _check_alike(sform: NDArray[np.float64], qform: NDArray[np.float64], header: Nifti1Header, where: object) -> None:
    """Hold qform against sform, whatever their codes: some readers believe the one, some the other.

    A quaternion cannot hold shear: beside a sheared sform it may be the rotation nearest to it.
    """
    shape = header.get_data_shape()
    apart = furthest_corner_mm(sform, qform, shape)
    most = max(_LEAST_APART_MM, _MOST_APART_VOXELS * float(np.linalg.norm(sform[:3, :3], axis=0).min()))
    if not apart <= most and is_sheared(sform):
        # Held to it closely, or damage that looks like shear would pass.
        apart, most = furthest_corner_mm(_without_shear(sform, qform), qform, shape), _LEAST_APART_MM
    if not apart <= most:
        codes = f"qform_code {int(header['qform_code'])}, sform_code {int(header['sform_code'])}"
        raise GeometryError(
            "qform and sform place the voxels differently",
            where=where,
            expected="the same place from both; some programs use the one, some the other",
            found=f"{apart:.1f} mm apart ({codes})",
            do=_DO_ALIKE + ", or set the wrong one's code to 0",
        )


def _without_shear(sform: NDArray[np.float64], qform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sform with its directions turned to the nearest ones at right angles, and the qform's spacing."""
    left, _, right = np.linalg.svd(sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0))
    nearest = sform.copy()
    nearest[:3, :3] = left @ right * np.linalg.norm(qform[:3, :3], axis=0)
    return nearest
