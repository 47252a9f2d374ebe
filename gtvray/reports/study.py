"""Evaluation of models on the cases of a dataset: masks, scores and a report in one folder."""

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
from gtvray.reports.tables import outcome_csv, outcome_markdown

if TYPE_CHECKING:
    from gtvray.models import Bundle

REPORT, PAGE, SCORES = "report", "report.html", "scores.json"
_PICTURES = "pictures"
_WORST_CASES = 3
_DIGEST_LENGTH = 12


def check_study(dataset: Dataset, bundles: Iterable[Bundle], folder: Path, *, overwrite: bool) -> None:
    """Reject a study whose masks or report would replace other files; call it before reading cases or recording looks.

    Raises:
        InputError: a file is in the way; the error names it.
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
    """Evaluation of several models on the same cases.

    Args:
        dataset: cases with reference masks.
        digest: digest of the dataset's fingerprint.
        bundles: model -> its bundle, by the names used in the report.
        folder: target of the masks and the report.
        overwrite: replace earlier masks and an earlier report in the folder, if they are unchanged.

    Raises:
        InputError: two names refer to the same bundle, or a model has the name of the baseline.
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
            if name == BASELINE:
                raise InputError("this name is reserved for the baseline", found=name, do="rename the bundle's folder")
            if other != name:
                found = f"{other} and {name}, digest {bundle.digest[:_DIGEST_LENGTH]}"
                raise InputError("the same model twice", found=found, do="specify each model once")

    @property
    def bundles(self) -> Mapping[str, Bundle]:
        """Model -> its bundle."""
        return self._bundles

    def score(
        self,
        name: str,
        looks: int,
        *,
        threads: int,
        baseline: MeanPositionBaseline | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Predict and score every case with a model; the masks are kept in the folder.

        Args:
            name: name of the model.
            looks: number of models scored on these cases so far, this one included.
            threads: CPU threads.
            baseline: scored on the same cases; needed with one model only, as it does not depend on the model.
            report: called with (done, total) after each case.

        Raises:
            DataError: a case cannot be used. No scores are kept then: the mean of the remaining cases would be taken
                for the mean of all.
        """
        from gtvray.inference import Predictor

        bundle = self._bundles[name]
        masks = _mask_folder(self._folder, bundle)
        predictor = Predictor(bundle, threads=threads)
        self._scored[name] = score_cases(predictor, self._dataset.cases, masks, baseline, report)
        training_data = bundle.info.get("training_data") or {}
        facts = ModelFacts(name, bundle.digest, looks, bundle.info.get("mlflow_run"), training_data.get("digest"))
        self._facts.append(facts)

    def write(self) -> tuple[Outcome, Path]:
        """Write the report atomically: page, JSON, tables and pictures.

        Returns:
            the result, and the report's folder.

        Raises:
            InputError: the folder contains another report that may not be replaced.
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
            write_json(temporary / SCORES, outcome.as_dict())
            for name, content in (
                ("scores.md", outcome_markdown(outcome)),
                ("cases.csv", outcome_csv(outcome)),
                (PAGE, report_page(outcome, temporary)),
            ):
                (temporary / name).write_text(content, encoding="utf-8")
        return outcome, target

    def _scores(self) -> dict[str, list[CaseScore]]:
        """Model -> scores, in scoring order; the baseline, if there is one, last."""
        scores = {name: [entry.score for entry in entries] for name, entries in self._scored.items()}
        for entries in self._scored.values():
            baseline = [entry.baseline for entry in entries if entry.baseline is not None]
            if baseline:
                return scores | {BASELINE: baseline}
        return scores

    def _draw_worst(self, folder: Path) -> list[WorstCase]:
        """Draw the cases with each model's lowest DSC."""
        chosen = [
            (name, entry)
            for name, entries in self._scored.items()
            for entry in sorted(entries, key=lambda one: one.score.dsc)[:_WORST_CASES]
        ]
        drawn: dict[tuple[str, str], WorstCase] = {}
        # Case by case: models often fail on the same cases, and reading a scan takes longer than drawing it.
        for case in {entry.case.case_id: entry.case for _, entry in chosen}.values():
            scan = read_volume(case.image)
            reference = read_label(case, scan)
            for name, entry in chosen:
                if entry.case is case:
                    score = entry.score
                    caption = f"{case.case_id}: DSC {score.dsc:.3f}, HD95 {score.hd95_mm:.1f} mm"
                    digest = self._bundles[name].digest[:_DIGEST_LENGTH]
                    picture = Path(_PICTURES) / f"worst-{digest}-{_in_uri(case.case_id)}.png"
                    render_overlay(folder / picture, scan, reference, read_binary(entry.mask), caption)
                    drawn[name, case.case_id] = WorstCase(name, case.case_id, caption, picture)
        return [drawn[name, entry.case.case_id] for name, entry in chosen]


def _in_uri(case_id: str) -> str:
    """Return a case id that is safe in MLflow artifact names, where `%`, `#` and `?` are parts of a URI."""
    plain = re.sub(r"[%#?]", "_", case_id)
    return plain if plain == case_id else f"{plain}-{hashlib.sha256(case_id.encode()).hexdigest()[:8]}"


def _mask_folder(folder: Path, bundle: Bundle) -> Path:
    return folder / "masks" / bundle.digest[:_DIGEST_LENGTH]
