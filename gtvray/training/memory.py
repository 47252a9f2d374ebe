"""How much memory a training takes, before it takes any, and how much there is."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import torch

from gtvray.config import Config, with_dotted
from gtvray.errors import ConfigError
from gtvray.models import NetworkCost, loss_reduction, network_cost
from gtvray.runtime import usable_memory_bytes
from gtvray.training.execution import micro_batch_size

# Bytes a parameter: weights, their average, gradient and its flat copy in fp32, the sum of gradients in double.
_PARAMETER_BYTES = 4 + 4 + 4 + 4 + 8
_OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4}
# Of what is kept for the backward pass: with what lives within a layer, is freed late, or is a hole between blocks (a
# CPU keeps freed memory, `cpu.py`). Peaks measured on a CPU were up to 1.4 (bf16) and 2.6 (fp32) times the kept bytes.
_WORKING_SHARE_CPU, _WORKING_SHARE_GPU = 3.0, 2.0
# Python, torch and its kernels' code before anything is trained.
_PROCESS_BYTES = 700 << 20


def training_bytes(config: Config) -> int:
    """An estimate, on the high side, of what one worker takes.

    Raises:
        ConfigError: there is no such network.
    """
    cost = _cost(config)
    share = config.training.batch_size // config.training.num_workers
    # A loss over the whole batch needs the answers to all patches before the first slope.
    held = share if loss_reduction(config.loss) == "global" else micro_batch_size(config)
    # Autocast halves what convolutions keep, and keeps what normalisation does in fp32 beside it: no less is counted.
    working_share = _WORKING_SHARE_GPU if config.training.use_gpu else _WORKING_SHARE_CPU
    activations = cost.activation_bytes_per_patch_fp32 * held * working_share
    fixed = cost.parameters * (_PARAMETER_BYTES + _OPTIMIZER_BYTES[config.optimizer.kind])
    return int(activations) + fixed + _PROCESS_BYTES


def device_bytes(config: Config) -> int:
    """Memory of what a worker trains on: a GPU, or its share of this machine, or of its container's."""
    if config.training.use_gpu:
        return int(torch.cuda.mem_get_info()[1])
    return usable_memory_bytes()


def check_memory(config: Config, memory_bytes: int) -> None:
    """Refuse a training that cannot fit.

    Raises:
        ConfigError: it needs more than there is; says by how much, and what to change.
    """
    needed = training_bytes(config)
    if needed > memory_bytes:
        gb = [each / 1e9 for each in (memory_bytes, needed, needed - memory_bytes)]
        raise ConfigError(
            "the training does not fit into memory",
            expected=f"at most {gb[0]:.1f} GB a worker",
            found=f"about {gb[1]:.1f} GB, {gb[2]:.1f} GB too much",
            do=_remedy(config, memory_bytes),
        )


def _remedy(config: Config, memory_bytes: int) -> str:
    """The first change, from the least harmful on, with which it would fit."""
    halved = [max(16, size // 32 * 16) for size in config.training.patch_ijk]
    changes: list[dict[str, object]] = [
        {"training.micro_batch": 1},
        {"training.patch_ijk": halved},
        {"training.micro_batch": 1, "training.patch_ijk": halved},
        {"training.micro_batch": 1, "training.patch_ijk": halved, "network.size": "tiny"},
    ]
    for change in changes:
        with suppress(ConfigError):
            if training_bytes(with_dotted(config, change)) <= memory_bytes:
                return "it would fit with " + " ".join(f"{key}={value}" for key, value in change.items())
    return "lower training.patch_ijk, network.size or network.features"


def _cost(config: Config) -> NetworkCost:
    preprocessing = config.preprocessing
    channels = preprocessing.channels
    return _network_cost(config.network, channels, preprocessing.spacing_mm, config.training.patch_ijk)


# Sweeps ask for few networks, each many times.
_network_cost = lru_cache(maxsize=64)(network_cost)
