"""Conformance of losses: what every choice of `loss.kind` must satisfy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from gtvray.config import LossConfig, NetworkConfig
from gtvray.models import build_loss, build_network, loss_reduction
from gtvray.models.losses import LOSSES

KINDS = get_args(LossConfig.model_fields["kind"].annotation)
SPACING_MM = (1.0, 1.0, 3.0)
STEPS = 40

every_loss = pytest.mark.parametrize("kind", KINDS)


def _sample(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and masks with a tenth of tumour in the first sample and most of the second."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, 6, 6, 6, generator=generator)
    levels = torch.tensor([0.9, 0.2])[:batch].view(batch, 1, 1, 1, 1)
    return logits, (torch.rand(batch, 1, 6, 6, 6, generator=generator) > levels).float()


def test_every_choice_of_the_schema_has_a_loss_with_a_reduction() -> None:
    assert tuple(LOSSES) == KINDS
    assert {kind: loss_reduction(LossConfig(kind=kind)) for kind in KINDS} == {
        kind: "global" if kind.startswith("batch_") else "per_sample" for kind in KINDS
    }


@every_loss
def test_perfect_prediction_is_the_minimum(kind: Any) -> None:
    loss = build_loss(LossConfig(kind=kind), SPACING_MM)
    logits, masks = _sample()
    perfect = 40 * (masks - 0.5)
    assert 0 <= loss(perfect, masks) < 0.01
    inverted = perfect.clone()
    inverted[0, 0, 3, 3, 3] *= -1
    for other in (logits, 0 * logits, inverted, -perfect):
        assert loss(other, masks) > loss(perfect, masks) + 1e-6


@every_loss
def test_gradient_is_finite_and_points_to_the_mask(kind: Any) -> None:
    logits, masks = _sample()
    for start in (logits, 30 * logits, 0 * logits):
        leaf = start.clone().requires_grad_()
        build_loss(LossConfig(kind=kind), SPACING_MM)(leaf, masks).backward()
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
    loss = build_loss(LossConfig(kind=kind), SPACING_MM)
    (slope,) = torch.autograd.grad(loss(leaf, masks), leaf)
    assert loss(leaf - 0.01 * slope / slope.norm(), masks) < loss(leaf, masks)


@pytest.mark.parametrize("share", ["none", "all"])
@every_loss
def test_mask_without_contour_is_learned(kind: Any, share: str) -> None:
    """Most patches of a scan hold no tumour: their loss is finite and falls towards zero with a correct prediction."""
    logits, masks = _sample()
    masks = torch.zeros_like(masks) if share == "none" else torch.ones_like(masks)
    loss = build_loss(LossConfig(kind=kind), SPACING_MM)
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, masks)
    value.backward()
    assert bool(value.isfinite())
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())
    assert 0 <= loss(40 * (masks - 0.5), masks) < 0.01 < value


@every_loss
def test_reduction_is_as_stated(kind: Any) -> None:
    config = LossConfig(kind=kind)
    loss = build_loss(config, SPACING_MM)
    logits, masks = _sample()
    each = [loss(logits[n : n + 1], masks[n : n + 1]) for n in range(2)]
    mean = torch.allclose(loss(logits, masks), sum(each) / 2, rtol=1e-6)
    assert mean == (loss_reduction(config) == "per_sample")
    assert each[0] != each[1]


@every_loss
def test_batch_of_one_equals_a_batch_of_copies(kind: Any) -> None:
    loss = build_loss(LossConfig(kind=kind), SPACING_MM)
    logits, masks = _sample(batch=1)
    one, copies = loss(logits, masks), loss(logits.expand(3, *logits.shape[1:]), masks.expand(3, *masks.shape[1:]))
    assert one.shape == ()
    # A batch Dice adds its smoothing term once per batch.
    torch.testing.assert_close(
        one, copies, rtol=1e-2 if loss_reduction(LossConfig(kind=kind)) == "global" else 1e-6, atol=0
    )


@every_loss
def test_coarser_heads_count_half_of_the_next_finer(kind: Any) -> None:
    loss = build_loss(LossConfig(kind=kind))
    generator = torch.Generator().manual_seed(0)
    heads, masks = torch.randn(2, 3, 1, 4, 4, 4, generator=generator), torch.ones(2, 1, 4, 4, 4)
    masks[..., :2] = 0
    single = [loss(heads[:, n], masks) for n in range(3)]
    torch.testing.assert_close(loss(heads, masks), (single[0] + single[1] / 2 + single[2] / 4) / 1.75)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_loss
def test_half_precision_logits_are_evaluated_in_single(kind: Any, dtype: torch.dtype) -> None:
    logits = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    masks = torch.ones(1, 1, 4, 4, 4)
    loss = build_loss(LossConfig(kind=kind))
    assert torch.equal(loss(logits, masks), loss(logits.float(), masks))
    assert loss(logits, masks).dtype == torch.float64


@every_loss
def test_bf16_autocast_trains_with_finite_gradients(kind: Any) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(features=(4, 8, 8)), 1, (3.0, 3.0, 3.0), (16, 16, 16))
    patches = torch.rand(2, 1, 16, 16, 16)
    masks = (patches > 0.7).float()
    loss = build_loss(LossConfig(kind=kind), (3.0, 3.0, 3.0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(patches)
        value = loss(logits, masks)
    assert logits.dtype == torch.bfloat16
    value.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    torch.testing.assert_close(value, loss(network(patches), masks), rtol=0.02, atol=0)


@every_loss
def test_network_learns_a_ball(kind: Any) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(kind="residual_unet", features=(4, 8, 8)), 1, (3.0, 3.0, 3.0), (16, 16, 16))
    voxels = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    centres = torch.tensor([[6.0, 8.0, 9.0], [10.0, 7.0, 6.0]])
    masks = torch.stack([((voxels - centre.view(3, 1, 1, 1)).norm(dim=0) < 4)[None].float() for centre in centres])
    patches = masks + 0.3 * torch.randn(masks.shape)
    loss = build_loss(LossConfig(kind=kind), (3.0, 3.0, 3.0))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(network(patches), masks, step / STEPS).backward()
        optimizer.step()
    with torch.no_grad():
        found = (network(patches) > 0).float()
    assert 2 * (found * masks).sum() / (found + masks).sum() > 0.9


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Every loss and its gradients, from one process with the full batch and from two that share it."""
    folder = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).with_name("rank.py"))
    started = [subprocess.Popen([sys.executable, script, str(folder), str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(110) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


def _tensors(stored: dict[str, torch.Tensor], variant: str, run: str) -> dict[str, torch.Tensor]:
    prefix = f"{variant}:{run}:"
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def _relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


# In one process, so that the shared workers are started once.
@pytest.mark.slow
@pytest.mark.xdist_group("loss_workers")
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_loss
def test_two_workers_equal_one_with_the_full_batch(
    kind: str, dtype: torch.dtype, heads: int, ranks: list[dict[str, torch.Tensor]]
) -> None:
    # Double precision leaves only errors of the formula; MONAI's focal loss is always computed in single.
    tolerance = 1e-12 if dtype == torch.float64 and "focal" not in kind else 1e-5
    variant = f"{kind} {dtype} {heads}"
    first, second = (_tensors(stored, variant, "shared") for stored in ranks)
    alone = _tensors(ranks[0], variant, "alone")
    assert set(first) == set(alone) > {"loss", "features.weight"}
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), f"{name}: the workers differ"
        assert expected.dtype == (torch.float64 if name == "loss" else dtype)
        assert _relative_error(first[name], expected) <= tolerance, name
