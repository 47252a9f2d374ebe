"""One reading of every case: its measurements, its findings, and the digests and profile that identify copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gtvray.datasets.checks.body import AXES, Sketch, make_sketch
from gtvray.datasets.checks.copies import Profile, body_profile, voxel_digest
from gtvray.datasets.checks.findings import Finding, finding
from gtvray.datasets.checks.labels import Mask, Tumour, check_label
from gtvray.datasets.checks.scans import check_cut, check_scan, check_units
from gtvray.datasets.layouts.cases import Case, as_binary, read_mask, require_not_empty, split_ending
from gtvray.errors import DataError, GeometryError, InputError, VolumeError
from gtvray.geometry import Volume, is_sheared
from gtvray.io import read_volume

# Two cases at a time bound the memory: each takes about 250 MB at 512 x 512 x 124.
_WORKERS = 2
LOWEST_HU, HIGHEST_HU = -1024, 3071

Counts = NDArray[np.int64]
Report = Callable[[int, int], None]
Draw = Callable[[Volume, Volume | None], bytes]


@dataclass(frozen=True)
class Facts:
    """Measurements of a readable case.

    Attributes:
        shape: voxels along the file's axes.
        spacing_mm: spacing along the file's axes.
        orientation: directions of the file's axes, such as "LPI".
        dtype: data type of the voxels after the header's scaling.
        suffix: ending of the file's name, such as ".nii.gz".
        sheared: whether the axes are not orthogonal.
        turned_deg: largest angle between an axis of the file and the nearest axis of the patient.
        hu_range: lowest and highest value.
        above_range: share of voxels above 3071 HU, the limit of 12 bits: metal on an extended scale.
        body_counts: histogram of the body's samples from -1024 to 3071 HU, one bin per HU; the end bins include values
            outside.
        tumour_counts: the same of all tumour voxels; None without a mask.
        tumour: measurements of the mask; None without a mask.
        from_body_mm: offset of the tumour's centre from the body's, to left, front and head.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    dtype: str
    suffix: str
    sheared: bool
    turned_deg: float
    hu_range: tuple[float, float]
    above_range: float
    body_counts: Counts
    tumour_counts: Counts | None = None
    tumour: Tumour | None = None
    from_body_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Survey:
    """Result of reading a case.

    Attributes:
        case_id: the case.
        findings: findings of this case alone.
        facts: measurements; None if the scan is unreadable or not in HU.
        digest, profile: digest and profile of the scan, to detect copies; None as `facts`.
        label_digest: digest of the mask; None without a valid mask.
        picture: result of `draw`.
    """

    case_id: str
    findings: list[Finding] = field(default_factory=list)
    facts: Facts | None = None
    digest: str | None = None
    profile: Profile | None = None
    label_digest: str | None = None
    picture: bytes | None = None


def survey_cases(cases: Sequence[Case], report: Report | None = None, draw: Draw | None = None) -> list[Survey]:
    """Read every case once, two at a time.

    Args:
        cases: cases with or without masks.
        report: called with (done, total) after each case.
        draw: draws a picture of scan and mask.
    """
    surveys = []
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        for survey in pool.map(lambda case: survey_case(case, draw), cases):
            surveys.append(survey)
            if report is not None:
                report(len(surveys), len(cases))
    finally:
        # Ctrl-C waits for the two cases in progress and drops the queued ones.
        pool.shutdown(cancel_futures=True)
    return surveys


def survey_case(case: Case, draw: Draw | None = None) -> Survey:
    """Read a case; every fault becomes a finding."""
    try:
        scan = read_volume(case.image)
    except InputError as error:
        return Survey(
            case.case_id,
            [finding("scan.unreadable", case.case_id, _error_message(error, case.image), advice=_advice(error))],
        )
    not_hu = check_units(case.case_id, scan, case.image.name)
    if not_hu is not None:
        return Survey(case.case_id, [not_hu])
    sketch = make_sketch(scan)
    findings = check_scan(case.case_id, scan, sketch)
    mask = None
    if case.label is not None:
        mask, label_findings = _read_mask(case, case.label, scan)
        findings += label_findings
    if mask is not None:
        findings += check_label(case.case_id, mask, scan, sketch)
    findings += check_cut(case.case_id, scan, None if mask is None else mask.in_slices())
    return Survey(
        case.case_id,
        findings,
        _facts(case, scan, sketch, mask),
        voxel_digest(scan),
        body_profile(sketch),
        None if mask is None else voxel_digest(mask.label),
        None if draw is None else draw(scan, None if mask is None else mask.label),
    )


