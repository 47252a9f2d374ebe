"""Bundles with random weights: models that are created in seconds and predict nothing useful."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.models import Bundle, build_network, weights_of, write_bundle


def random_bundle(
    folder: Path,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
    *,
    inference: InferenceConfig | None = None,
    locator: Bundle | None = None,
) -> Bundle:
    """Write a bundle with random weights by seed: a small network on a grid of 4 mm."""
    torch.manual_seed(seed)
    network, patch_ijk = NetworkConfig(features=(4, 4, 8)), (16, 16, 16)
    return write_bundle(
        folder,
        weights=weights_of(build_network(network, 1, (4.0, 4.0, 4.0), patch_ijk)),
        preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
        network=network,
        inference=inference or InferenceConfig(),
        patch_ijk=patch_ijk,
        info={"seed": seed, **(info or {})},
        locator=locator,
    )
