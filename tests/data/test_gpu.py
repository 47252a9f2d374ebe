"""Patches on a CUDA device: `make test-gpu`. Without one these skip."""

from __future__ import annotations

import pytest
import torch

from gtvray.config import TrainingConfig
from gtvray.data import CachedCase, PatchSampler

from .test_patches import ALL, WINDOWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_patches_on_a_gpu_are_those_on_the_cpu(prepared_cases: list[CachedCase]) -> None:
    training = TrainingConfig(patch_ijk=(16, 16, 16))
    here, there = (PatchSampler(prepared_cases, training, WINDOWS, ALL, device) for device in ("cpu", "cuda"))
    for number in range(8):
        (image, mask), (image_there, mask_there) = here.sample(number), there.sample(number)
        assert image_there.is_cuda
        assert mask_there.is_cuda
        torch.testing.assert_close(image_there.cpu(), image, rtol=0, atol=1e-3)
        # A voxel whose interpolated mask is one half may round either way.
        assert float((mask_there.cpu() != mask).float().mean()) < 1e-3
