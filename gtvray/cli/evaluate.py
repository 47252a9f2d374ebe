"""`gtvray evaluate`: models on cases, beside the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray import NOTICE
from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit


def evaluate(
    data: Annotated[Path, typer.Option(help="A dataset with masks.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A bundle's folder, a version, or champion; several are ranked."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Training cases for the mean-position baseline to know.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for masks and report.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every score of one or more models, a case at a time and together, on the original grid.

    Example: gtvray evaluate --data val --model champion --baseline train
    """
    from gtvray.cli.models import resolve_model
    from gtvray.config import load_config
    from gtvray.data import Ledger, index_dataset, looks_warning, read_label, require_sound
    from gtvray.evaluation import MeanPositionBaseline, Study
    from gtvray.inference import Predictor
    from gtvray.io import Workspace, read_volume

    place = Workspace(workspace)
    settings = load_config(config, override or [])
    bundles = {name: resolve_model(name, place, settings) for name in dict.fromkeys(model or ["champion"])}
    dataset = index_dataset(data)
    cases = dataset.cases
    folder = out or place.reports / f"evaluate-{'-'.join(bundle.digest[:12] for bundle in bundles.values())}"
    progress = Progress({"check": 5, "baseline": 10, "evaluate": len(cases) * 1.5}, as_json)
    with progress.live():
        progress.begin("check", f"{len(cases)} cases")
        require_sound(dataset, progress.advance)
        study = Study(cases, folder)
        if baseline is not None:
            progress.begin("baseline", "mean position of the training masks")
            known = index_dataset(baseline).cases
            study.baseline = MeanPositionBaseline.fit([read_label(case, read_volume(case.image)) for case in known])
        ids = tuple(case.case_id for case in cases)
        for number, (name, bundle) in enumerate(bundles.items(), 1):
            progress.begin("evaluate", f"{len(cases)} cases, model {number} of {len(bundles)}")
            root = str(dataset.root.resolve())
            looks = Ledger(place.ledger).record("evaluation", bundle.digest, ids, root, [case.image for case in cases])
            study.add(name, Predictor(bundle, threads=threads), looks, progress.advance)
        result, text = study.write()
    worn = looks_warning(looks)
    emit(result, as_json, "\n".join([text, *([worn] if worn else []), f"report: {folder}", NOTICE]))
