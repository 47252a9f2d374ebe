"""`gtvray predict` on many scans: an invalid one among them, the report, and Ctrl-C."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gtvray.batch import RECORD
from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.io import read_json, read_volume
from gtvray.models import Bundle, build_network, weights_of, write_bundle

from .command import Running, partial_files, run

PATCH_IJK = (24, 24, 24)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with random weights."""
    import torch

    torch.manual_seed(3)
    preprocessing, network = PreprocessingConfig(spacing_mm=(6.0, 6.0, 6.0)), NetworkConfig(features=(8, 8, 8))
    weights = weights_of(build_network(network, 1, preprocessing.spacing_mm, PATCH_IJK))
    return write_bundle(
        tmp_path_factory.mktemp("predict") / "bundle",
        weights=weights,
        preprocessing=preprocessing,
        network=network,
        inference=InferenceConfig(mode="localised"),
        patch_ijk=PATCH_IJK,
        info={},
    )


def _scans(folder: Path, phantoms: Path, names: str) -> Path:
    for name in names:
        shutil.copytree(phantoms / name, folder / name)
    return folder


def test_invalid_scan_does_not_stop_the_others(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    from gtvray.inference import Predictor

    scans, out = _scans(tmp_path / "scans", phantoms, "123"), tmp_path / "masks"
    (scans / "2" / "data.nii.gz").write_bytes(b"not a scan")
    finished = run("predict", scans, "-o", out, "-m", bundle.folder, "--report", "--json")
    assert finished.code == 1
    result = finished.json()
    assert [row["scan"] for row in result["masks"]] == ["1", "3"]
    assert [(row["scan"], row["error"]["status"]) for row in result["failed"]] == [("2", 422)]
    assert sorted(path.name for path in out.iterdir()) == ["1.nii.gz", "3.nii.gz", RECORD, "report.html", "report.json"]

    scan, row = read_volume(scans / "3" / "data.nii.gz"), result["masks"][1]
    mask = read_volume(out / "3.nii.gz")
    assert mask.same_grid(scan)
    np.testing.assert_array_equal(mask.array, Predictor(bundle, threads=1).predict(scan).array)
    assert row["volume_ml"] == round(float(mask.array.sum()) * mask.voxel_volume_ml, 3)
    assert set(row["seconds"]) == {"read", "prepare", "network", "restore", "write"}
    assert row["patches"] > 0
    assert 0 <= row["volume_skipped_share"] < 1
    report = read_json(out / "report.json")
    assert [case["scan"] for case in report["cases"]] == ["1", "2", "3"]
    assert report["peak_mb"] > 50
    page = (out / "report.html").read_text()
    assert "not a NIfTI or NRRD file" in page
    assert report["notice"] in page


@pytest.mark.slow
def test_exhaustive_runs_every_patch(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    scan = phantoms / "1" / "data.nii.gz"
    (row,) = run("predict", scan, "-o", mask, "-m", bundle.folder, "--exhaustive", "--json").json()["masks"]
    assert (row["mode"], row["fallback"], row["patches_skipped"]) == ("exhaustive", None, 0)
    assert mask.is_file()


@pytest.mark.slow
def test_interrupt_leaves_complete_masks_only(bundle: Bundle, phantoms: Path, tmp_path: Path) -> None:
    scans, out = _scans(tmp_path / "scans", phantoms, "123456"), tmp_path / "masks"
    running = Running("predict", scans, "-o", out, "-m", bundle.folder)
    running.wait_for("predict: ")
    running.interrupt()
    assert running.end().code == 1
    assert partial_files(tmp_path) == []
    for mask in out.glob("*.nii.gz"):
        assert read_volume(mask).same_grid(read_volume(scans / mask.name.removesuffix(".nii.gz") / "data.nii.gz"))


def test_endpoint_uses_the_inference_mode_of_its_model(phantoms: Path, tmp_path: Path) -> None:
    words = (
        "predict",
        phantoms / "1" / "data.nii.gz",
        "-o",
        tmp_path / "m.nii",
        "--server",
        "http://x",
        "--exhaustive",
    )
    assert "--server and --exhaustive" in run(*words).error(code=2)
