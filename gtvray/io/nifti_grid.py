"""The affine of a NIfTI header: quaternion (qform), matrix (sform) and spacing (pixdim) must agree.

Programs differ in which of them they use, so with a contradicting header a mask is drawn at one position and displayed
at another. Such a header is refused; see docs/decisions/0008-contradicting-headers.md.
"""

from __future__ import annotations

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from gtvray.errors import GeometryError
from gtvray.geometry import SPACING_RANGE_MM, by_text, furthest_corner_mm, is_sheared
from gtvray.io.stream import DO_EXPORT

# The spatial part of xyzt_units. Unknown (0) and undefined ones are millimetres, as ITK and nibabel read them.
_UNITS_MM = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
_MOST_CODE = 5
# A float32 quaternion near 180 degrees is accurate to 2e-4 of the distance from the origin.
_LEAST_APART_MM = 0.2
_MOST_APART_VOXELS = 0.5
# Headers written with two or three digits are accurate to half a percent.
_SPACING_TOLERANCE = 0.01
_DO_AGREE = "find out which is correct and set both to it"


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # non-finite values raise an error instead
def header_affine(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """The affine from voxel indices to RAS millimetres: the sform if its code is set, otherwise the qform.

    Raises:
        GeometryError: neither code is set, or spacing and affine are implausible or contradict each other.
    """
    sform_code, qform_code = (_code(header, name, where) for name in ("sform_code", "qform_code"))
    if not sform_code and not qform_code:
        raise GeometryError(
            "header has no affine",
            where=where,
            expected="sform_code or qform_code > 0",
            found="both 0",
            do=DO_EXPORT,
        )
    unit, factor = _UNITS_MM.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))
    to_mm = np.diag([factor, factor, factor, 1.0])
    spacing_mm = _pixdim(header, where) * factor
    sform = to_mm @ header.get_sform() if sform_code else None
    qform = to_mm @ _qform(header, where) if qform_code else None
    if sform is not None:
        _check_spacing(sform, spacing_mm, where)
    if sform is not None and qform is not None:
        _check_agreement(sform, qform, header, where)
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
        raise GeometryError(f"{name} is undefined", where=where, expected=f"0 to {_MOST_CODE}", found=code)
    return code


def _pixdim(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """Spacing along i, j, k in the header's unit; the sign of a (non-standard) negative spacing is ignored.

    Required beside an sform too, because some programs combine the sform's directions with this spacing.
    """
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        raise GeometryError(
            "voxel spacing is zero or not finite",
            where=where,
            expected="pixdim[1] to pixdim[3] > 0",
            found=by_text(pixdim),
            do="set pixdim to the spacing, or export the volume again",
        )
    return np.abs(pixdim)


def _qform(header: Nifti1Header, where: object) -> NDArray[np.float64]:
    """The affine of the quaternion; a handedness (qfac) of 0 means 1, as in the standard."""
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise GeometryError(
            "quaternion is not a rotation",
            where=where,
            found=[float(header[f"quatern_{axis}"]) for axis in "bcd"],
            do=DO_EXPORT,
        ) from error


def _check_spacing(sform: NDArray[np.float64], spacing_mm: NDArray[np.float64], where: object) -> None:
    """Check pixdim against the sform; on a sheared grid it may be measured along an axis or between the planes."""
    along_mm = np.linalg.norm(sform[:3, :3], axis=0)
    try:
        between_mm = 1.0 / np.linalg.norm(np.linalg.inv(sform[:3, :3]), axis=1)
    except np.linalg.LinAlgError:
        between_mm = along_mm
    if not (
        (spacing_mm <= along_mm * (1 + _SPACING_TOLERANCE)).all()
        and (spacing_mm >= between_mm * (1 - _SPACING_TOLERANCE)).all()
    ):
        raise GeometryError(
            "pixdim and sform give different voxel spacings",
            where=where,
            expected="the same spacing in both, because programs differ in which one they use",
            found=f"{by_text(spacing_mm)} mm in pixdim, {by_text(along_mm)} mm in the sform",
            do=_DO_AGREE,
        )


def _check_agreement(
    sform: NDArray[np.float64], qform: NDArray[np.float64], header: Nifti1Header, where: object
) -> None:
    """Check qform against sform regardless of their codes, because programs differ in which one they use.

    A quaternion cannot represent shear: the qform of a sheared sform may be the nearest rotation.
    """
    shape = header.get_data_shape()
    apart_mm = furthest_corner_mm(sform, qform, shape)
    most_mm = max(_LEAST_APART_MM, _MOST_APART_VOXELS * float(np.linalg.norm(sform[:3, :3], axis=0).min()))
    if not apart_mm <= most_mm and is_sheared(sform):
        # A tight tolerance, because damage can look like shear.
        apart_mm, most_mm = furthest_corner_mm(_without_shear(sform, qform), qform, shape), _LEAST_APART_MM
    if not apart_mm <= most_mm:
        codes = f"qform_code {int(header['qform_code'])}, sform_code {int(header['sform_code'])}"
        raise GeometryError(
            "qform and sform give different voxel positions",
            where=where,
            expected="the same positions in both, because programs differ in which one they use",
            found=f"{apart_mm:.1f} mm apart ({codes})",
            do=_DO_AGREE + ", or set the code of the wrong one to 0",
        )


def _without_shear(sform: NDArray[np.float64], qform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sform with its directions replaced by the nearest orthogonal ones, and with the qform's spacing."""
    left, _, right = np.linalg.svd(sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0))
    nearest = sform.copy()
    nearest[:3, :3] = left @ right * np.linalg.norm(qform[:3, :3], axis=0)
    return nearest
