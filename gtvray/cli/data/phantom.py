"""`gtvray data phantom`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, OverwriteOption, Progress, emit


def phantom(
    folder: Annotated[Path, typer.Argument(help="Where to write them; new, empty, or with phantoms.")],
    count: Annotated[int, typer.Option(min=1, help="How many cases.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Decides every voxel.")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write head-and-neck CT phantoms with a tumour, in StructSeg's layout.

    Example: gtvray data phantom phantoms --count 8
    """
    from gtvray.datasets import write_phantoms

    progress = Progress({"phantoms": count * 0.1}, as_json)
    with progress.live():
        progress.begin("phantoms", f"{count} cases")
        write_phantoms(folder, count, seed, progress.advance, overwrite=overwrite)
    emit({"folder": str(folder), "cases": count, "seed": seed}, as_json, f"{count} cases in {folder}")
