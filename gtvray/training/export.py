"""From a checkpoint to the bundle that is evaluated, promoted and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gtvray.config import Config, NetworkConfig, build
from gtvray.data import CachedCase
from gtvray.models import Bundle, Checkpoint, build_network, load_weights, write_bundle
from gtvray.training.selection import calibrated

_PREFIX = "averaged:"


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
    state = Checkpoint.load(checkpoint)
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in state.tensors.items() if key.startswith(_PREFIX)}
    settings = build(NetworkConfig, state.meta["network"], checkpoint)
    inference, extra = config.inference, {}
    if config.training.calibrate:
        preprocessing, patch_ijk = config.preprocessing, config.training.patch_ijk
        network = build_network(settings, len(preprocessing.windows_hu), preprocessing.spacing_mm, patch_ijk).eval()
        load_weights(network, weights)
        scored = selection[: config.training.selection_cases]
        inference, extra["calibrated_dsc"] = calibrated(config, network, scored, torch.device("cpu"))
    return write_bundle(
        folder,
        weights=weights,
        preprocessing=config.preprocessing,
        network=settings,
        inference=inference,
        patch_ijk=config.training.patch_ijk,
        info={"epoch": state.meta["epoch"], **extra, **info},
    )
