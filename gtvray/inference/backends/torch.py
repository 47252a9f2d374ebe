"""The torch backend: fp32, bf16, and fp16 on CUDA; optionally compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gtvray.errors import ConfigError, DeviceLostError, GtvrayError, ResourceError, first_line
from gtvray.inference.backends.faults import is_device_lost, is_of_gpu, is_out_of_memory

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
        ResourceError: memory is exhausted.
        DeviceLostError: the GPU has failed.
    """
    try:
        patches = torch.from_numpy(batch)
        if device.type == "cuda":
            # Copied from pageable memory, a batch would go through a buffer of the driver, in pieces.
            patches = patches.pin_memory()
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(patches.to(device, non_blocking=True))
        tumour: NDArray[np.float32] = logits[:, 0].float().cpu().numpy()
    except RuntimeError as error:
        reported = _reported(error, f"a batch of shape {list(batch.shape)}, {str(dtype).removeprefix('torch.')}")
        if reported is None:
            raise
        raise reported from error
    return tumour


def _reported(error: RuntimeError, batch: str) -> GtvrayError | None:
    """The error to report instead of one of torch; None for those that are not about memory or a lost GPU."""
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory on {'the GPU' if is_of_gpu(error) else 'this machine'}",
            where="inference",
            found=batch,
            do="lower inference.batch_size (of a promoted model: promote it again), or use fewer processes at once or "
            "more memory",
        )
    if is_device_lost(error):
        return DeviceLostError(
            "the GPU has failed",
            where="inference",
            found=first_line(error),
            do="look for Xid errors in the kernel log; the process must be restarted before it can use the GPU again",
        )
    return None


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
