"""Marks for tests that need a CUDA device; `make test-gpu` runs them, and they are skipped without one."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    # Warnings of compilers and drivers differ between machines.
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
