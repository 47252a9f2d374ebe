"""`gtvray data import | export | split | ledger` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from gtvray.datasets import Ledger

from .command import partial_files, run


def test_dataset_survives_a_round_trip_through_nnunet(phantoms: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "Dataset009_Phantoms", tmp_path / "back"
    result = run("data", "export", phantoms, there, "--layout", "nnunet", "--json").json()
    assert (result["cases"], result["copied"], result["structure"]) == (12, 24, "GTV")
    assert "12 cases of GTV" in run("data", "import", there, back).stdout
    assert (back / "3" / "data.nii.gz").read_bytes() == (phantoms / "3" / "data.nii.gz").read_bytes()
    assert "new or empty" in run("data", "import", there, back).error(code=2)
    assert "DatasetNNN_Name" in run("data", "export", phantoms, tmp_path / "x", "--layout", "nnunet").error(code=2)
    assert partial_files(tmp_path) == []


def test_a_blind_export_comes_back_by_its_key(phantoms: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    result = run("data", "export", phantoms, blind, "--layout", "structseg", "--blind", "--json").json()
    key = tmp_path / "blind.key.json"
    assert (result["key"], result["cases"]) == (str(key), 12)
    numbers = json.loads(key.read_text())["cases"]
    (tmp_path / "masks").mkdir()
    for number, entry in numbers.items():
        mask = (phantoms / entry["case_id"] / "label.nii.gz").read_bytes()
        (tmp_path / "masks" / f"{number}.nii.gz").write_bytes(mask)
    result = run("data", "import", tmp_path / "masks", tmp_path / "named", "--key", key, "--json").json()
    assert sorted(result["cases"]) == sorted(
        path.name.removesuffix(".nii.gz") for path in (tmp_path / "named").iterdir()
    )
    assert "--blind" in run("data", "export", phantoms, tmp_path / "x", "--layout", "msd", "--seed", 1).error(code=2)


def test_a_split_is_shown_with_its_folds(phantoms: Path, tmp_path: Path) -> None:
    settings = ("-s", "preprocessing.spacing_mm=[8, 8, 8]", "--workspace", tmp_path)
    result = run("data", "split", phantoms, "--folds", 3, "--json", *settings).json()
    assert [len(result[name]) for name in ("train", "selection", "held_out", "folds")] == [7, 2, 3, 3]
    assert "can't be verified" in result["grouping"]
    assert Path(result["file"]).is_file()
    again = run("data", "split", phantoms, *settings).stdout
    assert f"held out: 3 cases: {', '.join(result['held_out'])}" in again


def test_the_ledger_is_listed(tmp_path: Path) -> None:
    assert run("data", "ledger", "--workspace", tmp_path).stdout == "the ledger is empty\n"
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for n in range(6):
        ledger.record("promotion", f"model-{n}", ("1", "2"), "d")
    rows = run("data", "ledger", "--workspace", tmp_path, "--json").json()
    assert [(row["subject"], row["looks"]) for row in rows] == [(f"model-{n}", n + 1) for n in range(6)]
    lines = run("data", "ledger", "--workspace", tmp_path).stdout.splitlines()
    assert len(lines) == 9
    assert "use new held-out cases" in lines[-1]
