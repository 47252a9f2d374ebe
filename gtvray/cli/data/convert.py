"""`gtvray data import`, `export` and `phantom`: commands that write a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gtvray.cli.common import JsonOption, OverwriteOption, Progress, emit
from gtvray.datasets.layouts import LayoutName

if TYPE_CHECKING:
    from gtvray.datasets import Transferred

# Time to convert a full-size scan with its mask.
_CASE_S = 0.5
# Time to make a phantom.
_PHANTOM_S = 0.1


def import_dataset(
    source: Annotated[Path, typer.Argument(help="A dataset of any layout; with --key a folder of masks.")],
    target: Annotated[Path, typer.Argument(help="A new or empty folder to write to.")],
    label: Annotated[
        str | None, typer.Option(help="Name or value of the structure to keep, if the masks hold several.")
    ] = None,
    layout: Annotated[LayoutName, typer.Option(help="Layout to write.")] = "structseg",
    key: Annotated[
        Path | None, typer.Option(help="Key of a blind export: writes masks named by its numbers under their case ids.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of one structure from one of any layout.

    Layouts are those of StructSeg, nnU-Net and the Medical Segmentation Decathlon. Voxels and affines are unchanged,
    and transfer.json records how each file was written. Mask values within 0.001 of an integer are rounded to it and
    reported. Other values are refused, and so is a mask without a voxel of the structure. With --key, masks predicted
    on a blind export are compared with the grids of their scans and written as DST/CASE.nii.gz.

    Example: gtvray data import Dataset017_Organs Parotid --label parotid_left
    """
    from gtvray.datasets import find_dataset, transfer, unblind

    cases = len(find_dataset(source, with_test=True).cases) if key is None else 0
    progress = Progress({"import": cases * _CASE_S}, as_json)
    with progress.live():
        progress.begin("import", f"from {source}")
        if key is not None:
            masks = unblind(source, key, target, progress.advance)
        else:
            converted = transfer(source, target, layout, label=label, report=progress.advance)
    if key is not None:
        text = f"{len(masks.cases)} masks under their case ids in {target}"
        empty = f"\nempty masks: case {', '.join(masks.empty)}" if masks.empty else ""
        emit(asdict(masks), as_json, text + empty + _rounded_lines(masks.rounded))
    else:
        emit(asdict(converted), as_json, _summary(converted))


def export_dataset(
    source: Annotated[Path, typer.Argument(help="A dataset of one structure, of any layout.")],
    target: Annotated[Path, typer.Argument(help="A new or empty folder to write to; DatasetNNN_Name for nnU-Net.")],
    layout: Annotated[LayoutName, typer.Option(help="Layout to write.")],
    blind: Annotated[
        bool, typer.Option("--blind", help="Write scans only, under shuffled numbers and without free text.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="File for the key of --blind; by default DST.key.json beside DST.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the order of --blind, which reveals it; random by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a dataset to another layout.

    With --blind only the scans are exported, under shuffled numbers, for a hidden test. `gtvray data import MASKS DST
    --key KEY` restores the case ids of the masks that come back.

    Example: gtvray data export Naso_GTV Dataset101_GTV --layout nnunet
    """
    from gtvray.datasets import export_blind, find_dataset, transfer
    from gtvray.errors import InputError

    if not blind and (key is not None or seed is not None):
        raise InputError("--key and --seed require --blind", do="add --blind, or omit them")
    progress = Progress({"export": len(find_dataset(source, with_test=True).cases) * _CASE_S}, as_json)
    with progress.live():
        progress.begin("export", f"from {source}")
        if blind:
            key_file = key or target.with_name(f"{target.name}.key.json")
            exported = export_blind(source, target, layout, key=key_file, seed=seed, report=progress.advance)
        else:
            converted = transfer(source, target, layout, report=progress.advance)
    if blind:
        emit(asdict(exported), as_json, f"{exported.cases} scans in {target}; keep the key: {exported.key}")
    else:
        emit(asdict(converted), as_json, _summary(converted))


def phantom(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, or one of phantoms.")],
    count: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed that determines every voxel.")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write head-and-neck CT phantoms with a tumour.

    The layout is that of StructSeg.

    Example: gtvray data phantom phantoms --count 8
    """
    from gtvray.datasets import write_phantoms

    progress = Progress({"phantoms": count * _PHANTOM_S}, as_json)
    with progress.live():
        progress.begin("phantoms", f"{count} cases")
        write_phantoms(folder, count, seed, progress.advance, overwrite=overwrite)
    emit({"folder": str(folder), "cases": count, "seed": seed}, as_json, f"{count} cases in {folder}")


def _summary(converted: Transferred) -> str:
    test = f", {converted.test_cases} of them without a mask" if converted.test_cases else ""
    return (
        f"{converted.cases} cases of {converted.structure}{test} in {converted.folder} ({converted.layout}): "
        f"{converted.copied} files copied, {converted.rewritten} rewritten{_rounded_lines(converted.rounded)}"
    )


def _rounded_lines(rounded: Mapping[str, str]) -> str:
    """Format a line for each mask whose stored values were not integers."""
    return "".join(f"\nmask of case {case_id}: {note}" for case_id, note in rounded.items())
