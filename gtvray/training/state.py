"""What a training carries from step to step: network, moving average, optimizer, position."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from gtvray.config import Config, NetworkConfig, build
from gtvray.errors import TrainingError
from gtvray.models import Checkpoint, build_network, load_weights, weights_of
from gtvray.models.checkpoint import flatten_optimizer, restore_optimizer
from gtvray.training.cpu import route_convolutions
from gtvray.training.execution import compiles, training_device, training_precision
from gtvray.training.optimizers import build_optimizer


@dataclass
class TrainingState:
    """Mutable state of one training on one worker.

    Attributes:
        epochs: how many there will be.
        lr_factor: of the planned learning rate, after retries.
        retries: how often an epoch was begun again at a lower rate.
        history: an entry an epoch: the figures of its report.
    """

    config: Config
    device: torch.device
    network: torch.nn.Module
    averaged: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epochs: int
    epoch: int = 0
    best_dsc: float = -1.0
    best_epoch: int = 0
    lr_factor: float = 1.0
    retries: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def build(cls, config: Config) -> TrainingState:
        """A fresh state; weights and dropout follow the seed."""
        torch.manual_seed(config.training.seed)
        device = training_device(config)
        network = build_network(
            config.network,
            config.preprocessing.channels,
            config.preprocessing.spacing_mm,
            config.training.patch_ijk,
        ).to(device)
        if device.type == "cpu" and training_precision(config) == torch.float32 and not compiles(config):
            route_convolutions(network)
        averaged = copy.deepcopy(network).eval().requires_grad_(False)
        optimizer = build_optimizer(network, config.optimizer)
        scaler = torch.amp.GradScaler(device.type, enabled=training_precision(config) == torch.float16)
        return cls(config, device, network, averaged, optimizer, scaler, config.training.epochs)

    def plan_epochs(self, elapsed_s: float, epoch_s: float) -> None:
        """Fix the number of epochs by the time budget, if there is one; the learning rate follows.

        Args:
            elapsed_s: since the training was begun, the first epoch done.
            epoch_s: of this the first epoch itself.
        """
        budget_s = self.config.training.time_budget_s
        if budget_s:
            self.epochs = self.epoch + max(0, int((budget_s - elapsed_s) / epoch_s))

    def average(self, step: int) -> None:
        """Fold the weights into the moving average, which follows closely in the first steps."""
        decay = min(self.config.training.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def averaged_network(self) -> torch.nn.Module:
        """The network that is selected and kept."""
        return self.averaged

    def finish_epoch(self, dsc: float) -> bool:
        """Count the epoch; True if it is the best so far."""
        self.epoch += 1
        if dsc > self.best_dsc:
            self.best_dsc, self.best_epoch = dsc, self.epoch
            return True
        return False

    def forget_best(self) -> None:
        """Look for the best anew: the one there was lies in another folder."""
        self.best_dsc, self.best_epoch = -1.0, 0

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on: a copy on the CPU, which later steps leave as it is."""
        parts = {
            "network": weights_of(self.network),
            "averaged": weights_of(self.averaged),
            "optimizer": flatten_optimizer(self.optimizer),
            "random": {"cpu": torch.get_rng_state()},
        }
        tensors = {f"{part}:{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
        meta = {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "best_dsc": self.best_dsc,
            "best_epoch": self.best_epoch,
            "lr_factor": self.lr_factor,
            "retries": self.retries,
            "history": list(self.history),
            "scaler": self.scaler.state_dict(),
            "network": self.config.network.model_dump(mode="json"),
        }
        return Checkpoint({name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, meta)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is another network's.
        """
        mine = self.config.network.model_dump(mode="json")
        # Settings that came later than the checkpoint have their defaults.
        if build(NetworkConfig, checkpoint.meta["network"], "checkpoint") != self.config.network:
            raise TrainingError(
                "checkpoint is of another network",
                expected=mine,
                found=checkpoint.meta["network"],
                do="resume with the settings it was made with, or start in another folder",
            )
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in checkpoint.tensors.items():
            part, name = key.split(":", 1)
            parts.setdefault(part, {})[name] = tensor
        load_weights(self.network, parts["network"])
        load_weights(self.averaged, parts["averaged"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        torch.set_rng_state(parts["random"]["cpu"])
        self.epoch = int(checkpoint.meta["epoch"])
        if self.config.training.time_budget_s and self.epoch:
            # Measured once: another measurement would be another learning rate.
            self.epochs = int(checkpoint.meta["epochs"])
        self.best_dsc, self.best_epoch = float(checkpoint.meta["best_dsc"]), int(checkpoint.meta["best_epoch"])
        self.lr_factor, self.retries = float(checkpoint.meta["lr_factor"]), int(checkpoint.meta["retries"])
        self.history = list(checkpoint.meta["history"])
        if checkpoint.meta.get("scaler"):
            self.scaler.load_state_dict(checkpoint.meta["scaler"])
