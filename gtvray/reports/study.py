"""Models on the cases of a dataset: masks, scores, and a report of them in one folder."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.datasets import Dataset, read_binary, read_label
from gtvray.errors import InputError
from gtvray.evaluation.baseline import MeanPositionBaseline
from gtvray.evaluation.metrics import CaseScore
from gtvray.evaluation.outcome import BASELINE, DataFacts, ModelFacts, Outcome, WorstCase
from gtvray.evaluation.scoring import ScoredCase, check_masks, score_cases
from gtvray.io import output_folder, read_volume, write_json
from gtvray.reports.overlay import render_overlay
from gtvray.reports.page import report_page

if TYPE_CHECKING:
    from gtvray.models import Bundle

REPORT, PAGE, FIGURES = "report", "report.html", "scores.json"
_PICTURES = "pictures"
_WORST_SHOWN = 3
_DIGEST_SHOWN = 12


def check_study(dataset: Dataset, bundles: Iterable[Bundle], folder: Path, *, overwrite: bool) -> None:
    """Refuse a study whose masks or report would replace anything else; before a case is read or a look recorded.

    Raises:
        InputError: naming what is in the way.
    """
    models = list(bundles)
    check_masks(
        dataset.cases,
        [_mask_folder(folder, bundle) for bundle in models],
        overwrite=overwrite,
        closed=[bundle.folder for bundle in models],
        folders=[folder / REPORT],
    )


class Study:
    """Scores models one after the other on the same cases.

    Args:
        dataset: cases with masks to score against.
        digest: of the dataset's fingerprint.
        bundles: model -> its bundle, by the names they get in the report.
        folder: for the masks and the report.
        overwrite: earlier masks and an earlier report in the folder may be replaced, if they are unchanged.

    Raises:
        InputError: two names of one bundle, or a model called as the baseline is.
    """

    def __init__(
        self, dataset: Dataset, digest: str, bundles: Mapping[str, Bundle], folder: Path, *, overwrite: bool = True
    ) -> None:
        self._dataset, self._bundles, self._folder, self._overwrite = dataset, bundles, folder, overwrite
        self._data = DataFacts(dataset.root.resolve().name, dataset.title, digest)
        self._facts: list[ModelFacts] = []
        self._scored: dict[str, list[ScoredCase]] = {}
        by_digest: dict[str, str] = {}
        for name, bundle in bundles.items():
            other = by_digest.setdefault(bundle.digest, name)
            if other != name or name == BASELINE:
                found = f"{other} and {name}, digest {bundle.digest[:_DIGEST_SHOWN]}"
                raise InputError("the same model twice", found=found, do="name each model once")

    def score(
        self,
        name: str,
        looks: int,
        *,
        threads: int,
        baseline: MeanPositionBaseline | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Predict and score every case with a model; its masks stay in the folder.

        Args:
            name: of the model.
            looks: how many models have been scored on these cases by now.
            threads: CPU threads.
            baseline: scored beside it; beside one model is enough.
            report: told (done, all) after each case.

        Raises:
            DataError: a case is not usable. Nothing is told of the others then: figures of the easier cases would
                pass for those of all.
        """
        from gtvray.inference import Predictor

        bundle = self._bundles[name]
        masks = _mask_folder(self._folder, bundle)
        predictor = Predictor(bundle, threads=threads)
        self._scored[name] = score_cases(predictor, self._dataset.cases, masks, baseline, report)
        known = bundle.info.get("training_data") or {}
        facts = ModelFacts(name, bundle.digest, looks, bundle.info.get("mlflow_run"), known.get("digest"))
        self._facts.append(facts)

    def write(self) -> tuple[Outcome, Path]:
        """Write the report: page, JSON, tables and pictures, which appear together.

        Returns:
            what was found, and the report's folder.

        Raises:
            InputError: another report is there that may not be replaced.
        """
        target = self._folder / REPORT
        with output_folder(target, overwrite=self._overwrite) as temporary:
            (temporary / _PICTURES).mkdir()
            outcome = Outcome(
                name=f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                data=self._data,
                models=tuple(self._facts),
                scores=self._scores(),
                worst=tuple(self._draw_worst(temporary)),
            )
            write_json(temporary / FIGURES, outcome.as_dict())
            for name, content in (
                ("scores.md", outcome.markdown()),
                ("cases.csv", outcome.csv()),
                (PAGE, report_page(outcome, temporary)),
            ):
                (temporary / name).write_text(content, encoding="utf-8")
        return outcome, target

    def _scores(self) -> dict[str, list[CaseScore]]:
        """Model -> scores, in the order they came; the baseline, if there is one, last."""
        scores = {name: [entry.score for entry in entries] for name, entries in self._scored.items()}
        for entries in self._scored.values():
            floors = [entry.baseline for entry in entries if entry.baseline is not None]
            if floors:
                return scores | {BASELINE: floors}
        return scores

    def _draw_worst(self, folder: Path) -> list[WorstCase]:
        chosen = [
            (name, entry)
            for name, entries in self._scored.items()
            for entry in sorted(entries, key=lambda one: one.score.dsc)[:_WORST_SHOWN]
        ]
        drawn: dict[tuple[str, str], WorstCase] = {}
        # By case: models are often worst on the same ones, and reading a scan takes longer than drawing it.
        for case in {entry.case.case_id: entry.case for _, entry in chosen}.values():
            scan = read_volume(case.image)
            reference = read_label(case, scan)
            for name, entry in chosen:
                if entry.case is case:
                    score = entry.score
                    told = f"{case.case_id}: DSC {score.dsc:.3f}, HD95 {score.hd95_mm:.1f} mm"
                    digest = self._bundles[name].digest[:_DIGEST_SHOWN]
                    picture = Path(_PICTURES) / f"worst-{digest}-{_in_uri(case.case_id)}.png"
                    render_overlay(folder / picture, scan, reference, read_binary(entry.mask), told)
                    drawn[name, case.case_id] = WorstCase(name, case.case_id, told, picture)
        return [drawn[name, entry.case.case_id] for name, entry in chosen]


def _in_uri(case_id: str) -> str:
    """A case id as part of a file's name that MLflow can send back: it takes `%` and `#` in one for parts of a URI."""
    plain = re.sub(r"[%#?]", "_", case_id)
    return plain if plain == case_id else f"{plain}-{hashlib.sha256(case_id.encode()).hexdigest()[:8]}"


def _mask_folder(folder: Path, bundle: Bundle) -> Path:
    return folder / "masks" / bundle.digest[:_DIGEST_SHOWN]
