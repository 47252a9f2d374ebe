"""`gtvray evaluate`: a model on cases, beside the baseline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A bundle's folder, a version, or champion.")]


def evaluate(
    data: Annotated[Path, typer.Option(help="A folder in StructSeg's layout, with masks.")],
    model: ModelOption = "champion",
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
    """DSC, HD95 and NSD of a model, a case at a time and together, on the original grid.

    Example: gtvray evaluate --data val --model champion --baseline train
    """
    from gtvray.cli.models import resolve_model
    from gtvray.config import load_config
    from gtvray.data import Ledger, index_dataset, read_label, require_sound
    from gtvray.evaluation import MeanPositionBaseline, paired_difference, score_cases, scores_table, summarise
    from gtvray.inference import Predictor
    from gtvray.io import Workspace, atomic_path, read_volume, write_json

    place = Workspace(workspace)
    bundle = resolve_model(model, place, load_config(config, override or []))
    dataset = index_dataset(data)
    folder = out or place.reports / f"evaluate-{bundle.digest[:12]}"
    progress = Progress({"check": 5, "baseline": 10, "evaluate": len(dataset.cases) * 1.5}, as_json)
    with progress.live():
        progress.begin("check", f"{len(dataset.cases)} cases")
        require_sound(dataset, progress.advance)
        floor = None
        if baseline is not None:
            progress.begin("baseline", "mean position of the training masks")
            known = index_dataset(baseline).cases
            floor = MeanPositionBaseline.fit([read_label(case, read_volume(case.image)) for case in known])
        progress.begin("evaluate", f"{len(dataset.cases)} cases")
        ids = tuple(case.case_id for case in dataset.cases)
        looks = Ledger(place.ledger).record("evaluation", bundle.digest, ids, str(dataset.root.resolve()))
        predictor = Predictor(bundle, threads=threads)
        scored = score_cases(predictor, dataset.cases, folder / "masks", floor, progress.advance)
    scores = [entry.score for entry in scored]
    result: dict[str, Any] = {
        "digest": bundle.digest,
        "model": summarise(scores),
        "cases": [asdict(score) for score in scores],
        "looks": looks,
        "notice": NOTICE,
    }
    if floor is not None:
        floors = [entry.baseline for entry in scored if entry.baseline is not None]
        result["baseline"] = summarise(floors)
        pairs = [s.dsc for s in scores], [f.dsc for f in floors]
        result["dsc_over_baseline"] = asdict(paired_difference(*pairs, seed=0))
    text = scores_table(scores)
    with atomic_path(folder / "scores.md") as temporary:
        temporary.write_text(text)
    write_json(folder / "scores.json", result)
    emit(result, as_json, f"{text}\n\n{_summary(result)}\nreport: {folder}\n{result['notice']}")


def _summary(result: dict[str, Any]) -> str:
    lines = []
    for name in ("model", "baseline"):
        if name in result:
            dsc, hd95 = result[name]["dsc"], result[name]["hd95_mm"]
            lines.append(f"{name}: mean DSC {dsc['mean']:.3f}, mean HD95 {hd95['mean']:.1f} mm")
    if "dsc_over_baseline" in result:
        gain = result["dsc_over_baseline"]
        lines.append(f"difference: {gain['mean']:+.3f} (95 % interval {gain['low']:+.3f} to {gain['high']:+.3f})")
    return "\n".join(lines)
