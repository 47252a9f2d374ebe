"""Folds that share a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtvray.config import Config, with_dotted
from gtvray.runtime import Cluster

from ..gpu import NEEDS_GPU
from .test_train import make_job

pytestmark = [*NEEDS_GPU, pytest.mark.ray]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_folds_are_trained_and_scored_on_a_gpu(
    backend: str, local_ray: Cluster, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    """A model for CPUs is trained on the GPU as well, and scored on the CPU."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    shared = {"training.use_gpu": True, "training.gpus_per_worker": 0.5, "inference.backend": backend}
    job = make_job(with_dotted(config, shared), phantoms, tmp_path, fold="all", folds=2)
    project, folds = job.open()
    outcome = job.run(project, folds, local_ray)
    assert outcome.failures == {}
    assert len(outcome.validation.rows()) == sum(len(fold.validation_cases) for fold in folds)
