"""Holding every case of a dataset against what training and inference rely on, and the cases against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gtvray.datasets.checks.copies import find_alike
from gtvray.datasets.checks.findings import Finding, finding, sort_findings
from gtvray.datasets.checks.survey import Report, Survey, survey_cases
from gtvray.datasets.layouts import structseg
from gtvray.datasets.layouts.cases import Case, Dataset
from gtvray.datasets.splits import Split
from gtvray.errors import DataError

# Where the layouts keep cases that come without a mask.
_TEST_FOLDERS = {structseg.TEST, "imagesTs"}


def check_dataset(
    dataset: Dataset, report: Report | None = None, *, against: Dataset | None = None, split: Split | None = None
) -> list[Finding]:
    """Read every scan and mask and list what is wrong; errors first.

    Args:
        dataset: the cases.
        report: told (done, all) after each case.
        against: other cases, such as a test set, that must not hold one of these scans.
        split: of these cases; a scan that stands there twice must not be on two of its sides.
    """
    others = () if against is None else against.cases
    surveys = survey_cases((*dataset.cases, *others), report)
    own, rest = surveys[: len(dataset.cases)], surveys[len(dataset.cases) :]
    findings = findings_of(dataset, own, split)
    if rest:
        findings = sort_findings([*findings, *_shared(own, rest)], _order(dataset))
    return findings


def findings_of(dataset: Dataset, surveys: Sequence[Survey], split: Split | None = None) -> list[Finding]:
    """The findings of surveyed cases, each alone and with each other; errors first."""
    findings = [each for survey in surveys for each in survey.findings]
    if any(case.label is not None for case in dataset.cases):
        bare = [case.case_id for case in dataset.cases if case.label is None and not _for_testing(case)]
        findings += [finding("label.missing", case_id, "the case has no mask") for case_id in bare]
    findings += _repeated(surveys, split)
    return sort_findings(findings, _order(dataset))


def require_sound(dataset: Dataset, report: Report | None = None) -> list[Finding]:
    """Check, and refuse a dataset with an error.

    Returns:
        the warnings.

    Raises:
        DataError: the first case's error, saying how many more cases have one.
    """
    findings = check_dataset(dataset, report)
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return [finding for finding in findings if finding.severity == "warning"]
    first = errors[0]
    others = len({finding.case_id for finding in errors}) - 1
    also = f" (and {others} more cases)" if others else ""
    what, _, found = first.message.partition(": ")
    case = dataset.subset((first.case_id,))[0]
    file = case.label if first.code.startswith("label.") and case.label is not None else case.image
    raise DataError(f"case {first.case_id}: {what}{also}", where=file, found=found or None, do=first.advice)


def _repeated(surveys: Sequence[Survey], split: Split | None) -> Iterator[Finding]:
    parts = {} if split is None else split.parts
    sides = {case: side for side, cases in parts.items() for case in cases}

    def pair(kind: str, case: str, other: str, message: str) -> Finding:
        one, two = sides.get(case), sides.get(other)
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
    for case, other_case in _alike(surveys):
        yield pair("alike", case, other_case, "looks like a copy of")


def _shared(own: Sequence[Survey], others: Sequence[Survey]) -> Iterator[Finding]:
    scans = {survey.digest: survey.case_id for survey in others if survey.digest is not None}
    for survey in own:
        if survey.digest in scans:
            message = f"the same scan as case {scans[survey.digest]} of the other folder"
            yield finding("leak.same", survey.case_id, message)
    for case, other in _alike(own, others):
        yield finding("leak.alike", case, f"looks like a copy of case {other} of the other folder")


def _alike(own: Sequence[Survey], others: Sequence[Survey] | None = None) -> Iterator[tuple[str, str]]:
    """Pairs of cases that look alike, within one set or between two, and are not the same scan."""
    sets = [own] if others is None else [own, others]
    profiles = [{each.case_id: each.profile for each in surveys if each.profile is not None} for surveys in sets]
    digests = [{each.case_id: each.digest for each in surveys} for surveys in sets]
    for case, other in find_alike(*profiles):
        if digests[0][case] != digests[-1][other]:
            yield case, other


def _for_testing(case: Case) -> bool:
    """Whether a layout keeps the case apart, as one that comes without a mask."""
    return bool(_TEST_FOLDERS & {folder.name for folder in list(case.image.parents)[:2]})


def _order(dataset: Dataset) -> dict[str, int]:
    return {case.case_id: number for number, case in enumerate(dataset.cases)}
