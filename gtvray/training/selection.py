"""What selection cases decide: the better epoch and trial, and how probabilities become a mask.

Quickly, on the prepared grid; during training the cases are shared between workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gtvray.config import Config, InferenceConfig
from gtvray.data import CachedCase
from gtvray.evaluation import dice
from gtvray.geometry import Box, Volume
from gtvray.inference import CaseJob, forward_batch, largest_component, run_to_end
from gtvray.preprocessing import Prepared
from gtvray.training.plan import training_precision
from gtvray.training.workers import rank, world

# Less than at the end: selection compares, and half the patches tell the same.
_OVERLAP = 0.25
_THRESHOLDS = np.arange(6, 16) / 20


def selection_dsc(config: Config, network: torch.nn.Module, cases: Sequence[CachedCase], device: torch.device) -> float:
    """Mean DSC over cases, the same on every worker."""
    scores = torch.zeros(len(cases), dtype=torch.float64)
    for index in range(rank(), len(cases), world()):
        scores[index] = _case_dsc(config, network, cases[index], device)
    if world() > 1:
        dist.all_reduce(scores)
    return float(scores.mean())


def calibrated(
    config: Config, network: torch.nn.Module, cases: Sequence[CachedCase], device: torch.device
) -> tuple[InferenceConfig, float]:
    """The threshold, and whether to keep the largest component only, that give selection cases the best mean DSC.

    Oversampling the tumour in training makes networks mark too much at one half; what to do about it is a choice
    between models like any other, so it is made on the selection cases. Equal choices: the one nearer to the settings.

    Returns:
        the inference settings, and the mean DSC with them.
    """
    settings = [(float(threshold), largest) for threshold in _THRESHOLDS for largest in (False, True)]
    scores = np.zeros((len(cases), len(settings)))
    for row, case in zip(scores, cases, strict=True):
        probability, mask = _case_probability(config, network, case, device)
        for column, (threshold, largest) in enumerate(settings):
            marked = probability > threshold
            row[column] = dice(mask, largest_component(marked) if largest else marked)
    # Sums of the same cases in another order differ in the last bits; that is no difference between settings.
    means = scores.mean(axis=0).round(6)
    asked = config.inference
    best = min(
        range(len(settings)),
        key=lambda i: (-means[i], settings[i][1] != asked.keep_largest, abs(settings[i][0] - asked.threshold)),
    )
    threshold, largest = settings[best]
    return asked.model_copy(update={"threshold": threshold, "keep_largest": largest}), float(means[best])


def _case_dsc(config: Config, network: torch.nn.Module, case: CachedCase, device: torch.device) -> float:
    probability, mask = _case_probability(config, network, case, device)
    return dice(mask, probability > config.inference.threshold)


def _case_probability(
    config: Config, network: torch.nn.Module, case: CachedCase, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tumour probability and mask on the prepared grid."""
    hu, mask = case.read(Box.whole(case.shape))
    grid = Volume(hu, np.asarray(case.meta["affine"]))
    inference = config.inference.model_copy(update={"overlap": _OVERLAP})
    job = CaseJob(Prepared(grid, grid.affine, grid.shape), config.preprocessing, inference, config.training.patch_ijk)
    size = inference.batch_size
    forward = partial(forward_batch, network, batch_size=size, device=device, dtype=training_precision(config))
    run_to_end(job, forward, size)
    return job.probability(), mask > 0
