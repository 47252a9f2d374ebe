"""From a checkpoint to the bundle that is evaluated, promoted and served."""

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
    """What of a checkpoint is kept in the end.

    Attributes:
        weights: their moving average.
        settings: of the network.
        epoch: epochs done.
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
        """Take it from a checkpoint that was read; `folder` is named where its settings are wrong."""
        averaged = {key.removeprefix(_PREFIX): each for key, each in state.tensors.items() if key.startswith(_PREFIX)}
        return cls(averaged, build(NetworkConfig, state.meta["network"], folder), int(state.meta["epoch"]))

    def build(self, config: Config) -> torch.nn.Module:
        """The network, in evaluation mode; `config` is what it was trained with."""
        preprocessing, patch_ijk = config.preprocessing, config.training.patch_ijk
        channels = preprocessing.channels
        network = build_network(self.settings, channels, preprocessing.spacing_mm, patch_ijk).eval()
        load_weights(network, self.weights)
        return network


def usual_figures(cases: Sequence[CachedCase]) -> dict[str, tuple[float, float]]:
    """What the domain check takes for usual with a model of these training cases; of many, an even choice."""
    chosen = cases[:: max(1, len(cases) // _DOMAIN_CASES)]
    return training_ranges(case.whole()[0].hu for case in chosen)


def kept_checkpoint(
    best: Path, config: Config, cases: Sequence[CachedCase], device: torch.device
) -> tuple[Path, NDArray[np.float64]]:
    """Which checkpoint of a training is its network: the newest, unless the best epoch leads it by more than chance.

    The best of many epochs by few cases is in part the luckiest, and often from before the learning rate came down.
    Both are compared with the inference settings that suit each, over all the cases, by the paired 95 % interval.

    Args:
        best: folder of the best epoch's checkpoint, beside it the training's newest.
        config: what it was trained with.
        cases: prepared cases that were not trained on.
        device: where the networks run.

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
    kept: Path, scores: NDArray[np.float64], config: Config, folder: Path, info: Mapping[str, Any]
) -> Bundle:
    """Write a checkpoint's averaged weights as a bundle, its inference settings calibrated.

    Args:
        kept: folder of the checkpoint that `kept_checkpoint` chose.
        scores: its `calibration_scores`, which come with that choice.
        config: what it was trained with.
        folder: the bundle's folder.
        info: training data, run: whatever tells where the model comes from.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    inference, dsc = best_setting(config, scores)
    trained = TrainedNetwork.load(kept)
    return write_bundle(
        folder,
        weights=trained.weights,
        preprocessing=config.preprocessing,
        network=trained.settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={"epoch": trained.epoch, "metrics": {"selection_dsc": float(dsc.mean())}, **info},
    )
