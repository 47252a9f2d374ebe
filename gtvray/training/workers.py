"""What a worker knows of the others: nothing but itself when no torch process group exists."""

from __future__ import annotations

import torch
import torch.distributed as dist


def rank() -> int:
    """This worker's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every worker is here."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_workers(value: float) -> float:
    """The mean of a value over workers, the same on each."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
