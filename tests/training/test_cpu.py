"""CPU optimisations do not change results."""

from __future__ import annotations

import copy
import ctypes
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gtvray.config import Config, with_dotted
from gtvray.training.cpu import freed_memory_kept, route_convolutions
from gtvray.training.state import TrainingState

# A block so large that glibc returns it to the kernel when it is freed.
_BLOCK = 256 << 20


def _names(network: torch.nn.Module, patch: torch.Tensor) -> set[str]:
    """Names of the operators that torch ran, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as watched:
        network(patch).float().square().mean().backward()
    return {event.key for event in watched.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_onednn_convolutions_of_single_patches_give_equal_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Conv3d(4, 16, 3, padding=1), torch.nn.LeakyReLU(), torch.nn.Conv3d(16, 1, 1), torch.nn.LeakyReLU()
    )
    plain.append(torch.nn.Conv3d(1, 2, (3, 3, 1), stride=(2, 2, 1)))
    routed = copy.deepcopy(plain)
    route_convolutions(routed)
    assert routed.state_dict().keys() == plain.state_dict().keys()
    patch = torch.randn(1, 4, 12, 10, 8)
    # Kernels larger than one voxel use the slow convolution in plain torch, but not when routed.
    assert "aten::slow_conv3d_forward" in _names(plain, patch)
    assert [name for name in _names(copy.deepcopy(routed[0]), patch) if "slow_conv3d" in name] == []
    routed.zero_grad()
    plain.zero_grad()
    for network in (plain, routed):
        network(patch).square().sum().backward()
    torch.testing.assert_close(routed(patch), plain(patch), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(routed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
@pytest.mark.parametrize(("precision", "routed"), [("fp32", True), ("bf16", False)])
def test_only_fp32_trainings_are_routed_to_onednn(config: Config, precision: str, routed: bool) -> None:
    state = TrainingState.build(with_dotted(config, {"training.precision": precision}))
    hooked = [bool(each._forward_pre_hooks) for each in state.network.modules() if isinstance(each, torch.nn.Conv3d)]
    assert any(hooked) is routed


@pytest.mark.slow
def test_freed_memory_is_kept_until_the_block_ends() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")
    # In a new process, because memory that was freed earlier in this one would be reused first.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        within, after = fresh.submit(_faults_within_and_after).result()
    assert within < 100
    assert after > 100


def _faults_within_and_after() -> tuple[int, int]:
    """Page faults of a large block that follows a larger one."""
    with freed_memory_kept():
        _faults(2 * _BLOCK)
        within = _faults(_BLOCK)
    return within, _faults(_BLOCK)


def _faults(size: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
