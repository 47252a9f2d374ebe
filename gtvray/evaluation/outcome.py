"""The result of an evaluation as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.datasets import looks_warning
from gtvray.evaluation.comparison import Comparison, compare
from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.strata import Stratum, stratify
from gtvray.evaluation.summary import summarise

BASELINE = "mean position"


@dataclass(frozen=True)
class DataFacts:
    """The dataset that models were scored on.

    Attributes:
        name: name of its folder.
        title: number of cases and structure, for headings.
        digest: digest of the dataset's fingerprint.
    """

    name: str
    title: str
    digest: str


@dataclass(frozen=True)
class ModelFacts:
    """A scored model.

    Attributes:
        name: its name in the report.
        digest: digest of its bundle.
        looks: number of models scored on any of these cases so far, this one included.
        training_run: MLflow run that trained it, if the bundle records one.
        trained_on: digest of its training data, if the bundle records one.
    """

    name: str
    digest: str
    looks: int
    training_run: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class WorstCase:
    """One of the cases with a model's lowest DSC.

    Attributes:
        model: name of the model.
        case_id: the case.
        caption: the case with its scores.
        picture: PNG of its slices, relative to the report's folder.
    """

    model: str
    case_id: str
    caption: str
    picture: Path


@dataclass(frozen=True)
class Outcome:
    """The result of an evaluation.

    Attributes:
        name: unique name.
        at: time in UTC, ISO 8601.
        data: the dataset.
        models: scored models, in the given order.
        scores: model -> its scores; the baseline, if there is one, last.
        worst: lowest-scoring cases of each model, the lowest DSC first.
    """

    name: str
    at: str
    data: DataFacts
    models: tuple[ModelFacts, ...]
    scores: Mapping[str, Sequence[CaseScore]]
    worst: tuple[WorstCase, ...]

    @cached_property
    def comparison(self) -> Comparison:
        """Ranks and paired differences."""
        return compare(self.scores)

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Summary of each model's scores, as `summarise` returns it."""
        return {name: summarise(of_model) for name, of_model in self.scores.items()}

    @cached_property
    def strata(self) -> dict[str, list[Stratum]]:
        """Strata of each model's scores."""
        return {name: stratify(of_model) for name, of_model in self.scores.items()}

    @property
    def warnings(self) -> list[str]:
        """Reasons why the scores may be too good: training on the same data, and repeated use of the cases."""
        trained = [model.name for model in self.models if model.trained_on == self.data.digest]
        warnings = [f"{name} was trained on these data: its scores here are not independent" for name in trained]
        overused = looks_warning(max(model.looks for model in self.models))
        return warnings + ([overused] if overused else [])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; pictures by their paths relative to the report's folder."""
        results = {
            name: {"summary": self.summaries[name], "cases": [asdict(score) for score in of_model]}
            for name, of_model in self.scores.items()
        }
        return {
            "name": self.name,
            "at": self.at,
            "gtvray": __version__,
            "data": asdict(self.data),
            "models": [asdict(model) | results[model.name] for model in self.models],
            "baseline": {"name": BASELINE} | results[BASELINE] if BASELINE in results else None,
            **self.comparison.as_dict(),
            "pictures": [case.picture.as_posix() for case in self.worst],
            "warnings": self.warnings,
            "notice": NOTICE,
        }
