"""Fixtures of the serving tests: a tiny bundle, scans, and endpoints on a local Ray."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    # Serve's schema module uses a deprecated argument of pydantic's Field.
    warnings.simplefilter("ignore")
    import ray.serve

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig, ServingConfig
from gtvray.geometry import Volume
from gtvray.io import decode_nifti, encode_nifti
from gtvray.models import Bundle, build_network, weights_of, write_bundle
from gtvray.runtime import Cluster
from gtvray.serving import Client, RemoteResult, Retry, Scan, Server, Timeouts, start_server

from ..ports import free_port

TOKEN = "a-test-token"
PATCH_IJK = (16, 16, 16)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    import torch

    torch.manual_seed(1)
    preprocessing, network = PreprocessingConfig(), NetworkConfig(size="tiny")
    weights = weights_of(build_network(network, 1, preprocessing.spacing_mm, PATCH_IJK))
    return write_bundle(
        tmp_path_factory.mktemp("serving") / "bundle",
        weights=weights,
        preprocessing=preprocessing,
        network=network,
        # Random weights give probabilities close to one half.
        inference=InferenceConfig(threshold=0.5),
        patch_ijk=PATCH_IJK,
        info={},
    )


def make_scan(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    """An ellipsoid of noisy tissue in air with spacing 3 mm, encoded and decoded once as a file would be."""
    position = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in shape], indexing="ij"))
    tissue = np.random.default_rng(seed).integers(-100, 200, shape)
    array = np.where((position**2).sum(axis=0) < 1, tissue, -1000).astype(np.int16)
    return decode_nifti(encode_nifti(Volume(array, np.diag([3.0, 3.0, 3.0, 1.0])), compress=False))


@pytest.fixture(scope="session")
def large_scan() -> bytes:
    """A scan of few bytes that takes many seconds to segment."""
    scan = make_scan((160, 160, 120))
    return encode_nifti(scan.with_array(np.where(scan.array > -1000, 40, -1000).astype(np.int16)), compress=True)


@pytest.fixture(scope="module")
def start(local_ray: Cluster) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start_one(
        bundle: Bundle | None,
        golden: Path | None = None,
        wait: bool = True,
        jobs_dir: Path | None = None,
        **settings: Any,
    ) -> Server:
        config = ServingConfig(port=free_port(), **settings)
        server = start_server(bundle and bundle.folder, config, TOKEN, "7", golden=golden, jobs_dir=jobs_dir)
        servers.append(server)
        if bundle is not None and wait:
            server.wait_ready(100)
        return server

    yield start_one
    for server in servers:
        server.stop()


def predict_remote(
    url: str, token: str, scan: Scan, *, request_id: str | None = None, timeout_s: float = 330.0
) -> RemoteResult:
    """Send a scan once, so that an error is the first one."""
    with Client(url, token, timeouts=Timeouts(read_s=timeout_s), retry=Retry(attempts=1)) as client:
        return client.segment(scan, request_id=request_id)


def log_lines(deployment: str, text: str) -> list[str]:
    """Lines that contain `text` in the log files of a deployment's replicas."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    files = folder.glob(f"replica_gtvray_{deployment}_*.log")
    return [line for file in files for line in file.read_text().splitlines() if text in line]


def wait_for_log(deployment: str, text: str) -> str:
    while not (lines := log_lines(deployment, text)):
        time.sleep(0.1)
    return lines[0]
