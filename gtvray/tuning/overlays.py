"""Pictures of the cases on which the best trial of a sweep is worst."""

from __future__ import annotations

from pathlib import Path

from gtvray.config import Config
from gtvray.datasets import Case, Dataset, read_label
from gtvray.experiments.tasks import on_cluster, predictor_on_worker
from gtvray.io import read_volume, write_json
from gtvray.models import Bundle
from gtvray.reports import WORST_CASES, render_overlay
from gtvray.tuning.folds import FoldCases
from gtvray.tuning.result import SweepResult

_SHOWN = 3
# Half of this is less than the distance from a nasopharyngeal tumour to the tip of the nose, so no face is shown.
_FIELD_MM = 120.0


def draw_worst(result: SweepResult, bundle: Bundle, dataset: Dataset, fold: FoldCases, folder: Path) -> None:
    """Draw the selection cases with the lowest DSC of the best trial; the tasks run on the connected cluster.

    The pictures and their list, worst first, are written to the folder of the sweep, for its page.

    Args:
        result: result of the sweep.
        bundle: bundle of the best trial, a network that was not trained on the selection cases.
        dataset: the cases.
        fold: prepared cases of the trials.
        folder: folder of the sweep.
    """
    best = result.best
    config = result.config_of(best)
    trial = next(each for each in result.ended if each.trial_id == best.trial_id)
    scores = trial.cases.get(best.best_epoch, ())
    ids = [case.case_id for case in fold.selection[: len(scores)]]
    worst = sorted(zip(scores, ids, strict=True))[:_SHOWN]
    names = [f"worst-{number}.png" for number in range(1, len(worst) + 1)]
    work = [(dataset.subset((case_id,))[0], folder / name) for name, (_, case_id) in zip(names, worst, strict=True)]
    # A single task, since starting another process would take longer than drawing.
    on_cluster(_draw, [(bundle.folder, work, config)], config, lambda _: None)
    rows = [{"case": case_id, "dsc": dsc, "picture": name} for name, (dsc, case_id) in zip(names, worst, strict=True)]
    write_json(folder / WORST_CASES, {"trial": best.trial_id, "cases": rows})


def _draw(bundle: Path, pictures: list[tuple[Case, Path]], config: Config) -> None:
    predictor = predictor_on_worker(Bundle.load(bundle), config)
    for case, path in pictures:
        scan = read_volume(case.image)
        label, mask = read_label(case, scan), predictor.predict(scan)
        render_overlay(path, scan, label, mask, f"case {case.case_id}", field_mm=_FIELD_MM)
