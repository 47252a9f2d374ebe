"""`gtvray data split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit


def split(
    folder: Annotated[Path, typer.Argument(help="A dataset of any layout.")],
    folds: Annotated[
        int | None, typer.Option(min=2, help="Also divide training and selection into so many folds, by split.seed.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which case a sweep uses for what, by patient where ids tell, and store it under the data's fingerprint.

    Example: gtvray data split Naso_GTV --folds 5
    """
    from gtvray.config import load_config
    from gtvray.data import open_project
    from gtvray.datasets import index_dataset
    from gtvray.io import Workspace

    place, settings = Workspace(workspace), load_config(config, override or [])
    dataset = index_dataset(folder)
    progress = Progress({"prepare": len(dataset.cases) * 0.5}, as_json)
    with progress.live(), place.lock():
        progress.begin("prepare", dataset.title)
        project = open_project(dataset, settings, cache=place.cache, splits=place.splits, report=progress.advance)
        parts: dict[str, Any] = {name: list(ids) for name, ids in project.split.parts.items()}
        if folds is not None:
            parts["folds"] = [list(ids) for ids in project.folds(folds, settings.split.seed).validation]
    found = {
        **parts,
        "grouping": project.split.grouping,
        "fingerprint": project.fingerprint.digest,
        "file": str(project.split_file),
    }
    emit(found, as_json, _text(found))


def _text(found: dict[str, Any]) -> str:
    rows = [("training", found["train"]), ("selection", found["selection"]), ("held out", found["held_out"])]
    rows += [(f"fold {number}", ids) for number, ids in enumerate(found.get("folds", []))]
    lines = [f"{name}: {len(ids)} cases: {', '.join(ids)}" for name, ids in rows]
    return "\n".join([*lines, found["grouping"], f"stored: {found['file']}"])
