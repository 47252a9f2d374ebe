"""`gtvray data export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import JsonOption, Progress, emit
from gtvray.cli.data.imports import CASE_S, LayoutChoice, describe


def export_dataset(
    source: Annotated[Path, typer.Argument(help="A dataset of one structure, of any layout.")],
    target: Annotated[Path, typer.Argument(help="Where to write; new or empty. For nnU-Net DatasetNNN_Name.")],
    layout: Annotated[LayoutChoice, typer.Option(help="How to write it.")],
    blind: Annotated[
        bool, typer.Option("--blind", help="Scans only, under shuffled numbers, without free text.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="Where --blind puts the key to its numbers; beside DST as DST.key.json otherwise."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Order of --blind; drawn at random otherwise. Who knows it can undo it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a dataset for other tools, or blind for a hidden test.

    `gtvray data import MASKS DST --key KEY` takes the masks of a blind export back.

    Example: gtvray data export Naso_GTV Dataset101_GTV --layout nnunet
    """
    from gtvray.datasets import export_blind, find_dataset, transfer
    from gtvray.errors import InputError

    if not blind and (key is not None or seed is not None):
        raise InputError("--key and --seed belong to --blind", do="add --blind, or leave them out")
    progress = Progress({"export": len(find_dataset(source, with_test=True).cases) * CASE_S}, as_json)
    with progress.live():
        progress.begin("export", f"from {source}")
        if blind:
            place = key or target.with_name(f"{target.name}.key.json")
            blinded = export_blind(source, target, layout, key=place, seed=seed, report=progress.advance)
        else:
            done = transfer(source, target, layout, report=progress.advance)
    if blind:
        emit(asdict(blinded), as_json, f"{blinded.cases} scans in {target}; keep the key: {blinded.key}")
    else:
        emit(asdict(done), as_json, describe(done))