def _facts(case: Case, scan: Volume, sketch: Sketch, mask: Mask | None) -> Facts:
    tumour = None if mask is None else mask.tumour()
    tumour_counts = None
    if mask is not None:
        tumour_counts = _counts(scan.reoriented(AXES).array[mask.box.slices][mask.cut])
    directions = np.abs(scan.affine[:3, :3] / scan.spacing_mm).max(axis=0)
    return Facts(
        shape=scan.shape,
        spacing_mm=scan.spacing_mm,
        orientation=scan.orientation,
        dtype=str(scan.array.dtype),
        suffix=(split_ending(case.image.name) or ("", case.image.suffix))[1],
        sheared=is_sheared(scan.affine),
        turned_deg=float(np.degrees(np.arccos(np.clip(directions.min(), 0, 1)))),
        hu_range=(float(scan.array.min()), float(scan.array.max())),
        above_range=float(np.count_nonzero(scan.array > HIGHEST_HU)) / scan.array.size,
        body_counts=_counts(sketch.hu[sketch.body]),
        tumour_counts=tumour_counts,
        tumour=tumour,
        from_body_mm=None if tumour is None else _from_body(scan, sketch, tumour),
    )


def _from_body(scan: Volume, sketch: Sketch, tumour: Tumour) -> tuple[float, float, float] | None:
    if not sketch.body.any():
        return None
    upright = scan.reoriented(AXES)
    middle = [
        float(np.average(np.arange(n), weights=sketch.body.sum(axis=tuple(o for o in range(3) if o != axis))))
        for axis, n in enumerate(sketch.body.shape)
    ]
    centre = upright.affine[:3, :3] @ (np.array(middle) * (*sketch.step_xy, 1)) + upright.affine[:3, 3]
    right, front, head = np.asarray(tumour.centre_ras_mm) - centre
    return -float(right), float(front), float(head)


def _counts(hu: NDArray[np.float32] | NDArray[np.int16]) -> Counts:
    inside = np.rint(np.clip(hu, LOWEST_HU, HIGHEST_HU)).astype(np.int64) - LOWEST_HU
    return np.asarray(np.bincount(inside, minlength=HIGHEST_HU - LOWEST_HU + 1), dtype=np.int64)


def _read_mask(case: Case, file: Path, scan: Volume) -> tuple[Mask | None, list[Finding]]:
    """Read the mask of one structure; None if a finding is an error."""
    findings: list[Finding] = []
    code = "label.not_labels"
    try:
        labels = read_mask(case, scan)
        if labels.note:
            findings.append(finding("label.rounded", case.case_id, f"{labels.note}, in {file.name}"))
        code = "label.not_binary"
        binary = as_binary(labels.volume, file)
        code = "label.empty"
        require_not_empty(labels, file)
        return Mask(binary), findings
    except InputError as error:
        if isinstance(error, GeometryError):
            code = "label.other_grid"
        elif not isinstance(error, DataError) or isinstance(error, VolumeError):
            code = "label.unreadable"
        return None, [*findings, finding(code, case.case_id, _error_message(error, file), advice=_advice(error))]


def _error_message(error: InputError, file: Path) -> str:
    """Format an error as one sentence with the file's name and without folders."""
    parts = [f"{name} {error.fields[name]}" for name in ("expected", "found") if name in error.fields]
    return f"{error.what}: {', '.join([*parts, f'in {file.name}'])}"


def _advice(error: InputError) -> str | None:
    return error.fields.get("do")
