"""`gtvray predict --address`: masks equal those of single prediction despite lost processes and nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gtvray.batch import RECORD
from gtvray.failpoints import ONCE_VARIABLE, VARIABLE
from gtvray.inference import Predictor
from gtvray.io import read_json_lines, read_volume
from gtvray.models import Bundle
from gtvray.runtime import Cluster

from ..cli.command import Running, partial_files, run
from .test_folder import times

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OPTIONS = ("--memory-gb", "0.5", "--json")


def states(folder: Path) -> list[str]:
    return [line["state"] for line in read_json_lines(folder / RECORD)[1:]]


def many(scans: Path, count: int) -> Path:
    for number in range(5, count + 1):
        shutil.copyfile(scans / f"ct_{number % 4 + 1}.nii.gz", scans / f"ct_{number}.nii.gz")
    return scans


def test_masks_are_those_of_single_prediction(local_ray: Cluster, scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    """One scan is invalid, and a process dies after it has written a mask."""
    (scans / "bad.nii.gz").write_bytes(b"not a scan")
    command = ("predict", scans, "-o", tmp_path / "masks", "-m", bundle.folder, "--address", local_ray.address)
    fault = {VARIABLE: "batch.after_mask=kill", ONCE_VARIABLE: str(tmp_path)}
    finished = run(*command, *OPTIONS, **fault)
    assert finished.code == 1, finished
    found = finished.json()
    assert [row["scan"] for row in found["failed"]] == ["bad"]
    assert len(found["masks"]) == 4
    for row in found["masks"]:
        expected = Predictor(bundle, threads=1).predict(read_volume(scans / f"{row['scan']}.nii.gz")).array
        np.testing.assert_array_equal(read_volume(row["mask"]).array, expected)
    # The process died, and its scan was started again.
    assert states(tmp_path / "masks").count("started") > 5
    assert partial_files(tmp_path / "masks") == []
    (scans / "bad.nii.gz").unlink()
    again = run(*command, *OPTIONS)
    assert (again.code, again.json()["kept"]) == (0, 4), again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_prediction_is_continued_by_the_next_run(
    local_ray: Cluster, scans: Path, bundle: Bundle, tmp_path: Path, number: int
) -> None:
    masks = tmp_path / "masks"
    command = ("predict", many(scans, 60), "-o", masks, "-m", bundle.folder, "--address", local_ray.address, *OPTIONS)
    running = Running(*command, "--exhaustive")
    while "done" not in states(masks):
        assert running.strays(0)
        time.sleep(0.05)
    running.interrupt(number)
    ended = running.end()
    assert ended.code == (1 if number == signal.SIGINT else -9), ended
    done = states(masks).count("done")
    assert 0 < done < 60
    if number == signal.SIGINT:
        assert "run it again" in ended.error(code=1)
        assert partial_files(masks) == []
        # Every mask that was written is recorded.
        assert len(times(masks)) == done
    before = {line["scan"]: line for line in read_json_lines(masks / RECORD)[1:] if line["state"] == "done"}
    at = times(masks)
    finished = run(*command, "--exhaustive")
    assert (finished.code, finished.json()["kept"]) == (0, done), finished
    assert len(finished.json()["masks"]) == 60
    assert all(times(masks)[f"{name}.nii.gz"] == at[f"{name}.nii.gz"] for name in before)
    assert partial_files(masks) == []


@pytest.mark.timeout(240)
def test_scans_of_a_lost_node_are_predicted_on_another(tmp_path: Path) -> None:
    """Two nodes are lost, one after the other; no scan is reported as the cause, and none is missing."""
    script = str(Path(__file__).with_name("lost_nodes.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, script, str(tmp_path)], env=environment, timeout=220, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["lost"] == 2
    assert sorted(found["rows"]) == sorted([f"s{number}", True] for number in range(40))
