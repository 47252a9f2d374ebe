"""The kinds of findings: a stable code for each, with severity, meaning and advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: an error prevents training, a warning should be reviewed, an info needs no action.
        meaning: what the finding states, as in the guide.
        advice: what the owner of the data should do.
    """

    severity: Severity
    meaning: str
    advice: str


KINDS: dict[str, Kind] = {
    "scan.unreadable": Kind("error", "the scan's file is damaged or not a volume", "export it again"),
    "scan.not_hu": Kind(
        "error", "the values are not Hounsfield units", "export the CT with its rescale slope and intercept applied"
    ),
    "scan.same": Kind(
        "error", "two cases have identical voxels, possibly stored differently", "keep one of the two cases"
    ),
    "leak.same": Kind(
        "error", "identical voxels in two parts of a split", "remove one: scores on memorised cases are too high"
    ),
    "label.missing": Kind("error", "the case has no mask, although others have", "add it or move the case away"),
    "label.unreadable": Kind("error", "the mask's file is damaged or not a volume", "export it again"),
    "label.other_grid": Kind("error", "the mask is on another grid than the scan", "export both from one series"),
    "label.not_labels": Kind(
        "error",
        "the mask has values that are not labels: fractional or negative",
        "save the labels as unsigned integers, without scaling in the header",
    ),
    "label.not_binary": Kind("error", "the mask has other values than 0 and 1", "keep one structure"),
    "label.empty": Kind("error", "the mask has no voxel", "contour it, or move the case away"),
    "label.misplaced": Kind(
        "error",
        "most of the tumour is outside the body",
        "check whether the mask is flipped, shifted or that of another case",
    ),
    "correction.kept_apart": Kind(
        "warning",
        "a corrected mask belongs to a selection or held-out case",
        "none: it is not trained on; to train on it, change the split before any model is scored",
    ),
    "scan.alike": Kind(
        "warning",
        "two scans look like copies: resampled, cropped, mirrored or with noise",
        "compare both and keep one if they are the same scan",
    ),
    "leak.alike": Kind(
        "warning",
        "scans in two parts of a split look like copies of each other",
        "compare both; a scan must be in one part only",
    ),
    "scan.hu_shifted": Kind("warning", "soft tissue has implausible Hounsfield units", "check the rescale intercept"),
    "scan.clipped": Kind("warning", "bone is clipped at one value", "export the CT with its full range"),
    "scan.slices_missing": Kind(
        "warning",
        "two neighbouring slices differ more than their distance explains",
        "count the slices of the series",
    ),
    "scan.slice_repeated": Kind("warning", "a slice is repeated", "remove the copy and check the slice positions"),
    "scan.cut_near_tumour": Kind(
        "warning", "the field of view cuts the body beside the tumour", "reconstruct with a wider field of view"
    ),
    "scan.turned": Kind(
        "warning", "the anatomy contradicts the stored orientation", "inspect the scan, then correct its header"
    ),
    "grid.sheared": Kind("warning", "the axes are not orthogonal (gantry tilt)", "distances are not scored on it"),
    "grid.spacing": Kind("warning", "the spacing is unusual for a planning CT", "compare it with the scanner's"),
    "grid.body_size": Kind("warning", "the body does not have a human size", "check the spacing in the header"),
    "label.stray_component": Kind("warning", "a small component far from the rest", "erase it if it is a slip"),
    "label.holes": Kind("warning", "a hole inside the tumour", "fill it if it is a slip"),
    "label.slice_skipped": Kind("warning", "a slice without a contour between two with one", "add the missing contour"),
    "label.one_slice": Kind("warning", "the tumour is in one slice only", "check whether contours are missing"),
    "label.at_border": Kind("warning", "the tumour touches the border of the scan", "check whether the scan is cut"),
    "label.outside_body": Kind("warning", "part of the tumour is outside the body", "check the contour"),
    "label.in_air": Kind("warning", "much of the tumour is air or lung", "check the position of the contour"),
    "label.in_bone": Kind("warning", "most of the tumour is bone", "check the position of the contour"),
    "label.volume": Kind("warning", "the tumour's volume is implausible", "check the contour and the spacing"),
    "label.same": Kind(
        "warning", "two cases of different scans have the same mask", "check which case the mask belongs to"
    ),
    "scan.cut": Kind("info", "the field of view cuts the body, away from the tumour", "none if this is intended"),
    "label.rounded": Kind(
        "info",
        "the mask's values differ from integers by up to 0.001 and are rounded",
        "save the mask again as unsigned integers: other programs may read other labels",
    ),
    "label.specks": Kind("info", "tiny components beside the tumour", "smooth the contour if they matter"),
}


@dataclass(frozen=True)
class Finding:
    """An observation about a case, for the owner of the data.

    Attributes:
        severity: severity of its kind.
        case_id: the case.
        code: its kind, a stable name such as "label.stray_component".
        message: one sentence, without paths.
        advice: what to do.
        slice_index: index of the slice in the file, from 0; None if the finding has no slice.
        place_ras_mm: position in patient millimetres; None if the finding has none.
    """

    severity: Severity
    case_id: str
    code: str
    message: str
    advice: str
    slice_index: int | None = None
    place_ras_mm: tuple[float, float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def where(self) -> str:
        """Slice and position as text; empty if there is neither."""
        parts = [] if self.slice_index is None else [f"slice {self.slice_index}"]
        if self.place_ras_mm is not None:
            parts.append("({:.0f}, {:.0f}, {:.0f}) mm".format(*self.place_ras_mm))
        return ", ".join(parts)


def finding(
    code: str,
    case_id: str,
    message: str,
    *,
    advice: str | None = None,
    slice_index: int | None = None,
    place_ras_mm: tuple[float, float, float] | None = None,
) -> Finding:
    """Make a finding, with the advice of its kind by default."""
    kind = KINDS[code]
    return Finding(kind.severity, case_id, code, message, advice or kind.advice, slice_index, place_ras_mm)


def sort_findings(findings: list[Finding], case_order: dict[str, int]) -> list[Finding]:
    """Sort findings by severity, case, code and slice; those without a slice are last."""
    codes = list(KINDS)
    return sorted(
        findings,
        key=lambda each: (
            SEVERITIES.index(each.severity),
            case_order[each.case_id],
            codes.index(each.code),
            (each.slice_index is None, each.slice_index or 0),
        ),
    )
