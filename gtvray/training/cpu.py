"""What keeps training on a CPU as quick as its arithmetic: quick convolutions for one patch, and memory that stays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Up to this product of a patch's channels and first two edges torch convolves by unfolding, which takes two to three
# times as long as oneDNN (`use_mkldnn` in ATen's native/Convolution.cpp); whole batches and bf16 are oneDNN's anyway.
_UNFOLDED = 20480
# Of glibc's `mallopt`, and what its own adjustment comes to once large blocks have been freed.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}


def route_convolutions(network: torch.nn.Module) -> None:
    """Have oneDNN convolve single patches in fp32 as well, forward and backward; weights and names stay as they are.

    Micro-batches on a CPU are single patches, so that a sum's order does not hang on the number of workers.

    Args:
        network: on the CPU, to be run in fp32.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        # The faster of the two for a kernel of one voxel is torch's own.
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
    """Have glibc keep what is freed, for the length of a `with` block; nothing where the C library is another.

    Each step frees and asks for the same hundreds of megabytes. Given back to the kernel in between, they come back as
    pages that have to be zeroed and mapped one by one. The price is a higher peak: holes between blocks.
    At the end everything that is free goes back, so that holes do not add up from epoch to epoch.
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
