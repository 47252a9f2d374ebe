"""Description of a dataset: its statistics, findings of the check, and comparison with a published card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.datasets.checks.findings import Finding
from gtvray.datasets.checks.run import findings_of
from gtvray.datasets.checks.survey import Report, Survey, survey_cases
from gtvray.datasets.description.card import Card, compare, known_card, suspected_errata
from gtvray.datasets.description.pictures import tile
from gtvray.datasets.description.statistics import dataset_statistics, rows_of_cases
from gtvray.datasets.layouts.cases import Dataset

ROWS_NOTE = (
    "Spacing and size are along the files' own axes. Each element of a row is the minimum, median or maximum of that "
    "element over all cases, so that a row is in general not a single case. The card's format does not define whether "
    "its own rows are computed in this way."
)


@dataclass(frozen=True)
class Description:
    """Description of a dataset; holds no absolute path.

    Attributes:
        name: name of the dataset's folder.
        dataset: the cases.
        surveys: one per case.
        statistics: result of `dataset_statistics`.
        findings: findings of the check, errors first.
        comparison: published and computed values; None without a card.
        errata: suspected errors of the card.
    """

    name: str
    dataset: Dataset
    surveys: list[Survey]
    statistics: dict[str, Any]
    findings: list[Finding]
    comparison: list[dict[str, Any]] | None
    errata: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        return {
            "gtvray": __version__,
            "name": self.name,
            "structure": self.dataset.structure,
            "layout": self.dataset.layout,
            **self.statistics,
            "files": file_tree(self.dataset, self.name),
            "per_case": rows_of_cases(self.surveys),
            "findings": [finding.as_dict() for finding in self.findings],
            "card": self.comparison,
            "suspected_errata": self.errata,
            "notice": NOTICE,
        }


def describe_dataset(
    dataset: Dataset, report: Report | None = None, *, card: Card | None = None, pictures: bool = False
) -> Description:
    """Describe a dataset, reading every case once.

    Args:
        dataset: the cases, with or without masks.
        report: called with (done, total) after each case.
        card: the published card to compare with; by default that of StructSeg 2019 Task 2 if structure, folder, number
            of cases and slice size match it, else none.
        pictures: whether to draw three slices of each case.
    """
    surveys = survey_cases(dataset.cases, report, tile if pictures else None)
    statistics = dataset_statistics(surveys)
    name = dataset.root.resolve().name
    published = card or known_card(statistics, dataset.structure, name)
    comparison = None if published is None else compare(published, statistics, name)
    errata = suspected_errata(published, comparison) if published is not None and comparison is not None else []
    return Description(name, dataset, surveys, statistics, findings_of(dataset, surveys), comparison, errata)


def file_tree(dataset: Dataset, name: str) -> str:
    """Draw the file structure as a dataset card does: the files of the first two cases and of the last."""
    cases = dataset.cases if len(dataset.cases) <= 3 else (*dataset.cases[:2], dataset.cases[-1])
    lines = [f"{name}/"]
    for index, case in enumerate(cases):
        if len(dataset.cases) > 3 and index == 2:
            lines.append("├── ...")
        paths = [path.relative_to(dataset.root) for path in (case.image, case.label) if path is not None]
        lines += [f"├── {path.as_posix()}" for path in paths]
    return "\n".join(lines)
