"""Datasets written on Windows or macOS are read like those of the local system."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gtvray.datasets import find_patients, index_dataset, transfer, write_phantoms
from gtvray.errors import DataError, InputError
from gtvray.io import read_json

COMPOSED = unicodedata.normalize("NFC", "Müller")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.fixture
def decathlon(tmp_path: Path, dataset_folder: Path) -> Path:
    transfer(dataset_folder, tmp_path / "Task01_GTV", "msd")
    return tmp_path / "Task01_GTV"


@pytest.fixture
def nnunet(tmp_path: Path, dataset_folder: Path) -> Path:
    transfer(dataset_folder, tmp_path / "Dataset001_GTV", "nnunet")
    return tmp_path / "Dataset001_GTV"


def _edit(folder: Path, change: Callable[[dict[str, Any]], None], encoding: str = "utf-8", end: str = "\n") -> None:
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False).replace("\n", end)
    path.write_bytes(text.encode(encoding))


def _ids(folder: Path) -> list[str]:
    return [case.case_id for case in index_dataset(folder).cases]


def test_nnunet_file_list_from_windows_is_found(nnunet: Path) -> None:
    def listed(manifest: dict[str, Any]) -> None:
        manifest["dataset"] = {
            name: {"images": [f".\\imagesTr\\{name}_0000.nii.gz"], "label": f"labelsTr\\{name}.nii.gz"}
            for name in ("1", "2", "10")
        }

    _edit(nnunet, listed, "utf-8-sig", "\r\n")
    assert _ids(nnunet) == ["1", "2", "10"]


def test_path_with_a_drive_letter_is_refused(decathlon: Path) -> None:
    _edit(decathlon, lambda manifest: manifest["training"][0].update(image="D:\\Task01\\imagesTr\\1.nii.gz"))
    with pytest.raises(InputError, match="Windows drive") as caught:
        index_dataset(decathlon)
    assert "D:\\Task01" in caught.value.fields["found"]


@pytest.mark.parametrize(
    ("disk", "text"), [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED), (COMPOSED.lower(), COMPOSED)]
)
def test_names_match_across_unicode_forms_and_letter_case(
    decathlon: Path, nnunet: Path, tmp_path: Path, disk: str, text: str
) -> None:
    for folder, ending in ((decathlon, ""), (nnunet, "_0000")):
        (folder / "imagesTr" / f"1{ending}.nii.gz").rename(folder / "imagesTr" / f"{disk}{ending}.nii.gz")
        (folder / "labelsTr" / "1.nii.gz").rename(folder / "labelsTr" / f"{text}.nii.gz")
    paths = {"image": f"./imagesTr/{text}.nii.gz", "label": f"./labelsTr/{text}.nii.gz"}
    _edit(decathlon, lambda manifest: manifest["training"].__setitem__(0, paths))
    assert COMPOSED in _ids(decathlon)
    assert unicodedata.normalize("NFC", disk) in _ids(nnunet)


def test_case_ids_are_in_composed_unicode_form(dataset_folder: Path) -> None:
    (dataset_folder / "1").rename(dataset_folder / DECOMPOSED)
    (dataset_folder / "patients.csv").write_bytes(
        f"sep=;\r\ncase_id;patient_id\r\n{COMPOSED};A\r\n2;A\r\n10;B\r\n".encode("utf-8-sig")
    )
    dataset = index_dataset(dataset_folder)
    assert [case.case_id for case in dataset.cases] == ["2", "10", COMPOSED]
    patients = find_patients(dataset)
    assert patients is not None
    assert patients.of_case == {"2": "A", "10": "B", COMPOSED: "A"}
    shutil.copytree(dataset_folder / "2", dataset_folder / COMPOSED)
    with pytest.raises(DataError, match="two cases have the same id"):
        index_dataset(dataset_folder)


def test_encoding_of_a_list_of_patients_is_named(dataset_folder: Path) -> None:
    table = "case_id,patient_id\n1,Müller\n2,B\n10,C\n"
    (dataset_folder / "patients.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8") as caught:
        find_patients(index_dataset(dataset_folder))
    assert "line 2, as in Latin-1" in caught.value.fields["found"]
    (dataset_folder / "patients.csv").write_bytes(table.encode("utf-16"))
    with pytest.raises(InputError, match="UTF-8") as caught:
        find_patients(index_dataset(dataset_folder))
    assert caught.value.fields["found"] == "UTF-16"


def test_file_names_in_other_letter_case_are_found(dataset_folder: Path) -> None:
    (dataset_folder / "1" / "data.nii.gz").rename(dataset_folder / "1" / "Data.NII.GZ")
    (dataset_folder / "1" / "label.nii.gz").rename(dataset_folder / "1" / "LABEL.nii.gz")
    dataset = index_dataset(dataset_folder)
    assert [case.case_id for case in dataset.cases] == ["1", "2", "10"]
    assert [path.name for path in (dataset.cases[0].image, dataset.cases[0].label) if path] == [
        "Data.NII.GZ", "LABEL.nii.gz",
    ]  # fmt: skip
    # A backup in capitals beside the exact name is not a second file.
    shutil.copy(dataset_folder / "2" / "label.nii.gz", dataset_folder / "2" / "LABEL.nii.gz")
    assert index_dataset(dataset_folder).cases[1].label == dataset_folder / "2" / "label.nii.gz"
    (dataset_folder / "1" / "Label.nii").touch()
    with pytest.raises(DataError, match="two files for one volume"):
        index_dataset(dataset_folder)


def test_system_files_in_a_list_and_in_the_target_are_ignored(decathlon: Path, tmp_path: Path) -> None:
    # A list made from all files of a folder.
    litter = {"image": "./imagesTr/._1.nii.gz", "label": "./labelsTr/._1.nii.gz"}
    _edit(decathlon, lambda manifest: manifest.update(training=[litter, *manifest["training"]], numTraining=4))
    assert _ids(decathlon) == ["1", "2", "10"]
    target = tmp_path / "out"
    target.mkdir()
    (target / ".DS_Store").touch()
    transfer(decathlon, target, "structseg")
    assert sorted(os.listdir(target)) == ["1", "10", "2", "transfer.json"]
    assert read_json(target / "transfer.json")["source_layout"] == "msd"


def test_phantoms_are_written_beside_system_files(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    write_phantoms(tmp_path, count=1, seed=0)
    assert _ids(tmp_path) == ["1"]
