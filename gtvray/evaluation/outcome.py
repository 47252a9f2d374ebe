"""What an evaluation found, as values: for JSON, for a table of cases, for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.datasets import looks_warning
from gtvray.evaluation.comparison import Comparison, compare
from gtvray.evaluation.metrics import METRICS, CaseScore
from gtvray.evaluation.strata import Stratum, stratify
from gtvray.evaluation.summary import scores_table, summarise

BASELINE = "mean position"


@dataclass(frozen=True)
class DataFacts:
    """The data that were scored.

    Attributes:
        name: of their folder.
        title: how many cases of what.
        digest: of the dataset's fingerprint.
    """

    name: str
    title: str
    digest: str


@dataclass(frozen=True)
class ModelFacts:
    """A model that was scored.

    Attributes:
        name: what it is called here.
        digest: of its bundle.
        looks: how many models have been scored on any of these cases by now, this one among them.
        training_run: MLflow run that made it, if its bundle tells.
        trained_on: digest of the data it was trained on, if its bundle tells.
    """

    name: str
    digest: str
    looks: int
    training_run: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class WorstCase:
    """One of a model's worst cases.

    Attributes:
        model: its name.
        case_id: the case.
        told: its scores, for people.
        picture: a PNG of its slices, in the report's folder.
    """

    model: str
    case_id: str
    told: str
    picture: Path


@dataclass(frozen=True)
class Outcome:
    """An evaluation.

    Attributes:
        name: names it and no other.
        at: when it was, UTC.
        data: what was scored on.
        models: what was scored, in the order given.
        scores: model -> its scores; the baseline, if there is one, last.
        worst: the worst cases of each model, the worst first.
    """

    name: str
    at: str
    data: DataFacts
    models: tuple[ModelFacts, ...]
    scores: Mapping[str, Sequence[CaseScore]]
    worst: tuple[WorstCase, ...]

    @cached_property
    def comparison(self) -> Comparison:
        """Ranks and differences."""
        return compare(self.scores)

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Model -> what its cases come to together."""
        return {name: summarise(of_model) for name, of_model in self.scores.items()}

    @cached_property
    def strata(self) -> dict[str, list[Stratum]]:
        """Model -> its cases by what they have in common."""
        return {name: stratify(of_model) for name, of_model in self.scores.items()}

    @property
    def warnings(self) -> list[str]:
        """What makes the figures worth less than they look."""
        known = [model.name for model in self.models if model.trained_on == self.data.digest]
        told = [f"{name} was trained on these very data: what it scores here says little" for name in known]
        worn = looks_warning(max(model.looks for model in self.models))
        return told + ([worn] if worn else [])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; pictures by their place in the report's folder."""
        told = {
            name: {"summary": self.summaries[name], "cases": [asdict(score) for score in of_model]}
            for name, of_model in self.scores.items()
        }
        return {
            "name": self.name,
            "at": self.at,
            "gtvray": __version__,
            "data": asdict(self.data),
            "models": [asdict(model) | told[model.name] for model in self.models],
            "baseline": {"name": BASELINE} | told[BASELINE] if BASELINE in told else None,
            **self.comparison.as_dict(),
            "pictures": [case.picture.as_posix() for case in self.worst],
            "warnings": self.warnings,
            "notice": NOTICE,
        }

    def markdown(self) -> str:
        """Ranks, differences and a table of each model's cases."""
        tables = "\n".join(f"## {name}\n\n{scores_table(of_model)}" for name, of_model in self.scores.items())
        return f"# {self.data.title}\n\n{_ranks(self.comparison)}\n\n{tables}"

    def csv(self) -> str:
        """A line for each model's each case."""
        told = io.StringIO()
        heads = ["model", *(field.name for field in fields(CaseScore)), "volume_error_ml"]
        writer = csv.DictWriter(told, heads, lineterminator="\n")
        writer.writeheader()
        for name, of_model in self.scores.items():
            for score in of_model:
                spacing = "x".join(f"{value:g}" for value in score.spacing_mm)
                row = {"model": name, "volume_error_ml": score.volume_error_ml, **asdict(score), "spacing_mm": spacing}
                writer.writerow(row)
        return told.getvalue()


def _ranks(comparison: Comparison) -> str:
    lines = [
        "| model | DSC | HD95 (mm) | rank by DSC | by HD95 | mean |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {ranked.name} | {ranked.mean_dsc:.3f} | {ranked.mean_hd95_mm:.1f} | {ranked.dsc_rank:g} "
            f"| {ranked.hd95_rank:g} | {ranked.mean_rank:g} |"
            for ranked in comparison.ranking
        ),
        "",
        *(
            f"{pair.model} less {pair.other}: {METRICS[pair.metric]} {pair.mean:+.3f} (95 % interval "
            f"{pair.low:+.3f} to {pair.high:+.3f}; these cases would show a difference of {pair.smallest:.3f})"
            for pair in comparison.differences
        ),
    ]
    return "\n".join(lines)
