"""`gtvray data import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gtvray.cli.common import JsonOption, Progress, emit

if TYPE_CHECKING:
    from gtvray.datasets import Transferred

# What a full-size scan and its mask take.
CASE_S = 0.5
LayoutChoice = Literal["structseg", "nnunet", "msd"]


def import_dataset(
    source: Annotated[Path, typer.Argument(help="A dataset of any layout; with --key a folder of masks.")],
    target: Annotated[Path, typer.Argument(help="Where to write; new or empty.")],
    label: Annotated[
        str | None, typer.Option(help="The structure to keep, by name or value, where masks hold several.")
    ] = None,
    layout: Annotated[LayoutChoice, typer.Option(help="How to write it.")] = "structseg",
    key: Annotated[
        Path | None, typer.Option(help="Key of a blind export: gives masks named by its numbers their case ids back.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of one structure out of StructSeg's, nnU-Net's or the Decathlon's layout.

    Voxels and affines stay as they are; transfer.json tells what became of each file. With --key, masks predicted on a
    blind export are held against their scans' grids and written as DST/CASE.nii.gz.

    Example: gtvray data import Dataset017_Organs Parotid --label parotid_left
    """
    from gtvray.datasets import find_dataset, transfer, unblind

    cases = len(find_dataset(source, with_test=True).cases) if key is None else 0
    progress = Progress({"import": cases * CASE_S}, as_json)
    with progress.live():
        progress.begin("import", f"from {source}")
        if key is not None:
            ids = unblind(source, key, target, progress.advance)
        else:
            done = transfer(source, target, layout, label=label, report=progress.advance)
    if key is not None:
        emit({"folder": str(target), "cases": ids}, as_json, f"{len(ids)} masks under their case ids in {target}")
    else:
        emit(asdict(done), as_json, describe(done))


def describe(done: Transferred) -> str:
    """What was written, for people."""
    test = f", {done.test_cases} of them without a mask" if done.test_cases else ""
    empty = f"\nwithout a voxel of {done.structure}: case {', '.join(done.empty)}" if done.empty else ""
    return (
        f"{done.cases} cases of {done.structure}{test} in {done.folder} ({done.layout}): "
        f"{done.copied} files copied, {done.rewritten} written anew{empty}"
    )
