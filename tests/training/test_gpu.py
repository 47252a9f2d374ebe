"""What an owner of a GPU runs: `make test-gpu`. Without one these skip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.datasets import index_dataset
from gtvray.evaluation import dice
from gtvray.inference import Predictor
from gtvray.io import read_volume
from gtvray.training import export_bundle, fit, kept_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_a_compiled_network_learns_as_an_eager_one(
    config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    curves = [
        [
            report.train_loss
            for report in fit(
                with_dotted(config, {"training.use_gpu": True, "training.compile": compiled}),
                train,
                selection,
                tmp_path / compiled,
            )
        ]
        for compiled in ("off", "on")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_the_gpu_learns_as_on_the_cpu(
    precision: str, config: Config, train: list[CachedCase], selection: list[CachedCase], tmp_path: Path
) -> None:
    on_gpu = with_dotted(config, {"training.use_gpu": True, "training.precision": precision})
    gpu = [report.train_loss for report in fit(on_gpu, train, selection, tmp_path / "gpu")]
    cpu = [report.train_loss for report in fit(config, train, selection, tmp_path / "cpu")]
    assert gpu == pytest.approx(cpu, rel=1e-3 if precision == "fp32" else 5e-2)


def test_the_gpu_marks_what_the_cpu_marks(
    config: Config, train: list[CachedCase], selection: list[CachedCase], phantoms: Path, tmp_path: Path
) -> None:
    *_, last = fit(config, train, selection, tmp_path / "run")
    chosen = kept_checkpoint(Path(last.best_checkpoint), config, selection, torch.device("cuda"))
    bundle = export_bundle(*chosen, config, tmp_path / "bundle", {})
    scan = read_volume(index_dataset(phantoms).cases[0].image)
    masks = [Predictor(bundle, device=device).predict(scan).array for device in ("cpu", "cuda")]
    assert masks[0].any()
    assert dice(np.asarray(masks[0], bool), np.asarray(masks[1], bool)) >= 0.999
