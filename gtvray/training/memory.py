"""Memory of a training: the estimated demand, and the memory available on the device of a worker."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import torch

from gtvray.config import Config, with_dotted
from gtvray.errors import ConfigError
from gtvray.models import NetworkCost, loss_reduction, network_cost
from gtvray.runtime import usable_memory_bytes
from gtvray.training.execution import micro_batch_size, training_device

# Bytes per parameter: weights, moving average, gradient and its flat copy in fp32, the sum of gradients in fp64.
_PARAMETER_BYTES = 4 + 4 + 4 + 4 + 8
_OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4}
# Peak working memory as a multiple of the bytes kept for the backward pass; the rest are temporaries of a layer, blocks
# freed late and holes between blocks (a CPU keeps freed memory, see `cpu.py`). Measured on a CPU: up to 1.4 in bf16 and
# 2.6 in fp32. On a GPU: not measured yet.
_WORKING_SHARE_CPU, _WORKING_SHARE_GPU = 3.0, 2.0
# Python, torch and its kernels' code; on a GPU the CUDA context.
_PROCESS_BYTES = 700 << 20
# The same on the host, with CUDA's libraries and buffers of patches.
_GPU_PROCESS_BYTES = 3 << 30


def training_bytes(config: Config) -> int:
    """Estimate, on the high side, the memory that one worker takes on its device.

    Raises:
        ConfigError: there is no such network.
    """
    cost = planned_cost(config)
    share = config.training.batch_size // config.training.num_workers
    # A loss over the whole batch needs the logits of all patches before the first gradient.
    held = share if loss_reduction(config.loss) == "global" else micro_batch_size(config)
    # Autocast halves what convolutions keep, but normalisation keeps fp32 beside it: counted as fp32.
    working_share = _WORKING_SHARE_GPU if config.training.use_gpu else _WORKING_SHARE_CPU
    activations = cost.activation_bytes_per_patch_fp32 * held * working_share
    fixed = cost.parameters * (_PARAMETER_BYTES + _OPTIMIZER_BYTES[config.optimizer.kind])
    return int(activations) + fixed + _PROCESS_BYTES


def host_bytes(config: Config) -> int:
    """Estimate the memory that one worker takes on its machine, which it reserves as a Ray resource.

    On a CPU this is `training_bytes`. With a GPU it is a process with the CUDA libraries, and two copies of the
    training's state: the checkpoint of the epoch before, and the one that is being written.

    Raises:
        ConfigError: there is no such network.
    """
    if not config.training.use_gpu:
        return training_bytes(config)
    state = planned_cost(config).parameters * (4 + 4 + _OPTIMIZER_BYTES[config.optimizer.kind])
    return _GPU_PROCESS_BYTES + 2 * state


def device_bytes(config: Config) -> int:
    """Memory of the device this process trains on: its share of a GPU, or this machine's or container's memory.

    Call it in workers only, since the driver's machine may have another GPU, or none.

    Raises:
        ResourceError: a GPU is asked for and torch sees none.
    """
    if config.training.use_gpu:
        return int(torch.cuda.mem_get_info(training_device(config))[1] * config.training.gpus_per_worker)
    return usable_memory_bytes()


def check_memory(config: Config, memory_bytes: int) -> None:
    """Refuse a training that cannot fit.

    Raises:
        ConfigError: it needs more memory than there is; reports by how much and what to change.
    """
    needed = training_bytes(config)
    if needed > memory_bytes:
        gb = [each / 1e9 for each in (memory_bytes, needed, needed - memory_bytes)]
        raise ConfigError(
            "the training does not fit into memory",
            expected=f"at most {gb[0]:.1f} GB per worker",
            found=f"about {gb[1]:.1f} GB, {gb[2]:.1f} GB too much",
            do=_remedy(config, memory_bytes),
        )


def planned_cost(config: Config) -> NetworkCost:
    """Cost of the network that a config describes, for one patch.

    Raises:
        ConfigError: there is no such network.
    """
    preprocessing = config.preprocessing
    channels = preprocessing.channels
    return _network_cost(config.network, channels, preprocessing.spacing_mm, config.training.patch_ijk)


def _remedy(config: Config, memory_bytes: int) -> str:
    """The first change that makes it fit, the least harmful first."""
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


# Sweeps request few networks, each many times.
_network_cost = lru_cache(maxsize=64)(network_cost)
