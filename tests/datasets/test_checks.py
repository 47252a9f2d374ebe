"""Every kind of finding is reported for the faulty case, and for no other."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gtvray.datasets import KINDS, Finding, Split, check_dataset, index_dataset, require_sound
from gtvray.errors import InputError
from gtvray.geometry import Volume, resample_to_grid, resampled_grid
from gtvray.io import read_volume, write_volume

REPOSITORY = Path(__file__).resolve().parent.parent.parent
Array = NDArray[np.generic]
Change = Callable[[Array], Array]


# Half axes of three bodies relative to the grid's, different enough not to look like copies.
BODIES = {"1": (0.94, 0.94, 0.94), "2": (0.9, 0.76, 0.9), "10": (0.94, 0.94, 0.72)}
SHAPE = (34, 36, 26)


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Three valid cases of different patients, `1`, `2` and `10`, of 34 x 36 x 26 voxels."""
    for name, half_axes in BODIES.items():
        rng = np.random.default_rng(int(name))
        axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
        body = sum((x / half) ** 2 for x, half in zip(axes, half_axes, strict=True)) < 1
        tumour = sum((x - rng.uniform(-0.2, 0.2)) ** 2 for x in axes) < 0.08
        hu = np.where(body, rng.normal(40, 20, SHAPE), -1000) + 30 * tumour
        affine = np.diag([-4.0, -4.0, 5.0, 1.0])
        write_volume(tmp_path / "set" / name / "data.nii.gz", Volume(np.rint(hu).astype(np.int16), affine))
        write_volume(tmp_path / "set" / name / "label.nii.gz", Volume(tumour, affine))
    return tmp_path / "set"


def change(case: Path, *, scan: Change | None = None, label: Change | None = None, affine: Array | None = None) -> None:
    """Rewrite the scan or mask of a case with other voxels, or both with another affine."""
    for name, edit in (("data", scan), ("label", label)):
        if edit is not None or affine is not None:
            file = case / f"{name}.nii.gz"
            volume = read_volume(file)
            array = volume.array if edit is None else np.asarray(edit(volume.array.copy()))
            write_volume(file, Volume(array, volume.affine if affine is None else affine))


def check(folder: Path, **options: object) -> list[Finding]:
    return check_dataset(index_dataset(folder, labels_required=False), **options)  # type: ignore[arg-type]


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_valid_dataset_has_no_findings(dataset_folder: Path) -> None:
    reports: list[tuple[int, int]] = []
    assert check_dataset(index_dataset(dataset_folder), lambda *step: reports.append(step)) == []
    assert reports == [(1, 3), (2, 3), (3, 3)]
    assert require_sound(index_dataset(dataset_folder)) == []


def test_interrupted_check_drops_queued_cases(phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "gtvray.datasets.checks.survey.survey_case", lambda case, draw: read.append(case.case_id) or time.sleep(0.1)
    )

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(index_dataset(phantoms), interrupt)
    assert 1 <= len(read) < 12


def test_findings_on_many_components_are_limited(dataset_folder: Path) -> None:
    def dotted(array: Array) -> Array:
        array = _cube(array)
        array[5:11:3, 8:30:3, 7:20:3] = 1
        return array

    change(dataset_folder / "1", label=dotted)
    strays = [finding for finding in check(dataset_folder) if finding.code == "label.stray_component"]
    assert len(strays) == 11
    assert "more components" in strays[-1].message


def test_phantoms_have_no_faults(phantoms: Path) -> None:
    found = check(phantoms)
    # Some phantoms are wider than their field of view, as some patients are.
    assert codes(found) <= {"scan.cut", "scan.cut_near_tumour"}
    assert len(found) <= 3


def test_all_faults_are_listed_errors_first(dataset_folder: Path) -> None:
    shutil.copytree(dataset_folder / "1", dataset_folder / "3")
    change(dataset_folder / "1", label=lambda a: np.pad(np.ones((1, 1, 1), np.uint8), [(17, n - 18) for n in a.shape]))
    change(dataset_folder / "2", label=lambda a: a[:-1])
    broken = dataset_folder / "10" / "data.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-50])
    findings = check(dataset_folder)
    assert [(finding.severity, finding.case_id, finding.code) for finding in findings] == [
        ("error", "2", "label.other_grid"),
        ("error", "3", "scan.same"),
        ("error", "10", "scan.unreadable"),
        ("warning", "1", "label.one_slice"),
    ]
    assert "the same scan as case 1" in findings[1].message
    assert not any(str(dataset_folder) in finding.message + finding.advice for finding in findings)
    with pytest.raises(InputError, match=r"case 2: mask is not on the scan's grid \(and 2 more cases\)") as caught:
        require_sound(index_dataset(dataset_folder))
    assert len(str(caught.value).splitlines()) <= 5


