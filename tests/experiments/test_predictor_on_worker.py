"""The predictor that scores cases on a worker of a training, checked on a CPU with a fake device."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.config import InferenceConfig, load_config
from gtvray.experiments.tasks import predictor_on_worker

from ..bundles import random_bundle

GPU = load_config(overrides=["training.use_gpu=true", "training.cpus_per_worker=2"])


def test_a_backend_for_cpus_runs_on_the_cpus_of_a_gpu_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a training on GPUs would fail after its last epoch, when its cases are scored."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(import_module("gtvray.experiments.tasks"), "training_device", lambda _: torch.device("cuda", 0))
    bundle = random_bundle(tmp_path / "bundle", inference=InferenceConfig(backend="openvino"))
    predictor = predictor_on_worker(bundle, GPU)
    assert predictor.forward([np.zeros((1, 16, 16, 16), np.float32)]).shape == (1, 16, 16, 16)
