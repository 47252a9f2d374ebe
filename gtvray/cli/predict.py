"""`gtvray predict`: scans to masks, here or through an endpoint, with the same result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gtvray import NOTICE
from gtvray.cli.common import (
    WORKSPACE,
    ConfigOption,
    JsonOption,
    ModelOption,
    Progress,
    SetOption,
    WorkspaceOption,
    emit,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gtvray.geometry import Volume
    from gtvray.models import Bundle


def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Scans (.nii, .nii.gz), or folders of cases.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A file for one scan, a folder for more.")],
    model: ModelOption = "champion",
    server: Annotated[str | None, typer.Option(help="An endpoint to ask, such as http://127.0.0.1:8000.")] = None,
    token: Annotated[str, typer.Option(envvar="GTVRAY_TOKEN", help="Its bearer token.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mark the tumour in scans; each mask lies on its scan's own grid.

    Example: gtvray predict scan.nii.gz -o mask.nii.gz
    """
    from gtvray.cli.models import resolve_model
    from gtvray.config import load_config
    from gtvray.io import Workspace, write_volume

    scans = _scans(inputs)
    if server:
        segment = _remote(server, token)
    else:
        bundle = resolve_model(model, Workspace(workspace), load_config(config, override or []))
        segment = _local(bundle, threads)
    progress = Progress({"predict": 2.0 * len(scans)}, as_json)
    rows: list[dict[str, Any]] = []
    with progress.live():
        progress.begin("predict", f"{len(scans)} scans")
        for name, path in scans.items():
            began = time.perf_counter()
            mask = segment(path)
            target = out if len(scans) == 1 and out.name.endswith((".nii", ".nii.gz")) else out / f"{name}.nii.gz"
            write_volume(target, mask)
            volume_ml = float(mask.array.sum()) * mask.voxel_volume_ml
            milliseconds = round(1000 * (time.perf_counter() - began))
            rows.append({"scan": name, "volume_ml": volume_ml, "milliseconds": milliseconds, "mask": str(target)})
            progress.advance(len(rows), len(scans))
    columns = {"scan": "scan", "volume_ml": "ml", "milliseconds": "ms", "mask": "mask"}
    emit({"masks": rows, "notice": NOTICE}, as_json, f"{table(rows, columns)}\n{NOTICE}")


def _scans(inputs: list[Path]) -> dict[str, Path]:
    from gtvray.data import index_dataset
    from gtvray.errors import InputError

    scans: dict[str, Path] = {}
    for entry in inputs:
        found = (
            [(case.case_id, case.image) for case in index_dataset(entry, labels_required=False).cases]
            if entry.is_dir()
            else [(entry.name.removesuffix(".gz").removesuffix(".nii"), entry)]
        )
        for name, path in found:
            if name in scans:
                raise InputError("two scans of one name", found=f"{scans[name]} and {path}", do="predict them apart")
            scans[name] = path
    return scans


def _local(bundle: Bundle, threads: int) -> Callable[[Path], Volume]:
    from gtvray.inference import Predictor
    from gtvray.io import read_volume

    predictor = Predictor(bundle, threads=threads)
    return lambda path: predictor.predict(read_volume(path), path)


def _remote(server: str, token: str) -> Callable[[Path], Volume]:
    from gtvray.serving import predict_remote

    return lambda path: predict_remote(server, token, path).mask
