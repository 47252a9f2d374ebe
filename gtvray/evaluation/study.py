"""Models on the cases of a dataset: masks, scores, ranks, pictures of the worst, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray import NOTICE
from gtvray.data import Case, read_label
from gtvray.errors import InputError
from gtvray.evaluation.baseline import MeanPositionBaseline
from gtvray.evaluation.comparison import Comparison, compare
from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.report import render_overlay
from gtvray.evaluation.scoring import ScoredCase, score_cases
from gtvray.evaluation.summary import scores_table, summarise
from gtvray.io import atomic_path, read_volume, write_json

if TYPE_CHECKING:
    from gtvray.inference import Predictor

BASELINE = "mean position"
_WORST_SHOWN = 3
_DIGEST_SHOWN = 12


@dataclass
class Study:
    """Scores models one after the other on the same cases.

    Attributes:
        cases: with masks to score against.
        folder: for masks, pictures, `scores.md` and `scores.json`.
        baseline: scored beside the first model.
        scored: model -> its cases, as far as it has come.
        about: model -> what stands in the result about it.
    """

    cases: Sequence[Case]
    folder: Path
    baseline: MeanPositionBaseline | None = None
    scored: dict[str, list[ScoredCase]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, predictor: Predictor, looks: int, report: Callable[[int, int], None]) -> None:
        """Predict and score every case with a model.

        Args:
            name: what the model is called in the result.
            predictor: the warm model.
            looks: how many models have been scored on these cases.
            report: told (done, all) after each case.

        Raises:
            InputError: a model of that name, or another name's very bundle, is in already.
            DataError: a case is not usable.
        """
        digest = predictor.bundle.digest
        if digest in [about["digest"] for about in self.about.values()] or name in {*self.about, BASELINE}:
            raise InputError("the same model twice", found=f"{name} with digest {digest[:_DIGEST_SHOWN]}")
        floor = self.baseline if not self.scored else None
        masks = self.folder / "masks" / digest[:_DIGEST_SHOWN]
        self.scored[name] = score_cases(predictor, self.cases, masks, floor, report)
        self.about[name] = {"name": name, "digest": digest, "looks": looks}

    def scores(self) -> dict[str, list[CaseScore]]:
        """Model -> scores, in the order they came; the baseline, if there is one, last."""
        scores = {name: [entry.score for entry in entries] for name, entries in self.scored.items()}
        first = next(iter(self.scored.values()), [])
        floors = [entry.baseline for entry in first if entry.baseline is not None]
        return scores | ({BASELINE: floors} if floors else {})

    def write(self) -> tuple[dict[str, Any], str]:
        """Write everything that can be told.

        Returns:
            the result for JSON, and as Markdown.

        Raises:
            InputError: no model has been scored.
        """
        scores = self.scores()
        comparison = compare(scores)
        told = {
            name: self.about.get(name, {"name": name})
            | {"summary": summarise(of_model), "cases": [asdict(score) for score in of_model]}
            for name, of_model in scores.items()
        }
        result = {
            "models": [told[name] for name in self.scored],
            "baseline": told.get(BASELINE),
            **comparison.as_dict(),
            "pictures": [str(path) for path in self._draw_worst()],
            "notice": NOTICE,
        }
        tables = "\n".join(f"## {name}\n\n{scores_table(of_model)}" for name, of_model in scores.items())
        text = f"# {len(self.cases)} cases\n\n{_ranks(comparison)}\n\n{tables}"
        with atomic_path(self.folder / "scores.md") as temporary:
            temporary.write_text(text)
        write_json(self.folder / "scores.json", result)
        return result, text

    def _draw_worst(self) -> list[Path]:
        drawn = []
        for name, entries in self.scored.items():
            digest = self.about[name]["digest"][:_DIGEST_SHOWN]
            for entry in sorted(entries, key=lambda one: one.score.dsc)[:_WORST_SHOWN]:
                scan = read_volume(entry.case.image)
                path = self.folder / f"worst-{digest}-{entry.case.case_id}.png"
                title = f"{entry.case.case_id}: DSC {entry.score.dsc:.3f}, HD95 {entry.score.hd95_mm:.1f} mm"
                render_overlay(path, scan, read_label(entry.case, scan), read_volume(entry.mask), title)
                drawn.append(path)
        return drawn


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
            f"{pair.model} less {pair.other}: DSC {pair.mean:+.3f} (95 % interval {pair.low:+.3f} to "
            f"{pair.high:+.3f}; these cases would show a difference of {pair.smallest:.3f})"
            for pair in comparison.differences
        ),
    ]
    return "\n".join(lines)
