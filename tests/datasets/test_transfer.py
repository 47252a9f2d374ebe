"""Conversion between layouts, choice of a structure, and blind export: unchanged voxels, and no partial output."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from gtvray.datasets import export_blind, find_dataset, index_dataset, read_label, transfer, unblind
from gtvray.datasets.layouts import LayoutName
from gtvray.datasets.layouts.registry import LAYOUTS
from gtvray.errors import DataError, GeometryError, InputError, VolumeError
from gtvray.geometry import Volume
from gtvray.io import read_volume, write_volume

# The conversions end in StructSeg's layout, with which they begin.
CHAIN: tuple[LayoutName, ...] = (*(name for name in LAYOUTS if name != "structseg"), "structseg")


def _voxels(folder: Path) -> dict[str, list[tuple[str, bytes, bytes]]]:
    """Return data type, affine and voxels of every scan and mask, by case."""
    found = {}
    for case in find_dataset(folder, with_test=True).cases:
        volumes = [read_volume(path) for path in (case.image, case.label) if path is not None]
        found[case.case_id] = [(str(v.array.dtype), v.affine.tobytes(), v.array.tobytes()) for v in volumes]
    return found


def _organs(case_folder: Path, *values: int) -> None:
    """Write a mask of several structures: the tumour, and slabs of other values."""
    label = read_volume(case_folder / "label.nii.gz")
    array = label.array.astype(np.uint8) * np.uint8(values[0])
    for k, value in enumerate(values[1:]):
        array[:, :, k] = value
    write_volume(case_folder / "label.nii.gz", Volume(array, label.affine))


def test_round_trip_keeps_every_byte(tmp_path: Path, dataset_folder: Path) -> None:
    shutil.rmtree(dataset_folder / "10")
    (dataset_folder / "patients.csv").write_text("case_id;patient_id\n1;A\n2;A\n99;B\n")
    source, reports = dataset_folder, []
    for step, layout in enumerate(CHAIN):
        target = tmp_path / f"Dataset00{step}_Round"
        done = transfer(source, target, layout, report=lambda *at: reports.append(at))
        assert (done.cases, done.copied, done.rewritten, done.structure) == (2, 4, 0, "GTV")
        assert index_dataset(target).layout == layout
        assert (target / "patients.csv").read_text() == "case_id,patient_id\n1,A\n2,A\n"
        source = target
    assert reports == [(1, 2), (2, 2)] * len(CHAIN)
    for case in ("1", "2"):
        for name in ("data.nii.gz", "label.nii.gz"):
            assert (source / case / name).read_bytes() == (dataset_folder / case / name).read_bytes()
            assert (source / case / name).stat().st_ino != (dataset_folder / case / name).stat().st_ino


def test_round_trip_of_real_cases(tmp_path: Path, real_cases: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for case in sorted(real_cases.iterdir())[:3]:
        (some / case.name).symlink_to(case, target_is_directory=True)
    source = some
    for step, layout in enumerate(CHAIN):
        transfer(source, tmp_path / f"Dataset01{step}_Real", layout)
        source = tmp_path / f"Dataset01{step}_Real"
    assert _voxels(source) == _voxels(some)
    assert len(_voxels(some)) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rewritten_files_have_the_same_voxels(tmp_path: Path, dataset_folder: Path, layout: LayoutName) -> None:
    for name in ("data", "label"):
        packed = dataset_folder / "1" / f"{name}.nii.gz"
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    plain = dataset_folder / "2" / "data.nii.gz"
    # Not compressed in spite of its name, by which some readers decide.
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    mask = dataset_folder / "2" / "label.nii.gz"
    # Some readers do not support NIfTI-2.
    second = nibabel.Nifti2Image.from_image(nibabel.load(mask))
    nibabel.save(second, mask)
    oblique = read_volume(dataset_folder / "10" / "data.nii.gz").affine.copy()
    oblique[:3, :3] = oblique[:3, :3] @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for name in ("data", "label"):
        volume = read_volume(dataset_folder / "10" / f"{name}.nii.gz")
        (dataset_folder / "10" / f"{name}.nii.gz").unlink()
        write_volume(dataset_folder / "10" / f"{name}.nii", Volume(volume.array.astype(np.float32), oblique))
    before = _voxels(dataset_folder)
    done = transfer(dataset_folder, tmp_path / "Dataset001_A", layout)
    assert (done.copied, done.rewritten) == (0, 6)
    for path in (tmp_path / "Dataset001_A").rglob("*.nii.gz"):
        assert nibabel.load(path).header.sizeof_hdr == 348
    assert _voxels(tmp_path / "Dataset001_A") == before
    assert {path.suffix for path in (tmp_path / "Dataset001_A").rglob("*") if path.is_file()} == {".gz", ".json"}
    record = json.loads((tmp_path / "Dataset001_A" / "transfer.json").read_text())
    assert [(row["source_case_id"], row["image"], row["label"]) for row in record["cases"]] == [
        ("1", "rewritten", "rewritten"), ("2", "rewritten", "rewritten"), ("10", "rewritten", "rewritten"),
    ]  # fmt: skip


def test_cases_without_a_mask_stay_test_cases(tmp_path: Path, dataset_folder: Path) -> None:
    (dataset_folder / "2" / "label.nii.gz").unlink()
    source = dataset_folder
    before = _voxels(source)
    for layout in CHAIN:
        target = tmp_path / f"Dataset002_{layout}"
        assert transfer(source, target, layout).test_cases == 1
        assert [case.case_id for case in index_dataset(target).cases] == ["1", "10"]
        assert _voxels(target) == before
        source = target
    assert (source / "test" / "2" / "data.nii.gz").is_file()


def test_metadata_of_a_dataset_is_converted(tmp_path: Path, dataset_folder: Path) -> None:
    transfer(dataset_folder, tmp_path / "msd", "msd")
    index = json.loads((tmp_path / "msd" / "dataset.json").read_text())
    assert list(index) == [
        "name", "description", "reference", "licence", "release", "tensorImageSize", "modality", "labels",
        "numTraining", "numTest", "training", "test",
    ]  # fmt: skip
    assert index["training"][0] == {"image": "./imagesTr/1.nii.gz", "label": "./labelsTr/1.nii.gz"}
    index |= {"licence": "CC-BY-SA 4.0", "labels": {"0": "background", "1": "PTV70"}}
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps(index))
    transfer(tmp_path / "msd", tmp_path / "cases", "structseg")
    assert index_dataset(tmp_path / "cases").title == "3 cases of PTV70"
    transfer(tmp_path / "cases", tmp_path / "Dataset003_Back", "nnunet")
    assert json.loads((tmp_path / "Dataset003_Back" / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "PTV70": 1}, "numTraining": 3,
        "file_ending": ".nii.gz", "licence": "CC-BY-SA 4.0",
    }  # fmt: skip


def test_one_structure_of_several_is_kept(tmp_path: Path, dataset_folder: Path) -> None:
    tumours = {n: read_volume(dataset_folder / n / "label.nii.gz").array > 0 for n in ("1", "2", "10")}
    for name in ("1", "2"):
        _organs(dataset_folder / name, 4, 7, 9)
    _organs(dataset_folder / "10", 3)
    with pytest.raises(DataError, match="not binary"):
        transfer(dataset_folder, tmp_path / "all", "structseg")
    with pytest.raises(DataError, match="no such structure"):
        transfer(dataset_folder, tmp_path / "all", "structseg", label="parotid")
    assert not (tmp_path / "all").exists()
    with pytest.raises(DataError, match=r"no voxel of label_4 \(value 4\) in 1 of 3 masks") as caught:
        transfer(dataset_folder, tmp_path / "four", "structseg", label="4")
    assert caught.value.fields["found"] == "case 10 (values 0, 3)"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    shutil.rmtree(dataset_folder / "10")
    done = transfer(dataset_folder, tmp_path / "four", "structseg", label="4")
    assert (done.structure, done.copied, done.rewritten) == ("label_4", 2, 2)
    for case in index_dataset(tmp_path / "four").cases:
        mask = read_label(case, read_volume(case.image)).array
        slabs = np.arange(mask.shape[2]) < 2
        assert np.array_equal(mask, tumours[case.case_id] & ~slabs)


def test_structure_is_chosen_by_name_or_value(tmp_path: Path, dataset_folder: Path) -> None:
    transfer(dataset_folder, tmp_path / "Dataset004_Organs", "nnunet")
    home = tmp_path / "Dataset004_Organs"
    for path in (home / "labelsTr").iterdir():
        path.rename(home / "label.nii.gz")
        _organs(home, 1, 2, 3)
        (home / "label.nii.gz").rename(path)
    index = json.loads((home / "dataset.json").read_text())
    index["labels"] = {"background": 0, "whole": [1, 2], "core": 2, "rest": 3}
    (home / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="several structures") as caught:
        transfer(home, tmp_path / "none", "structseg")
    assert caught.value.fields["found"] == "whole = 1+2, core = 2, rest = 3"
    organs = read_volume(home / "labelsTr" / "2.nii.gz").array
    for label, name, values in (("whole", "whole", (1, 2)), ("core", "core", (2,)), ("3", "rest", (3,))):
        assert transfer(home, tmp_path / label, "structseg", label=label).structure == name
        assert np.array_equal(
            read_volume(tmp_path / label / "2" / "label.nii.gz").array, np.isin(organs, values).astype(np.uint8)
        )
    with pytest.raises(DataError, match="no such structure") as caught:
        transfer(home, tmp_path / "none", "structseg", label="4")
    assert "core = 2" in caught.value.fields["expected"]


def test_no_partial_output_and_no_replaced_files(tmp_path: Path, dataset_folder: Path) -> None:
    target = tmp_path / "out" / "cases"
    broken = dataset_folder / "10" / "data.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(content[:-40])
    with pytest.raises(VolumeError):
        transfer(dataset_folder, target, "structseg")
    assert list(target.parent.iterdir()) == []
    broken.write_bytes(content)
    target.mkdir()
    assert transfer(dataset_folder, target, "structseg").cases == 3
    with pytest.raises(InputError, match="target is not empty"):
        transfer(dataset_folder, target, "structseg")
    with pytest.raises(InputError, match="inside the source"):
        transfer(dataset_folder, dataset_folder / "again", "structseg")
    with pytest.raises(InputError, match="does not accept this folder name"):
        transfer(dataset_folder, tmp_path / "Neck", "nnunet")


def test_files_that_appear_in_the_target_meanwhile_are_kept(tmp_path: Path, dataset_folder: Path) -> None:
    target = tmp_path / "cases"

    def intrude(done: int, count: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "thesis.txt").write_text("mine")

    with pytest.raises(InputError, match="target is not empty"):
        transfer(dataset_folder, target, "structseg", report=intrude)
    assert [path.name for path in tmp_path.iterdir() if path.name != "set"] == ["cases"]
    assert (target / "thesis.txt").read_text() == "mine"


def _sign(path: Path) -> None:
    """Put free text into every text field of a header."""
    image = nibabel.load(path)
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[name] = b"MEIER"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"MEIER, Anna"))
    nibabel.save(image, path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blind_export_discloses_only_voxels(tmp_path: Path, dataset_folder: Path, layout: LayoutName) -> None:
    for case in dataset_folder.iterdir():
        _sign(case / "data.nii.gz")
    assert b"MEIER" in gzip.decompress((dataset_folder / "1" / "data.nii.gz").read_bytes())
    before = {case.case_id: read_volume(case.image) for case in index_dataset(dataset_folder).cases}
    target, key = tmp_path / "Dataset005_Blind", tmp_path / "keys" / "mine.json"
    done = export_blind(dataset_folder, target, layout, key=key)
    assert (done.cases, done.key, key.stat().st_mode & 0o777) == (3, key, 0o600)
    scans = [path for path in target.rglob("*") if path.name.endswith(".gz")]
    assert len(scans) == 3
    for path in target.rglob("*"):
        assert path.stat().st_mtime == 0
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert b"MEIER" not in content
            assert b"GTV" not in content
    entries = json.loads(key.read_text())["cases"]
    exported = index_dataset(target, labels_required=False).cases
    assert [case.case_id for case in exported] == ["001", "002", "003"] == list(entries)
    assert {entry["case_id"] for entry in entries.values()} == set(before)
    for case in exported:
        original, volume = before[entries[case.case_id]["case_id"]], read_volume(case.image)
        assert case.label is None
        assert volume.array.dtype == original.array.dtype
        assert np.array_equal(volume.array, original.array)
        assert np.array_equal(volume.affine, original.affine)


def test_order_of_a_blind_export_is_random_unless_a_seed_is_given(tmp_path: Path, dataset_folder: Path) -> None:
    def order(name: str, seed: int | None) -> list[str]:
        key = tmp_path / f"{name}.json"
        export_blind(dataset_folder, tmp_path / name, "structseg", key=key, seed=seed)
        return [entry["case_id"] for entry in json.loads(key.read_text())["cases"].values()]

    assert order("a", 3) == order("b", 3)
    assert len({tuple(order(f"seed-{seed}", seed)) for seed in range(5)}) > 1
    seeds = set()
    for name in ("x", "y"):
        order(name, None)
        seeds.add(json.loads((tmp_path / f"{name}.json").read_text())["seed"])
    assert len(seeds) == 2


def test_key_is_outside_the_export_and_never_overwritten(tmp_path: Path, dataset_folder: Path) -> None:
    with pytest.raises(InputError, match="passed on with the scans"):
        export_blind(dataset_folder, tmp_path / "out", "structseg", key=tmp_path / "out" / "key.json")
    (tmp_path / "key.json").write_text("precious")
    with pytest.raises(InputError, match="key file exists"):
        export_blind(dataset_folder, tmp_path / "out", "structseg", key=tmp_path / "key.json")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "key.json").read_text() == "precious"


@pytest.fixture
def blind(tmp_path: Path, dataset_folder: Path) -> Path:
    """A folder with `masks` named by the numbers of a blind export, and its `key.json`; the grids differ."""
    for shift, case in enumerate(sorted(dataset_folder.iterdir())):
        for name in ("data.nii.gz", "label.nii.gz"):
            volume = read_volume(case / name)
            affine = volume.affine.copy()
            affine[2, 3] += 10 * shift
            write_volume(case / name, Volume(volume.array, affine))
    export_blind(dataset_folder, tmp_path / "out", "structseg", key=tmp_path / "key.json")
    for number, entry in json.loads((tmp_path / "key.json").read_text())["cases"].items():
        (tmp_path / "masks").mkdir(exist_ok=True)
        shutil.copy(dataset_folder / entry["case_id"] / "label.nii.gz", tmp_path / "masks" / f"{number}.nii.gz")
    return tmp_path


def test_unblinded_masks_have_their_case_ids(blind: Path, dataset_folder: Path) -> None:
    folder = blind / "masks" / "001"
    folder.mkdir()
    (blind / "masks" / "001.nii.gz").rename(folder / "label.nii.gz")
    (blind / "masks" / "scores.txt").touch()
    assert sorted(unblind(blind / "masks", blind / "key.json", blind / "named").cases) == ["1", "10", "2"]
    assert sorted(os.listdir(blind / "named")) == ["1.nii.gz", "10.nii.gz", "2.nii.gz"]
    for name in ("1", "2", "10"):
        mask, original = (
            read_volume(path) for path in (blind / "named" / f"{name}.nii.gz", dataset_folder / name / "label.nii.gz")
        )
        assert mask.same_grid(original)
        assert np.array_equal(mask.array, original.array)


def test_masks_under_wrong_numbers_are_refused(blind: Path) -> None:
    masks, key = blind / "masks", blind / "key.json"
    one, two = masks / "001.nii.gz", masks / "002.nii.gz"
    swapped = one.read_bytes(), two.read_bytes()
    one.write_bytes(swapped[1])
    two.write_bytes(swapped[0])
    with pytest.raises(GeometryError, match="not on the scan's grid"):
        unblind(masks, key, blind / "named")
    assert not (blind / "named").exists()
    one.rename(masks / "017.nii.gz")
    with pytest.raises(DataError, match="do not match this key") as caught:
        unblind(masks, key, blind / "named")
    assert caught.value.fields["found"] == "missing 001; unknown 017"
    shutil.copy(two, masks / "017.nii")
    with pytest.raises(DataError, match="two masks for one number"):
        unblind(masks, key, blind / "named")


def test_invalid_or_modified_key_is_refused(blind: Path) -> None:
    key = blind / "key.json"
    stored = json.loads(key.read_text())
    stored["cases"]["001"]["case_id"] = "../../elsewhere"
    for content in (json.dumps(stored), "[]", '{"schema_version": 2, "cases": {"1": {}}}'):
        key.chmod(0o600)
        key.write_text(content)
        with pytest.raises(InputError, match="key"):
            unblind(blind / "masks", key, blind / "named")
