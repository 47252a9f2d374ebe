"""Splits and folds: no case and no patient in two parts, reproducible, and stored splits are reused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtvray.config import Config, SplitConfig, with_dotted
from gtvray.data import Project, dataset_digest, open_project
from gtvray.datasets import Folds, Patients, Split, find_patients, index_dataset, split_cases
from gtvray.datasets import split_folds as split_into_folds
from gtvray.datasets.layouts.patients import UNVERIFIED
from gtvray.errors import ConfigError, DataError, InputError

SIZES = st.lists(st.integers(1, 6), min_size=30, max_size=60)


def _patients(sizes: list[int]) -> Patients:
    """Return patients with the given numbers of cases, whose cases are shuffled."""
    names = [f"P{number}" for number, size in enumerate(sizes) for _ in range(size)]
    shuffled = np.random.default_rng(len(names)).permutation(names)
    return Patients({f"pt_{number}": str(name) for number, name in enumerate(shuffled)}, "patients.csv")


@given(st.integers(6, 300), st.integers(0, 50), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_split_is_a_reproducible_partition(count: int, seed: int, selection: float, held_out: float) -> None:
    config = SplitConfig(seed=seed, selection_share=selection, held_out_share=held_out)
    ids = tuple(f"pt_{n}" for n in range(count))
    if count - max(3, round(count * held_out)) - max(1, round(count * selection)) < 2:
        with pytest.raises(DataError, match="too few"):
            split_cases(ids, config)
        return
    split = split_cases(ids, config)
    assert sorted((*split.train, *split.selection, *split.held_out)) == sorted(ids)
    assert split == split_cases(ids, config)
    assert len(split.held_out) == max(3, round(count * held_out))
    assert len(split.selection) == max(1, round(count * selection))
    assert len(split.train) >= 2


def test_split_depends_on_the_seed() -> None:
    ids = tuple(map(str, range(20)))
    assert len({split_cases(ids, SplitConfig(seed=seed)).held_out for seed in range(10)}) == 10


@pytest.mark.parametrize("count", range(6))
def test_too_few_cases_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="too few"):
        split_cases(tuple(map(str, range(count))), SplitConfig())


def test_case_in_two_parts_is_refused() -> None:
    with pytest.raises(DataError, match="two parts") as caught:
        Split(("a", "b"), ("b",), ("c",))
    assert "'b'" in caught.value.fields["found"]
    with pytest.raises(DataError):
        split_cases(("a",) * 10, SplitConfig())


def test_split_is_stored_with_its_fingerprint(tmp_path: Path) -> None:
    split = split_cases(tuple(map(str, range(9))), SplitConfig())
    split.save(tmp_path / "split.json", "digest")
    assert Split.load(tmp_path / "split.json") == (split, "digest")


def test_splits_without_patients_are_those_of_the_first_version() -> None:
    split = split_cases(tuple("abcdefghij"), SplitConfig(seed=5))
    assert split.parts == {"train": tuple("eajfi"), "selection": tuple("dc"), "held_out": tuple("hgb")}
    assert split.grouping == UNVERIFIED
    assert "can't be verified" in UNVERIFIED


@given(SIZES, st.integers(0, 50), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_no_patient_is_in_two_parts(sizes: list[int], seed: int, selection: float, held_out: float) -> None:
    patients = _patients(sizes)
    ids = tuple(patients.of_case)
    config = SplitConfig(seed=seed, selection_share=selection, held_out_share=held_out)
    split = split_cases(ids, config, patients)
    assert sorted(name for part in split.parts.values() for name in part) == sorted(ids)
    people = {name: {patients.of_case[case_id] for case_id in part} for name, part in split.parts.items()}
    assert not people["train"] & people["selection"]
    assert not people["train"] & people["held_out"]
    assert not people["selection"] & people["held_out"]
    assert (len(people["held_out"]) >= 3, len(people["selection"]) >= 1, len(people["train"]) >= 2) == (True,) * 3
    assert split == split_cases(ids, config, patients)
    assert split.grouping == "by patient, from patients.csv"
    # With at most six cases per patient, a part exceeds its share by half a patient, or by its minimum of patients.
    assert len(split.held_out) - max(3, round(len(ids) * held_out)) <= (3 if len(people["held_out"]) > 3 else 15)
    assert len(split.selection) - max(1, round(len(ids) * selection)) <= (3 if len(people["selection"]) > 1 else 5)


@pytest.mark.parametrize("sizes", [[10, 10], [3, 3, 3, 3, 3], [40, 1, 1, 1, 1], [9, 9, 9, 9, 9, 9]])
def test_too_few_patients_with_many_cases_are_refused(sizes: list[int]) -> None:
    patients = _patients(sizes)
    split_cases(tuple(patients.of_case), SplitConfig())
    if len(sizes) < 6:
        with pytest.raises(DataError, match="too few patients") as caught:
            split_cases(tuple(patients.of_case), SplitConfig(), patients)
        assert f"{len(sizes)} patients of {sum(sizes)} cases" in caught.value.fields["found"]
    else:
        split_cases(tuple(patients.of_case), SplitConfig(), patients)


@given(SIZES, st.integers(2, 7), st.integers(0, 20))
def test_every_case_is_in_one_fold_with_its_patient(sizes: list[int], count: int, seed: int) -> None:
    patients = _patients(sizes)
    ids = tuple(patients.of_case)
    split = split_cases(ids, SplitConfig(), patients)
    volumes = {name: float(number**2 % 37) for number, name in enumerate(ids)}
    folds = split_into_folds(split, count, seed, volumes, patients)
    assert sorted(name for part in folds.validation for name in part) == sorted((*split.train, *split.selection))
    for number, part in enumerate(folds.validation):
        assert not set(part) & set(folds.train(number))
        assert not {patients.of_case[name] for name in part} & {patients.of_case[name] for name in folds.train(number)}
        assert sorted((*part, *folds.train(number))) == sorted((*split.train, *split.selection))
    assert max(map(len, folds.validation)) - min(map(len, folds.validation)) <= 6
    assert folds == split_into_folds(split, count, seed, volumes, patients)


@given(st.integers(10, 120), st.integers(2, 6), st.integers(0, 20))
def test_folds_have_similar_sizes_and_tumour_volumes(cases: int, count: int, seed: int) -> None:
    split = split_cases(tuple(f"pt_{n}" for n in range(cases)), SplitConfig())
    volumes = {f"pt_{n}": float(n) for n in range(cases)}
    folds = split_into_folds(split, count, seed, volumes)
    assert max(map(len, folds.validation)) - min(map(len, folds.validation)) <= 1
    ranked = sorted((*split.train, *split.selection), key=volumes.__getitem__)
    for part in folds.validation:
        ranks = sorted(ranked.index(name) // count for name in part)
        assert ranks == sorted(set(ranks)), "two cases of one block of the ranking"
    assert folds.grouping == UNVERIFIED


def test_folds_depend_on_the_seed_and_not_on_the_selection_share() -> None:
    ids = tuple(f"pt_{n}" for n in range(40))
    volumes = {name: float(len(name)) for name in ids}
    split = split_cases(ids, SplitConfig())
    assert len({split_into_folds(split, 5, seed, volumes).validation for seed in range(6)}) == 6
    other = Split(split.train[3:], (*split.train[:3], *split.selection), split.held_out)
    assert split_into_folds(split, 5, 0, volumes) == split_into_folds(other, 5, 0, volumes)
    for count in (0, 1, 31):
        with pytest.raises(DataError, match="invalid number of folds"):
            split_into_folds(split, count, 0, volumes)


def test_splits_and_folds_of_other_versions_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "stored.json"
    first = {"fingerprint": "digest", "train": ["a"], "selection": ["b"], "held_out": ["c"]}
    path.write_text(json.dumps(first))
    assert Split.load(path) == (Split(("a",), ("b",), ("c",), UNVERIFIED), "digest")
    folds = Folds((("a", "b"), ("c",)), "by patient, from patients.csv", 4)
    folds.save(path, "digest")
    assert Folds.load(path) == (folds, "digest")
    path.write_text(json.dumps({**first, "schema_version": 3}))
    for kind in (Split, Folds):
        with pytest.raises(InputError, match="later gtvray"):
            kind.load(path)


@pytest.mark.parametrize(
    "written",
    [
        "case_id,patient_id\n1,A\n2,A\n10,B\n77,C\n",
        "\ufeffcase_id;patient_id;remark\r\n1;A;x\r\n2;A;\r\n10;B;\r\n\r\n",
        "case_id\tpatient_id\n1\t A\n2\tA\n10\tB\n",
        '{"1": "A", "2": "A", "10": "B"}',
    ],
)
def test_list_of_patients_is_found_in_the_dataset(dataset_folder: Path, written: str) -> None:
    name = "patients.json" if written.startswith("{") else "patients.csv"
    (dataset_folder / name).write_text(written, encoding="utf-8", newline="")
    patients = find_patients(index_dataset(dataset_folder))
    assert patients is not None
    assert (patients.of_case, patients.source) == ({"1": "A", "2": "A", "10": "B"}, name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"patients.csv": "case_id,patient_id\n1,A\n"}, "2 cases have no patient"),
        ({"patients.csv": "case_id,patient_id\n1,A\n2,\n10,B\n"}, "1 cases have no patient"),
        ({"patients.csv": "1,A\n2,A\n10,B\n"}, "not a list of patients"),
        ({"patients.csv": ""}, "not a list of patients"),
        ({"patients.csv": "case_id,patient_id\n1,A\n2\n10,B\n"}, "a line without a patient"),
        ({"patients.csv": "case_id,patient_id\n1,A\n1,B\n2,A\n10,B\n"}, "two patients"),
        ({"patients.json": '["A"]'}, "not a list of patients"),
        ({"patients.json": '{"1": ["A"]}'}, "not a list of patients"),
        ({"patients.json": "{}", "patients.csv": "case_id,patient_id\n"}, "two lists"),
    ],
)
def test_invalid_list_of_patients_is_refused(dataset_folder: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (dataset_folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        find_patients(index_dataset(dataset_folder))
    (dataset_folder / next(iter(files))).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        find_patients(index_dataset(dataset_folder))


def test_patients_are_found_by_a_pattern(dataset_folder: Path) -> None:
    (dataset_folder / "2").rename(dataset_folder / "7_b")
    (dataset_folder / "1").rename(dataset_folder / "7_a")
    dataset = index_dataset(dataset_folder)
    assert find_patients(dataset) is None
    for pattern in ("^([0-9]+)_?", "^[0-9]+"):
        patients = find_patients(dataset, pattern)
        assert patients is not None
        assert patients.of_case == {"7_a": "7", "7_b": "7", "10": "10"}
    with pytest.raises(DataError, match="1 cases have no patient"):
        find_patients(dataset, "^([0-9]+)_")
    with pytest.raises(ConfigError, match="patient_pattern"):
        with_dotted(Config(), {"split.patient_pattern": "("})


@pytest.fixture(scope="module")
def open_phantoms(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A function that opens the phantoms as a project, with a list of patients and a folder of splits."""
    cache = tmp_path_factory.mktemp("cache")
    config = with_dotted(Config(), {"preprocessing.spacing_mm": [8.0, 8.0, 8.0]})

    def opened(splits: Path, table: str = "", pattern: str = "") -> Project:
        folder = splits.parent / "linked"
        folder.mkdir(exist_ok=True)
        for case in phantoms.iterdir():
            if case.is_dir() and not (folder / case.name).exists():
                (folder / case.name).symlink_to(case)
        (folder / "patients.csv").unlink(missing_ok=True)
        if table:
            (folder / "patients.csv").write_text(table)
        settings = with_dotted(config, {"split.patient_pattern": pattern})
        return open_project(index_dataset(folder), settings, cache=cache, splits=splits)

    return opened


