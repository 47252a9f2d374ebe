"""Trials that share a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from gtvray.config import Config, SweepConfig, with_dotted
from gtvray.data import CachedCase
from gtvray.runtime import Cluster
from gtvray.tracking import RunRecorder
from gtvray.tuning import FoldCases, SweepStatus, run_sweep
from gtvray.tuning.confirm import held_out_dsc
from gtvray.tuning.cost import measure_cost

from ..gpu import NEEDS_GPU

pytestmark = [*NEEDS_GPU, pytest.mark.ray]


def test_two_trials_share_a_gpu(
    local_ray: Cluster, client: MlflowClient, config: Config, cases: list[CachedCase], tmp_path: Path
) -> None:
    half = with_dotted(config, {"training.use_gpu": True, "training.gpus_per_worker": 0.5})
    recorder = RunRecorder(client, tmp_path.name, "sweep", tmp_path / "spool.jsonl", tmp_path / "artifacts")
    statuses: list[SweepStatus] = []
    sweep = SweepConfig.model_validate(
        {
            "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}},
            "trials": 2,
            "max_concurrent": 2,
            "scheduler": {"kind": "none"},
        }
    )
    result = run_sweep(
        sweep,
        half,
        [FoldCases(cases[:4], cases[4:])],
        cluster=local_ray,
        recorder=recorder,
        folder=tmp_path,
        tags={},
        report=statuses.append,
    )
    assert recorder.close(60)
    assert (len(result.trials), result.failed) == (2, 0)
    # The final scoring of a sweep runs in separate tasks with the same share.
    (scores,) = held_out_dsc([(result.best.best_checkpoint, half)], cases[4:], cases[:1])
    assert len(scores) == 1
    assert 0 <= scores[0] <= 1
    if local_ray.gpus == 1:
        assert max(status.started - status.ended for status in statuses) == 2, "both were running at once"


def test_latency_is_measured_on_the_gpu(config: Config) -> None:
    torch.cuda.reset_peak_memory_stats()
    asked = with_dotted(config, {"training.use_gpu": True, "training.precision": "auto"})
    assert measure_cost(asked, ["latency_ms"])["latency_ms"] > 0
    assert torch.cuda.max_memory_allocated() > 0
