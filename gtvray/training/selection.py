"""Scoring selection cases during training: quickly, on the prepared grid, shared between workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.evaluation import dice
from gtvray.geometry import Box, Volume
from gtvray.inference import CaseJob, forward_batch, run_to_end
from gtvray.preprocessing import Prepared
from gtvray.training.plan import training_precision

# Less than at the end: selection compares, and half the patches tell the same.
_OVERLAP = 0.25


def selection_dsc(config: Config, network: torch.nn.Module, cases: Sequence[CachedCase], device: torch.device) -> float:
    """Mean DSC over cases, the same on every worker."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    scores = torch.zeros(len(cases), dtype=torch.float64)
    for index in range(rank, len(cases), workers):
        scores[index] = _case_dsc(config, network, cases[index], device)
    if workers > 1:
        dist.all_reduce(scores)
    return float(scores.mean())


def _case_dsc(config: Config, network: torch.nn.Module, case: CachedCase, device: torch.device) -> float:
    hu, mask = case.read(Box.whole(case.shape))
    grid = Volume(hu, np.asarray(case.meta["affine"]))
    inference = config.inference.model_copy(update={"overlap": _OVERLAP})
    job = CaseJob(Prepared(grid, grid.affine, grid.shape), config.preprocessing, inference, config.training.patch_ijk)
    size = inference.batch_size
    forward = partial(forward_batch, network, batch_size=size, device=device, dtype=training_precision(config))
    run_to_end(job, forward, size)
    return dice(mask > 0, job.probability() > inference.threshold)