def test_cases_of_one_patient_change_the_fingerprint(open_phantoms: object, tmp_path: Path) -> None:
    assert callable(open_phantoms)
    first: Project = open_phantoms(tmp_path / "splits")
    assert first.split.grouping == UNVERIFIED
    # The first version named the file of the default split so.
    assert first.split_file.name == f"{first.fingerprint.digest[:16]}-bf9f4247.json"
    one, other = first.split.train[0], first.split.held_out[0]
    alone = "case_id,patient_id\n" + "".join(f"{n},P{n}\n" for n in range(1, 13))
    known: Project = open_phantoms(tmp_path / "splits", alone)
    assert (known.split.parts, known.fingerprint) == (first.split.parts, first.fingerprint)
    assert known.split.grouping == "by patient, from patients.csv"
    shared = alone.replace(f"\n{other},P{other}\n", f"\n{other},P{one}\n")
    # In any workspace the digest differs from that of earlier models, which may have seen these patients.
    for splits in ("splits", "elsewhere/splits"):
        (tmp_path / splits).mkdir(parents=True, exist_ok=True)
        pair: Project = open_phantoms(tmp_path / splits, shared)
        assert pair.fingerprint.digest != first.fingerprint.digest
        assert any({one, other} <= set(part) for part in pair.split.parts.values())
    renamed: Project = open_phantoms(tmp_path / "splits", shared.replace("P", "Q"))
    assert renamed.fingerprint == pair.fingerprint
    assert json.loads(pair.split_file.read_text())["fingerprint"] == pair.fingerprint.digest
    assert f"P{one}" not in pair.split_file.read_text()


