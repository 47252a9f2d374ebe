"""From a checkpoint to the bundle that is evaluated, promoted and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gtvray.config import Config, NetworkConfig, build
from gtvray.data import CachedCase
from gtvray.inference import training_ranges
from gtvray.models import Bundle, Checkpoint, build_network, load_weights, write_bundle
from gtvray.training.selection import calibrated

_PREFIX = "averaged:"
_DOMAIN_CASES = 50


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
        state = Checkpoint.load(checkpoint)
        averaged = {key.removeprefix(_PREFIX): each for key, each in state.tensors.items() if key.startswith(_PREFIX)}
        return cls(averaged, build(NetworkConfig, state.meta["network"], checkpoint), int(state.meta["epoch"]))

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


def export_bundle(
    checkpoint: Path, config: Config, selection: Sequence[CachedCase], folder: Path, info: Mapping[str, Any]
) -> Bundle:
    """Write the averaged weights of a checkpoint as a bundle, its inference settings calibrated if that is asked for.

    Args:
        checkpoint: the checkpoint's folder.
        config: what it was trained with.
        selection: prepared cases it was selected on; they calibrate.
        folder: the bundle's folder.
        info: training data, metrics, run: whatever tells where the model comes from.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    trained = TrainedNetwork.load(checkpoint)
    inference, extra = config.inference, {}
    if config.training.calibrate:
        scored = selection[: config.training.selection_cases]
        inference, extra["calibrated_dsc"] = calibrated(config, trained.build(config), scored, torch.device("cpu"))
    return write_bundle(
        folder,
        weights=trained.weights,
        preprocessing=config.preprocessing,
        network=trained.settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={"epoch": trained.epoch, **extra, **info},
    )
