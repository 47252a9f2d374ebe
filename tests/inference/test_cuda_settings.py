"""The torch backend on CUDA, checked on a CPU: repeatable kernels, and errors about memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from gtvray.errors import DeviceLostError, ResourceError
from gtvray.inference.backends.torch import TorchBackend, run_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored_flags() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_cudnn_chooses_repeatable_algorithms_and_fp32_is_not_tf32(precision: str, tf32: bool) -> None:
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = True, False, not tf32

    class Network(torch.nn.Module):
        def to(self, *_: object, **__: object) -> Network:
            return self

    TorchBackend(Network(), torch.device("cuda", 0), precision)
    assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, tf32)


def test_settings_of_cudnn_are_left_alone_on_a_cpu() -> None:
    torch.backends.cudnn.benchmark = True
    TorchBackend(torch.nn.Identity(), CPU)
    assert torch.backends.cudnn.benchmark


def failing(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def network(_: torch.Tensor) -> torch.Tensor:
        raise error

    return network


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the GPU"),
        (RuntimeError("CUDA error: out of memory"), "the GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "this machine"),
    ],
)
def test_exhausted_memory_is_an_error_with_what_to_change(error: Exception, device: str) -> None:
    with pytest.raises(ResourceError, match=f"out of memory on {device}") as caught:
        run_network(failing(error), np.zeros((2, 1, 8, 8, 8), np.float32), CPU, torch.float32)
    assert not isinstance(caught.value, DeviceLostError)
    assert "[2, 1, 8, 8, 8], float32" in caught.value.fields["found"]
    assert "inference.batch_size" in caught.value.fields["do"]


def test_gpu_failure_is_distinguished_from_other_errors() -> None:
    """After a memory fault every further call fails; after these others the process can use the GPU again."""
    batch = np.zeros((2, 1, 8, 8, 8), np.float32)
    fault = RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported at"
    )
    with pytest.raises(DeviceLostError, match="the GPU has failed") as caught:
        run_network(failing(fault), batch, CPU, torch.float32)
    assert "illegal memory access" in caught.value.fields["found"]
    assert "restarted" in caught.value.fields["do"]
    for other in (
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error"),
    ):
        with pytest.raises(type(other)) as raised:
            run_network(failing(other), batch, CPU, torch.float32)
        assert raised.value is other
