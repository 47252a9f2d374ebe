"""The ledger: every look is kept, copies of scans are identified, and warnings depend on the number of models."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.datasets import Ledger, index_dataset
from gtvray.datasets.ledger import WHO, looks_warning


def test_the_ledger_counts_subjects_that_saw_the_same_cases(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "looks.jsonl")
    assert ledger.looks() == []
    assert ledger.record("promotion", "a", ("1", "2"), "d") == 1
    assert ledger.record("promotion", "a", ("1", "2"), "d") == 1
    assert ledger.record("promotion", "b", ("2", "3"), "d") == 2
    assert ledger.record("promotion", "c", ("9",), "d") == 1
    # A model can be selected by any score, whatever its purpose.
    assert ledger.record("report", "c", ("1", "2"), "d") == 3
    assert ledger.record("promotion", "c", ("1", "2"), "other") == 1
    assert ledger.record("promotion", "e", ("2",), "d") == 4
    looks = Ledger(tmp_path / "new" / "looks.jsonl").looks()
    assert [look["subject"] for look in looks] == list("aabccce")
    assert all(set(look) == {"at", "who", "purpose", "subject", "data", "cases", "scans"} for look in looks)


def test_truncated_line_does_not_affect_other_looks(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    ledger = Ledger(path)
    ledger.record("promotion", "a", ("1",), "d")
    content = path.read_text()
    path.write_text(content + content[:20])
    assert ledger.record("promotion", "b", ("1",), "d") == 2
    assert [look["subject"] for look in ledger.looks()] == ["a", "b"]
    assert path.read_text().startswith(content)


def test_concurrent_writers_lose_no_look(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gtvray.datasets import Ledger\n"
        "for n in range(40): Ledger(Path(sys.argv[1])).record('p', sys.argv[2] + str(n), ('x' * 300,), 'd')\n"
    )
    path = tmp_path / "looks.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    subjects = [json.loads(line)["subject"] for line in path.read_text().splitlines()]
    assert sorted(subjects) == sorted(f"{name}{n}" for name in "ab" for n in range(40))
    assert Ledger(path).record("p", "last", ("x" * 300,), "d") == 81


def test_same_scans_in_another_folder_are_the_same_cases(tmp_path: Path, dataset_folder: Path) -> None:
    ledger = Ledger(tmp_path / "looks.jsonl")
    shutil.copytree(dataset_folder, tmp_path / "copy")
    (tmp_path / "copy" / "1").rename(tmp_path / "copy" / "one")
    for folder, looks in ((dataset_folder, 1), (tmp_path / "copy", 2)):
        cases = index_dataset(folder).cases
        scans = [case.image for case in cases]
        ids = tuple(case.case_id for case in cases)
        assert ledger.record("evaluation", folder.name, ids, folder.name, scans) == looks
    assert ledger.record("evaluation", "third", ("one",), "elsewhere", [tmp_path / "copy" / "one" / "data.nii.gz"]) == 3
    assert ledger.record("evaluation", "fourth", ("2",), "elsewhere") == 1, "ids of different datasets are unrelated"


def test_looks_of_the_first_version_are_read_and_invalid_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    old = {"at": "2025-01-01T00:00:00+00:00", "purpose": "promotion", "subject": "a", "data": "d", "cases": ["1"]}
    path.write_text(json.dumps(old) + '\n17\n{"note": 1}\n\0\0\0\n')
    assert Ledger(path).looks() == [old]
    assert Ledger(path).record("promotion", "b", ("1",), "d") == 2


def test_name_is_that_of_the_variable_or_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "looks.jsonl")
    monkeypatch.setenv(WHO, "reader 3")
    ledger.record("promotion", "a", ("1",), "d")
    monkeypatch.delenv(WHO)
    ledger.record("promotion", "a", ("1",), "d")

    def nameless() -> str:
        raise KeyError("no such user")

    account = getpass.getuser()
    monkeypatch.setattr(getpass, "getuser", nameless)
    ledger.record("promotion", "a", ("1",), "d")
    assert [look["who"] for look in ledger.looks()] == ["reader 3", account, f"user {os.getuid()}"]


def test_warnings_depend_on_the_number_of_looks(tmp_path: Path) -> None:
    assert [looks_warning(looks) for looks in (0, 1, 5)] == [None] * 3
    assert ["use new held-out cases" in str(looks_warning(looks)) for looks in (6, 20, 21)] == [True, True, False]
    assert "no longer rank models" in str(looks_warning(21))
    ledger = Ledger(tmp_path / "looks.jsonl")
    assert [ledger.record("promotion", f"model {n}", ("1",), "d") for n in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert [(row["looks"], row["warning"] is None) for row in ledger.table()] == [(n, n <= 5) for n in range(1, 8)]


def test_partial_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:7]))
    ledger = Ledger(tmp_path / "looks.jsonl")
    assert ledger.record("promotion", "a", ("1",), "d") == 1
