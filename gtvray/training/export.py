"""From a checkpoint to the bundle that is evaluated, promoted and served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtvray.config import Config, NetworkConfig, build
from gtvray.models import Bundle, Checkpoint, write_bundle

_PREFIX = "averaged:"


def export_bundle(checkpoint: Path, config: Config, folder: Path, info: Mapping[str, Any]) -> Bundle:
    """Write the averaged weights of a checkpoint as a bundle.

    Args:
        checkpoint: the checkpoint's folder.
        config: what it was trained with.
        folder: the bundle's folder.
        info: training data, metrics, run: whatever tells where the model comes from.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    state = Checkpoint.load(checkpoint)
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in state.tensors.items() if key.startswith(_PREFIX)}
    return write_bundle(
        folder,
        weights=weights,
        preprocessing=config.preprocessing,
        network=build(NetworkConfig, state.meta["network"], checkpoint),
        inference=config.inference,
        patch_ijk=config.training.patch_ijk,
        info={"epoch": state.meta["epoch"], **info},
    )
