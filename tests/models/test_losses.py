"""Losses and their terms: values compared with MONAI, with the papers, and with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss, DiceFocalLoss
from monai.losses.dice import DiceLoss as MonaiDice

from gtvray.config import LossConfig
from gtvray.models import build_loss
from gtvray.models.terms import batch_dice, boundary, signed_distances_mm

SPACING_MM = (1.0, 1.0, 3.0)


@pytest.mark.parametrize(("kind", "monai"), [("dice_ce", DiceCELoss), ("dice_focal", DiceFocalLoss)])
def test_dice_ce_and_dice_focal_equal_monai(kind: Any, monai: Any) -> None:
    logits = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = (logits.flip(0) > 0).float()
    expected = monai(sigmoid=True, lambda_dice=0.7, smooth_nr=1.0, smooth_dr=1.0)(logits, masks)
    found = build_loss(LossConfig(kind=kind, dice_weight=0.7))(logits, masks)
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)


def test_batch_dice_equals_monai_on_the_batch_as_one_volume() -> None:
    logits = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = (logits.flip(0) > 0.5).float()
    expected = MonaiDice(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, masks)
    torch.testing.assert_close(batch_dice(logits, masks), expected.double(), rtol=1e-6, atol=0)


def test_distances_are_in_millimetres_and_negative_inside() -> None:
    masks = torch.zeros(3, 1, 9, 7, 5)
    masks[0, 0, 2:6, 3:5, 1:4] = 1
    masks[1] = 1
    distances = signed_distances_mm(masks, SPACING_MM)
    assert distances.shape == masks.shape
    assert not distances[1:].any(), "a mask without a contour has zero distance"
    positions_mm = np.argwhere(np.ones(masks.shape[2:])) * SPACING_MM
    inside = masks[0, 0].numpy().astype(bool).ravel()
    between = np.linalg.norm(positions_mm[:, None] - positions_mm[None], axis=2)
    expected = np.where(inside, -between[:, ~inside].min(axis=1), between[:, inside].min(axis=1))
    np.testing.assert_allclose(distances[0, 0].numpy().ravel(), expected, rtol=1e-6)


def test_boundary_term_has_the_gradient_of_the_paper_and_is_not_negative() -> None:
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
    # One wrong voxel costs its distance from the contour, divided by the number of voxels.
    wrong = 80 * (masks - 0.5)
    wrong[0, 0, 0, 0, 0] *= -1
    assert float(boundary(wrong, masks, distances)) == pytest.approx(2 * SPACING_MM[2] / masks.numel(), rel=1e-5)


def test_boundary_term_is_weighted_and_ramped_up() -> None:
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
        found = build_loss(config, SPACING_MM)(logits, masks, progress)
        torch.testing.assert_close(found, plain + expected * term)


def test_dice_weight_scales_the_dice_term_only() -> None:
    logits, masks = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 4, 4, 4)
    values = [build_loss(LossConfig(dice_weight=weight))(logits, masks) for weight in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(values[2] - values[0], 3 * (values[1] - values[0]))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
    torch.testing.assert_close(values[0].float(), expected)
