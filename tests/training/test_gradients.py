"""The gradient of a step is independent of micro-batches and of the loss scale."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from gtvray.config import Config, LossConfig, with_dotted
from gtvray.failpoints import arm
from gtvray.models import build_network
from gtvray.training.gradients import Gradients
from gtvray.training.loop import Loop
from gtvray.training.state import TrainingState

PATCHES = 3


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(PATCHES, 1, 16, 16, 16, generator=generator)
    return images, (images > 0.8).float()


def gradient(
    config: Config, batch: tuple[torch.Tensor, torch.Tensor], changes: dict[str, Any], scale: float | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and gradients by parameter, of the untrained network."""
    changed = with_dotted(config, {"training.batch_size": PATCHES, **changes})
    torch.manual_seed(3)
    network = build_network(changed.network, 1, changed.preprocessing.spacing_mm, changed.training.patch_ijk)
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
    loss = Gradients(changed, network, scaler).compute(range(6, 6 + PATCHES), *batch)
    return float(loss), {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("kind", get_args(LossConfig.model_fields["kind"].annotation))
def test_micro_batches_add_up_to_the_batch(
    kind: str, micro_batch: int, config: Config, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    whole_loss, whole = gradient(config, batch, {"loss.kind": kind, "training.micro_batch": PATCHES})
    loss, parts = gradient(config, batch, {"loss.kind": kind, "training.micro_batch": micro_batch})
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    for name, part in parts.items():
        torch.testing.assert_close(part, whole[name], rtol=1e-4, atol=1e-5 * float(whole[name].abs().max()))


def test_unused_parameters_have_no_gradient(config: Config, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, gradients = gradient(config, batch, {})
    network = build_network(config.network, 1, config.preprocessing.spacing_mm, config.training.patch_ijk)
    assert 0 < len(gradients) <= len(list(network.parameters()))
    assert all(bool(each.abs().max() > 0) for name, each in gradients.items() if not name.endswith("bias"))


def test_dropout_follows_the_sample_number(config: Config, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    dropping = {"network.dropout": 0.5}
    torch.manual_seed(1)
    first, _ = gradient(config, batch, dropping)
    torch.rand(7)
    assert gradient(config, batch, dropping)[0] == first
    assert gradient(config, batch, {**dropping, "training.seed": 1})[0] != first


def test_a_scaled_loss_gives_the_scaled_gradient(config: Config, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss, plain = gradient(config, batch, {})
    scaled_loss, scaled = gradient(config, batch, {}, scale=1024.0)
    assert scaled_loss == loss
    assert all(torch.equal(scaled[name], 1024 * each) for name, each in plain.items())


def scaled_state(config: Config, scale: float) -> TrainingState:
    """A state as fp16 on a GPU has it, in fp32 on a CPU."""
    state = TrainingState.build(with_dotted(config, {"training.batch_size": PATCHES}))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    return state


def step(state: TrainingState, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    Loop(state.config, state)._step(0, *batch)


def test_an_overflow_skips_the_step_and_halves_the_scale(
    config: Config, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    state = scaled_state(config, 1024.0)
    arm("training.loss=nan")
    before = [each.clone() for each in state.network.parameters()]
    step(state, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    assert state.scaler.get_scale() == 512.0


def test_the_loss_scale_is_restored_from_a_checkpoint(config: Config, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    first = scaled_state(config, 256.0)
    step(first, batch)
    second = scaled_state(config, 1.0)
    second.restore(first.checkpoint())
    for state in (first, second):
        step(state, batch)
    # Two steps without overflow double it, and one of them was before the checkpoint.
    assert first.scaler.get_scale() == second.scaler.get_scale() == 512.0
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
