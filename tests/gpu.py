"""Marks of tests that need a CUDA device; they are run by `make test-gpu` and skip without one."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    # Compilers and drivers warn of what differs from machine to machine.
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
