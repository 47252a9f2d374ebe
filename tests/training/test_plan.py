"""What is refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.errors import ConfigError, DataError
from gtvray.training import check_plan, training_precision


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training.batch_size": 3, "training.num_workers": 2}, "training.num_workers"),
        ({"training.patch_ijk": [8, 8, 8]}, "training.patch_ijk"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    config: Config, train: list[CachedCase], selection: list[CachedCase], changes: dict[str, Any], named: str
) -> None:
    check_plan(config, train, selection)
    with pytest.raises(ConfigError) as caught:
        check_plan(with_dotted(config, changes), train, selection)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_cases_must_be_there_and_on_one_side(config: Config, train: list[CachedCase]) -> None:
    for sides in ((train, []), ([], train), (train, train[-1:])):
        with pytest.raises(DataError):
            check_plan(config, *sides)


@pytest.mark.parametrize(("asked", "given"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_what_was_asked_for(config: Config, asked: str, given: torch.dtype) -> None:
    assert training_precision(with_dotted(config, {"training.precision": asked})) is given


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_follows_the_hardware(config: Config, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
    expected = torch.bfloat16 if native else torch.float32
    assert training_precision(with_dotted(config, {"training.precision": "auto"})) is expected
