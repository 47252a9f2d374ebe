"""`gtvray evaluate`: models on cases, beside the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    ConfigOption,
    JsonOption,
    OverwriteOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    shell_command,
    terminal_width,
)

if TYPE_CHECKING:
    from gtvray.config import Config
    from gtvray.datasets import Dataset
    from gtvray.evaluation import Outcome
    from gtvray.io import Workspace
    from gtvray.models import Bundle


def evaluate(
    data: Annotated[Path | None, typer.Option(help="A dataset with masks.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A bundle's folder, a version, or champion; several are ranked."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Training cases for the mean-position baseline to know.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for masks and report.")] = None,
    send: Annotated[
        Path | None, typer.Option(help="Only send a report's folder to MLflow, which was away when it was made.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every score of one or more models, a case at a time and together, on the original grid; one page with all of it.

    Example: gtvray evaluate --data val --model champion --baseline train
    """
    from gtvray.config import load_config
    from gtvray.errors import InputError
    from gtvray.io import Workspace

    place, settings = Workspace(workspace), load_config(config, override or [])
    if (data is None) == (send is None):
        raise InputError("evaluate scores a dataset, or sends a report", expected="--data or --send, and not both")
    if send is not None:
        runs = _record(send, place, settings)
        emit({"mlflow": runs}, as_json, "\n".join(f"{name}: MLflow run {run}" for name, run in runs.items()))
        return
    assert data is not None
    # A copied workspace is refused before its cases are looked at: the report would go to its original.
    place.locate()
    outcome, report = _score(data, model or ["champion"], baseline, out, overwrite, threads, place, settings, as_json)
    sent, said = _try_recording(report, place, settings)
    told = {**outcome.as_dict(), "report": str(report), "mlflow": sent}
    emit(told, as_json, "\n".join([_text(outcome), *outcome.warnings, f"report: {report}", said, NOTICE]))


def _score(
    data: Path,
    models: list[str],
    baseline: Path | None,
    out: Path | None,
    overwrite: bool,
    threads: int,
    place: Workspace,
    settings: Config,
    as_json: bool,
) -> tuple[Outcome, Path]:
    from gtvray.cli.models import resolve_model
    from gtvray.data import dataset_digest
    from gtvray.datasets import Ledger, index_dataset, read_label, require_sound
    from gtvray.evaluation import MeanPositionBaseline
    from gtvray.io import read_volume
    from gtvray.reports import Study, check_study

    bundles = _named({name: resolve_model(name, place, settings) for name in dict.fromkeys(models)})
    dataset = index_dataset(data)
    cases = dataset.cases
    folder = out or place.reports / f"evaluate-{'-'.join(bundle.digest[:12] for bundle in bundles.values())}"
    # In a folder of its own in the workspace an earlier report of the same models makes room by itself.
    overwrite = overwrite or out is None
    check_study(dataset, bundles.values(), folder, overwrite=overwrite)
    progress = Progress({"check": 5, "baseline": 10, "evaluate": len(cases) * 1.5, "report": 5}, as_json)
    with progress.live():
        progress.begin("check", f"{len(cases)} cases")
        require_sound(dataset, progress.advance)
        study = Study(
            dataset, dataset_digest(dataset, settings.split.patient_pattern), bundles, folder, overwrite=overwrite
        )
        floor = None
        if baseline is not None:
            progress.begin("baseline", "mean position of the training masks")
            known = index_dataset(baseline).cases
            floor = MeanPositionBaseline.fit(read_label(case, read_volume(case.image)) for case in known)
        for number, (name, bundle) in enumerate(bundles.items(), 1):
            progress.begin("evaluate", f"{len(cases)} cases, model {number} of {len(bundles)}")
            looks = _look(Ledger(place.ledger), bundle, dataset)
            # Beside one model is enough: it does not depend on the model.
            study.score(name, looks, threads=threads, baseline=floor, report=progress.advance)
            floor = None
        progress.begin("report", "page, tables and pictures")
        return study.write()


def _text(outcome: Outcome) -> str:
    """Ranking, differences and every model's cases, as text for a terminal."""
    from gtvray.reports import case_table, difference_table, ranking_table

    tables = {outcome.data.title: ranking_table(outcome.comparison)}
    if outcome.comparison.differences:
        tables["Differences, case by case"] = difference_table(outcome.comparison)
    tables |= {name: case_table(of_model) for name, of_model in outcome.scores.items()}
    return "\n".join(f"{title}\n\n{shown.text(terminal_width())}\n" for title, shown in tables.items())


def _named(bundles: dict[str, Bundle]) -> dict[str, Bundle]:
    """Bundles by what they are called in a report: a folder by its last name, as paths are nobody's business."""
    named: dict[str, Bundle] = {}
    for model, bundle in bundles.items():
        name = Path(model).resolve().name if Path(model).is_dir() else model
        named[name if name not in named else f"{name} {bundle.digest[:12]}"] = bundle
    return named


def _look(ledger: Any, bundle: Bundle, dataset: Dataset) -> int:
    ids = tuple(case.case_id for case in dataset.cases)
    scans = [case.image for case in dataset.cases]
    return int(ledger.record("evaluation", bundle.digest, ids, str(dataset.root.resolve()), scans))


def _record(report: Path, place: Workspace, settings: Config) -> dict[str, str]:
    from gtvray.reports import record_report
    from gtvray.tracking import connect_mlflow

    uri = settings.tracking.uri or place.mlflow_uri
    artifacts = place.artifacts if uri.startswith("sqlite") else None
    return record_report(connect_mlflow(uri, place.artifacts), settings.tracking.experiment, report, artifacts)


def _try_recording(report: Path, place: Workspace, settings: Config) -> tuple[dict[str, str] | None, str]:
    """Send a report; MLflow being away must not cost what was found."""
    from gtvray.errors import GtvrayError

    try:
        runs = _record(report, place, settings)
    except GtvrayError as error:
        again = shell_command("gtvray", "evaluate", "--send", report, "--workspace", place.root)
        reason = "; ".join(error.fields[name] for name in ("found", "do") if name in error.fields)
        return None, f"not in MLflow: {error.what} ({reason}); send it later: {again}"
    return runs, "\n".join(f"{name}: MLflow run {run}" for name, run in runs.items())