def _toggle(*voxels: tuple[int, int, int]) -> Change:
    """Invert single voxels."""

    def edit(array: Array) -> Array:
        for voxel in voxels:
            array[voxel] = 1 - array[voxel]  # type: ignore[call-overload, operator]
        return array

    return edit


def _blob(*, start: tuple[int, int, int], size: int, hollow: bool = False) -> Change:
    def edit(array: Array) -> Array:
        array = np.zeros_like(array)
        i, j, k = start
        array[i : i + size, j : j + size, k : k + size] = 1
        if hollow:
            array[i + 2 : i + size - 2, j + 2 : j + size - 2, k + 2 : k + size - 2] = 0
        return array

    return edit


def _cube(array: Array) -> Array:
    return _blob(start=(12, 12, 8), size=9)(array)


def _without_slice(array: Array) -> Array:
    array = _cube(array)
    array[:, :, 12] = 0
    return array


LABEL_FAULTS: dict[str, Change] = {
    "label.empty": np.zeros_like,
    "label.not_binary": lambda a: a * 2,
    "label.not_labels": lambda a: a * np.float32(0.5),
    "label.rounded": lambda a: a * np.float32(0.9999999),
    "label.other_grid": lambda a: a[:-1],
    "label.misplaced": _blob(start=(0, 0, 0), size=5),
    "label.outside_body": _blob(start=(14, 27, 10), size=6),
    "label.volume": np.ones_like,
    "label.one_slice": lambda a: np.where(np.arange(a.shape[2]) == 13, _cube(a), 0).astype(np.uint8),
    "label.at_border": _blob(start=(14, 14, 22), size=4),
    "label.stray_component": lambda a: _toggle((17, 5, 13))(_cube(a)),
    "label.specks": lambda a: _toggle((16, 22, 13))(_cube(a)),
    "label.holes": _blob(start=(12, 12, 8), size=9, hollow=True),
    "label.slice_skipped": _without_slice,
}


@pytest.mark.parametrize("code", LABEL_FAULTS)
def test_fault_of_a_mask_is_reported_with_its_code(dataset_folder: Path, code: str) -> None:
    change(dataset_folder / "2", label=LABEL_FAULTS[code])
    findings = check(dataset_folder)
    assert {finding.case_id for finding in findings} == {"2"}
    (finding,) = (finding for finding in findings if finding.code == code)
    assert finding.severity == KINDS[code].severity
    # Only masks with several faults have further findings.
    allowed = {
        "label.misplaced": {"label.at_border"},
        "label.volume": {"label.at_border", "label.misplaced"},
        "label.at_border": {"label.outside_body"},
    }
    assert codes(findings) - {code} <= allowed.get(code, set())


def test_stray_component_and_skipped_slice_are_located(dataset_folder: Path) -> None:
    change(dataset_folder / "1", label=LABEL_FAULTS["label.stray_component"])
    change(dataset_folder / "2", label=LABEL_FAULTS["label.slice_skipped"])
    stray, skipped = check(dataset_folder)
    affine = read_volume(dataset_folder / "1" / "label.nii.gz").affine
    assert stray.place_ras_mm == pytest.approx(tuple((affine @ (17, 5, 13, 1))[:3]))
    assert (stray.slice_index, skipped.slice_index) == (13, 12)
    assert "0.08 ml, 28 mm" in stray.message
    # With the same voxels stored from head to feet, the slice index is that of the file.
    for name in ("data", "label"):
        file = dataset_folder / "2" / f"{name}.nii.gz"
        write_volume(file, read_volume(file).reoriented("LPI"))
    turned = check(dataset_folder)[1]
    assert turned.slice_index == 25 - 12


def test_axis_of_a_flipped_mask_is_reported(dataset_folder: Path) -> None:
    # Half of the body is removed, and the mask is on the removed side.
    change(dataset_folder / "1", scan=lambda a: np.where(np.arange(34)[:, None, None] > 16, -1000, a).astype(np.int16))
    change(dataset_folder / "1", label=_blob(start=(22, 15, 10), size=6))
    (finding,) = check(dataset_folder)
    assert finding.code == "label.misplaced"
    assert "flipped left-right it would be inside" in finding.message


def _soft(array: Array, hu: int) -> Array:
    label = _cube(np.zeros(array.shape, np.uint8)) != 0
    return np.where(label, hu, array).astype(np.int16)


SCAN_FAULTS: dict[str, Change] = {
    "scan.not_hu": lambda a: a + 1024,
    "scan.hu_shifted": lambda a: np.where(a > -500, a + 300, a).astype(np.int16),
    "scan.clipped": lambda a: np.minimum(a, 60),
    "scan.slice_repeated": lambda a: np.concatenate([a[:, :, :13], a[:, :, 12:-1]], axis=2),
    "scan.cut_near_tumour": lambda a: np.concatenate([a[:, 14:], np.full_like(a[:, :14], -1000)], axis=1),
}


