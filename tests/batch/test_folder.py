"""Prediction into a folder: its record, masks that are kept, refusals, and resuming after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gtvray
from gtvray.batch import RECORD, BatchOutcome
from gtvray.errors import InputError, NotFoundError, ResourceError
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE, arm
from gtvray.inference import Predictor
from gtvray.io import exclusive_lock, read_json_lines, read_volume, write_volume
from gtvray.models import Bundle

from ..bundles import random_bundle
from ..cli.command import Running, partial_files
from .conftest import write_ball

# Raised by SQLAlchemy and MLflow when the registry is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict in this process, although it may be connected to the cluster of the tests."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def predict(scans: Path, bundle: Bundle, **options: object) -> BatchOutcome:
    return gtvray.predict_folder(scans, scans.parent / "masks", model=str(bundle.folder), **options)  # type: ignore[arg-type]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def test_masks_equal_single_prediction_and_are_made_once(scans: Path, bundle: Bundle) -> None:
    first = predict(scans, bundle)
    assert (first.kept, first.errors) == (0, [])
    for row in first.rows:
        scan = scans / f"{row['scan']}.nii.gz"
        expected = Predictor(bundle, threads=1).predict(read_volume(scan)).array
        np.testing.assert_array_equal(read_volume(row["mask"]).array, expected)
    before = times(scans.parent / "masks")
    second = predict(scans, bundle)
    assert second.kept == 4
    assert second.rows == first.rows
    assert times(scans.parent / "masks") == before
    # Only a mask that was removed is predicted again.
    (scans.parent / "masks" / "ct_3.nii.gz").unlink()
    assert predict(scans, bundle).kept == 3
    after = times(scans.parent / "masks")
    assert [name for name in before if after[name] != before[name]] == ["ct_3.nii.gz"]


def test_changed_scan_or_model_is_named_and_refused(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    predict(scans, bundle)
    before = times(masks)
    write_ball(scans / "ct_2.nii.gz", 70)
    with pytest.raises(InputError, match="made with another model, scan or setting") as caught:
        predict(scans, bundle)
    assert caught.value.fields["found"] == "ct_2: the scan has changed since"
    assert times(masks) == before
    assert predict(scans, bundle, overwrite=True).kept == 3
    assert [name for name, at in times(masks).items() if at != before[name]] == ["ct_2.nii.gz"]

    other = random_bundle(tmp_path / "other", seed=5)
    with pytest.raises(InputError) as caught:
        predict(scans, other)
    assert caught.value.fields["found"].startswith(f"ct_1: made by model {bundle.digest[:12]}; ct_2: ")
    assert caught.value.fields["found"].endswith("; and 1 more")
    with pytest.raises(InputError, match="made with another model") as caught:
        predict(scans, bundle, exhaustive=True)
    assert "made without --exhaustive" in caught.value.fields["found"]


def test_edited_mask_is_never_replaced(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    predict(scans, bundle)
    mask = tmp_path / "masks" / "ct_2.nii.gz"
    edited = read_volume(mask)
    write_volume(mask, edited.with_array(1 - edited.array))
    content = mask.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not an unmodified gtvray output"):
            predict(scans, bundle, overwrite=overwrite)
    assert mask.read_bytes() == content


def test_bad_scan_and_unexpected_error_do_not_stop_the_others(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    (scans / "ct_1.nii.gz").write_bytes(b"not a scan")
    arm("batch.before_mask:2=raise")
    try:
        outcome = predict(scans, bundle)
    finally:
        arm("")
    assert [row["scan"] for row in outcome.rows] == ["ct_1", "ct_2", "ct_3", "ct_4"]
    assert [row["scan"] for row in outcome.rows if "error" in row] == ["ct_1", "ct_3"]
    assert "RuntimeError" in outcome.rows[2]["error"]["found"]
    assert [line["state"] for line in read_json_lines(tmp_path / "masks" / RECORD)[1:]].count("failed") == 2
    # Only the failed scans are retried.
    write_ball(scans / "ct_1.nii.gz")
    again = predict(scans, bundle)
    assert (again.kept, again.errors) == (2, [])


def test_a_full_disk_ends_the_run(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    # In descending order, because the error of one entry ends the count-down of those after it.
    arm(",".join(f"batch.before_mask:{count}=enospc" for count in (3, 2, 1)))
    try:
        with pytest.raises(ResourceError, match="the disk is full"):
            predict(scans, bundle)
    finally:
        arm("")
    states = [line["state"] for line in read_json_lines(tmp_path / "masks" / RECORD)[1:]]
    assert states.count("failed") == 3
    assert partial_files(tmp_path / "masks") == []
    assert predict(scans, bundle).errors == []


def test_foreign_record_and_second_writer_are_refused(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    record = tmp_path / "masks" / RECORD
    record.parent.mkdir()
    record.write_text(json.dumps({"scan": "ct_1", "state": "done"}) + "\n")
    with pytest.raises(InputError, match="not a record of predictions"):
        predict(scans, bundle)
    record.unlink()
    with exclusive_lock(record.parent / ".predictions.lock", record.parent), pytest.raises(ResourceError):
        predict(scans, bundle)
    assert list(record.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["batch.before_mask", "batch.after_mask"])
def test_a_killed_run_goes_on_where_it_was(scans: Path, bundle: Bundle, tmp_path: Path, point: str) -> None:
    command = ("predict", scans, "-o", tmp_path / "masks", "-m", bundle.folder, "--json")
    fault = {VARIABLE: f"{point}:3=kill", ONCE_VARIABLE: str(tmp_path)}
    assert Running(*command, **fault).end().code == -9
    done = [line["scan"] for line in read_json_lines(tmp_path / "masks" / RECORD)[1:] if line["state"] == "done"]
    assert done == ["ct_1", "ct_2"]
    before = times(tmp_path / "masks")
    finished = Running(*command).end()
    assert finished.code == 0, finished
    assert finished.json()["kept"] == 2
    assert {name: at for name, at in times(tmp_path / "masks").items() if name[:4] in done} == {
        name: at for name, at in before.items() if name[:4] in done
    }
    assert len(finished.json()["masks"]) == 4
    assert partial_files(tmp_path / "masks") == []


def test_missing_scan_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file") as caught:
        gtvray.predict_folder(tmp_path / "missing.nii.gz", tmp_path / "mask.nii.gz", workspace=tmp_path / "runs")
    assert caught.value.fields["where"] == str(tmp_path / "missing.nii.gz")
    assert list(tmp_path.iterdir()) == []
