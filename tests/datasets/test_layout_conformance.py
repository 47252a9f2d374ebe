"""Conformance of dataset layouts: what every entry of `LAYOUTS` must satisfy.

The datasets of this suite are written with the layout's own `file_paths` and `make_manifest`, so that a new entry of
the registry is covered without a change here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gtvray.datasets import check_dataset, export_blind, find_dataset, index_dataset, read_label, transfer
from gtvray.datasets.layouts import LayoutName
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.errors import DataError, GeometryError, InputError
from gtvray.geometry import Volume
from gtvray.io import canonical_name, read_volume, write_volume

MANIFEST = "dataset.json"
SYSTEM_FILES = (
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._dataset.json",
    "._1.nii.gz",
    "._1_0000.nii.gz",
    "._data.nii.gz",
)
ODD_IDS = (
    "0001", "case_0000", "2024.01.v2", "a b (copy)", "#7 100%", "data", "label", "Müller", "Mu\u0308ller-2", "患者-1",
    "²", "x" * 200,
)  # fmt: skip
SHAPE = (9, 8, 7)

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
manifest_layouts = pytest.mark.parametrize(
    "layout", [name for name, layout in LAYOUTS.items() if layout.make_manifest({}, "GTV", {}) is not None]
)


@dataclass(frozen=True)
class Written:
    """A dataset on disk with the volumes that were written.

    Attributes:
        folder: the dataset's folder.
        scans: case id -> scan.
        masks: case id -> mask; None for test cases.
        files: case id -> file of the scan and of the mask.
    """

    folder: Path
    scans: dict[str, Volume]
    masks: dict[str, Volume | None]
    files: dict[str, tuple[Path, Path | None]]

    @property
    def labelled(self) -> list[str]:
        """Sorted ids of the cases with a mask."""
        return sorted(name for name, mask in self.masks.items() if mask is not None)


def _affine(number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return an affine that differs in spacing, orientation, obliqueness and origin between cases."""
    spacing = np.diag([(-1.0) ** number * 1.25, 1.5 + number / 8, (-1.0) ** (number // 2) * 3.0])
    angle = 0.1 * number
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ spacing)[:, np.roll(range(3), number)]
    affine[:3, 3] = (-120.5, 33.25 + number, 7 * number)
    # NIfTI stores single precision.
    return affine.astype(np.float32).astype(np.float64)


def write(
    layout: LayoutName, parent: Path, ids: tuple[str, ...] = ("1", "2", "10"), tests: tuple[str, ...] = ("4",)
) -> Written:
    """Write a dataset of labelled cases `ids` and test cases `tests` into a folder with the layout's example name."""
    folder = parent / LAYOUTS[layout].EXAMPLE_NAME
    labelled = {name: name in ids for name in (*ids, *tests)}
    paths = LAYOUTS[layout].file_paths(labelled)
    scans: dict[str, Volume] = {}
    masks: dict[str, Volume | None] = {}
    for number, name in enumerate(labelled):
        rng = np.random.default_rng(number)
        scans[name] = Volume(rng.integers(-1000, 2000, SHAPE).astype(np.int16), _affine(number))
        masks[name] = Volume(rng.random(SHAPE) < 0.3, _affine(number)) if labelled[name] else None
        image, label = paths[name]
        write_volume(folder / image, scans[name])
        mask = masks[name]
        if label is not None and mask is not None:
            write_volume(folder / label, mask)
    manifest = LAYOUTS[layout].make_manifest(labelled, "GTV", {"licence": "CC0"})
    if manifest is not None:
        (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False))
    for name in LAYOUTS[layout].FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    files = {
        name: (folder / image, None if label is None else folder / label) for name, (image, label) in paths.items()
    }
    return Written(folder, scans, masks, files)


def mask_file(dataset: Written, case_id: str) -> Path:
    """Return the file of a mask that exists."""
    path = dataset.files[case_id][1]
    assert path is not None
    return path


def assert_cases(folder: Path, expected: Written) -> None:
    """Check that indexing a folder finds the expected cases, masks and affines, and nothing else."""
    dataset = index_dataset(folder, labels_required=False)
    volumes = {canonical_name(name): (scan, expected.masks[name]) for name, scan in expected.scans.items()}
    assert sorted(case.case_id for case in dataset.cases) == sorted(volumes)
    for case in dataset.cases:
        scan, mask = volumes[case.case_id]
        stored = read_volume(case.image)
        assert stored.array.dtype == scan.array.dtype
        np.testing.assert_array_equal(stored.array, scan.array)
        np.testing.assert_array_equal(stored.affine, scan.affine)
        assert (case.label is None) == (mask is None)
        if mask is not None:
            label = read_label(case, stored)
            np.testing.assert_array_equal(label.array, mask.array)
            np.testing.assert_array_equal(label.affine, mask.affine)
    if expected.labelled:
        found = [case.case_id for case in index_dataset(folder).cases]
        assert sorted(found) == sorted(map(canonical_name, expected.labelled))


def folders(root: Path) -> Iterator[Path]:
    """Yield a folder and all folders in it."""
    yield root
    yield from [path for path in root.rglob("*") if path.is_dir()]


def test_registry_has_every_layout_name() -> None:
    assert tuple(LAYOUTS) == get_args(LayoutName)
    assert all(layout.EXAMPLE_NAME and layout.FILES and layout.TEST_FOLDER for layout in LAYOUTS.values())


@every_layout
def test_written_cases_are_indexed(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path)
    assert_cases(written.folder, written)
    dataset = index_dataset(written.folder)
    assert (dataset.layout, dataset.root, dataset.structure) == (layout, written.folder, "GTV")
    assert [case.case_id for case in dataset.cases] == ["1", "2", "10"]
    assert [case.case_id for case in dataset.subset(("10", "1"))] == ["10", "1"]


@every_layout
def test_folder_is_recognised_by_its_layout_only(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path)
    assert [name for name, other in LAYOUTS.items() if other.recognise(written.folder)] == [layout]
    assert not any(other.recognise(tmp_path) for other in LAYOUTS.values())
    LAYOUTS[layout].require_name(written.folder)


@every_layout
@pytest.mark.parametrize("target", LAYOUTS)
def test_conversion_keeps_cases_masks_and_affines(tmp_path: Path, layout: LayoutName, target: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    folder = tmp_path / "target" / LAYOUTS[target].EXAMPLE_NAME
    converted = transfer(written.folder, folder, target)
    assert (converted.cases, converted.test_cases, converted.structure) == (4, 1, "GTV")
    assert (converted.copied, converted.rewritten) == (7, 0)
    assert_cases(folder, written)
    dataset = find_dataset(folder, with_test=True)
    assert (dataset.layout, dataset.about.get("licence")) == (
        target, None if LAYOUTS[layout].make_manifest({}, "GTV", {}) is None else "CC0",
    )  # fmt: skip
    assert all((folder / name).is_dir() for name in LAYOUTS[target].FOLDERS)


@every_layout
def test_cases_without_a_mask_are_test_cases(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path, ids=("1",), tests=("2", "3"))
    assert [case.case_id for case in index_dataset(written.folder).cases] == ["1"]
    everything = index_dataset(written.folder, labels_required=False)
    assert [(case.case_id, case.label is None) for case in everything.cases] == [("1", False), ("2", True), ("3", True)]
    assert [finding.case_id for finding in check_dataset(everything) if finding.code == "label.missing"] == []


@every_layout
def test_dataset_without_masks_is_indexed_only_if_labels_are_not_required(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path, ids=(), tests=("1", "2"))
    assert_cases(written.folder, written)
    with pytest.raises(DataError, match=r"no mask|no case with a mask"):
        index_dataset(written.folder)


@every_layout
def test_missing_mask_is_named(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path)
    mask_file(written, "2").unlink()
    with pytest.raises(DataError, match=r"no mask|file of the dataset is missing") as caught:
        index_dataset(written.folder)
    assert "2" in Path(caught.value.fields["where"]).name
    assert "10" not in caught.value.fields["where"].removeprefix(str(written.folder))


@every_layout
@pytest.mark.parametrize("labels_required", [True, False])
def test_missing_scan_is_named(tmp_path: Path, layout: LayoutName, labels_required: bool) -> None:
    written = write(layout, tmp_path)
    written.files["2"][0].unlink()
    with pytest.raises(DataError, match=r"no scan|file of the dataset is missing") as caught:
        index_dataset(written.folder, labels_required=labels_required)
    assert "2" in Path(caught.value.fields["where"]).name


@every_layout
def test_broken_links_are_named(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path)
    for path in (written.files["1"][0], mask_file(written, "1")):
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(tmp_path / "missing.nii.gz")
        with pytest.raises(DataError, match="link is broken") as caught:
            index_dataset(written.folder)
        assert caught.value.fields["where"] == str(path)
        path.unlink()
        path.write_bytes(content)


@every_layout
def test_system_files_and_hidden_folders_are_ignored(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path)
    for folder in list(folders(written.folder)):
        for name in SYSTEM_FILES:
            (folder / name).write_bytes(b"\x00\x05\x16\x07")
    shutil.copytree(written.folder, tmp_path / "copy")
    for name in ("__MACOSX", ".partial-ab12-3"):
        shutil.copytree(tmp_path / "copy", written.folder / name)
    (written.folder / "notes").mkdir()
    (written.folder / "readme.txt").touch()
    assert_cases(written.folder, written)


@every_layout
def test_dataset_is_found_in_a_wrapper_folder(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "download")
    shutil.copytree(written.folder, tmp_path / "download" / f".partial-ab12-{written.folder.name}")
    shutil.copytree(written.folder, tmp_path / "download" / "__MACOSX" / written.folder.name)
    (tmp_path / "download" / ".DS_Store").touch()
    assert index_dataset(tmp_path / "download").root == written.folder
    assert_cases(tmp_path / "download", written)
    for path in LAYOUTS[layout].WRAPPERS:
        home = tmp_path / path.replace("/", "-") / path
        shutil.copytree(written.folder, home)
        assert index_dataset(tmp_path / path.replace("/", "-")).root == home


@every_layout
def test_two_datasets_in_a_folder_are_refused(tmp_path: Path, layout: LayoutName) -> None:
    for other in LAYOUTS:
        parent = tmp_path / other
        first = write(layout, parent / "a").folder.rename(parent / LAYOUTS[layout].EXAMPLE_NAME)
        if other == layout:
            continue
        second = write(other, parent / "b").folder.rename(parent / LAYOUTS[other].EXAMPLE_NAME)
        with pytest.raises(DataError, match="more than one dataset") as caught:
            index_dataset(parent)
        assert f"{first.name} ({layout})" in caught.value.fields["found"]
        assert f"{second.name} ({other})" in caught.value.fields["found"]


@every_layout
def test_odd_case_ids_are_kept(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path, ids=ODD_IDS, tests=("test-1", "Ärger"))
    assert_cases(written.folder, written)
    for target in LAYOUTS:
        folder = tmp_path / target / LAYOUTS[target].EXAMPLE_NAME
        transfer(written.folder, folder, target)
        assert_cases(folder, written)


@every_layout
def test_case_ids_that_are_not_file_names_are_refused(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path, ids=("1", "line\nbreak"))
    with pytest.raises((DataError, InputError), match="cannot be used as a file name"):
        index_dataset(written.folder)


@every_layout
def test_two_cases_with_the_same_id_are_refused(tmp_path: Path, layout: LayoutName) -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    written = write(layout, tmp_path, ids=("1", composed), tests=(decomposed,))
    if written.files[composed][0] == written.files[decomposed][0]:
        pytest.skip("this file system has one form of Unicode names")
    with pytest.raises(DataError, match="two cases have the same id") as caught:
        index_dataset(written.folder, labels_required=False)
    assert caught.value.fields["found"] == composed


@manifest_layouts
@pytest.mark.parametrize(("encoding", "line_end"), [("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n")])
def test_manifest_written_on_windows_is_read(tmp_path: Path, layout: LayoutName, encoding: str, line_end: str) -> None:
    written = write(layout, tmp_path, ids=("1", "2", "Müller"))
    manifest = json.loads((written.folder / MANIFEST).read_text())

    def backslashes(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: backslashes(each) for key, each in value.items()}
        if isinstance(value, list):
            return [backslashes(each) for each in value]
        return value.replace("/", "\\") if isinstance(value, str) else value

    text = json.dumps(backslashes(manifest), indent=2, ensure_ascii=False).replace("\n", line_end)
    (written.folder / MANIFEST).write_bytes(text.encode(encoding))
    assert_cases(written.folder, written)


@manifest_layouts
@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("latin-1", "Latin-1")])
def test_encoding_of_a_manifest_is_named(tmp_path: Path, layout: LayoutName, encoding: str, name: str) -> None:
    written = write(layout, tmp_path)
    manifest = json.loads((written.folder / MANIFEST).read_text()) | {"name": "Müller"}
    (written.folder / MANIFEST).write_bytes(json.dumps(manifest, ensure_ascii=False).encode(encoding))
    with pytest.raises(InputError, match="UTF-8") as caught:
        index_dataset(written.folder)
    assert name in caught.value.fields["found"]


