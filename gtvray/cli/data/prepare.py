"""`gtvray data prepare` and `split`: commands that write to the workspace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit

# Time to prepare a full-size case.
_CASE_S = 0.5


def prepare(
    folder: Annotated[Path, typer.Argument(help="A folder of cases with masks.")],
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the workspace's cache with prepared cases.

    Trainings with the same settings then start at once. Cached cases are checked against their checksums and prepared
    again if damaged. The cache is limited to cache.max_gb; the least recently used cases are evicted, but never those
    of a run in progress.

    Example: gtvray data prepare Naso_GTV preprocessing.spacing_mm=[1,1,3]
    """
    from gtvray.config import load_config
    from gtvray.data import CaseCache
    from gtvray.datasets import index_dataset
    from gtvray.io import Workspace

    settings, runs = load_config(config, override or []), Workspace(workspace)
    dataset = index_dataset(folder)
    progress = Progress({"prepare": len(dataset.cases) * _CASE_S}, as_json)
    with progress.live(), runs.lock():
        progress.begin("prepare", dataset.title)
        cache = CaseCache(runs.cache, settings.preprocessing, settings.cache)
        began = time.perf_counter()
        prepared = cache.prepare_all(dataset.cases, progress.advance)
        seconds = time.perf_counter() - began
    size_bytes = sum(file.stat().st_size for entry in {case.folder for case in prepared} for file in entry.iterdir())
    notes = {case.case_id: case.meta["notes"] for case in prepared if case.meta["notes"]}
    result = {
        "cases": len(prepared),
        "made": cache.made,
        "found": cache.found,
        "evicted": cache.evicted,
        "seconds": round(seconds, 3),
        "cases_per_s": round(len(prepared) / seconds, 2),
        "bytes": size_bytes,
        "cache_bytes": cache.size_bytes,
        "cache": str(runs.cache),
        "notes": notes,
    }
    summary = (
        f"{result['cases']} cases, {size_bytes / 1e6:.1f} MB: {cache.made} prepared, {cache.found} already cached, "
        f"{cache.evicted} evicted; {result['cases_per_s']} cases/s\n{runs.cache} has {cache.size_bytes / 1e6:.1f} MB"
    )
    lines = [f"case {case_id}: {note}" for case_id, case_notes in notes.items() for note in case_notes]
    emit(result, as_json, "\n".join([*lines, summary]))


def split(
    folder: Annotated[Path, typer.Argument(help="A dataset of any layout.")],
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Also divide training and selection cases into this many folds, using split.seed."),
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show and store the split of a dataset.

    Cases are split by patient if patients are known. The split is stored under the data's fingerprint.

    Example: gtvray data split Naso_GTV --folds 5
    """
    from gtvray.config import load_config
    from gtvray.data import open_project
    from gtvray.datasets import index_dataset
    from gtvray.io import Workspace

    runs, settings = Workspace(workspace), load_config(config, override or [])
    dataset = index_dataset(folder)
    progress = Progress({"prepare": len(dataset.cases) * _CASE_S}, as_json)
    with progress.live(), runs.lock():
        progress.begin("prepare", dataset.title)
        project = open_project(dataset, settings, cache=runs.cache, splits=runs.splits, report=progress.advance)
        parts: dict[str, Any] = {name: list(ids) for name, ids in project.split.parts.items()}
        if folds is not None:
            parts["folds"] = [list(ids) for ids in project.folds(folds, settings.split.seed).validation]
    result = {
        **parts,
        "grouping": project.split.grouping,
        "fingerprint": project.fingerprint.digest,
        "file": str(project.split_file),
    }
    emit(result, as_json, _split_text(result))


def _split_text(result: dict[str, Any]) -> str:
    rows = [("training", result["train"]), ("selection", result["selection"]), ("held out", result["held_out"])]
    rows += [(f"fold {number}", ids) for number, ids in enumerate(result.get("folds", []))]
    lines = [f"{name}: {len(ids)} cases: {', '.join(ids)}" for name, ids in rows]
    return "\n".join([*lines, result["grouping"], f"stored in {result['file']}"])
