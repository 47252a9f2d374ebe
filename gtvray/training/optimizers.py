"""Optimizers by their name in the config, and the learning rate of each step."""

from __future__ import annotations

import torch

from gtvray.config import OptimizerConfig


def build_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of all of a network's parameters."""
    return _OPTIMIZERS[config.kind](network, config)


def _adamw(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay, foreach=True)


def _sgd(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        network.parameters(), config.lr, momentum=0.99, nesterov=True, weight_decay=config.weight_decay
    )


_OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
