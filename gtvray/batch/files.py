"""The scans that a prediction reads and the files that it writes, planned before any scan is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gtvray.datasets import find_scans, volume_stem
from gtvray.errors import InputError, NotFoundError
from gtvray.inference import entropy_file
from gtvray.io import Workspace, check_outputs, require_printable_path

_MASK_ENDINGS = (".nii", ".nii.gz", ".nrrd")
# A suffix that looks like a file ending: a letter, then a few letters or digits. "2024.01" and "v1.2" have none.
_FILE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,6}")


@dataclass(frozen=True)
class PredictFiles:
    """The input and output files of a prediction.

    Attributes:
        names: scan -> its name in tables and reports.
        masks: scan -> the file of its mask.
        reports: report.json and report.html, if requested.
        skipped: file -> the reason why it is not predicted.
        folder: folder of the masks; None for a single file that was named.
        read: further files that the command reads.
        closed: folders that must not be written to.
        scan_folders: folders of the scans, which no mask may be written to directly.
    """

    names: dict[Path, str]
    masks: dict[Path, Path]
    reports: tuple[Path, ...]
    skipped: dict[str, str]
    folder: Path | None
    read: tuple[Path, ...] = ()
    closed: tuple[Path, ...] = ()
    scan_folders: tuple[Path, ...] = ()

    def outputs(self, scan: Path, *, uncertainty: bool) -> list[Path]:
        """Return the files that are written for a scan."""
        mask = self.masks[scan]
        return [mask, *([entropy_file(mask)] if uncertainty else [])]

    def check(self, outputs: Iterable[Path], *, overwrite: bool) -> None:
        """Refuse outputs that would replace other files.

        Raises:
            InputError: as `gtvray.io.check_outputs`.
        """
        check_outputs(
            outputs,
            inputs=[*self.names, *self.read],
            closed=self.closed,
            apart_from=self.scan_folders,
            overwrite=overwrite,
        )


def model_folders(workspace: Workspace, model: str) -> list[Path]:
    """Return the model folders that no output may be written to: that of all bundles, and that of the model itself."""
    return [workspace.bundles, *([Path(model)] if Path(model).is_dir() else [])]


def plan_files(
    inputs: Sequence[Path],
    out: Path,
    *,
    report: bool,
    uncertainty: bool,
    overwrite: bool,
    read: Iterable[Path] = (),
    closed: Iterable[Path] = (),
) -> PredictFiles:
    """Find the scans, name the outputs, and refuse outputs that would replace other files.

    Args:
        inputs: as for `find_files`.
        out: as for `find_files`.
        report: as for `find_files`.
        read: as for `find_files`.
        closed: as for `find_files`.
        uncertainty: whether an entropy volume is written beside each mask.
        overwrite: whether earlier outputs of gtvray may be replaced.

    Raises:
        InputError: no scan, two scans with the same name, or a refused output.
    """
    files = find_files(inputs, out, report=report, read=read, closed=closed)
    outputs = [path for scan in files.names for path in files.outputs(scan, uncertainty=uncertainty)]
    files.check([*outputs, *files.reports], overwrite=overwrite)
    return files


def find_files(
    inputs: Sequence[Path], out: Path, *, report: bool, read: Iterable[Path] = (), closed: Iterable[Path] = ()
) -> PredictFiles:
    """Find the scans and name the outputs, which are not checked.

    Args:
        inputs: volume files, and folders of cases or of volume files.
        out: a file for one scan, or a folder.
        report: whether reports are written.
        read: further files that the command reads.
        closed: folders that must not be written to.

    Raises:
        InputError: no scan, two scans with the same name, or a file for several masks.
        NotFoundError: none of the inputs exists.
    """
    if inputs and not any(entry.exists() for entry in inputs):
        # Otherwise the model would be loaded first.
        raise NotFoundError("no such file", where=inputs[0], expected="a .nii, .nii.gz or .nrrd file, or a folder")
    scans: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    scan_folders: list[Path] = []
    for entry in inputs:
        require_printable_path(entry)
        found: Iterable[tuple[str, Path]] = [(volume_stem(entry.name), entry)]
        if entry.is_dir():
            in_folder = find_scans(entry)
            found = in_folder.scans
            scan_folders += in_folder.closed
            skipped |= {str(entry / name): reason for name, reason in in_folder.skipped.items()}
        for name, path in found:
            if name in scans:
                raise InputError(
                    "two scans have the same name",
                    found=f"{scans[name]} and {path}",
                    do="predict them separately, into two folders",
                )
            scans[name] = path
    if not scans:
        raise InputError("no scan to predict", where=", ".join(map(str, inputs)), found=_reasons(skipped))
    masks = _name_masks(scans, out)
    first = next(iter(masks.values()))
    return PredictFiles(
        names={path: name for name, path in scans.items()},
        masks=masks,
        reports=(first.with_name("report.json"), first.with_name("report.html")) if report else (),
        skipped=skipped,
        folder=None if first == out else out,
        read=tuple(read),
        closed=tuple(closed),
        scan_folders=tuple(scan_folders),
    )


def _name_masks(scans: dict[str, Path], out: Path) -> dict[Path, Path]:
    is_file = out.name.lower().endswith(_MASK_ENDINGS) and not out.is_dir()
    if is_file and len(scans) > 1:
        raise InputError(
            "one file for several masks",
            where=out,
            expected="a folder, for one mask per scan",
            found=f"{len(scans)} scans",
            do="name a folder with --out",
        )
    if is_file:
        return dict.fromkeys(scans.values(), out)
    if _FILE_ENDING.fullmatch(out.suffix) and not out.is_dir():
        raise InputError(
            "no format for this name",
            where=out,
            expected=".nii, .nii.gz or .nrrd for a file; no ending for a new folder",
            found=out.suffix,
            do="use the ending .nii.gz for a mask; for a folder, create it first",
        )
    return {path: out / f"{name}.nii.gz" for name, path in scans.items()}


def _reasons(skipped: dict[str, str]) -> str:
    return "; ".join(f"{Path(name).name}: {reason}" for name, reason in list(skipped.items())[:5]) or "nothing"
