"""`gtvray data prepare`: new and existing entries, the note on a tilted scan, and the size limit of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.io import write_volume

from .command import partial_files, run


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two balls of tissue with a tumour; the second scan was made with a tilted gantry."""
    shape = (24, 26, 20)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body, tumour = i**2 + j**2 + k**2 < 0.9, i**2 + j**2 + k**2 < 0.1
    for name, tilt in (("1", 0.0), ("2", 0.9)):
        affine = np.diag([-4.0, -4.0, 5.0, 1.0])
        affine[1, 2] = tilt
        hu = np.where(body, 40 + int(name), -1000).astype(np.int16)
        write_volume(tmp_path / "set" / name / "data.nii.gz", Volume(hu, affine))
        write_volume(tmp_path / "set" / name / "label.nii.gz", Volume(tumour, affine))
    return tmp_path / "set"


def test_cases_are_prepared_once(tmp_path: Path, dataset: Path) -> None:
    arguments = ("data", "prepare", dataset, "--workspace", tmp_path / "runs", "--json")
    first, second = run(*arguments).json(), run(*arguments).json()
    assert [(result["cases"], result["made"], result["found"], result["evicted"]) for result in (first, second)] == [
        (2, 2, 0, 0),
        (2, 0, 2, 0),
    ]
    assert first["bytes"] == second["bytes"] == first["cache_bytes"] > 0
    assert first["cases_per_s"] > 0
    assert list(first["notes"]) == ["2"]
    assert "gantry tilt" in first["notes"]["2"][0]
    other = run(*arguments, "-s", "preprocessing.spacing_mm=[4, 4, 4]").json()
    assert (other["made"], other["cache_bytes"]) == (2, first["bytes"] + other["bytes"])
    # The limit is the current size, so the least recently used entries are evicted.
    bound_gb = other["cache_bytes"] / 1e9
    last = run(*arguments, "-s", "preprocessing.body_margin_mm=7", "-s", f"cache.max_gb={bound_gb:.9f}").json()
    assert last["made"] == 2
    assert last["evicted"] >= 1
    assert last["cache_bytes"] <= other["cache_bytes"]


def test_cache_limit_below_one_run_is_refused(tmp_path: Path, dataset: Path) -> None:
    result = run("data", "prepare", dataset, "--workspace", tmp_path / "runs", "-s", "cache.max_gb=0.000001")
    assert "cache.max_gb" in result.error(1)
    assert partial_files(tmp_path / "runs") == []
