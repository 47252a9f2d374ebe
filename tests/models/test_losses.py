"""Losses: what each is reduced over, shared by two processes or not, and what each term and weight is worth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss, DiceFocalLoss
from monai.losses.dice import DiceLoss as MonaiDice
from safetensors.torch import load_file

from gtvray.config import LossConfig, NetworkConfig
from gtvray.models import build_loss, build_network, loss_reduction
from gtvray.models.losses import LOSSES
from gtvray.models.terms import batch_dice, boundary, signed_distances_mm

KINDS = get_args(LossConfig.model_fields["kind"].annotation)
SPACING_MM = (1.0, 1.0, 3.0)
STEPS = 40


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Every loss and its gradients, by one process that has the whole batch and by two that share it."""
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


def answers(told: dict[str, torch.Tensor], variant: str, way: str) -> dict[str, torch.Tensor]:
    head = f"{variant}:{way}:"
    return {name.removeprefix(head): tensor for name, tensor in told.items() if name.startswith(head)}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far one lies from the other, by the other's length."""
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


def test_every_loss_on_offer_says_what_it_is_reduced_over() -> None:
    assert tuple(LOSSES) == KINDS
    assert {kind: loss_reduction(LossConfig(kind=kind)) for kind in KINDS} == {
        kind: "global" if kind.startswith("batch_") else "per_sample" for kind in KINDS
    }


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", LOSSES)
def test_two_workers_do_what_one_with_both_shares_does(
    kind: str, dtype: torch.dtype, heads: int, ranks: list[dict[str, torch.Tensor]]
) -> None:
    # In double precision nothing but a wrong formula is left; MONAI's focal loss is always computed in single.
    closest = 1e-12 if dtype == torch.float64 and "focal" not in kind else 1e-5
    variant = f"{kind} {dtype} {heads}"
    first, second = (answers(told, variant, "shared") for told in ranks)
    alone = answers(ranks[0], variant, "alone")
    assert set(first) == set(alone) > {"loss", "features.weight"}
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), f"{name}: the workers differ"
        assert expected.dtype == (torch.float64 if name == "loss" else dtype)
        assert apart(first[name], expected) <= closest, name


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_is_reduced_over_what_it_says(kind: Any) -> None:
    config = LossConfig(kind=kind)
    loss = build_loss(config, SPACING_MM)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 6, 6, generator=generator)
    masks = (torch.rand(2, 1, 6, 6, 6, generator=generator) > torch.tensor([0.9, 0.2]).view(2, 1, 1, 1, 1)).float()
    each = [loss(logits[n : n + 1], masks[n : n + 1]) for n in range(2)]
    mean = torch.allclose(loss(logits, masks), sum(each) / 2, rtol=1e-6)
    assert mean == (loss_reduction(config) == "per_sample")
    assert each[0] != each[1]
    perfect = loss(40 * (masks - 0.5), masks)
    assert 0 <= perfect < 0.01 < each[0]


@pytest.mark.parametrize(("kind", "monai"), [("dice_ce", DiceCELoss), ("dice_focal", DiceFocalLoss)])
def test_the_sums_of_two_are_monai_s(kind: Any, monai: Any) -> None:
    logits = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = (logits.flip(0) > 0).float()
    expected = monai(sigmoid=True, lambda_dice=0.7, smooth_nr=1.0, smooth_dr=1.0)(logits, masks)
    told = build_loss(LossConfig(kind=kind, dice_weight=0.7))(logits, masks)
    torch.testing.assert_close(told, expected.double(), rtol=1e-6, atol=0)


def test_dice_of_a_batch_is_that_of_its_patches_as_one_volume() -> None:
    logits = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = (logits.flip(0) > 0.5).float()
    whole = MonaiDice(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, masks)
    torch.testing.assert_close(batch_dice(logits, masks), whole.double(), rtol=1e-6, atol=0)


