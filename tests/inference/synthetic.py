"""Synthetic scans with bright tumours, and functions in place of networks that find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import logit

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.geometry import Box, Volume
from gtvray.inference import SegmentationRequest
from gtvray.preprocessing import prepare

PREPROCESSING = PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0), windows_hu=((-200.0, 300.0),))
PATCH_IJK = (16, 16, 16)
TUMOUR_HU = 290
Network = Callable[[np.ndarray], np.ndarray]


def body_scan(shape: tuple[int, int, int] = (64, 56, 48), tumours: Sequence[Box] = ()) -> Volume:
    """Noisy tissue with a rim of air, 4 mm, LPS; tumours are boxes as bright as bone."""
    hu = np.full(shape, -1000.0)
    hu[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).normal(0, 30, [n - 4 for n in shape])
    for box in tumours:
        hu[box.slices] = TUMOUR_HU
    return Volume(hu.astype(np.int16), np.diag([-4.0, -4, 4, 1]))


def sees_bone(channels: np.ndarray) -> np.ndarray:
    """Probability from the intensity: tissue is well below one half, tumour 0.98."""
    value = channels[0]
    return np.where(value > 0.8, value, 0.2 * value).astype(np.float32)


def to_logits(probability: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits."""
    return logit(np.clip(probability, 1e-6, 1 - 1e-6)).astype(np.float32)


def begin(scan: Volume, *, mask_only: bool = False, **inference: Any) -> SegmentationRequest:
    """A request with patches of 16 voxels."""
    prepared = prepare(scan, PREPROCESSING, full_extent=inference.get("mode") == "exhaustive")
    return SegmentationRequest(prepared, PREPROCESSING, InferenceConfig(**inference), PATCH_IJK, mask_only=mask_only)


def run_request(request: SegmentationRequest, network: Network = sees_bone, batch_size: int = 1) -> SegmentationRequest:
    """Run every patch, in batches."""
    while request.remaining:
        for patch in [request.take() for _ in range(min(batch_size, request.remaining))]:
            request.put(patch.number, to_logits(network(patch.channels)))
    assert request.done
    return request
