"""The torch backend on CUDA, checked on a CPU: repeatable kernels, and errors about memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gtvray.errors import ResourceError
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


def test_a_full_gpu_is_an_error_with_what_to_change() -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match="out of memory on the GPU") as caught:
        run_network(full, np.zeros((2, 1, 8, 8, 8), np.float32), CPU, torch.float32)
    assert "[2, 1, 8, 8, 8], float32" in caught.value.fields["found"]
    assert "inference.batch_size" in caught.value.fields["do"]
