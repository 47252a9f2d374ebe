"""Optimizers and schedules: every choice has a builder, and rates match their definitions."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from gtvray.config import OptimizerConfig
from gtvray.training.optimizers import build_optimizer, learning_rate


@pytest.mark.parametrize("kind", get_args(OptimizerConfig.model_fields["kind"].annotation))
def test_every_optimizer_lowers_the_loss(kind: Any) -> None:
    layer = torch.nn.Linear(3, 1)
    optimizer = build_optimizer(layer, OptimizerConfig(kind=kind, lr=0.01, momentum=0.5))
    values = torch.tensor([[1.0, 2.0, 3.0]])
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = layer(values).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_sgd_takes_its_momentum_from_the_settings() -> None:
    optimizer = build_optimizer(torch.nn.Linear(1, 1), OptimizerConfig(kind="sgd", momentum=0.8))
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["nesterov"]) == (0.8, True)


def test_sgd_without_momentum_is_plain_sgd() -> None:
    optimizer = build_optimizer(torch.nn.Linear(1, 1), OptimizerConfig(kind="sgd", momentum=0.0))
    assert not optimizer.param_groups[0]["nesterov"]


@pytest.mark.parametrize(
    ("schedule", "half_way", "last"), [("poly", 0.5**0.9, 0.01**0.9), ("cosine", 0.5, 0.0002467), ("constant", 1, 1)]
)
def test_schedules(schedule: Any, half_way: float, last: float) -> None:
    config = OptimizerConfig(schedule=schedule, lr=0.5, warmup_share=0.0)
    # A first step of the full rate is what no warm-up means; the schedule begins after it.
    rates = [learning_rate(config, step, 101) / 0.5 for step in range(101)]
    assert rates[:2] == [1, 1]
    assert (rates[51], rates[100]) == (pytest.approx(half_way, rel=1e-3), pytest.approx(last, rel=1e-3))
    assert rates == sorted(rates, reverse=True)


def test_the_warm_up_rises_to_the_peak_in_its_share_of_the_steps() -> None:
    config = OptimizerConfig(lr=1.0, warmup_share=0.1)
    assert [learning_rate(config, step, 40) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert learning_rate(config, 4, 40) == 1.0
    assert learning_rate(config, 5, 40) < 1.0


@pytest.mark.parametrize("schedule", get_args(OptimizerConfig.model_fields["schedule"].annotation))
def test_every_schedule_has_a_rate_for_every_step(schedule: Any) -> None:
    config = OptimizerConfig(schedule=schedule)
    assert all(0 < learning_rate(config, step, 7) <= config.lr for step in range(7))