@pytest.mark.parametrize("code", SCAN_FAULTS)
def test_fault_of_a_scan_is_reported_with_its_code(dataset_folder: Path, code: str) -> None:
    if code == "scan.cut_near_tumour":
        change(dataset_folder / "2", label=_blob(start=(14, 5, 10), size=6))
    change(dataset_folder / "2", scan=SCAN_FAULTS[code])
    found = [(finding.code, finding.case_id) for finding in check(dataset_folder)]
    # Tissue that is 300 HU too high also looks like bone.
    assert [each for each in found if each != ("label.in_bone", "2")] == [(code, "2")]


@pytest.mark.parametrize(("hu", "code"), [(-700, "label.in_air"), (600, "label.in_bone")])
def test_tumour_in_air_or_bone_is_reported(dataset_folder: Path, hu: int, code: str) -> None:
    change(dataset_folder / "1", scan=lambda a: _soft(a, hu), label=_cube)
    # The faces of the cube are jumps between slices, and its constant value looks like clipping.
    assert {code} <= codes(check(dataset_folder)) <= {code, "scan.slices_missing", "scan.clipped"}


@pytest.mark.parametrize(
    ("high", "scale", "guess"), [(1, 1 / 400, "0..1"), (255, 255 / 400, "8-bit"), (None, 1, "rescale intercept")]
)
def test_values_that_are_not_hu_are_reported_with_a_guess(
    dataset_folder: Path, high: float | None, scale: float, guess: str
) -> None:
    def edit(a: Array) -> Array:
        if high is None:
            return np.where(a > 90, 1700, a + 1024).astype(np.int16)
        window = (np.clip(a, -160, 240) + 160) * scale
        return window.astype(np.uint8) if high == 255 else window.astype(np.float32)

    change(dataset_folder / "1", scan=edit)
    (finding,) = check(dataset_folder)
    assert finding.code == "scan.not_hu"
    assert guess in finding.message


def test_missing_slices_are_found(phantoms: Path, tmp_path: Path) -> None:
    scan, label = (read_volume(phantoms / "3" / f"{name}.nii.gz").reoriented("RAS") for name in ("data", "label"))
    middle = scan.shape[2] // 2
    kept = np.r_[0:middle, middle + 6 : scan.shape[2]]
    for name, volume in (("data", scan), ("label", label)):
        write_volume(tmp_path / "1" / f"{name}.nii.gz", Volume(volume.array[:, :, kept], volume.affine))
    found = [finding for finding in check(tmp_path) if finding.code == "scan.slices_missing"]
    assert [finding.slice_index for finding in found] == [middle - 1]


def test_table_in_front_of_the_patient_is_reported(phantoms: Path, tmp_path: Path) -> None:
    scan = read_volume(phantoms / "3" / "data.nii.gz").reoriented("RAS")
    write_volume(tmp_path / "1" / "data.nii.gz", scan)
    write_volume(tmp_path / "2" / "data.nii.gz", scan.with_array(scan.array[:, ::-1] + np.int16(1)))
    found = [finding for finding in check(tmp_path) if finding.code == "scan.turned"]
    assert [finding.case_id for finding in found] == ["2"]


@pytest.mark.parametrize(
    ("code", "affine"),
    [
        ("grid.spacing", np.diag([-4.0, -4.0, 9.0, 1])),
        ("grid.spacing", np.diag([-4.0, -4.2, 5.0, 1])),
        ("grid.body_size", np.diag([-1.2, -1.2, 5.0, 1])),
        ("grid.sheared", np.array([[-4.0, 0, 0, 0], [0, -4, 1.5, 0], [0, 0, 5, 0], [0, 0, 0, 1]])),
    ],
)
def test_implausible_grid_is_reported(dataset_folder: Path, code: str, affine: Array) -> None:
    change(dataset_folder / "2", affine=affine)
    assert code in codes(check(dataset_folder))
    assert codes(check(dataset_folder)) <= {code, "label.volume", "leak.same"}


def test_missing_and_unreadable_masks_are_reported(dataset_folder: Path) -> None:
    (dataset_folder / "1" / "label.nii.gz").unlink()
    (dataset_folder / "2" / "label.nii.gz").write_bytes(b"not a volume")
    assert [finding.code for finding in check(dataset_folder)] == ["label.missing", "label.unreadable"]
    for name in ("2", "10"):
        (dataset_folder / name / "label.nii.gz").unlink()
    # A dataset without any mask is a test set.
    assert check(dataset_folder) == []


