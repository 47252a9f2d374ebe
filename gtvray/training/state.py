"""The state of a training: network, moving average, optimizer, position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gtvray.config import Config, NetworkConfig, build
from gtvray.errors import TrainingError
from gtvray.models import Checkpoint, build_network, load_weights, weights_of
from gtvray.models.checkpoint import flatten_optimizer, restore_optimizer
from gtvray.training.compilation import compile_mode, prefers_channels_last
from gtvray.training.cpu import route_convolutions
from gtvray.training.execution import training_device, training_precision
from gtvray.training.optimizers import build_optimizer


@dataclass
class TrainingState:
    """Mutable state of one training on one worker.

    Attributes:
        averaged: exponential moving average of the weights; its `module` is the network that is selected and kept.
        scaler: of the loss in fp16; disabled otherwise.
        epochs: planned number of epochs.
        epoch: number of completed epochs.
        lr_factor: multiplies the planned learning rate; below 1 after retries.
        retries: restarts of an epoch at a lower rate, since the beginning.
        history: one entry per epoch, with the values of its report.
    """

    config: Config
    device: torch.device
    network: torch.nn.Module
    averaged: AveragedModel
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
        """Create the initial state; weights and dropout are determined by the seed."""
        torch.manual_seed(config.training.seed)
        device = training_device(config)
        network = build_network(
            config.network,
            config.preprocessing.channels,
            config.preprocessing.spacing_mm,
            config.training.patch_ijk,
        ).to(device)
        if device.type == "cpu" and training_precision(config) == torch.float32 and compile_mode(config) is None:
            route_convolutions(network)
        if prefers_channels_last(config):
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        averaged = AveragedModel(network).eval().requires_grad_(False)
        # At 0 its first update would copy the weights and drop the initial ones.
        averaged.n_averaged.fill_(1)
        optimizer = build_optimizer(network, config.optimizer)
        scaler = torch.amp.GradScaler(device.type, enabled=training_precision(config) == torch.float16)
        return cls(config, device, network, averaged, optimizer, scaler, config.training.epochs)

    def plan_epochs(self, elapsed_s: float, epoch_s: float) -> None:
        """Fix the number of epochs by the time budget, if there is one; the learning rate follows.

        Args:
            elapsed_s: seconds since the training started, with its first epoch.
            epoch_s: seconds of the first epoch alone.
        """
        budget_s = self.config.training.time_budget_s
        if budget_s:
            self.epochs = self.epoch + max(0, int((budget_s - elapsed_s) / epoch_s))

    def average(self, step: int) -> None:
        """Update the moving average; in the first steps it follows the weights closely."""
        decay = min(self.config.training.ema_decay, (1 + step) / (10 + step))
        self.averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged.update_parameters(self.network)

    def averaged_network(self) -> torch.nn.Module:
        """The network that is selected and kept."""
        network: torch.nn.Module = self.averaged.module
        return network

    def finish_epoch(self, dsc: float) -> None:
        """Count the epoch, and record it if it is the best so far."""
        self.epoch += 1
        if dsc > self.best_dsc:
            self.best_dsc, self.best_epoch = dsc, self.epoch

    def forget_best(self) -> None:
        """Reset the best epoch, for use when its checkpoint is not in the folder of the training."""
        self.best_dsc, self.best_epoch = -1.0, 0

    def checkpoint(self) -> Checkpoint:
        """A copy on the CPU of everything needed to resume; later steps do not change it."""
        parts = {
            "network": weights_of(self.network),
            "averaged": weights_of(self.averaged_network()),
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
        """Resume from a checkpoint, whatever device and precision it was made with.

        Raises:
            TrainingError: it belongs to another network.
        """
        mine = self.config.network.model_dump(mode="json")
        # Settings introduced after the checkpoint was written take their defaults.
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
        load_weights(self.averaged_network(), parts["averaged"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        _lay_out_as_weights(self.optimizer)
        torch.set_rng_state(parts["random"]["cpu"])
        self.epoch = int(checkpoint.meta["epoch"])
        if self.config.training.time_budget_s and self.epoch:
            # Measured once: a second measurement would change the learning rate.
            self.epochs = int(checkpoint.meta["epochs"])
        self.best_dsc, self.best_epoch = float(checkpoint.meta["best_dsc"]), int(checkpoint.meta["best_epoch"])
        self.lr_factor, self.retries = float(checkpoint.meta["lr_factor"]), int(checkpoint.meta["retries"])
        self.history = list(checkpoint.meta["history"])
        if checkpoint.meta.get("scaler"):
            self.scaler.load_state_dict(checkpoint.meta["scaler"])


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the strides of its weights, which a checkpoint does not keep.

    With other strides the optimizer would leave its fast path for a loop over parameters.
    """
    for weight, entry in optimizer.state.items():
        for name, value in entry.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                entry[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
