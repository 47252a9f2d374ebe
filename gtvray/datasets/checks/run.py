"""Checks of a dataset: every case for the requirements of training and inference, and the cases for copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gtvray.datasets.checks.copies import find_alike
from gtvray.datasets.checks.findings import Finding, finding, sort_findings
from gtvray.datasets.checks.survey import Report, Survey, survey_cases
from gtvray.datasets.layouts.cases import Case, Dataset
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.datasets.splits import Split
from gtvray.errors import DataError

_TEST_FOLDERS = {layout.TEST_FOLDER for layout in LAYOUTS.values()}


def check_dataset(
    dataset: Dataset, report: Report | None = None, *, against: Dataset | None = None, split: Split | None = None
) -> list[Finding]:
    """Read every scan and mask and list the findings, errors first.

    Args:
        dataset: the cases.
        report: called with (done, total) after each case.
        against: other cases, such as a test set, that must not contain any of these scans.
        split: a split of these cases; copies of a scan must be in the same part.
    """
    others = () if against is None else against.cases
    surveys = survey_cases((*dataset.cases, *others), report)
    own, rest = surveys[: len(dataset.cases)], surveys[len(dataset.cases) :]
    findings = findings_of(dataset, own, split)
    if rest:
        findings = sort_findings([*findings, *_find_shared(own, rest)], _case_order(dataset))
    return findings


def findings_of(dataset: Dataset, surveys: Sequence[Survey], split: Split | None = None) -> list[Finding]:
    """Return the findings of surveyed cases, individually and in comparison with each other; errors first."""
    findings = [each for survey in surveys for each in survey.findings]
    if any(case.label is not None for case in dataset.cases):
        missing = [case.case_id for case in dataset.cases if case.label is None and not _is_test_case(case)]
        findings += [finding("label.missing", case_id, "the case has no mask") for case_id in missing]
    findings += _find_copies(surveys, split)
    return sort_findings(findings, _case_order(dataset))


def require_sound(
    dataset: Dataset, report: Report | None = None, surveys: Sequence[Survey] | None = None
) -> list[Finding]:
    """Check a dataset and refuse it if there is an error.

    Args:
        dataset: the cases.
        report: called with (done, total) after each case.
        surveys: of the cases, if they have been read already.

    Returns:
        the warnings.

    Raises:
        DataError: the error of the first case, with the number of further cases that have one.
    """
    findings = findings_of(dataset, survey_cases(dataset.cases, report) if surveys is None else surveys)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return [finding for finding in findings if finding.severity == "warning"]
    first = errors[0]
    others = len({finding.case_id for finding in errors}) - 1
    also = f" (and {others} more cases)" if others else ""
    raise as_error(first, dataset.subset((first.case_id,))[0], f"case {first.case_id}: {{}}{also}")


def as_error(found: Finding, case: Case, what: str = "{}") -> DataError:
    """Return a finding as the error that refuses its case.

    Args:
        found: the finding.
        case: its case.
        what: the error's statement, around the one of the finding.
    """
    stated, _, detail = found.message.partition(": ")
    file = case.label if found.code.startswith("label.") and case.label is not None else case.image
    return DataError(what.format(stated), where=file, found=detail or None, do=found.advice)


def _find_copies(surveys: Sequence[Survey], split: Split | None) -> Iterator[Finding]:
    """Find copies of scans and masks within a dataset."""
    parts = {} if split is None else split.parts
    part_of = {case: part for part, cases in parts.items() for case in cases}

    def pair(kind: str, case: str, other: str, message: str) -> Finding:
        one, two = part_of.get(case), part_of.get(other)
        if one is None or two is None or one == two:
            return finding(f"scan.{kind}", case, f"{message} case {other}")
        between = f"; {one.replace('_', ' ')} and {two.replace('_', ' ')}"
        return finding(f"leak.{kind}", case, f"{message} case {other}{between}")

    scans: dict[str, str] = {}
    labels: dict[str, Survey] = {}
    for survey in surveys:
        if survey.digest is not None:
            if survey.digest in scans:
                yield pair("same", survey.case_id, scans[survey.digest], "the same scan as")
            scans.setdefault(survey.digest, survey.case_id)
        if survey.label_digest is not None:
            other = labels.setdefault(survey.label_digest, survey)
            if other.digest != survey.digest:
                yield finding("label.same", survey.case_id, f"the same mask as case {other.case_id}, on another scan")
    for case, other_case in alike_scans(surveys):
        yield pair("alike", case, other_case, "looks like a copy of")


def _find_shared(own: Sequence[Survey], others: Sequence[Survey]) -> Iterator[Finding]:
    """Find scans that are in both datasets, as they are or as copies."""
    scans = {survey.digest: survey.case_id for survey in others if survey.digest is not None}
    for survey in own:
        if survey.digest in scans:
            message = f"the same scan as case {scans[survey.digest]} of the other folder"
            yield finding("leak.same", survey.case_id, message)
    for case, other in alike_scans(own, others):
        yield finding("leak.alike", case, f"looks like a copy of case {other} of the other folder")


def alike_scans(own: Sequence[Survey], others: Sequence[Survey] | None = None) -> Iterator[tuple[str, str]]:
    """Yield pairs of cases whose scans are similar but not identical, within one set or between two."""
    sets = [own] if others is None else [own, others]
    profiles = [{each.case_id: each.profile for each in surveys if each.profile is not None} for surveys in sets]
    digests = [{each.case_id: each.digest for each in surveys} for surveys in sets]
    for case, other in find_alike(*profiles):
        if digests[0][case] != digests[-1][other]:
            yield case, other


def _is_test_case(case: Case) -> bool:
    """Return whether the case is in its layout's folder of cases without a mask."""
    return bool(_TEST_FOLDERS & {folder.name for folder in list(case.image.parents)[:2]})


def _case_order(dataset: Dataset) -> dict[str, int]:
    return {case.case_id: number for number, case in enumerate(dataset.cases)}