@every_layout
def test_unknown_structure_is_refused_without_output(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    for label in ("parotid", "0", "-1", "1.0"):
        with pytest.raises(DataError, match="no such structure") as caught:
            transfer(written.folder, tmp_path / "target", "structseg", label=label)
        assert caught.value.fields["found"] == label
    with pytest.raises(DataError, match=r"no such structure|no voxel of label_2"):
        transfer(written.folder, tmp_path / "target", "structseg", label="2")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@every_layout
def test_structure_is_kept_by_its_value(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    converted = transfer(written.folder, tmp_path / "target", "structseg", label="1")
    assert converted.cases == 4
    assert_cases(tmp_path / "target", written)


@every_layout
def test_masks_of_several_values_are_refused(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    mask = read_volume(mask_file(written, "2"))
    write_volume(mask_file(written, "2"), mask.with_array(mask.array * np.uint8(3)))
    case = next(case for case in index_dataset(written.folder).cases if case.case_id == "2")
    with pytest.raises(DataError, match="not binary") as caught:
        read_label(case, read_volume(case.image))
    assert "--label 3" in caught.value.fields["do"]
    with pytest.raises(DataError, match="not binary"):
        transfer(written.folder, tmp_path / "target", "structseg")
    assert not (tmp_path / "target").exists()


@every_layout
def test_mask_on_another_grid_is_refused(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    mask = read_volume(mask_file(written, "2"))
    shifted = mask.affine.copy()
    shifted[0, 3] += 2
    write_volume(mask_file(written, "2"), Volume(mask.array, shifted))
    case = next(case for case in index_dataset(written.folder).cases if case.case_id == "2")
    with pytest.raises(GeometryError, match="not on the scan's grid") as caught:
        read_label(case, read_volume(case.image))
    assert caught.value.fields["where"] == str(mask_file(written, "2"))
    with pytest.raises(GeometryError):
        transfer(written.folder, tmp_path / "target", "structseg")
    assert not (tmp_path / "target").exists()


@every_layout
def test_blind_export_is_indexed_as_test_cases(tmp_path: Path, layout: LayoutName) -> None:
    written = write(layout, tmp_path / "source")
    folder = tmp_path / "target" / LAYOUTS[layout].EXAMPLE_NAME
    key = tmp_path / "key.json"
    assert export_blind(written.folder, folder, layout, key=key).cases == 4
    entries = json.loads(key.read_text())["cases"]
    assert_cases(
        folder,
        Written(
            folder,
            {number: written.scans[entry["case_id"]] for number, entry in entries.items()},
            dict.fromkeys(entries),
            {},
        ),
    )
