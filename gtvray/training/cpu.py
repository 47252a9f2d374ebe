"""CPU performance: oneDNN convolutions for single patches, and memory kept between steps."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Up to this product of a patch's channels and first two edges torch convolves by unfolding, which takes two to three
# times as long as oneDNN (`use_mkldnn` in ATen's native/Convolution.cpp); it uses oneDNN for larger batches and bf16.
_UNFOLDED = 20480
# Parameters of glibc's `mallopt`, and the values that its dynamic adjustment reaches once large blocks were freed.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}


def route_convolutions(network: torch.nn.Module) -> None:
    """Convolve single patches in fp32 with oneDNN too, forward and backward; weights and names do not change.

    Micro-batches on a CPU are single patches, so that the order of summation is independent of the number of workers.

    Args:
        network: on the CPU, to be run in fp32.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        # For kernels of one voxel torch's own convolution is faster.
        if isinstance(module, torch.nn.Conv3d) and max(module.kernel_size) > 1:
            module.register_forward_pre_hook(_to_onednn)
            module.register_forward_hook(_from_onednn)


def _to_onednn(_: torch.nn.Module, given: tuple[Any, ...]) -> torch.Tensor | None:
    (patch,) = given
    unfolded = patch.shape[0] == 1 and patch.shape[1] * patch.shape[2] * patch.shape[3] <= _UNFOLDED
    return patch.to_mkldnn() if unfolded and patch.dtype == torch.float32 else None


def _from_onednn(_: torch.nn.Module, __: tuple[Any, ...], answer: torch.Tensor) -> torch.Tensor | None:
    return answer.to_dense() if answer.is_mkldnn else None


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have glibc keep freed memory for the length of a `with` block; no effect with another C library.

    Each step frees and allocates the same hundreds of megabytes. Returned to the kernel in between, they come back as
    pages that are zeroed and mapped one by one. The cost is a higher peak, from holes between blocks. At the end all
    free memory is returned, so that holes do not add up from epoch to epoch.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    _set(library, _KEEPING)
    try:
        yield
    finally:
        _set(library, _USUAL)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)
