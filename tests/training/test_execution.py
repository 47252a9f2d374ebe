"""Device, precision, compilation and numeric settings of a GPU training, checked on a CPU with a fake device."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, ResourceError
from gtvray.models import build_network
from gtvray.training import calibration_scores, check_plan, device_bytes, fit, training_device, training_precision
from gtvray.training import compilation as module
from gtvray.training.compilation import CompiledNetwork, compile_mode, prefers_channels_last
from gtvray.training.execution import gpus_per_worker, numeric_settings
from gtvray.training.gradients import Gradients
from gtvray.training.loop import Loop
from gtvray.training.recovery import memory_errors
from gtvray.training.state import TrainingState

GB = 10**9
ASKED = ("is_available", "current_device", "device_count", "mem_get_info", "is_bf16_supported", "_lazy_init")


@pytest.fixture
def on_gpu(config: Config) -> Config:
    long = {"training.epochs": 20, "training.steps_per_epoch": 100}
    return with_dotted(config, {"training.use_gpu": True, "training.precision": "auto", **long})


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker 1 of two on a node: torch sees both GPUs, and the second is current. It has 40 GB and bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (39 * GB, 40 * GB))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device=None: 38 * GB)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object() if name == "triton" else None)


def test_a_worker_names_its_own_gpu(fake_gpu: None, on_gpu: Config, config: Config) -> None:
    """By index: the current device is a thread's own, and patches are read in other threads."""
    assert training_device(on_gpu) == torch.device("cuda", 1)
    assert training_device(config) == torch.device("cpu")


def test_no_gpu_in_the_worker_is_an_error_with_the_build_and_the_visible_devices(
    on_gpu: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ResourceError, match="torch sees no CUDA device") as caught:
        training_device(on_gpu)
    assert torch.__version__ in caught.value.fields["found"]
    assert "CUDA_VISIBLE_DEVICES=3" in caught.value.fields["found"]


def test_a_share_of_a_gpu_has_that_share_of_its_memory(fake_gpu: None, on_gpu: Config, config: Config) -> None:
    half = with_dotted(on_gpu, {"training.gpus_per_worker": 0.5})
    assert (device_bytes(on_gpu), device_bytes(half)) == (40 * GB, 20 * GB)
    assert (gpus_per_worker(on_gpu), gpus_per_worker(half), gpus_per_worker(config)) == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_on_a_gpu_is_bf16_where_the_hardware_has_it(
    native: bool, on_gpu: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Emulated bf16 is supported by every GPU and slower than fp16.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert training_precision(on_gpu) is (torch.bfloat16 if native else torch.float16)


def test_checks_before_a_cluster_is_touched_do_not_look_at_the_drivers_gpu(
    on_gpu: Config, train: list[CachedCase], selection: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the driver's machine may have no GPU")

    for name in ASKED:
        monkeypatch.setattr(torch.cuda, name, refuse)
    check_plan(on_gpu, train, selection)
    two = with_dotted(on_gpu, {"training.num_workers": 2})
    check_plan(two, train, selection)
    with pytest.raises(ConfigError, match="cannot share a GPU") as caught:
        check_plan(with_dotted(two, {"training.gpus_per_worker": 0.5}), train, selection)
    assert "NCCL" in caught.value.fields["expected"]
    assert "training.num_workers=1" in caught.value.fields["do"]
    check_plan(with_dotted(on_gpu, {"training.gpus_per_worker": 0.5}), train, selection)


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"training.use_gpu": False}, None),
        ({"training.use_gpu": False, "training.compile": "on"}, "default"),
        ({"training.compile": True}, "default"),
        ({"training.compile": "off"}, None),
        # A pass of the test's network takes less than the launch of its kernels.
        ({}, "reduce-overhead"),
        ({"training.patch_ijk": [128, 128, 128], "network.features": [32, 64, 128]}, "default"),
        ({"training.compile": "graphs", "network.features": [32, 64, 128]}, "reduce-overhead"),
        # Too short to recover the time of compiling.
        ({"training.epochs": 19}, None),
        ({"training.epochs": 1, "training.time_budget_s": 600.0}, "reduce-overhead"),
        ({"training.time_budget_s": 599.0}, None),
        ({"training.epochs": 1, "training.compile": "on"}, "default"),
        # All forward passes come before the first backward pass, so a replay would overwrite what is still needed.
        ({"loss.kind": "batch_dice_ce", "training.micro_batch": 1}, "default"),
        ({"loss.kind": "batch_dice_ce"}, "reduce-overhead"),
    ],
)
def test_compile_modes(changes: dict[str, Any], mode: str | None, on_gpu: Config, triton: None) -> None:
    assert compile_mode(with_dotted(on_gpu, changes)) == mode


