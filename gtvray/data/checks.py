"""Holding every case of a dataset against what training and inference rely on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from gtvray.data.layouts import Case, Dataset, read_label
from gtvray.errors import DataError, GtvrayError, InputError
from gtvray.io import read_volume, sha256_of
from gtvray.preprocessing import check_hu

_PLAUSIBLE_ML = (0.05, 2000.0)
_WORKERS = 4


@dataclass(frozen=True)
class Finding:
    """Something the owner of the data should know."""

    severity: Literal["error", "warning"]
    case_id: str
    message: str
    advice: str = ""


def check_dataset(dataset: Dataset, report: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Read every scan and mask and list what is wrong; errors first.

    Args:
        dataset: the cases.
        report: told (done, all) after each case.
    """
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, (case, found) in enumerate(zip(dataset.cases, pool.map(_check_case, dataset.cases), strict=True), 1):
            findings += found
            digest = sha256_of(case.image)
            if digest in seen:
                message = f"the same scan as case {seen[digest]}"
                findings.append(Finding("error", case.case_id, message, "keep one: it would stand on both sides"))
            seen.setdefault(digest, case.case_id)
            if report is not None:
                report(done, len(dataset.cases))
    return sorted(findings, key=lambda finding: finding.severity)


def require_sound(dataset: Dataset, report: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Check, and refuse a dataset with an error.

    Returns:
        the warnings.

    Raises:
        the first case's error, saying how many more cases have one.
    """
    findings = check_dataset(dataset, report)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return findings
    first = errors[0]
    others = len({finding.case_id for finding in errors}) - 1
    also = f" (and {others} more cases)" if others else ""
    case = dataset.subset((first.case_id,))[0]
    what, *rest = first.message.splitlines()
    fields = dict(line.strip().split(": ", 1) for line in rest)
    fields.setdefault("where", str(case.image.parent))
    raise DataError(f"case {first.case_id}: {what}{also}", **{"do": first.advice or None, **fields})


def _check_case(case: Case) -> list[Finding]:
    try:
        image = read_volume(case.image)
        check_hu(image, case.image)
        label = read_label(case, image)
    except InputError as error:
        return [Finding("error", case.case_id, str(error))]
    except GtvrayError:
        raise
    volume_ml = float(label.array.sum()) * label.voxel_volume_ml
    if not _PLAUSIBLE_ML[0] <= volume_ml <= _PLAUSIBLE_ML[1]:
        return [Finding("warning", case.case_id, f"tumour of {volume_ml:.3g} ml", "look at the contour")]
    return []
