"""A small dataset in StructSeg's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gtvray.config import CacheConfig, PreprocessingConfig
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset
from gtvray.geometry import Volume
from gtvray.io import write_volume

SPACING_MM = (4.0, 4.0, 5.0)


def write_case(folder: Path, seed: int, shape: tuple[int, int, int] = (34, 36, 26)) -> None:
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = i**2 + j**2 + k**2 < 0.9
    hu = np.where(body, rng.normal(40, 20, shape), -1000).astype(np.int16)
    x, y, z = rng.uniform(-0.3, 0.3, 3)
    tumour = (i - x) ** 2 + (j - y) ** 2 + (k - z) ** 2 < 0.08
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    write_volume(folder / "data.nii.gz", Volume(hu + 30 * tumour.astype(np.int16), affine))
    write_volume(folder / "label.nii.gz", Volume(tumour, affine))


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Three sound cases, `1`, `2` and `10`."""
    for seed, name in enumerate(("1", "2", "10")):
        write_case(tmp_path / "set" / name, seed)
    return tmp_path / "set"


@pytest.fixture(scope="session")
def prepared_cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    """Four prepared cases; the last is smaller than a patch of 16."""
    folder = tmp_path_factory.mktemp("prepared")
    for seed in range(4):
        write_case(folder / "set" / str(seed), seed, (34, 36, 26) if seed < 3 else (30, 14, 9))
    cache = CaseCache(folder / "cache", PreprocessingConfig(spacing_mm=(5.0, 5.0, 5.0)), CacheConfig())
    return cache.prepare_all(index_dataset(folder / "set").cases)
