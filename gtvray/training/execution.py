"""How steps are computed: precision, micro-batches, compilation."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from gtvray.config import Config

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def training_device(config: Config) -> torch.device:
    """Where the networks of a training run."""
    return torch.device("cuda" if config.training.use_gpu else "cpu")


def training_precision(config: Config) -> torch.dtype:
    """The arithmetic of the forward pass: what is asked for, or bf16 where the hardware computes in it."""
    asked = config.training.precision
    if asked != "auto":
        return _PRECISIONS[asked]
    if config.training.use_gpu:
        # Before Ampere a GPU has fp16 in hardware and bf16 not.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def micro_batch_size(config: Config) -> int:
    """Patches in one forward pass of a worker."""
    training = config.training
    share = training.batch_size // training.num_workers
    if training.micro_batch == "auto":
        return share if training.use_gpu else 1
    return min(training.micro_batch, share)


def compiles(config: Config) -> bool:
    """Whether the network is compiled; on a CPU only if asked for, since compiling takes time from every trial."""
    asked = config.training.compile
    return asked == "on" or (asked == "auto" and config.training.use_gpu and find_spec("triton") is not None)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