TREATMENTS: dict[str, tuple[str, Callable[[Volume], Volume]]] = {
    "unchanged": ("same", lambda v: v),
    "another orientation": ("same", lambda v: v.reoriented("SAR")),
    "another data type": ("same", lambda v: v.with_array(v.array.astype(np.float32))),
    "noise": (
        "alike",
        lambda v: v.with_array(v.array + np.random.default_rng(0).integers(-1, 2, v.shape).astype("i2")),
    ),
    "resampled": (
        "alike",
        lambda v: _rounded(resample_to_grid(v, *resampled_grid(v, (3.5, 3.5, 4.0)), order=1, fill=-1000)),
    ),
    "fewer slices": ("alike", lambda v: Volume(v.array[:, :, :-6], v.affine)),
    "mirrored": ("alike", lambda v: v.with_array(v.array[::-1])),
}


def _rounded(volume: Volume) -> Volume:
    return volume.with_array(np.rint(volume.array).astype(np.int16))


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_copy_of_a_scan_is_found_after_processing(phantoms: Path, tmp_path: Path, treatment: str) -> None:
    kind, treat = TREATMENTS[treatment]
    for name in ("1", "2", "3"):
        shutil.copytree(phantoms / name, tmp_path / "set" / name)
    write_volume(tmp_path / "set" / "9" / "data.nii", treat(read_volume(phantoms / "2" / "data.nii.gz")))
    found = [finding for finding in check(tmp_path / "set") if "2" in finding.message]
    assert [finding.code for finding in found if finding.code != "label.missing"] == [f"scan.{kind}"]
    # The same across folders, and across a split.
    shutil.move(tmp_path / "set" / "9", tmp_path / "other" / "9")
    crossing = check(tmp_path / "set", against=index_dataset(tmp_path / "other", labels_required=False))
    assert [finding.case_id for finding in crossing if finding.code == f"leak.{kind}"] == ["2"]
    shutil.move(tmp_path / "other" / "9", tmp_path / "set" / "9")
    split = Split(train=("1", "2"), selection=("3",), held_out=("9",))
    (leak,) = (finding for finding in check(tmp_path / "set", split=split) if finding.code == f"leak.{kind}")
    assert "held out and train" in leak.message


def test_same_mask_on_another_scan_is_reported(dataset_folder: Path) -> None:
    shutil.copyfile(dataset_folder / "1" / "label.nii.gz", dataset_folder / "2" / "label.nii.gz")
    (finding,) = check(dataset_folder)
    assert (finding.code, finding.case_id) == ("label.same", "2")


def test_cut_away_from_the_tumour_is_an_info(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "1", tmp_path / "1")
    scan = read_volume(tmp_path / "1" / "data.nii.gz").reoriented("RAS")
    array = scan.array.copy()
    array[:2, 30:70, 0] = 40
    label = np.zeros(scan.shape, np.uint8)
    label[45:55, 45:55, -15:-8] = 1
    write_volume(tmp_path / "1" / "data.nii.gz", scan.with_array(array))
    write_volume(tmp_path / "1" / "label.nii.gz", scan.with_array(label))
    assert ("scan.cut", 0) in [(finding.code, finding.slice_index) for finding in check(tmp_path)]


def test_every_kind_is_tested_and_documented() -> None:
    guide = (REPOSITORY / "docs" / "guide-your-data.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (\w+) \|", guide, re.MULTILINE))
    assert rows == {code: kind.severity for code, kind in KINDS.items()}
    tests = Path(__file__).read_text()
    assert [
        code
        for code in KINDS
        # Corrections are tested with the trainings that use them.
        if f'"{code}"' not in tests and not code.startswith(("scan.same", "scan.alike", "leak.", "correction."))
    ] == []


def test_real_planning_cts_have_no_errors(real_cases: Path, tmp_path: Path) -> None:
    for name in ("pt_1", "pt_2", "pt_3"):
        (tmp_path / name).symlink_to(real_cases / name)
    assert [finding for finding in check(tmp_path) if finding.severity == "error"] == []


def test_malformed_volumes_are_reported(shared_data: Path, tmp_path: Path) -> None:
    odd = shared_data / "oddities" / "derived"
    expected = {
        "unsigned_offset1024": "scan.not_hu",
        "scaled_0_1": "scan.not_hu",
        "uint8_windowed": "scan.not_hu",
        "all_air": "scan.not_hu",
        "bad_magic": "scan.unreadable",
        "sheared_affine": "grid.sheared",
    }
    for name in expected:
        (tmp_path / name).mkdir()
        shutil.copyfile(odd / f"{name}.nii.gz", tmp_path / name / "data.nii.gz")
    found = check(tmp_path)
    assert {name: {each.code for each in found if each.case_id == name} - {"scan.cut"} for name in expected} == {
        name: {code} for name, code in expected.items()
    }