def test_auto_compiles_only_where_triton_is(on_gpu: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert compile_mode(on_gpu) is None


def test_channels_lie_innermost_for_compiled_16_bit_networks(on_gpu: Config, fake_gpu: None, triton: None) -> None:
    assert prefers_channels_last(on_gpu)
    for changes in ({"training.precision": "fp32"}, {"training.compile": "off"}, {"training.use_gpu": False}):
        assert not prefers_channels_last(with_dotted(on_gpu, changes))


def batch_of(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 2, *config.training.patch_ijk, generator=torch.Generator().manual_seed(5))
    return images, (images[:, :1] > 0.8).float()


def network_of(config: Config) -> torch.nn.Module:
    torch.manual_seed(3)
    return build_network(config.network, 2, config.preprocessing.spacing_mm, config.training.patch_ijk)


def gradients_of(config: Config, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    Gradients(config, network, scaler).compute(range(2), *batch_of(config))
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def test_gradients_lie_in_memory_as_their_weights_do(config: Config) -> None:
    """Otherwise the optimizer leaves its fast path for a loop over parameters."""
    plain = gradients_of(config, network_of(config))
    network = network_of(config).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    gradients = gradients_of(config, network)
    assert any(each.ndim == 5 and not each.is_contiguous() for each in network.parameters())
    for name, each in network.named_parameters():
        if name in gradients:
            assert gradients[name].stride() == each.stride()
            largest = float(plain[name].abs().max())
            torch.testing.assert_close(gradients[name], plain[name], rtol=1e-4, atol=1e-5 * largest)


def test_a_restored_optimizer_lies_in_memory_as_its_weights_do(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("gtvray.training.state"), "prefers_channels_last", lambda _: True)
    adamw = with_dotted(config, {"optimizer.kind": "adamw"})
    first, second = TrainingState.build(adamw), TrainingState.build(adamw)
    images = torch.rand(2, 1, *config.training.patch_ijk)
    Loop(adamw, first)._step(0, images, (images > 0.8).float())
    second.restore(first.checkpoint())
    for ours, theirs in zip(second.network.parameters(), first.network.parameters(), strict=True):
        state, expected = second.optimizer.state[ours], first.optimizer.state[theirs]
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert torch.equal(value, expected[name])
            assert value.shape != ours.shape or value.stride() == ours.stride()
    assert any(each.ndim == 5 and not each.is_contiguous() for each in second.network.parameters())


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make every compiled network raise an error at its first call."""

    def call(*_: Any) -> None:
        raise error

    def compiled(network: torch.nn.Module, **_: Any) -> None:
        network._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)


@pytest.mark.parametrize(
    "error",
    [
        torch._inductor.exc.InvalidCxxCompiler(),
        RuntimeError("accessing tensor output of CUDAGraphs that has been overwritten by a subsequent run"),
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    ],
)
def test_a_network_that_cannot_be_compiled_runs_eagerly_and_the_reason_is_logged(
    error: Exception, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager = gradients_of(config, network_of(config))
    failing(monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        fallen_back = gradients_of(with_dotted(config, {"training.compile": "on"}), network_of(config))
    assert type(error).__name__ in caplog.text
    assert "runs eagerly" in caplog.text
    assert eager.keys() == fallen_back.keys()
    assert all(torch.equal(fallen_back[name], each) for name, each in eager.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_training_has_the_curve_of_an_eager_one(
    config: Config,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    two = with_dotted(config, {"training.epochs": 2})
    eager, compiled = (
        [report.train_loss for report in fit(with_dotted(two, {"training.compile": mode}), train, selection, folder)]
        for mode, folder in (("off", tmp_path / "off"), ("on", tmp_path / "on"))
    )
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert "runs eagerly" not in caplog.text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("the network's own")])
def test_other_errors_of_a_compiled_network_are_raised(
    error: Exception, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        gradients_of(with_dotted(config, {"training.compile": "on"}), network_of(config))


def test_every_training_has_dynamos_caches_to_itself(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials share processes, and after eight recompilations of the same code Dynamo gives up."""
    resets: list[None] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    failing(monkeypatch, ValueError())
    for compiled in ("on", "off", "on"):
        CompiledNetwork(with_dotted(config, {"training.compile": compiled}), network_of(config))
    assert len(resets) == 2


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        # cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, deterministic algorithms
        ({}, (True, False, True, False)),
        ({"training.precision": "fp32"}, (True, False, False, False)),
        ({"training.deterministic": True}, (False, True, True, True)),
    ],
)
def test_numeric_settings_hold_for_a_training_and_no_longer(
    changes: dict[str, Any],
    flags: tuple[bool, ...],
    on_gpu: Config,
    fake_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = _flags()
    config = with_dotted(on_gpu, {"training.gpus_per_worker": 0.5, **changes})
    with numeric_settings(config, torch.device("cuda", 1)):
        assert _flags() == flags
    assert _flags() == before
    assert shares == [0.5, 1.0]
    with numeric_settings(config, torch.device("cpu")):
        assert _flags() == before
    with numeric_settings(with_dotted(config, {"training.gpus_per_worker": 1.0}), torch.device("cuda", 1)):
        pass
    assert shares == [0.5, 1.0], "a process with a GPU of its own keeps the limit that it was given"


def test_checkpoints_are_compared_with_the_settings_of_their_training(
    on_gpu: Config, fake_gpu: None, selection: list[CachedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of their own, whose defaults are others: fp32 would be TF32."""
    found = []

    def forward(
        _: Any, channels: Sequence[np.ndarray[Any, Any]], batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> np.ndarray[Any, Any]:
        found.append((_flags(), device, dtype))
        return np.zeros((len(channels), *channels[0].shape[1:]), np.float32)

    monkeypatch.setattr(import_module("gtvray.training.selection"), "forward_batch", forward)
    asked = with_dotted(on_gpu, {"training.precision": "fp32"})
    device = torch.device("cuda", 1)
    calibration_scores(asked, torch.nn.Identity(), selection[:1], device)
    assert set(found) == {((True, False, False, False), device, torch.float32)}


@pytest.mark.parametrize("where", ["mem_get_info", "current_device"])
def test_a_gpu_that_others_have_filled_is_an_error_with_what_to_change(
    where: str,
    on_gpu: Config,
    fake_gpu: None,
    train: list[CachedCase],
    selection: list[CachedCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, where, full)
    with pytest.raises(ResourceError, match="out of memory on the GPU") as caught:
        next(iter(fit(on_gpu, train, selection, tmp_path)))
    assert "training.batch_size" in caught.value.fields["found"]


def _flags() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("error", "changes", "first"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), {}, "set training.micro_batch=1"),
        (RuntimeError("CUDA error: out of memory"), {"training.micro_batch": 1}, "lower training.batch_size"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), {}, "set training.micro_batch=1"),
        (torch.OutOfMemoryError("CUDA"), {"training.precision": "fp32"}, "set training.precision=auto"),
    ],
)
def test_a_full_gpu_is_an_error_with_what_to_change(
    error: RuntimeError, changes: dict[str, Any], first: str, on_gpu: Config, fake_gpu: None
) -> None:
    config = with_dotted(on_gpu, changes)
    with pytest.raises(ResourceError, match="out of memory on the GPU") as caught, memory_errors(config):
        raise error
    assert caught.value.fields["do"].startswith(first)
    for setting in ("training.batch_size", "training.patch_ijk", "network.size"):
        assert setting in caught.value.fields["do"]
    assert "38.0 GB reserved at most of the GPU's 40.0 GB" in caught.value.fields["found"]
    assert len(str(caught.value).splitlines()) <= 5
