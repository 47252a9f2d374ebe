"""`gtvray data import`."""

from __future__ import annotations

from collections.abc import Mapping
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

    Voxels and affines stay as they are, and transfer.json lists what was done with each file. Mask values within 0.001
    of a whole number are that number, and are reported; other values are refused, and so is a dataset in which a mask
    has no voxel of the structure. With --key, masks predicted on a blind export are compared with their scans' grids
    and written as DST/CASE.nii.gz.

    Example: gtvray data import Dataset017_Organs Parotid --label parotid_left
    """
    from gtvray.datasets import find_dataset, transfer, unblind

    cases = len(find_dataset(source, with_test=True).cases) if key is None else 0
    progress = Progress({"import": cases * CASE_S}, as_json)
    with progress.live():
        progress.begin("import", f"from {source}")
        if key is not None:
            named = unblind(source, key, target, progress.advance)
        else:
            done = transfer(source, target, layout, label=label, report=progress.advance)
    if key is not None:
        text = f"{len(named.cases)} masks under their case ids in {target}"
        empty = f"\nmasks without a voxel: case {', '.join(named.empty)}" if named.empty else ""
        emit(asdict(named), as_json, text + empty + rounded_lines(named.rounded))
    else:
        emit(asdict(done), as_json, describe(done))


def describe(done: Transferred) -> str:
    """What was written, for people."""
    test = f", {done.test_cases} of them without a mask" if done.test_cases else ""
    return (
        f"{done.cases} cases of {done.structure}{test} in {done.folder} ({done.layout}): "
        f"{done.copied} files copied, {done.rewritten} written anew{rounded_lines(done.rounded)}"
    )


def rounded_lines(rounded: Mapping[str, str]) -> str:
    """A line for each mask whose stored values were not whole numbers."""
    return "".join(f"\nmask of case {case_id}: {note}" for case_id, note in rounded.items())
