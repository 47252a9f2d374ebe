"""Losses: what each is reduced over, and what each weight weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gtvray.config import LossConfig
from gtvray.models import build_loss


@pytest.mark.parametrize("kind", ["dice_ce", "dice_focal", "dice_topk"])
def test_a_loss_is_a_mean_over_samples(kind: Any) -> None:
    """Two workers with one sample each must give what one worker with both gives."""
    loss = build_loss(LossConfig(kind=kind))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 6, 6, generator=generator)
    masks = (torch.rand(2, 1, 6, 6, 6, generator=generator) > torch.tensor([0.9, 0.2]).view(2, 1, 1, 1, 1)).float()
    apart = [loss(logits[n : n + 1], masks[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(loss(logits, masks), sum(apart) / 2)
    assert apart[0] != apart[1]
    perfect = loss(40 * (masks - 0.5), masks)
    assert 0 <= perfect < 0.01 < apart[0]


def test_the_dice_weight_weighs_the_dice_term() -> None:
    logits, masks = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 4, 4, 4)
    at = [build_loss(LossConfig(dice_weight=weight))(logits, masks) for weight in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(at[2] - at[0], 3 * (at[1] - at[0]))
    torch.testing.assert_close(at[0], torch.nn.functional.binary_cross_entropy_with_logits(logits, masks))


def test_deeper_heads_count_half_of_the_one_above() -> None:
    loss = build_loss(LossConfig())
    generator = torch.Generator().manual_seed(0)
    heads, masks = torch.randn(2, 3, 1, 4, 4, 4, generator=generator), torch.ones(2, 1, 4, 4, 4)
    single = [loss(heads[:, n], masks) for n in range(3)]
    torch.testing.assert_close(loss(heads, masks), (single[0] + single[1] / 2 + single[2] / 4) / 1.75)