@pytest.mark.parametrize("pattern", ["", ".$"])
def test_dataset_digest_of_files_identifies_the_project(open_phantoms: object, tmp_path: Path, pattern: str) -> None:
    assert callable(open_phantoms)
    project: Project = open_phantoms(tmp_path / "splits", pattern=pattern)
    assert dataset_digest(project.dataset, pattern) == project.fingerprint.digest
    few = replace(project.dataset, cases=project.dataset.cases[1:])
    assert dataset_digest(few, pattern) != project.fingerprint.digest


def test_stored_split_is_reused(open_phantoms: object, tmp_path: Path) -> None:
    assert callable(open_phantoms)
    first: Project = open_phantoms(tmp_path / "splits", pattern=".$")
    assert first.split.grouping == "by patient, from split.patient_pattern"
    turned = Split(first.split.train, first.split.held_out, first.split.selection, "another grouping")
    turned.save(first.split_file, first.fingerprint.digest)
    again: Project = open_phantoms(tmp_path / "splits", pattern=".$")
    assert again.split.held_out == first.split.selection


def test_folds_are_stored_beside_the_split(open_phantoms: object, tmp_path: Path) -> None:
    assert callable(open_phantoms)
    project: Project = open_phantoms(tmp_path / "splits")
    folds = project.folds(3, seed=0)
    stored = sorted(path.name for path in (tmp_path / "splits").iterdir())
    assert stored == [f"{project.split_file.stem}-folds-3-0.json", project.split_file.name]
    assert Folds.load(tmp_path / "splits" / stored[0]) == (folds, project.fingerprint.digest)
    content = json.loads((tmp_path / "splits" / stored[0]).read_text())
    content["validation"].reverse()
    (tmp_path / "splits" / stored[0]).write_text(json.dumps(content))
    assert project.folds(3, seed=0).validation == folds.validation[::-1]
    assert not {name for part in folds.validation for name in part} & set(project.split.held_out)
