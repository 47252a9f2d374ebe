"""Describing a dataset: its figures, what a check finds, and how they compare with a published card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.datasets.checks.findings import Finding
from gtvray.datasets.checks.run import findings_of
from gtvray.datasets.checks.survey import Report, Survey, survey_cases
from gtvray.datasets.description.card import Card, compare, known_card, suspected_errata
from gtvray.datasets.description.pictures import tile
from gtvray.datasets.description.statistics import figures, rows_of_cases
from gtvray.datasets.layouts.cases import Dataset

ROWS_NOTE = (
    "Spacing and size are along the files' own axes. Each element of a row is the least, middle or greatest of that "
    "element over all cases, so a row is in general no single case. The form of the card does not tell whether its "
    "own rows are meant so."
)


@dataclass(frozen=True)
class Description:
    """What is known of a dataset; holds no path.

    Attributes:
        name: of the folder.
        dataset: the cases.
        surveys: one a case.
        figures: as `figures` counts them.
        findings: errors first.
        compared: published and computed values; None without a card.
        errata: what is suspected to be wrong in the card.
    """

    name: str
    dataset: Dataset
    surveys: list[Survey]
    figures: dict[str, Any]
    findings: list[Finding]
    compared: list[dict[str, Any]] | None
    errata: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        return {
            "gtvray": __version__,
            "name": self.name,
            "structure": self.dataset.structure,
            "layout": self.dataset.layout,
            **self.figures,
            "files": file_tree(self.dataset, self.name),
            "per_case": rows_of_cases(self.surveys),
            "findings": [finding.as_dict() for finding in self.findings],
            "card": self.compared,
            "suspected_errata": self.errata,
            "notice": NOTICE,
        }


def describe_dataset(
    dataset: Dataset, report: Report | None = None, *, card: Card | None = None, pictures: bool = False
) -> Description:
    """Read every case once and describe the dataset.

    Args:
        dataset: the cases, with masks or without.
        report: told (done, all) after each case.
        card: what was published of it. By default that of StructSeg 2019 Task 2, if these are its cases by structure,
            folder, count and slice size; else none.
        pictures: draw three slices of each case.
    """
    surveys = survey_cases(dataset.cases, report, tile if pictures else None)
    counted = figures(surveys)
    name = dataset.root.resolve().name
    published = card or known_card(counted, dataset.structure, name)
    compared = None if published is None else compare(published, counted, name)
    errata = suspected_errata(published, compared) if published is not None and compared is not None else []
    return Description(name, dataset, surveys, counted, findings_of(dataset, surveys), compared, errata)


def file_tree(dataset: Dataset, name: str) -> str:
    """How the files lie: the first two cases and the last, as a card draws them."""
    cases = dataset.cases if len(dataset.cases) <= 3 else (*dataset.cases[:2], dataset.cases[-1])
    lines = [f"{name}/"]
    for number, case in enumerate(cases):
        if len(dataset.cases) > 3 and number == 2:
            lines.append("├── ...")
        paths = [path.relative_to(dataset.root) for path in (case.image, case.label) if path is not None]
        lines += [f"├── {path.as_posix()}" for path in paths]
    return "\n".join(lines)