def test_distances_are_in_millimetres_and_negative_inside() -> None:
    masks = torch.zeros(3, 1, 9, 7, 5)
    masks[0, 0, 2:6, 3:5, 1:4] = 1
    masks[1] = 1
    distances = signed_distances_mm(masks, SPACING_MM)
    assert distances.shape == masks.shape
    assert not distances[1:].any(), "without a contour there is no distance to it"
    places_mm = np.argwhere(np.ones(masks.shape[2:])) * SPACING_MM
    inside = masks[0, 0].numpy().astype(bool).ravel()
    between = np.linalg.norm(places_mm[:, None] - places_mm[None], axis=2)
    expected = np.where(inside, -between[:, ~inside].min(axis=1), between[:, inside].min(axis=1))
    np.testing.assert_allclose(distances[0, 0].numpy().ravel(), expected, rtol=1e-6)


def test_the_boundary_term_has_the_slope_of_kervadec_s_and_no_negative_value() -> None:
    logits = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = torch.zeros(1, 1, 6, 6, 6)
    masks[..., 2:5] = 1
    distances = signed_distances_mm(masks, SPACING_MM)
    value = boundary(logits, masks, distances)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    (expected,) = torch.autograd.grad((torch.sigmoid(logits) * distances).mean(), logits)
    torch.testing.assert_close(slope, expected)
    assert value > 0
    assert boundary(80 * (masks - 0.5), masks, distances) == pytest.approx(0, abs=1e-6)
    # One voxel marked wrongly costs its distance from the contour, shared by all voxels.
    wrong = 80 * (masks - 0.5)
    wrong[0, 0, 0, 0, 0] *= -1
    assert float(boundary(wrong, masks, distances)) == pytest.approx(2 * SPACING_MM[2] / masks.numel(), rel=1e-5)


def test_the_boundary_term_comes_in_slowly_and_by_its_weight() -> None:
    logits = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    masks = (logits.flip(4) > 0).float()
    plain = build_loss(LossConfig())(logits, masks)
    term = boundary(logits, masks, signed_distances_mm(masks, SPACING_MM)).double().mean()
    for weight, warmup_share, progress, expected in (
        (0.1, 0.5, 0.0, 0.0),
        (0.1, 0.5, 0.25, 0.05),
        (0.1, 0.5, 0.5, 0.1),
        (0.1, 0.5, 1.0, 0.1),
        (0.1, 0.0, 0.0, 0.1),
        (0.0, 0.0, 1.0, 0.0),
    ):
        config = LossConfig(kind="dice_boundary", boundary_weight=weight, boundary_warmup_share=warmup_share)
        told = build_loss(config, SPACING_MM)(logits, masks, progress)
        torch.testing.assert_close(told, plain + expected * term)


def test_the_dice_weight_weighs_the_dice_term() -> None:
    logits, masks = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 4, 4, 4)
    at = [build_loss(LossConfig(dice_weight=weight))(logits, masks) for weight in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(at[2] - at[0], 3 * (at[1] - at[0]))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
    torch.testing.assert_close(at[0].float(), expected)


@pytest.mark.parametrize("kind", LOSSES)
def test_deeper_heads_count_half_of_the_one_above(kind: Any) -> None:
    loss = build_loss(LossConfig(kind=kind))
    generator = torch.Generator().manual_seed(0)
    heads, masks = torch.randn(2, 3, 1, 4, 4, 4, generator=generator), torch.ones(2, 1, 4, 4, 4)
    masks[..., :2] = 0
    single = [loss(heads[:, n], masks) for n in range(3)]
    torch.testing.assert_close(loss(heads, masks), (single[0] + single[1] / 2 + single[2] / 4) / 1.75)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_network_learns_a_ball_by_every_loss(kind: Any) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(kind="residual_unet", features=(4, 8, 8)), 1, (3.0, 3.0, 3.0), (16, 16, 16))
    places = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    centres = torch.tensor([[6.0, 8.0, 9.0], [10.0, 7.0, 6.0]])
    masks = torch.stack([((places - centre.view(3, 1, 1, 1)).norm(dim=0) < 4)[None].float() for centre in centres])
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


@pytest.mark.parametrize("kind", LOSSES)
def test_answers_in_half_precision_are_judged_in_single(kind: Any) -> None:
    logits = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    masks = torch.ones(1, 1, 4, 4, 4)
    loss = build_loss(LossConfig(kind=kind))
    assert torch.equal(loss(logits, masks), loss(logits.float(), masks))
    assert loss(logits, masks).dtype == torch.float64
