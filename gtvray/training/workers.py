"""This worker among the others; alone, where no torch process group exists."""

from __future__ import annotations

import torch
import torch.distributed as dist


def rank() -> int:
    """This worker's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of workers that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_workers(value: float) -> float:
    """The mean of a value over workers, the same on each."""
    if not dist.is_initialized():
        return value
    # On the CPU, so through Gloo: NCCL exchanges gradients only.
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
