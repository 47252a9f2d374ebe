"""Small scans and a model with random weights, which are processed in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.io import write_volume
from gtvray.models import Bundle

from ..bundles import random_bundle


def write_ball(path: Path, hu: int = 40) -> Path:
    """Write a scan of a ball of tissue."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in (30, 28, 24)], indexing="ij")
    array = np.where(i**2 + j**2 + k**2 < 0.9, hu + 40 * i, -1000).astype(np.int16)
    write_volume(path, Volume(array, np.diag([-4.0, -4.0, 5.0, 1.0])))
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans in a folder."""
    for number in range(1, 5):
        write_ball(tmp_path / "scans" / f"ct_{number}.nii.gz", 20 * number)
    return tmp_path / "scans"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("batch") / "bundle")
