"""What can be known to be wrong with a training before it starts, and the precision it will use."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, DataError
from gtvray.models import plan_network


def check_plan(config: Config, train: Sequence[CachedCase], selection: Sequence[CachedCase]) -> None:
    """Refuse a training that cannot work.

    Raises:
        ConfigError: the batch cannot be shared by the workers, or the patch cannot be halved as the network needs.
        DataError: no case for training or for selection, or a case on both sides.
    """
    training = config.training
    if training.batch_size % training.num_workers:
        raise ConfigError(
            "the batch cannot be shared evenly",
            expected=f"training.batch_size a multiple of training.num_workers = {training.num_workers}",
            found=training.batch_size,
        )
    plan_network(config.network, config.preprocessing.spacing_mm, training.patch_ijk)
    if not train or not selection:
        raise DataError("no case to learn from or to compare on", found=f"{len(train)} and {len(selection)} cases")
    shared = {case.meta["image_sha256"] for case in train} & {case.meta["image_sha256"] for case in selection}
    if shared:
        raise DataError("a scan is in training and in selection", found=f"{len(shared)} scans")


def training_precision(config: Config) -> torch.dtype:
    """The arithmetic of the forward pass: what is asked for, or bf16 where the hardware computes in it."""
    asked = config.training.precision
    if asked != "auto":
        return torch.bfloat16 if asked == "bf16" else torch.float32
    native = torch.cuda.is_bf16_supported() if config.training.use_gpu else _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
