"""A dataset of balls with a tumour, an MLflow store on SQLite, and one thread for torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from gtvray.datasets import Dataset, index_dataset
from gtvray.geometry import Volume
from gtvray.io import write_volume

from ..stores import open_store


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four balls of tissue, each with a tumour at a different position."""
    folder = tmp_path_factory.mktemp("balls") / "balls"
    shape, affine = (30, 28, 24), np.diag([-4.0, -4.0, 5.0, 1.0])
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    for number in range(4):
        body, tumour = i**2 + j**2 + k**2 < 0.9, (i - number / 10) ** 2 + j**2 + k**2 < 0.08
        hu = np.where(body, 40 + 10 * tumour + number, -1000).astype(np.int16)
        write_volume(folder / f"{number}" / "data.nii.gz", Volume(hu, affine))
        write_volume(folder / f"{number}" / "label.nii.gz", Volume(tumour.astype(np.uint8), affine))
    return index_dataset(folder)


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"
