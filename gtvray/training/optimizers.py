"""Optimizers by name, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gtvray.config import OptimizerConfig


def build_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer of all parameters of a network."""
    return _OPTIMIZERS[config.kind](network, config)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        config: peak rate, schedule and warm-up.
        step: from 0.
        steps: of the whole training.
    """
    warmup = max(1, round(steps * config.warmup_share))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * _SCHEDULES[config.schedule]((step - warmup) / max(1, steps - warmup))


def _adamw(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay, foreach=True)


def _sgd(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    momentum = config.momentum
    # torch refuses Nesterov's method without momentum.
    return torch.optim.SGD(
        network.parameters(), config.lr, momentum, nesterov=momentum > 0, weight_decay=config.weight_decay
    )


_OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
# Fraction of the peak rate after a fraction 0..1 of the steps that follow the warm-up.
_SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda done: (1 - done) ** 0.9,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda _: 1.0,
}
