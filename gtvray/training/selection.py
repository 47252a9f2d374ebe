"""Scores on the selection cases, which choose the best epoch and trial, the threshold and the component filter.

Scores are on the prepared grid, for speed; during training the cases are shared between workers.
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
from gtvray.geometry import largest_component
from gtvray.inference import SegmentationRequest, forward_batch, run_patches
from gtvray.training.execution import numeric_settings, rank, training_precision, world

# Less than in inference: half the patches give the same ranking of epochs.
_OVERLAP = 0.25
_SETTINGS = [(twentieths / 20, largest) for twentieths in range(6, 16) for largest in (False, True)]


def selection_dsc(
    config: Config, network: torch.nn.Module, cases: Sequence[CachedCase], device: torch.device
) -> NDArray[np.float64]:
    """DSC of each case, the same on every worker."""
    scores = torch.zeros(len(cases), dtype=torch.float64)
    for index in range(rank(), len(cases), world()):
        scores[index] = _case_dsc(config, network, cases[index], device)
    if world() > 1:
        dist.all_reduce(scores)
    return scores.numpy()


def calibration_scores(
    config: Config, network: torch.nn.Module, cases: Sequence[CachedCase], device: torch.device
) -> NDArray[np.float64]:
    """DSC of each case with each candidate setting: (cases, settings).

    Candidates are thresholds, with and without keeping the largest component only; with `training.calibrate` off, the
    settings of `inference` alone.
    """
    settings = _settings(config)
    scores = np.zeros((len(cases), len(settings)))
    # As in the training whose epochs were scored on these cases.
    with numeric_settings(config, device):
        for row, case in zip(scores, cases, strict=True):
            probability, mask = _case_probability(config, network, case, device)
            for column, (threshold, largest) in enumerate(settings):
                marked = probability > threshold
                row[column] = dice(mask, largest_component(marked) if largest else marked)
    return scores


def best_setting(config: Config, scores: NDArray[np.float64]) -> tuple[InferenceConfig, NDArray[np.float64]]:
    """The threshold, and whether to keep the largest component only, with the best mean DSC.

    Oversampling the tumour in training makes networks over-segment at a threshold of 0.5. Correcting that is a choice
    between models, so it is made on the selection cases, or out of fold. Ties go to the setting nearer to the
    configured one.

    Args:
        config: the configured settings.
        scores: of `calibration_scores`; those of several networks may be stacked.

    Returns:
        the inference settings, and each case's DSC with them.
    """
    asked, settings = config.inference, _settings(config)
    # Sums of the same cases in another order differ in the last bits, which must not decide.
    means = scores.mean(axis=0).round(6)
    best = min(
        range(len(settings)),
        key=lambda i: (-means[i], settings[i][1] != asked.keep_largest, abs(settings[i][0] - asked.threshold)),
    )
    threshold, largest = settings[best]
    return asked.model_copy(update={"threshold": threshold, "keep_largest": largest}), scores[:, best]


def _settings(config: Config) -> list[tuple[float, bool]]:
    return _SETTINGS if config.training.calibrate else [(config.inference.threshold, config.inference.keep_largest)]


def _case_dsc(config: Config, network: torch.nn.Module, case: CachedCase, device: torch.device) -> float:
    probability, mask = _case_probability(config, network, case, device)
    return dice(mask, probability > config.inference.threshold)


def _case_probability(
    config: Config, network: torch.nn.Module, case: CachedCase, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tumour probability and mask on the prepared grid."""
    prepared, mask = case.whole()
    inference = config.inference.model_copy(update={"overlap": _OVERLAP})
    job = SegmentationRequest(prepared, config.preprocessing, inference, config.training.patch_ijk)
    size = inference.batch_size
    forward = partial(forward_batch, network, batch_size=size, device=device, dtype=training_precision(config))
    run_patches(job, forward, size)
    return job.probability(), mask > 0
