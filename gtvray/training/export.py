"""Exporting a checkpoint as the bundle that is evaluated, promoted and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.config import Config, NetworkConfig, build
from gtvray.data import CachedCase
from gtvray.evaluation import FEWEST_CASES, paired_difference
from gtvray.inference import training_ranges
from gtvray.models import Bundle, Checkpoint, build_network, load_weights, write_bundle
from gtvray.training.checkpoints import checkpoint_path, newest_checkpoint
from gtvray.training.selection import best_setting, calibration_scores

_PREFIX = "averaged:"
_DOMAIN_CASES = 50
_SEED = 0


@dataclass(frozen=True)
class TrainedNetwork:
    """The part of a checkpoint that becomes a bundle.

    Attributes:
        weights: moving average of the weights.
        settings: of the network.
        epoch: number of completed epochs.
    """

    weights: dict[str, torch.Tensor]
    settings: NetworkConfig
    epoch: int

    @classmethod
    def load(cls, checkpoint: Path) -> TrainedNetwork:
        """Read it from a checkpoint's folder.

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        return cls.of(Checkpoint.load(checkpoint), checkpoint)

    @classmethod
    def of(cls, state: Checkpoint, folder: Path) -> TrainedNetwork:
        """Take it from a loaded checkpoint; `folder` is named in errors about its settings."""
        averaged = {key.removeprefix(_PREFIX): each for key, each in state.tensors.items() if key.startswith(_PREFIX)}
        return cls(averaged, build(NetworkConfig, state.meta["network"], folder), int(state.meta["epoch"]))

    def build(self, config: Config) -> torch.nn.Module:
        """Build the network in evaluation mode; `config` is the one it was trained with."""
        preprocessing, patch_ijk = config.preprocessing, config.training.patch_ijk
        channels = preprocessing.channels
        network = build_network(self.settings, channels, preprocessing.spacing_mm, patch_ijk).eval()
        load_weights(network, self.weights)
        return network


def domain_ranges(cases: Sequence[CachedCase]) -> dict[str, tuple[float, float]]:
    """Return the ranges of the domain check for these training cases; of many cases, evenly spaced ones are read."""
    chosen = cases[:: max(1, len(cases) // _DOMAIN_CASES)]
    return training_ranges(case.whole()[0].hu for case in chosen)


def kept_checkpoint(
    best: Path, config: Config, cases: Sequence[CachedCase], device: torch.device
) -> tuple[Path, NDArray[np.float64]]:
    """Choose a training's checkpoint: the newest, unless the best epoch is better by more than chance.

    The best of many epochs on few cases is biased upwards, and often from before the learning rate has decayed.
    Both are compared with the inference settings that suit each, over all cases, by the paired 95 % interval.

    Args:
        best: folder of the best epoch's checkpoint; the newest is beside it.
        config: the one it was trained with.
        cases: prepared cases that were not trained on.
        device: for the networks.

    Returns:
        the checkpoint's folder, and its `calibration_scores`.

    Raises:
        TrainingError: the best checkpoint is damaged.
    """
    networks, last = {best: TrainedNetwork.load(best)}, best
    newest, _ = newest_checkpoint(best.parent)
    if newest is not None:
        last = checkpoint_path(best.parent, int(newest.meta["epoch"]))
        networks[last] = TrainedNetwork.of(newest, last)
    scores = {
        path: calibration_scores(config, trained.build(config).to(device), cases, device)
        for path, trained in networks.items()
    }
    if last == best or len(cases) < FEWEST_CASES:
        return last, scores[last]
    candidate, baseline = (best_setting(config, scores[path])[1].tolist() for path in (best, last))
    kept = best if paired_difference(candidate, baseline, seed=_SEED).low > 0 else last
    return kept, scores[kept]


def export_bundle(
    kept: Sequence[tuple[Path, NDArray[np.float64]]], config: Config, folder: Path, info: Mapping[str, Any]
) -> Bundle:
    """Write averaged weights of checkpoints as a bundle with calibrated inference settings.

    Args:
        kept: results of `kept_checkpoint`: of one training, or of several that form an ensemble and were scored on
            different cases, such as the folds of a cross-validation.
        config: the one they were trained with.
        folder: the bundle's folder.
        info: provenance of the model, such as training data and run.

    Raises:
        TrainingError: a checkpoint is damaged.
    """
    inference, dsc = best_setting(config, np.concatenate([scores for _, scores in kept]))
    members = [TrainedNetwork.load(path) for path, _ in kept]
    epochs = [member.epoch for member in members]
    return write_bundle(
        folder,
        weights=[member.weights for member in members],
        preprocessing=config.preprocessing,
        network=members[0].settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={"epoch": max(epochs), "metrics": {"selection_dsc": float(dsc.mean())}, **info},
    )
