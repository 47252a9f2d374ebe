"""Prediction of many scans by processes on a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.runtime import Cluster

from ..cli.command import run
from ..gpu import NEEDS_GPU

pytestmark = [*NEEDS_GPU, pytest.mark.ray]


@pytest.mark.parametrize("share", ["0.5", "1"])
def test_masks_of_processes_on_a_gpu_are_those_of_the_gpu(
    share: str, local_ray: Cluster, scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    command = ("predict", scans, "-o", tmp_path / "masks", "-m", bundle.folder, "--address", local_ray.address)
    finished = run(*command, "--gpus", share, "--memory-gb", "2", "--json")
    assert finished.code == 0, finished
    offline = Predictor(bundle, device="cuda")
    rows = finished.json()["masks"]
    assert len(rows) == 4
    for row in rows:
        expected = offline.predict(read_volume(scans / f"{row['scan']}.nii.gz")).array
        np.testing.assert_array_equal(read_volume(row["mask"]).array, expected)
