"""The torch backend: fp32, bf16, and fp16 on CUDA; optionally compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from gtvray.inference.backends.store import ConversionStore
    from gtvray.models import Bundle

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """A network run by torch.

    Args:
        network: in evaluation mode.
        device: "cpu" or a CUDA device.
        precision: fp32, bf16 or fp16.
        compiled: compile the network at its first batch.

    Raises:
        ConfigError: fp16 is requested on a CPU.
        ResourceError: torch.compile lacks a C++ compiler.
    """

    def __init__(
        self, network: torch.nn.Module, device: torch.device, precision: str = "fp32", compiled: bool = False
    ) -> None:
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError(
                "fp16 needs a CUDA device", found="inference.precision=fp16 on a CPU", do="set bf16 or fp32"
            )
        self._device, self._dtype = device, PRECISIONS[precision]
        if device.type == "cuda":
            _make_repeatable(precision)
        network = network.to(device)
        self._network = _compiled(network, device) if compiled else network

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Backend.run`."""
        return run_network(self._network, batch, self._device, self._dtype)


def open_torch(bundle: Bundle, member: int, device: torch.device, _: ConversionStore) -> TorchBackend:
    """A member of a bundle with the precision of its inference settings.

    Raises:
        ConfigError, ResourceError: as `TorchBackend`.
    """
    settings = bundle.inference
    return TorchBackend(bundle.build_network(member), device, settings.precision, settings.compiled)


def run_network(
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: NDArray[np.float32],
    device: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float32]:
    """Logits of the tumour (b, i, j, k) of a batch (b, c, i, j, k), the network in `dtype`, the rest in fp32.

    Raises:
        ResourceError: the GPU's memory is exhausted.
    """
    patches = torch.from_numpy(batch)
    if device.type == "cuda":
        # Copied from pageable memory, a batch would go through a buffer of the driver, in pieces.
        patches = patches.pin_memory()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(patches.to(device, non_blocking=True))
        tumour: NDArray[np.float32] = logits[:, 0].float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            "out of memory on the GPU",
            where="inference",
            found=f"a batch of shape {list(batch.shape)}, {str(dtype).removeprefix('torch.')}",
            do="lower inference.batch_size and promote again, or use a GPU with more memory or fewer replicas on it",
        ) from error
    return tumour


def _make_repeatable(precision: str) -> None:
    """Let cuDNN choose its algorithms by shape alone, so that masks are the same in every process on the same GPU.

    Timing them, as `cudnn.benchmark` does, may end in another choice each time. In fp32, TF32 is off: its 10 bits of
    mantissa would move masks away from those that were promoted on a CPU.
    """
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, precision != "fp32"


def _compiled(network: torch.nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        # torch would report it at the first batch only, in a stack trace.
        raise ResourceError(
            "torch.compile needs a C++ compiler on a CPU",
            found=compiler,
            do="install g++, or set inference.compiled=false",
        )
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, dynamic=False)
    return compiled
