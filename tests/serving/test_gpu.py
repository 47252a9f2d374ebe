"""The endpoint with a replica on a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from gtvray.datasets import index_dataset
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.models import Bundle
from gtvray.serving import Server

from ..golden_cases import made_golden
from ..gpu import NEEDS_GPU
from ..training.conftest import cases, config, selection, train  # noqa: F401  # fixtures of `promoted`
from ..training.test_gpu import bundle as promoted  # noqa: F401
from ..training.test_gpu import sides  # noqa: F401
from .conftest import TOKEN, make_scan, predict_remote

pytestmark = [*NEEDS_GPU, pytest.mark.ray]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_masks_of_a_gpu_replica_are_the_offline_ones_of_the_gpu(
    share: float, start: Callable[..., Server], bundle: Bundle
) -> None:
    server = start(bundle, gpus_per_replica=share)
    scans = [make_scan((40 + 6 * n, 44, 30), seed=n) for n in range(4)]
    offline = Predictor(bundle, device="cuda")
    expected = [offline.predict(scan).array for scan in scans]
    with ThreadPoolExecutor(len(scans)) as pool:
        results = list(pool.map(lambda scan: predict_remote(server.url, TOKEN, scan), scans))
    server.stop()
    for scan, mask, result in zip(scans, expected, results, strict=True):
        assert 0 < mask.sum() < mask.size
        assert result.mask.same_grid(scan)
        assert np.array_equal(result.mask.array, mask)


def test_a_gpu_replica_is_ready_once_it_reproduces_what_a_cpu_promoted(
    start: Callable[..., Server],
    promoted: Bundle,  # noqa: F811
    phantoms: Path,
    tmp_path: Path,
) -> None:
    scans = [read_volume(case.image) for case in index_dataset(phantoms).cases[:2]]
    golden = made_golden(tmp_path / "golden", promoted, scans)
    server = start(promoted, golden=golden, gpus_per_replica=1.0)
    assert httpx.get(f"{server.url}/readyz").json()["golden"] in ("identical", "reproduced")
    server.stop()
