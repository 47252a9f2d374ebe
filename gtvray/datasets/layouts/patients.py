"""The patient of each case, from a list or from a pattern over the case ids."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gtvray.datasets.layouts.cases import Dataset
from gtvray.errors import DataError
from gtvray.io import atomic_path, canonical_name, find_entry, read_json, read_text

TABLE, OBJECT = "patients.csv", "patients.json"
UNVERIFIED = "grouping by patient can't be verified: every case is treated as a separate patient"
_COLUMNS = ("case_id", "patient_id")


@dataclass(frozen=True)
class Patients:
    """The patient of each case.

    Attributes:
        of_case: case id -> patient id. Patient ids are used for grouping only and never written.
        source: the file or setting that the patients come from.
    """

    of_case: Mapping[str, str]
    source: str

    @property
    def grouping(self) -> str:
        """Description of a split by these patients."""
        return f"by patient, from {self.source}"

    def including(self, case_ids: Iterable[str]) -> Patients:
        """Return these with further cases, each of a patient of its own."""
        return Patients({**self.of_case, **{name: f"case {name}" for name in case_ids}}, self.source)

    @property
    def shared(self) -> list[list[str]]:
        """Sorted case ids of each patient with more than one case."""
        cases: dict[str, list[str]] = {}
        for case_id, patient in sorted(self.of_case.items()):
            cases.setdefault(patient, []).append(case_id)
        return sorted(group for group in cases.values() if len(group) > 1)


def find_patients(dataset: Dataset, pattern: str = "") -> Patients | None:
    """Find the patient of every case: by a pattern over the ids, or in the dataset's patients.csv or patients.json.

    Args:
        dataset: the cases.
        pattern: a regular expression; its first group, or the full match without one, is the patient id.

    Returns:
        a patient for every case; None without pattern and list.

    Raises:
        DataError: a case without a patient or with two, or a file that is not a list of patients.
    """
    if pattern:
        listed, source = _match_pattern(dataset, pattern), "split.patient_pattern"
    else:
        files = [path for name in (TABLE, OBJECT) if (path := find_entry(dataset.root, name)).is_file()]
        if not files:
            return None
        if len(files) > 1:
            raise DataError("two lists of patients", where=dataset.root, found=f"{TABLE} and {OBJECT}", do="keep one")
        read = _read_object if files[0].suffix.lower() == ".json" else _read_table
        listed, source = read(files[0]), files[0].name
    listed = {canonical_name(case_id): patient for case_id, patient in listed.items()}
    missing = [case.case_id for case in dataset.cases if not listed.get(case.case_id)]
    if missing:
        raise DataError(
            f"{len(missing)} cases have no patient",
            where=source,
            expected="a patient for every case",
            found="case " + ", ".join(missing[:5]),
            do="complete the list or the pattern",
        )
    return Patients({case.case_id: listed[case.case_id] for case in dataset.cases}, source)


def copy_patients(dataset: Dataset, target: Path) -> None:
    """Copy the list of patients of a dataset's cases to another folder, if the dataset has one.

    Raises:
        DataError: as `find_patients`.
    """
    patients = find_patients(dataset)
    if patients is None:
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    rows.writerows(patients.of_case.items())
    with atomic_path(target / TABLE) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _match_pattern(dataset: Dataset, pattern: str) -> dict[str, str]:
    found = {case.case_id: re.search(pattern, case.case_id) for case in dataset.cases}
    return {name: (match.groups() or (match[0],))[0] or "" for name, match in found.items() if match}


def _read_table(path: Path) -> dict[str, str]:
    text = read_text(path)
    # Excel states the separator in a line of its own.
    stated = re.match(r"sep=(.)\n", text)
    text = text[stated.end() :] if stated else text
    # Spreadsheets separate by semicolons in locales with a decimal comma.
    first = text.partition("\n")[0]
    separator = stated[1] if stated else next((each for each in (",", ";", "\t") if each in first), ",")
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=separator)] or [
        []
    ]
    if tuple(header[:2]) != _COLUMNS:
        raise DataError("not a list of patients", where=path, expected=",".join(_COLUMNS), found=first[:80])
    listed: dict[str, str] = {}
    for number, row in enumerate(rows, 3 if stated else 2):
        if not any(row):
            continue
        if len(row) < 2:
            raise DataError("a line without a patient", where=f"{path}, line {number}", expected=",".join(_COLUMNS))
        if listed.setdefault(row[0], row[1]) != row[1]:
            raise DataError("a case has two patients", where=f"{path}, line {number}", found=f"case {row[0]}")
    return listed


def _read_object(path: Path) -> dict[str, str]:
    listed = read_json(path)
    if not isinstance(listed, dict) or not all(isinstance(each, str | int) for each in listed.values()):
        raise DataError("not a list of patients", where=path, expected='{"case id": "patient id", ...}')
    return {str(name): str(patient).strip() for name, patient in listed.items()}
