"""How a training computes on one worker: its rank, device, precision, micro-batches and numeric settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from gtvray.config import Config
from gtvray.errors import ResourceError

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def training_device(config: Config) -> torch.device:
    """Return the device this process trains on; call it in workers only.

    A CUDA device carries its index: `torch.cuda.set_device` holds for one thread, and the threads that read patches
    would otherwise use device 0 for every worker of a node.

    Raises:
        ResourceError: a GPU is requested and torch sees none.
    """
    if not config.training.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ResourceError(
            "torch sees no CUDA device",
            where="training.use_gpu=true",
            found=f"torch {torch.__version__} built with {build}, "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}",
            do="install a CUDA build of torch and the NVIDIA driver on the workers, or set training.use_gpu=false",
        )
    return torch.device("cuda", torch.cuda.current_device())


def training_precision(config: Config) -> torch.dtype:
    """Return the dtype of the forward pass; `auto` is bf16 if the hardware supports it. Call it in workers only."""
    asked = config.training.precision
    if asked != "auto":
        return _PRECISIONS[asked]
    if config.training.use_gpu:
        # GPUs before Ampere support fp16 in hardware and only emulate bf16.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def micro_batch_size(config: Config) -> int:
    """Patches in one forward pass of a worker."""
    training = config.training
    share = training.batch_size // training.num_workers
    if training.micro_batch == "auto":
        return share if training.use_gpu else 1
    return min(training.micro_batch, share)


def gpus_per_worker(config: Config) -> float:
    """GPUs that one worker reserves: 0 on a CPU."""
    return config.training.gpus_per_worker if config.training.use_gpu else 0.0


def rank() -> int:
    """Return the rank of this worker; 0 without a process group."""
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


@contextmanager
def numeric_settings(config: Config, device: torch.device) -> Iterator[None]:
    """Apply `training.deterministic`, `training.precision` and the GPU share for the length of a `with` block.

    On a CPU nothing is changed: its kernels are deterministic as they are. On a GPU, cuDNN times its algorithms for
    each shape and keeps the fastest; with `training.deterministic` it takes repeatable ones, and any operation that has
    none raises. With precision fp32, TF32 is off, since it has a mantissa of 10 bits only.
    """
    if device.type == "cpu":
        yield
        return
    deterministic = config.training.deterministic
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled())
    if deterministic:
        # cuBLAS reads it at its first call and is not repeatable without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    share = config.training.gpus_per_worker
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
        cudnn.allow_tf32 = training_precision(config) != torch.float32
        torch.use_deterministic_algorithms(deterministic)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before[:3]
        torch.use_deterministic_algorithms(before[3])
        if share < 1:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
