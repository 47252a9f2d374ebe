"""What a check can find: a stable code for each kind, with its severity, its meaning and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: an error stops training; a warning wants a look; an info is worth knowing.
        meaning: what was seen, for the list in the guide.
        advice: the next step for the owner of the data.
    """

    severity: Severity
    meaning: str
    advice: str


KINDS: dict[str, Kind] = {
    "scan.unreadable": Kind("error", "the scan's file is damaged or not a volume", "export it again"),
    "scan.not_hu": Kind(
        "error", "the values are no Hounsfield units", "export the CT with its rescale slope and intercept applied"
    ),
    "scan.same": Kind(
        "error", "two cases have the same voxels, whatever the file looks like", "keep one of the two cases"
    ),
    "leak.same": Kind(
        "error", "the same voxels on two sides of a split", "remove one: what is learned by heart looks like skill"
    ),
    "label.missing": Kind("error", "the case has no mask, though others have", "add it or move the case away"),
    "label.unreadable": Kind("error", "the mask's file is damaged or not a volume", "export it again"),
    "label.other_grid": Kind("error", "the mask lies on another grid than the scan", "export both from one series"),
    "label.not_labels": Kind(
        "error",
        "the mask holds values that are no labels: fractions, or below 0",
        "save the labels as unsigned integers, without scaling in the header",
    ),
    "label.not_binary": Kind("error", "the mask holds other values than 0 and 1", "keep one structure"),
    "label.empty": Kind("error", "the mask has no voxel", "draw it, or move the case away"),
    "label.misplaced": Kind(
        "error", "most of the tumour lies outside the body", "look whether the mask is flipped, shifted or another's"
    ),
    "scan.alike": Kind(
        "warning",
        "two scans look like copies: resampled, cropped, mirrored or with noise",
        "look at both and keep one if they are one scan",
    ),
    "leak.alike": Kind(
        "warning",
        "scans on two sides of a split look like copies of each other",
        "look at both; one scan must not stand on two sides",
    ),
    "scan.hu_shifted": Kind(
        "warning", "soft tissue is not where it is in Hounsfield units", "look at the rescale intercept"
    ),
    "scan.clipped": Kind("warning", "bone is cut off at one value", "export the CT with its full range"),
    "scan.slices_missing": Kind(
        "warning", "two neighbouring slices differ more than their place explains", "count the slices of the series"
    ),
    "scan.slice_repeated": Kind("warning", "a slice stands there twice", "remove the copy and look at the positions"),
    "scan.cut_near_tumour": Kind(
        "warning", "the field of view cuts the body beside the tumour", "reconstruct with a wider field of view"
    ),
    "scan.turned": Kind(
        "warning", "the anatomy contradicts the stored orientation", "look at the scan; then mend its header"
    ),
    "grid.sheared": Kind("warning", "the axes are not at right angles (gantry tilt)", "distances are not scored on it"),
    "grid.spacing": Kind("warning", "the spacing is unusual for a planning CT", "compare it with the scanner's"),
    "grid.body_size": Kind("warning", "the body is of no human size", "look at the spacing in the header"),
    "label.stray_component": Kind("warning", "a small island far from the rest", "erase it, if it is a slip"),
    "label.holes": Kind("warning", "a hole inside the tumour", "fill it, if it is a slip"),
    "label.slice_skipped": Kind("warning", "a slice without a contour between two with one", "draw the missing one"),
    "label.one_slice": Kind("warning", "the tumour is in one slice only", "look whether contours are missing"),
    "label.at_border": Kind("warning", "the tumour touches the border of the scan", "look whether the scan is cut"),
    "label.outside_body": Kind("warning", "part of the tumour lies outside the body", "look at the contour"),
    "label.in_air": Kind("warning", "much of the tumour is air or lung", "look at the contour's place"),
    "label.in_bone": Kind("warning", "most of the tumour is bone", "look at the contour's place"),
    "label.volume": Kind("warning", "the tumour's volume is implausible", "look at the contour and the spacing"),
    "label.same": Kind("warning", "two cases of different scans have the same mask", "look whose mask it is"),
    "scan.cut": Kind("info", "the field of view cuts the body, away from the tumour", "nothing, if it was meant so"),
    "label.rounded": Kind(
        "info",
        "the mask's values are up to 0.001 beside whole numbers and are taken for these",
        "save the mask again as unsigned integers: other programs may read other labels",
    ),
    "label.specks": Kind("info", "tiny islands beside the tumour", "smooth the contour, if they matter"),
}


@dataclass(frozen=True)
class Finding:
    """Something the owner of the data should know.

    Attributes:
        severity: of its kind.
        case_id: the case concerned.
        code: its kind, a stable name such as "label.stray_component".
        message: one sentence, without paths.
        advice: the next step.
        slice_index: where to look: number of the slice in the file, from 0; None where no slice is meant.
        place_ras_mm: where to look, in patient millimetres.
    """

    severity: Severity
    case_id: str
    code: str
    message: str
    advice: str
    slice_index: int | None = None
    place_ras_mm: tuple[float, float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def where(self) -> str:
        """Slice and place as people read them; empty where there is none."""
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
    """A finding of a kind, with the kind's advice unless there is a better one."""
    kind = KINDS[code]
    return Finding(kind.severity, case_id, code, message, advice or kind.advice, slice_index, place_ras_mm)


def sort_findings(findings: list[Finding], case_order: dict[str, int]) -> list[Finding]:
    """Errors first; then in the order of the cases, of the codes, of the slices, those without a slice last."""
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
