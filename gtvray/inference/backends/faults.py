"""What an error of torch means: memory that is exhausted, or a GPU that its process cannot use any more."""

from __future__ import annotations

import torch

# Lower-case parts of the messages of allocators that raise a plain RuntimeError: torch's, oneDNN's, the C++ library's,
# cuDNN's and cuBLAS's.
_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "failed to allocate",
    "could not allocate",
    "status_alloc_failed",
)
_GPU = ("cuda", "cudnn", "cublas")
# Capturing a CUDA graph fails for reasons of its own, and leaves the GPU usable.
_CAPTURE = "captur"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted, of the host or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)


def is_of_gpu(error: BaseException) -> bool:
    """Whether an error comes from a GPU or its libraries."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _GPU)


def is_device_lost(error: BaseException) -> bool:
    """Whether CUDA has failed in a way that makes every further call of this process fail, such as by a memory fault.

    CUDA reports such an error at the next call that waits for the GPU, and at each one after it.
    """
    text = str(error).lower()
    return (
        isinstance(error, RuntimeError)
        and "cuda error" in text
        and _CAPTURE not in text
        and not is_out_of_memory(error)
    )
