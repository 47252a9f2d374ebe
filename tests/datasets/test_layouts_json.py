"""nnU-Net's and the Decathlon's dataset.json, folders with several datasets, links and duplicate files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtvray.datasets import index_dataset, read_label
from gtvray.errors import DataError, InputError
from gtvray.geometry import Volume
from gtvray.io import read_volume, write_volume

Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path, dataset_folder: Path) -> Lay:
    """A function that writes the three cases in nnU-Net's or the Decathlon's layout, with changes to dataset.json."""

    def build(kind: str, name: str = "Dataset007_Neck", **changes: Any) -> Path:
        home = tmp_path / "raw" / name
        number = "_0000" if kind == "nnunet" else ""
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (home / folder).mkdir(parents=True)
        for case in ("1", "2"):
            shutil.copy(dataset_folder / case / "data.nii.gz", home / "imagesTr" / f"pt_{case}{number}.nii.gz")
            shutil.copy(dataset_folder / case / "label.nii.gz", home / "labelsTr" / f"pt_{case}.nii.gz")
        shutil.copy(dataset_folder / "10" / "data.nii.gz", home / "imagesTs" / f"pt_10{number}.nii.gz")
        index: dict[str, Any] = (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
            if kind == "nnunet"
            else {
                "name": "Neck", "licence": "CC0", "tensorImageSize": "3D", "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "tumour"}, "numTest": 1, "test": ["./imagesTs/pt_10.nii.gz"],
                "training": [
                    {"image": f"./imagesTr/pt_{n}.nii.gz", "label": f"./labelsTr/pt_{n}.nii.gz"} for n in (2, 1)
                ],
            }
        )  # fmt: skip
        index |= {"numTraining": 2, **changes}
        (home / "dataset.json").write_text(json.dumps({k: v for k, v in index.items() if v is not None}))
        return home

    return build


def test_nnunet_dataset_json_may_list_each_file(lay: Lay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = lay("nnunet")
    shutil.move(home / "imagesTr", tmp_path / "elsewhere")
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    entries = {
        f"case {n}": {"images": [f"$SCANS/pt_{n}_0000.nii.gz"], "label": f"labelsTr/pt_{n}.nii.gz"} for n in (1, 2)
    }
    index = json.loads((home / "dataset.json").read_text())
    (home / "dataset.json").write_text(json.dumps({**index, "dataset": entries}))
    assert [case.case_id for case in index_dataset(home).cases] == ["case 1", "case 2"]
    (home / "dataset.json").write_text(
        json.dumps({**index, "dataset": {"../1": entries["case 1"], "b": entries["case 2"]}})
    )
    with pytest.raises(DataError, match="cannot be used as a file name"):
        index_dataset(home)
    entries["case 2"]["images"] *= 2
    (home / "dataset.json").write_text(json.dumps({**index, "dataset": entries}))
    with pytest.raises(DataError, match="one scan and its mask"):
        index_dataset(home)


def test_scans_of_nnunet_version_1_are_found(lay: Lay) -> None:
    home = lay("msd", name="Task007_Neck")
    for folder in ("imagesTr", "imagesTs"):
        for path in list((home / folder).iterdir()):
            path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    assert [case.case_id for case in index_dataset(home, labels_required=False).cases] == ["pt_1", "pt_2", "pt_10"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("nnunet", {"channel_names": {"0": "MRI"}}, "not a CT of one channel.*MRI.*name the channel CT"),
        ("nnunet", {"channel_names": {"0": "actual T1"}}, "not a CT of one channel"),
        ("nnunet", {"channel_names": {"0": "CT", "1": "PET"}}, "several channels.*CT, PET"),
        ("nnunet", {"labels": {"background": 0, "a": 1, "b": 2}}, "several structures.*a = 1, b = 2.*--label NAME"),
        ("nnunet", {"labels": {"background": 0, "whole": [1, 2]}}, "not marked by 1.*whole = 1[+]2"),
        ("nnunet", {"labels": {"background": 0, "a": 1, "ignore": 2}}, "ignore label"),
        ("nnunet", {"labels": {"background": 0, "a": "one"}}, "not an integer.*one"),
        ("nnunet", {"labels": None}, "lists no labels"),
        ("nnunet", {"numTraining": 3}, "numTraining.*differs.*3 by numTraining.*found: 2"),
        ("nnunet", {"channel_names": None}, "neither nnU-Net's nor the Decathlon's"),
        ("msd", {"modality": {"0": "FLAIR", "1": "T1w"}}, "several channels.*FLAIR, T1w"),
        ("msd", {"modality": {"0": "MRI"}}, "not a CT"),
        ("msd", {"labels": {"0": "background", "1": "a", "2": "b"}}, "several structures.*a = 1, b = 2"),
        ("msd", {"labels": {"0": "background", "1": "a", "2": "a"}}, "not marked by 1.*a = 1[+]2"),
        ("msd", {"training": {"image": "x"}}, "not a list"),
        ("msd", {"training": ["./imagesTr/pt_1.nii.gz"] * 2}, "not a scan and its mask"),
        ("msd", {"training": [{"image": "./imagesTr/pt_9.nii.gz", "label": ""}] * 2}, "file of the dataset is missing"),
        (
            "msd",
            {"training": [{"image": "./imagesTr/pt_1.nii.gz", "label": "labelsTr/pt_1.nii.gz"}] * 2},
            "the same id",
        ),
        ("msd", {"numTraining": 64}, "numTraining.*differs"),
    ],
)
def test_faults_of_dataset_json_are_reported(lay: Lay, kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        index_dataset(lay(kind, **changes))
    text = str(caught.value).replace("\n", " ")
    assert re.search(message, text), text
    assert len(str(caught.value).splitlines()) <= 5


def test_missing_and_surplus_files_are_named(lay: Lay) -> None:
    home = lay("nnunet")
    mask = home / "labelsTr" / "pt_2.nii.gz"
    away = mask.rename(home / "pt_2.nii.gz")
    with pytest.raises(DataError, match="no mask"):
        index_dataset(home)
    away.rename(mask)
    shutil.copy(mask, home / "labelsTr" / "pt_3.nii.gz")
    with pytest.raises(DataError, match="no scan"):
        index_dataset(home)
    (home / "labelsTr" / "pt_3.nii.gz").unlink()
    for name in ("pt_2_0001.nii.gz", "pt_2.nii.gz"):
        shutil.copy(mask, home / "imagesTr" / name)
        with pytest.raises(DataError, match="scan of one channel"):
            index_dataset(home)
        (home / "imagesTr" / name).unlink()
    (home / "dataset.json").write_text("[1]")
    with pytest.raises(DataError, match="not a JSON object"):
        index_dataset(home)
    (home / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        index_dataset(home)


@pytest.mark.parametrize("ending", [".nhdr", ".mha"])
def test_files_in_formats_not_for_datasets_are_refused(lay: Lay, ending: str) -> None:
    homes = lay("nnunet", file_ending=ending), lay("msd", name="Task007_Neck")
    listing = homes[1] / "dataset.json"
    listing.write_text(listing.read_text().replace(".nii.gz", ending))
    for home in homes:
        for path in list(home.glob("*/*.nii.gz")):
            path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
        with pytest.raises(DataError, match="not a volume format for datasets"):
            index_dataset(home)


def test_two_datasets_in_one_folder_are_refused(lay: Lay, dataset_folder: Path) -> None:
    home = lay("nnunet")
    shutil.copytree(dataset_folder, home.parent / "Naso_GTV")
    with pytest.raises(DataError, match="more than one dataset") as caught:
        index_dataset(home.parent)
    assert caught.value.fields["found"] == "Naso_GTV (structseg), Dataset007_Neck (nnunet)"
    shutil.copytree(dataset_folder / "1", home / "1")
    with pytest.raises(DataError, match="more than one dataset"):
        index_dataset(home)


def test_tumours_are_preferred_to_organs_of_task_1(tmp_path: Path, dataset_folder: Path) -> None:
    for name in ("HaN_OAR", "Naso_GTV"):
        shutil.copytree(dataset_folder, tmp_path / "StructSeg" / name)
    dataset = index_dataset(tmp_path / "StructSeg")
    assert (dataset.root.name, dataset.title) == ("Naso_GTV", "3 cases of GTV")
    shutil.rmtree(tmp_path / "StructSeg" / "Naso_GTV")
    assert "if these are the organs of Task 1" in index_dataset(tmp_path / "StructSeg").title
    shutil.copytree(dataset_folder, tmp_path / "StructSeg" / "HaN_GTV")
    shutil.copytree(dataset_folder, tmp_path / "StructSeg" / "HaN_GTV" / "Naso_GTV")
    with pytest.raises(DataError, match="more than one dataset"):
        index_dataset(tmp_path / "StructSeg")


def test_system_files_and_empty_folders_are_not_cases(dataset_folder: Path) -> None:
    shutil.copytree(dataset_folder / "1", dataset_folder / "__MACOSX" / "1")
    (dataset_folder / "1" / "._data.nii.gz").write_bytes(b"\0\5\x16\7")
    (dataset_folder / "._2").mkdir()
    (dataset_folder / ".DS_Store").touch()
    (dataset_folder / "empty").mkdir()
    assert [case.case_id for case in index_dataset(dataset_folder).cases] == ["1", "2", "10"]
    (dataset_folder / "3").mkdir()
    with pytest.raises(DataError, match="no scan") as caught:
        index_dataset(dataset_folder)
    assert caught.value.fields["found"] == "an empty folder"
    (dataset_folder / "3" / "image.nii.gz").touch()
    with pytest.raises(DataError, match="no scan") as caught:
        index_dataset(dataset_folder)
    assert caught.value.fields["found"] == "image.nii.gz"


@pytest.mark.parametrize("stem", ["data", "label"])
def test_two_files_for_one_volume_are_refused(dataset_folder: Path, stem: str) -> None:
    file = dataset_folder / "2" / f"{stem}.nii.gz"
    shutil.copy(file, file.with_suffix(""))
    with pytest.raises(DataError, match="two files for one volume") as caught:
        index_dataset(dataset_folder)
    assert caught.value.fields["found"] == f"{stem}.nii.gz, {stem}.nii"


def test_links_are_followed_and_broken_links_are_named(tmp_path: Path, dataset_folder: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("1", "2"):
        (linked / name).symlink_to(dataset_folder / name, target_is_directory=True)
    (linked / "3").mkdir()
    for stem in ("data", "label"):
        (linked / "3" / f"{stem}.nii.gz").symlink_to(dataset_folder / "10" / f"{stem}.nii.gz")
    assert [case.case_id for case in index_dataset(linked).cases] == ["1", "2", "3"]
    (dataset_folder / "10" / "label.nii.gz").unlink()
    with pytest.raises(DataError, match="link is broken") as caught:
        index_dataset(linked)
    assert caught.value.fields["where"].endswith("3/label.nii.gz")


def test_two_cases_with_the_same_id_are_refused(dataset_folder: Path) -> None:
    shutil.copytree(dataset_folder / "2", dataset_folder / "test" / "2")
    assert len(index_dataset(dataset_folder).cases) == 3, "test cases are not requested"
    with pytest.raises(DataError, match="two cases have the same id") as caught:
        index_dataset(dataset_folder, labels_required=False)
    assert caught.value.fields["found"] == "2"


def test_error_on_multi_organ_masks_lists_values_and_import_command(dataset_folder: Path) -> None:
    case = index_dataset(dataset_folder).cases[0]
    assert case.label is not None
    label = read_volume(case.label)
    organs = np.arange(label.array.size).reshape(label.shape) % 23
    write_volume(case.label, Volume(organs.astype(np.uint8), label.affine))
    with pytest.raises(DataError, match="not binary") as caught:
        read_label(case, label)
    assert caught.value.fields["found"] == "values 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."
    assert "gtvray data import SRC DST --label VALUE" in caught.value.fields["do"]
