"""Evaluation of models on the cases of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_config, as_workspace
from gtvray.api.models import name_models
from gtvray.api.registry import load_bundle
from gtvray.errors import GtvrayError
from gtvray.io import Workspace, read_volume
from gtvray.runtime import SILENT, ProgressReporter

if TYPE_CHECKING:
    from gtvray.datasets import Dataset, Ledger
    from gtvray.evaluation import Outcome
    from gtvray.reports import Study


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        outcome: scores, comparison and warnings.
        report: folder of the report.
        runs: model -> MLflow run with the report; None if it could not be sent.
        failure: why the report could not be sent.
    """

    outcome: Outcome
    report: Path
    runs: dict[str, str] | None
    failure: GtvrayError | None = None


def evaluate(
    data: PathLike,
    models: Sequence[str] = ("champion",),
    *,
    baseline: PathLike | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    threads: int = 1,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    show: ProgressReporter = SILENT,
) -> Evaluation:
    """Score models on every case of a dataset, on the original grid, and write a report.

    Args:
        data: dataset with masks.
        models: folders of bundles, registered versions, or `champion`; several are ranked.
        baseline: training cases of the mean-position baseline.
        out: folder for masks and report; by default one in the workspace.
        overwrite: replace earlier outputs of gtvray in `out`; never anything else.
        threads: CPU threads of the network.
        workspace: folder with registry, ledger and reports.
        config: settings; `tracking.*` and `split.patient_pattern` matter.
        show: receives progress.

    Raises:
        InputError: data, model or output folder cannot be used.
        DataError: a case cannot be used; nothing is reported then, since the other cases alone would be misleading.
        ResourceError: another process writes the report.
    """
    from gtvray.data import dataset_digest
    from gtvray.datasets import Ledger, index_dataset
    from gtvray.reports import Study, check_study

    folders, settings = as_workspace(workspace), as_config(config)
    # A copied workspace is refused before its cases are scored: the report would go to its original.
    folders.locate()
    bundles = name_models({name: load_bundle(name, folders, settings) for name in dict.fromkeys(models)})
    dataset = index_dataset(Path(data))
    digests = "-".join(bundle.digest[:12] for bundle in bundles.values())
    folder = Path(out) if out is not None else folders.reports / f"evaluate-{digests}"
    # In its own folder of the workspace, an earlier report of the same models is replaced.
    overwrite = overwrite or out is None
    require_output = partial(check_study, dataset, bundles.values(), folder, overwrite=overwrite)
    require_output()
    with folders.lock(folder):
        # Another process may have written it before the lock was free.
        require_output()
        digest = dataset_digest(dataset, settings.split.patient_pattern)
        study = Study(dataset, digest, bundles, folder, overwrite=overwrite)
        outcome, report = _score(dataset, study, baseline, threads, Ledger(folders.ledger), show=show)
    try:
        return Evaluation(outcome, report, send_report(report, workspace=folders, config=settings))
    except GtvrayError as error:
        # The result is not lost because MLflow is unreachable.
        return Evaluation(outcome, report, None, error)


def send_report(
    report: PathLike, *, workspace: Workspace | PathLike = WORKSPACE, config: ConfigLike = None
) -> dict[str, str]:
    """Send the folder of a report to MLflow.

    Returns:
        model -> MLflow run.

    Raises:
        ResourceError: MLflow does not answer.
    """
    from gtvray.reports import record_report
    from gtvray.tracking import connect_mlflow

    folders, settings = as_workspace(workspace), as_config(config)
    uri, artifacts = folders.tracking_store(settings.tracking.uri)
    return record_report(connect_mlflow(uri, folders.artifacts), settings.tracking.experiment, Path(report), artifacts)


def _score(
    dataset: Dataset, study: Study, baseline: PathLike | None, threads: int, ledger: Ledger, *, show: ProgressReporter
) -> tuple[Outcome, Path]:
    from gtvray.datasets import index_dataset, read_label, require_sound
    from gtvray.evaluation import MeanPositionBaseline

    show.begin("check", f"{len(dataset.cases)} cases")
    require_sound(dataset, show.advance)
    fitted = None
    if baseline is not None:
        show.begin("baseline", "mean position of the training masks")
        known = index_dataset(Path(baseline)).cases
        fitted = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in known)
    ids = tuple(case.case_id for case in dataset.cases)
    scans = [case.image for case in dataset.cases]
    for number, (name, bundle) in enumerate(study.bundles.items(), 1):
        show.begin("evaluate", f"{len(dataset.cases)} cases, model {number} of {len(study.bundles)}")
        looks = ledger.record("evaluation", bundle.digest, ids, str(dataset.root.resolve()), scans)
        # The baseline does not depend on the model and is scored once.
        study.score(name, looks, threads=threads, baseline=fitted, report=show.advance)
        fitted = None
    show.begin("report", "page, tables and pictures")
    return study.write()
